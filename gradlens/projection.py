"""Projection: what one step's gradients at the hookpoints say about every feature, summed over micro-batches.

`Projection` does it where the gradients are. `gradlens_services.lens` does the same in Ray actors, away from the ranks.
Shape suffixes: T tokens, K active features per token, D d_model, F d_sae, B rows.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from gradlens import attribution as estimators
from gradlens.config import ObserveSettings
from gradlens.dictionary import Dictionary
from gradlens.world import World, flat_sum_

SUMMED = ("push", "attribution", "energy", "activation")
TOP_TOKENS = 8  # kept of each row
Record = dict[str, Any]
Members = dict[tuple[str, str], list[int]]  # (concept, hookpoint) -> feature ids


@dataclass(frozen=True)
class Tokens:
    """Tokens of one micro-batch at one hookpoint. On an accelerator all positions are here: compaction would synchronise."""

    h_TD: Tensor
    g_TD: Tensor  # zero where a token does not count
    counted_T: Tensor  # bool
    row_T: Tensor  # int64: row of each token
    position_T: Tensor  # int64: its position in the row
    rows: int
    row_ids: tuple[int, ...] | None = None  # None: rows are not recorded one by one


class Projector(Protocol):
    """What the lens needs of whoever projects."""

    def add(self, hookpoint: str, tokens: Tokens, pairs: tuple[Tensor, Tensor] | None = None) -> None:
        """A micro-batch of the step in progress. Never waits."""
        ...

    def finish(self, record: Record, world: World, emit: Callable[[Record], None]) -> None:
        """The step is over: put its readings into `record` and hand it to `emit`, now or from a thread of its own. Never waits."""
        ...

    def skip(self, record: Record, emit: Callable[[Record], None]) -> None:
        """Hand on a record of a step that was not observed, in its turn."""
        ...

    def totals(self) -> dict[str, dict[str, Tensor]]:
        """Sums over all steps, float64 `[F]`: hookpoint -> estimator -> sum."""
        ...

    def set_totals(self, totals: dict[str, dict[str, Tensor]]) -> None: ...


class _Sums:
    """What one step accumulates at one hookpoint, on the device."""

    def __init__(self, dictionary: Dictionary) -> None:
        like = dictionary.W_dec
        self.g_sum = torch.zeros(dictionary.d_in, dtype=torch.float64, device=like.device)
        self.attribution = torch.zeros(dictionary.d_sae, dtype=torch.float64, device=like.device)
        self.energy = torch.zeros(dictionary.d_sae, dtype=torch.float64, device=like.device)
        self.activation = torch.zeros(dictionary.d_sae, dtype=torch.float64, device=like.device)
        self.scalars = torch.zeros(3, dtype=torch.float64, device=like.device)  # explained, total, tokens

    def tensors(self) -> list[Tensor]:
        return [self.g_sum, self.attribution, self.energy, self.activation, self.scalars]


class Projection:
    """The projector in this process."""

    def __init__(self, dictionaries: dict[str, Dictionary], members: Members, observe: ObserveSettings) -> None:
        self.dictionaries, self.observe = dictionaries, observe
        self._members = {
            key: torch.tensor(ids, device=dictionaries[key[1]].W_dec.device) for key, ids in members.items() if key[1] in dictionaries
        }
        self._sums = {name: _Sums(dictionary) for name, dictionary in dictionaries.items()}
        self._examples: list[dict[str, Any]] = []
        self._totals = {
            name: {key: torch.zeros(dictionary.d_sae, dtype=torch.float64) for key in SUMMED if key in observe.estimators}
            for name, dictionary in dictionaries.items()
        }

    @torch.no_grad()
    def add(self, hookpoint: str, tokens: Tokens, pairs: tuple[Tensor, Tensor] | None = None) -> None:
        """Add a micro-batch; `pairs`: its active features, where somebody has encoded it already."""
        dictionary, sums, wanted = self.dictionaries[hookpoint], self._sums[hookpoint], self.observe.estimators
        h_TD, g_TD = tokens.h_TD.to(dictionary.W_dec.dtype), tokens.g_TD.to(dictionary.W_dec.dtype)
        sums.g_sum += g_TD.sum(0, dtype=torch.float64)
        sums.scalars[1] += g_TD.double().square().sum()
        sums.scalars[2] += tokens.counted_T.sum()
        by_row = tokens.row_ids is not None and bool(self._members)
        if pairs is None and (by_row or {"attribution", "unexplained", "activation"} & set(wanted)):
            pairs = dictionary.encode_active(h_TD)
        if "attribution" in wanted:
            sums.attribution += estimators.attribution(dictionary, h_TD, g_TD, pairs)
        if "energy" in wanted:
            sums.energy += estimators.energy(dictionary, g_TD)
        if "activation" in wanted:
            idx_TK, val_TK = pairs
            sums.activation.index_add_(0, idx_TK.flatten(), (val_TK * tokens.counted_T[:, None]).flatten().double())
        if "unexplained" in wanted:
            sums.scalars[0] += estimators.explained_energy(dictionary, h_TD, g_TD, pairs)[0]
        if by_row:
            self._add_rows(hookpoint, tokens, pairs, g_TD)

    def _add_rows(self, name: str, tokens: Tokens, pairs: tuple[Tensor, Tensor], g_TD: Tensor) -> None:
        """Per row: summed push on the mean of a concept's unit directions, mean activation of its features, and the push token by token."""
        dictionary, (idx_TK, val_TK) = self.dictionaries[name], pairs
        counted_T = tokens.counted_T.to(g_TD.dtype)
        g_BD = g_TD.new_zeros(tokens.rows, g_TD.shape[1]).index_add_(0, tokens.row_T, g_TD)
        tokens_B = g_TD.new_zeros(tokens.rows).index_add_(0, tokens.row_T, counted_T).clamp_min(1)
        for (concept, hookpoint), features in self._members.items():
            if hookpoint != name:
                continue
            act_T = (val_TK * torch.isin(idx_TK, features)).sum(-1).to(g_TD.dtype) * counted_T
            direction_D = dictionary.unit_directions(features).mean(0)
            push_B = -(g_BD @ direction_D)
            act_B = act_T.new_zeros(tokens.rows).index_add_(0, tokens.row_T, act_T) / tokens_B
            entry = {"concept": concept, "hookpoint": name, "row_ids": tokens.row_ids, "push": push_B, "activation": act_B}
            by_token = {"row": tokens.row_T, "position": tokens.position_T, "counted": tokens.counted_T, "push": -(g_TD @ direction_D)}
            self._examples.append(entry | {"tokens": by_token})

    def finish(self, record: Record, world: World, emit: Callable[[Record], None]) -> None:
        """The readings of the step, summed over ranks, go into the record at once."""
        flat_sum_(world, [tensor for sums in self._sums.values() for tensor in sums.tensors()])
        rows = self.take_examples(world.size)
        examples = [row for part in world.gather(rows) for row in part] if world.size > 1 else rows
        part = self.take(world.size)
        record["scalars"] |= part["scalars"]
        record |= {"features": part["features"], "examples": examples}
        self.skip(record, emit)

    def skip(self, record: Record, emit: Callable[[Record], None]) -> None:
        for name, columns in record.get("dense", {}).items():
            columns |= {key: total.float().numpy() for key, total in self._totals[name].items()}
        emit(record)

    def totals(self) -> dict[str, dict[str, Tensor]]:
        return self._totals

    def set_totals(self, totals: dict[str, dict[str, Tensor]]) -> None:
        """Go on from these sums. What they lack (an estimator that was not computed then) goes on from zero."""
        for name, part in self._totals.items():
            part.update({key: value.clone() for key, value in totals.get(name, {}).items() if key in part})

    def take_examples(self, ranks: int) -> list[dict[str, Any]]:
        """The rows of the step in progress, one for each row, concept and hookpoint; a rank's loss is averaged with the others'."""
        entries, self._examples = self._examples, []
        found = []
        for entry in entries:
            top = _top_tokens(entry["tokens"], len(entry["push"]), ranks)
            about = {"concept": entry["concept"], "hookpoint": entry["hookpoint"]}
            columns = (entry["row_ids"], (entry["push"] / ranks).tolist(), entry["activation"].tolist(), top)
            for row, push, activation, tokens in zip(*columns, strict=False):
                found.append(about | {"row_id": row, "push": push, "activation": activation} | tokens)
        return found

    def take(self, ranks: int) -> Record:
        """`{"features", "scalars"}` of the step in progress, whose sums must be those of all ranks; they are added to the totals."""
        scalars: dict[str, float] = {}
        features = {name: self._take(name, ranks, scalars) for name in self._sums}
        return {"features": features, "scalars": scalars}

    def _take(self, name: str, ranks: int, scalars: dict[str, float]) -> dict[str, np.ndarray]:
        dictionary, sums = self.dictionaries[name], self._sums[name]
        # A rank's loss is averaged with the others', so linear sums take 1/R and squares 1/R².
        values = {
            "push": estimators.push(dictionary, (sums.g_sum / ranks).to(dictionary.W_dec.dtype)).double(),
            "attribution": sums.attribution / ranks,
            "energy": sums.energy / ranks**2,
            "activation": sums.activation,
        }
        values = {key: value.cpu() for key, value in values.items() if key in self.observe.estimators}
        explained, total, tokens = sums.scalars.tolist()
        scalars[f"{name}/gradient_norm"] = total**0.5 / ranks
        if "unexplained" in self.observe.estimators:
            scalars[f"{name}/unexplained"] = 1 - explained / total if total > 0 else float("nan")
        scalars["train/counted_tokens"] = tokens
        for key, value in values.items():
            self._totals[name][key] += value
        for tensor in sums.tensors():
            tensor.zero_()
        pinned: set[int] = set()
        for (concept, hookpoint), members in self._members.items():
            if hookpoint == name:
                members = members.cpu()
                pinned.update(members.tolist())
                scalars.update({f"concept/{concept}/{name}/{key}": value[members].mean().item() for key, value in values.items()})
        k = min(max(1, self.observe.top_k // max(1, len(values))), dictionary.d_sae)
        chosen = sorted(pinned.union(*(value.abs().nan_to_num().topk(k).indices.tolist() for value in values.values())))
        return {"feature": np.array(chosen, dtype=np.int32), **{key: value[chosen].float().numpy() for key, value in values.items()}}


def _top_tokens(tokens: dict[str, Tensor], rows: int, ranks: int) -> list[dict[str, list]]:
    """Of each row the `TOP_TOKENS` counted tokens with the largest positive push: `{"positions", "token_push"}`, largest first."""
    row, position, counted, push = (tokens[name].cpu().numpy() for name in ("row", "position", "counted", "push"))
    push = push / ranks
    found = []
    for index in range(rows):
        mine = np.flatnonzero((row == index) & counted & (push > 0))
        mine = mine[np.argsort(-push[mine], kind="stable")[:TOP_TOKENS]]
        found.append({"positions": position[mine].tolist(), "token_push": push[mine].tolist()})
    return found

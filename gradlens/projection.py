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
from gradlens.groups import angle, group_basis
from gradlens.uptake import taught, taught_by_row
from gradlens.world import World, flat_sum_

SUMMED = ("taught", "push", "attribution", "energy", "activation")
TOP_TOKENS = 8  # kept of each row
TOP_FEATURES = 64  # kept of each row: those that it teaches most
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
    loss_T: Tensor | None = None  # loss of each token, 0 where the loss does not count it; None: the model made no logits


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

    def __init__(self, dictionary: Dictionary, groups: int) -> None:
        like = dictionary.W_dec
        self.g_sum = torch.zeros(dictionary.d_in, dtype=torch.float64, device=like.device)
        self.taught = torch.zeros(dictionary.d_sae, dtype=torch.float64, device=like.device)
        self.attribution = torch.zeros(dictionary.d_sae, dtype=torch.float64, device=like.device)
        self.energy = torch.zeros(dictionary.d_sae, dtype=torch.float64, device=like.device)
        self.activation = torch.zeros(dictionary.d_sae, dtype=torch.float64, device=like.device)
        self.groups = torch.zeros(groups, dtype=torch.float64, device=like.device)  # ||QᵀG||² of every concept
        self.scalars = torch.zeros(4, dtype=torch.float64, device=like.device)  # explained, total, tokens, loss

    def tensors(self) -> list[Tensor]:
        return [self.g_sum, self.taught, self.attribution, self.energy, self.activation, self.groups, self.scalars]


class Projection:
    """The projector in this process."""

    def __init__(self, dictionaries: dict[str, Dictionary], members: Members, observe: ObserveSettings) -> None:
        self.dictionaries, self.observe = dictionaries, observe
        self._members = {
            key: torch.tensor(ids, device=dictionaries[key[1]].W_dec.device) for key, ids in members.items() if key[1] in dictionaries
        }
        self._bases = {key: group_basis(dictionaries[key[1]], ids) for key, ids in self._members.items()}
        self._sums = {name: _Sums(dictionary, len(self._of(name))) for name, dictionary in dictionaries.items()}
        self._examples: list[dict[str, Any]] = []
        self._lessons: list[tuple[str, tuple[int, ...], Tensor, Tensor]] = []
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
        for index, key in enumerate(self._of(hookpoint)):
            sums.groups[index] += (g_TD @ self._bases[key]).double().square().sum()
        learns = "taught" in wanted and tokens.loss_T is not None
        by_row = tokens.row_ids is not None and (learns or bool(self._members))
        if pairs is None and (by_row or learns or {"attribution", "unexplained", "activation"} & set(wanted)):
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
        if learns:
            sums.taught += taught(*pairs, tokens.loss_T, dictionary.d_sae)
            sums.scalars[3] += tokens.loss_T.sum()
        if by_row:
            self._add_rows(hookpoint, tokens, pairs, g_TD)
        if learns and tokens.row_ids is not None:
            best = taught_by_row(*pairs, tokens.loss_T, tokens.row_T, tokens.rows, dictionary.d_sae, TOP_FEATURES)
            self._lessons.append((hookpoint, tokens.row_ids, *best))

    def _of(self, hookpoint: str) -> list[tuple[str, str]]:
        """The concepts with features at a hookpoint."""
        return [key for key in self._members if key[1] == hookpoint]

    def _add_rows(self, name: str, tokens: Tokens, pairs: tuple[Tensor, Tensor], g_TD: Tensor) -> None:
        """Per row and concept, means over its features: loss of tokens that express it, push, activation; and what each token teaches."""
        dictionary, (idx_TK, val_TK) = self.dictionaries[name], pairs
        counted_T = tokens.counted_T.to(g_TD.dtype)
        g_BD = g_TD.new_zeros(tokens.rows, g_TD.shape[1]).index_add_(0, tokens.row_T, g_TD)
        tokens_B = g_TD.new_zeros(tokens.rows).index_add_(0, tokens.row_T, counted_T).clamp_min(1)
        for (concept, hookpoint), features in self._members.items():
            if hookpoint != name:
                continue
            act_T = (val_TK * torch.isin(idx_TK, features)).sum(-1).to(g_TD.dtype) * counted_T / len(features)
            direction_D = dictionary.unit_directions(features).mean(0)
            push_B = -(g_BD @ direction_D)
            act_B = act_T.new_zeros(tokens.rows).index_add_(0, tokens.row_T, act_T) / tokens_B
            entry = {"concept": concept, "hookpoint": name, "row_ids": tokens.row_ids, "push": push_B, "activation": act_B}
            lesson_T = act_T * tokens.loss_T.to(act_T.dtype) if tokens.loss_T is not None else act_T.new_full(act_T.shape, float("nan"))
            entry["taught"] = act_T.new_zeros(tokens.rows).index_add_(0, tokens.row_T, lesson_T)
            by_token = {"row": tokens.row_T, "position": tokens.position_T, "taught": lesson_T}
            self._examples.append(entry | {"tokens": by_token})

    def finish(self, record: Record, world: World, emit: Callable[[Record], None]) -> None:
        """The readings of the step, summed over ranks, go into the record at once."""
        flat_sum_(world, [tensor for sums in self._sums.values() for tensor in sums.tensors()])
        rows = (self.take_examples(world.size), self.take_lessons())
        parts = world.gather(rows) if world.size > 1 else [rows]
        examples, lessons = ([row for part in parts for row in part[which]] for which in (0, 1))
        part = self.take(world.size)
        record["scalars"] |= part["scalars"]
        record |= {"features": part["features"], "examples": examples, "lessons": lessons}
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
            top = _top_tokens(entry["tokens"], len(entry["push"]))
            about = {"concept": entry["concept"], "hookpoint": entry["hookpoint"]}
            columns = (entry["row_ids"], entry["taught"].tolist(), (entry["push"] / ranks).tolist(), entry["activation"].tolist(), top)
            for row, lesson, push, activation, tokens in zip(*columns, strict=False):
                found.append(about | {"row_id": row, "taught": lesson, "push": push, "activation": activation} | tokens)
        return found

    def take_lessons(self) -> list[dict[str, Any]]:
        """Of every row of the step the features that it teaches most, at each hookpoint: `row_id, hookpoint, features, taught`."""
        taken, self._lessons = self._lessons, []
        found = []
        for hookpoint, row_ids, idx_BK, val_BK in taken:
            for row, ids, values in zip(row_ids, idx_BK.tolist(), val_BK.tolist(), strict=False):
                kept = sum(value > 0 for value in values)
                found.append({"row_id": row, "hookpoint": hookpoint, "features": ids[:kept], "taught": values[:kept]})
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
            "taught": sums.taught.clone(),  # the sums are emptied below
            "push": estimators.push(dictionary, (sums.g_sum / ranks).to(dictionary.W_dec.dtype)).double(),
            "attribution": sums.attribution / ranks,
            "energy": sums.energy / ranks**2,
            "activation": sums.activation.clone(),
        }
        values = {key: value.cpu() for key, value in values.items() if key in self.observe.estimators}
        explained, total, tokens, loss = sums.scalars.tolist()
        if "taught" in values and loss == 0:
            values["taught"].fill_(float("nan"))  # the model made no logits
        scalars[f"{name}/gradient_norm"] = total**0.5 / ranks
        if "unexplained" in self.observe.estimators:
            scalars[f"{name}/unexplained"] = 1 - explained / total if total > 0 else float("nan")
        scalars["train/counted_tokens"] = tokens
        for key, value in values.items():
            self._totals[name][key] += value.nan_to_num() if key == "taught" else value
        whole = (sums.g_sum / ranks).norm().item()
        for (concept, _), energy in zip(self._of(name), sums.groups.tolist(), strict=True):
            inside = (self._bases[concept, name].double().T @ (sums.g_sum / ranks)).norm().item()
            scalars[f"concept/{concept}/{name}/group_gradient"] = energy**0.5 / ranks
            scalars[f"concept/{concept}/{name}/group_share"] = energy / total if total > 0 else float("nan")
            scalars[f"concept/{concept}/{name}/group_angle"] = angle(inside, whole)
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


def _top_tokens(tokens: dict[str, Tensor], rows: int) -> list[dict[str, list]]:
    """Of each row the `TOP_TOKENS` tokens that teach most: `{"positions", "token_taught"}`, largest first."""
    row, position, lesson = (tokens[name].cpu().numpy() for name in ("row", "position", "taught"))
    found = []
    for index in range(rows):
        mine = np.flatnonzero((row == index) & (lesson > 0))
        mine = mine[np.argsort(-lesson[mine], kind="stable")[:TOP_TOKENS]]
        found.append({"positions": position[mine].tolist(), "token_taught": lesson[mine].tolist()})
    return found

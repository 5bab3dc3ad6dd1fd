"""Projection: what one step's gradients at the hookpoints say about every feature, summed over micro-batches.

`Projection` does it where the gradients are. `gradlens_services.lens` does the same in Ray actors, away from the ranks.
Shape suffixes: T tokens, K active features per token, D d_model, F d_sae, B rows.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Protocol

import torch
from torch import Tensor

from gradlens.concepts.concept_files import RowDetector
from gradlens.concepts.detector import score, weights_over
from gradlens.config import ObserveSettings
from gradlens.dictionaries.dictionary import Dictionary
from gradlens.dictionaries.encoding import ROOM, encode_active, full
from gradlens.dictionaries.groups import group_basis
from gradlens.dictionaries.pair_sums import weighted_sums
from gradlens.dictionaries.precision import to_encode
from gradlens.readings import attribution as estimators
from gradlens.readings.attribution import token_blocks
from gradlens.readings.outbox import Outbox, each_tensor
from gradlens.readings.sampling import draw, draw_among, variance_of_sum
from gradlens.readings.step_readings import Contents, read_examples, read_lessons, read_sums
from gradlens.readings.uptake import shown, taught, taught_by_row
from gradlens.world import World, flat_sum_

SUMMED = ("taught", "push", "attribution", "energy", "activation")
NEED_PAIRS = {"attribution", "unexplained", "activation"}
HELD = 2**23  # bytes of tokens that wait, over all hookpoints
EXPLAINED_TOKENS = 64  # drawn at random, whose `unexplained` is read: off by about 0.01 from that of all tokens of a step
TOP_FEATURES = 64  # kept of each row: those that it teaches most
Record = dict[str, Any]
Members = dict[tuple[str, str], list[int]]  # (concept, hookpoint) -> feature ids
RowDetectors = dict[tuple[str, str], RowDetector]  # likewise, what tells the concept's texts, where that is known


@dataclass(frozen=True)
class Tokens:
    """Tokens of one micro-batch at one hookpoint. On an accelerator all positions are here: compaction would synchronise."""

    h_TD: Tensor
    g_TD: Tensor  # zero where it is not read
    counted_T: Tensor  # bool
    row_T: Tensor  # int64: row of each token
    position_T: Tensor  # int64: its position in the row, before that was rewritten if it was; -1: not known
    rows: int
    row_ids: tuple[int, ...] | None = None  # None: rows are not recorded one by one
    loss_T: Tensor | None = None  # loss of each token, 0 where the loss does not count it; None: the model made no logits
    step: int = 0  # of the run: what is drawn at random is drawn by it, so that a resumed run draws the same

    def map(self, change: Callable[[Tensor], Tensor]) -> Tokens:
        """The same with every tensor changed."""
        return replace(self, **{name: change(value) for name, value in vars(self).items() if isinstance(value, Tensor)})

    def like(self, other: Tokens) -> bool:
        """Whether the same is known of both, so that they can be joined."""
        return (self.row_ids is None, self.loss_T is None) == (other.row_ids is None, other.loss_T is None)

    @classmethod
    def join(cls, parts: list[Tokens]) -> Tokens:
        """Several micro-batches as one."""
        joined, rows = {}, 0
        for name in ("h_TD", "g_TD", "counted_T", "position_T", "loss_T"):
            joined[name] = None if getattr(parts[0], name) is None else torch.cat([getattr(part, name) for part in parts])
        row_T = []
        for part in parts:
            row_T.append(part.row_T + rows)
            rows += part.rows
        row_ids = None if parts[0].row_ids is None else tuple(row for part in parts for row in part.row_ids)
        return cls(row_T=torch.cat(row_T), rows=rows, row_ids=row_ids, step=parts[0].step, **joined)


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

    def drop(self) -> None:
        """Forget the micro-batches of the step in progress: the optimizer will not take it."""
        ...

    def totals(self) -> dict[str, dict[str, Tensor]]:
        """Sums over all steps, float64 `[F]`: hookpoint -> estimator -> sum."""
        ...

    def settle(self) -> None:
        """The last step is over: hand on what is still on its way here."""
        ...

    def set_totals(self, totals: dict[str, dict[str, Tensor]]) -> None: ...


class _Sums:
    """What one step accumulates at one hookpoint, on the device, in float64."""

    def __init__(self, dictionary: Dictionary, concepts: int) -> None:
        zeros = lambda *shape: torch.zeros(*shape, dtype=torch.float64, device=dictionary.W_dec.device)  # noqa: E731
        self.g_sum = zeros(dictionary.d_out)
        self.taught, self.attribution, self.energy, self.activation = (zeros(dictionary.d_sae) for _ in range(4))
        self.groups = zeros(concepts)  # ||QᵀG||² of every concept
        self.variances = zeros(2, concepts)  # of its `taught` and `attribution`, where tokens are drawn
        # explained, ||g||², tokens, loss, tokens that are not finite, tokens with too many active features, ||g||² of what was explained
        self.scalars = zeros(7)


class Projection:
    """The projector in this process."""

    def __init__(
        self, dictionaries: dict[str, Dictionary], members: Members, observe: ObserveSettings, row_detectors: RowDetectors | None = None
    ) -> None:
        self.dictionaries, self.observe = dictionaries, observe
        self._members = {
            key: torch.tensor(ids, device=dictionaries[key[1]].W_dec.device) for key, ids in members.items() if key[1] in dictionaries
        }
        self._ids = {key: torch.tensor(ids) for key, ids in members.items() if key in self._members}  # on the CPU: fetching them would wait
        self._tells = {
            key: (weights_over(tells, dictionaries[key[1]].d_sae, dictionaries[key[1]].W_dec.device), tells.bias)
            for key, tells in (row_detectors or {}).items()
            if key in self._members
        }
        self._bases = {key: group_basis(dictionaries[key[1]], ids) for key, ids in self._members.items()}
        self._sums = {name: _Sums(dictionary, len(self._of(name))) for name, dictionary in dictionaries.items()}
        self._examples: list[dict[str, Any]] = []
        self._lessons: list[tuple[str, tuple[int, ...], Tensor, Tensor]] = []
        self._totals = {
            name: {key: torch.zeros(dictionary.d_sae, dtype=torch.float64) for key in SUMMED if key in observe.estimators}
            for name, dictionary in dictionaries.items()
        }
        self._outbox = Outbox()
        self._held: dict[str, list[Tokens]] = {name: [] for name in dictionaries}  # micro-batches of the step that have not been projected
        self._generators: dict[torch.device, torch.Generator] = {}  # our own: training draws what it would draw without us
        self._draws = 0  # in the step in progress

    # -- during a step --------------------------------------------------------------------------------------------------------

    def add(self, hookpoint: str, tokens: Tokens, pairs: tuple[Tensor, Tensor] | None = None) -> None:
        """Add a micro-batch; `pairs`: its active features, where somebody has encoded it already.

        On a CPU small ones are held until there are enough tokens for products to be worth their while, or the step is over. Tokens whose
        activation, gradient or loss is not finite are left out and counted.
        """
        dictionary = self.dictionaries[hookpoint]
        together = dictionary.activation == "batchtopk" and dictionary.threshold is None  # a batch chooses its active features together
        if pairs is not None or together or tokens.h_TD.device.type != "cpu":
            self._project(hookpoint, tokens, pairs)
            return
        if not all(part.like(tokens) for part in self._held[hookpoint]):
            self._project_held(hookpoint)
        self._held[hookpoint].append(tokens)
        if sum(len(part.h_TD) for part in self._held[hookpoint]) * dictionary.d_in * 8 >= HELD // len(self.dictionaries):
            self._project_held(hookpoint)

    def _project_held(self, hookpoint: str) -> None:
        held, self._held[hookpoint] = self._held[hookpoint], []
        if held:
            self._project(hookpoint, held[0] if len(held) == 1 else Tokens.join(held), None)

    @torch.no_grad()
    def _project(self, hookpoint: str, tokens: Tokens, pairs: tuple[Tensor, Tensor] | None) -> None:
        dictionary, sums, wanted, concepts = (
            self.dictionaries[hookpoint], self._sums[hookpoint], self.observe.estimators, self._of(hookpoint)
        )  # fmt: skip
        given = tokens
        tokens, bad_T, emptied = _finite(given, dictionary.work_dtype)
        left_T = None if emptied else bad_T  # to be left out of each sum over all tokens
        sums.scalars[2] += tokens.counted_T.sum()
        sums.scalars[4] += (bad_T & given.counted_T).sum()  # what padding holds nobody asks
        learns = "taught" in wanted and tokens.loss_T is not None
        looks = learns or bool(NEED_PAIRS & set(wanted))  # at active features: only with them is read what rows teach
        by_row = looks and tokens.row_ids is not None and (learns or bool(self._members))
        g_BD = tokens.g_TD.new_zeros(tokens.rows, dictionary.d_out, dtype=dictionary.work_dtype) if by_row and concepts else None
        self._add_moments(hookpoint, tokens, left_T, g_BD)
        if "energy" in wanted:
            sums.energy += estimators.energy(dictionary, tokens.g_TD, precision=self.observe.precision, bad_T=left_T)
        if learns:
            sums.scalars[3] += tokens.loss_T.sum()
        if not looks:
            return
        T, weight, every, device = len(tokens.g_TD), 1.0, tokens, tokens.g_TD.device
        if pairs is None and self.observe.token_share < 1 and T > 1:
            at_N = draw(T, self.observe.token_share, self._generator(device, tokens.step))
            tokens, weight, bad_T = tokens.map(lambda values: values[at_N]), T / len(at_N), bad_T[at_N]
        if pairs is None:
            h_TD = to_encode(dictionary, tokens.h_TD, self.observe.precision)
            idx_TK, val_TK = encode_active(dictionary, h_TD, room=ROOM, bad_T=None if emptied else bad_T)
            val_TK.masked_fill_(bad_T[:, None], 0)
        else:
            idx_TK, val_TK = pairs[0], pairs[1].masked_fill(bad_T[:, None], 0)
        sums.scalars[5] += (full(dictionary, val_TK) & tokens.counted_T).sum()
        dots_TK, gated_TK = None, None
        if "attribution" in wanted:
            dots_TK = estimators.pair_dots(dictionary, tokens.g_TD, idx_TK, val_TK=val_TK)
            scale_T1 = dictionary.row_scale(tokens.h_TD.to(dictionary.work_dtype) if dictionary.input_norm != "none" else tokens.h_TD)
            factor_TK = dots_TK if scale_T1 is None else torch.where(val_TK != 0, dots_TK * scale_T1, 0)
            sums.attribution -= weight * weighted_sums(idx_TK, val_TK, factor_TK, dictionary.d_sae)
            gated_TK = -val_TK * factor_TK if weight != 1 else None  # asked for the variances of what is drawn
            del factor_TK
        if "activation" in wanted:
            sums.activation += weight * weighted_sums(idx_TK, val_TK, tokens.counted_T.to(val_TK.dtype), dictionary.d_sae)
        if learns:
            sums.taught += weight * taught(idx_TK, val_TK, tokens.loss_T, dictionary.d_sae)
        if learns and tokens.row_ids is not None:
            ids_BK, best_BK = taught_by_row(idx_TK, val_TK, tokens.loss_T, tokens.row_T, tokens.rows, dictionary.d_sae, TOP_FEATURES)
            self._lessons.append((hookpoint, tokens.row_ids, ids_BK, weight * best_BK))
        if by_row or weight != 1:
            self._add_concepts(hookpoint, every, tokens, weight, (idx_TK, val_TK), gated_TK, g_BD)
        if "unexplained" in wanted:
            at_N, each = slice(None), 1.0
            if len(idx_TK) > EXPLAINED_TOKENS:
                at_N = draw_among(tokens.counted_T, EXPLAINED_TOKENS, self._generator(device, tokens.step))
                each = tokens.counted_T.sum().float() / tokens.counted_T[at_N].sum().clamp_min(1)
            h_ND, g_ND = (x_TD[at_N].to(dictionary.work_dtype).masked_fill(bad_T[at_N, None], 0) for x_TD in (tokens.h_TD, tokens.g_TD))
            dots_NK, pairs = None if dots_TK is None else dots_TK[at_N], (idx_TK[at_N], val_TK[at_N])
            del idx_TK, val_TK, dots_TK, gated_TK  # what follows needs as much memory as these
            part = estimators.explained_energy(dictionary, h_ND, g_ND, pairs, dots_NK)
            sums.scalars[0] += weight * each * part[0]
            sums.scalars[6] += weight * each * part[1]

    def _add_moments(self, name: str, tokens: Tokens, left_T: Tensor | None, g_BD: Tensor | None) -> None:
        """Sums over all tokens but those `left_T` out: the gradient, its square, what of that lies in each concept's span; of every row."""
        dictionary, sums, concepts = self.dictionaries[name], self._sums[name], self._of(name)
        for at, g in token_blocks(tokens.g_TD, left_T, dictionary.work_dtype):
            if g_BD is not None:
                g_BD.index_add_(0, tokens.row_T[at], g)
            sums.g_sum += g.sum(0, dtype=torch.float64)
            sums.scalars[1] += torch.einsum("td,td->t", g, g).double().sum()
            for index, key in enumerate(concepts):
                sums.groups[index] += (g @ self._bases[key].to(g.dtype)).double().square().sum()

    def _add_concepts(
        self, name: str, every: Tokens, drawn: Tokens, weight: float, pairs: tuple[Tensor, Tensor], gated_TK: Tensor | None,
        g_BD: Tensor | None,
    ) -> None:  # fmt: skip
        """Per row and concept: loss of tokens that express it, push and activation (means over its features); what each token teaches.

        Where tokens were drawn: how far the concept's sums may be off. `g_BD`: each row's gradient; None where rows are not recorded.
        """
        dictionary, sums, (idx_TK, val_TK), rows = self.dictionaries[name], self._sums[name], pairs, every.rows
        tokens_B = val_TK.new_zeros(rows).index_add_(0, every.row_T, every.counted_T.to(val_TK.dtype)).clamp_min(1)
        for index, key in enumerate(self._of(name)):
            members = self._members[key]
            # by a table: `isin` compares every pair with every member, and where these are many it sorts, which makes the host wait
            is_member_F = torch.zeros(dictionary.d_sae, dtype=val_TK.dtype, device=members.device)
            mine_TK = is_member_F.index_fill_(0, members, 1 / len(members))[idx_TK]
            act_T = ((val_TK * mine_TK).sum(-1) * drawn.counted_T).to(val_TK.dtype)
            taught_T = torch.full_like(act_T, torch.nan) if drawn.loss_T is None else act_T * drawn.loss_T.to(act_T.dtype)
            if weight != 1:
                sums.variances[0, index] += variance_of_sum(taught_T.double(), len(every.g_TD))
                if gated_TK is not None:
                    sums.variances[1, index] += variance_of_sum((gated_TK * mine_TK).sum(-1).double(), len(every.g_TD))
            if g_BD is not None:
                entry = {"concept": key[0], "hookpoint": name, "row_ids": every.row_ids}
                if key in self._tells:
                    shown_T, entry["shows"] = shown(score(idx_TK, val_TK, *self._tells[key]), drawn.counted_T, drawn.row_T, rows)
                    taught_T = shown_T.to(act_T.dtype) * (torch.nan if drawn.loss_T is None else drawn.loss_T.to(act_T.dtype))
                act_B, taught_B = (act_T.new_zeros(rows).index_add_(0, drawn.row_T, weight * part) for part in (act_T, taught_T))
                push_B = -(g_BD @ dictionary.unit_directions(members).to(g_BD.dtype).mean(0))
                by_token = {"row": drawn.row_T, "position": drawn.position_T, "taught": taught_T}
                self._examples.append(entry | {"push": push_B, "activation": act_B / tokens_B, "taught": taught_B, "tokens": by_token})

    def _of(self, hookpoint: str) -> list[tuple[str, str]]:
        """The concepts with features at a hookpoint."""
        return [key for key in self._members if key[1] == hookpoint]

    def _generator(self, device: torch.device, step: int) -> torch.Generator:
        """For the next draw of this step."""
        if device not in self._generators:
            self._generators[device] = torch.Generator(device)
        self._draws += 1
        return self._generators[device].manual_seed(2**20 * step + self._draws)

    # -- after it -------------------------------------------------------------------------------------------------------------

    def finish(self, record: Record, world: World, emit: Callable[[Record], None]) -> None:
        """The readings of the step, summed over ranks, go into the record when they have left the device."""
        for name in self.dictionaries:
            self._project_held(name)
        flat_sum_(world, [tensor for sums in self._sums.values() for tensor in vars(sums).values()])
        contents = self._contents(world.size)
        if world.size > 1:  # all ranks gather at the same time, so this waits for the device
            mine = each_tensor(Tensor.cpu, (contents.examples, contents.lessons))
            for which, rows in zip((contents.examples, contents.lessons), zip(*world.gather(mine), strict=True), strict=False):
                which[:] = [row for part in rows for row in part]

        def read(arrived: Contents | None) -> None:
            if arrived is None:  # too many steps were on their way
                record["scalars"]["observe/dropped_steps"] = float(self._outbox.dropped)
            else:
                part = self._read(arrived, world.size)
                record["scalars"] |= part.pop("scalars")
                record.update(part)
            self._hand_on(record, emit)

        self._outbox.put(contents, read)
        self._clear()

    def skip(self, record: Record, emit: Callable[[Record], None]) -> None:
        self._outbox.put(None, lambda _: self._hand_on(record, emit))

    def drop(self) -> None:
        self._clear()

    def _hand_on(self, record: Record, emit: Callable[[Record], None]) -> None:
        for name, columns in record.get("dense", {}).items():
            columns |= {key: total.float().numpy() for key, total in self._totals[name].items()}
        emit(record)

    def take(self, ranks: int) -> Record:
        """The readings of the step in progress, whose sums must be those of all ranks: `{"features", "scalars", "examples", "lessons"}`."""
        for name in self.dictionaries:
            self._project_held(name)
        part = self._read(each_tensor(Tensor.cpu, self._contents(ranks)), ranks)
        self._clear()
        return part

    def totals(self) -> dict[str, dict[str, Tensor]]:
        self.settle()
        return self._totals

    def settle(self) -> None:
        self._outbox.flush()

    def set_totals(self, totals: dict[str, dict[str, Tensor]]) -> None:
        """Go on from these sums. What they lack (an estimator that was not computed then) goes on from zero."""
        for name, part in self._totals.items():
            part.update({key: value.clone() for key, value in totals.get(name, {}).items() if key in part})

    def _contents(self, ranks: int) -> Contents:
        """The step as it is on the device; a rank's loss is averaged with the others', so linear sums take 1/R and squares 1/R²."""
        hooks = {}
        for name, sums in self._sums.items():
            g_sum = sums.g_sum / ranks
            wanted = {
                "taught": sums.taught,
                "push": estimators.push(self.dictionaries[name], g_sum.to(self.dictionaries[name].work_dtype)).double(),
                "attribution": sums.attribution / ranks,
                "energy": sums.energy / ranks**2,
                "activation": sums.activation,
            }
            inside = [(self._bases[key].double().T @ g_sum).norm() for key in self._of(name)]
            hooks[name] = {key: value for key, value in wanted.items() if key in self.observe.estimators} | {
                "inside": torch.stack(inside) if inside else g_sum.new_zeros(0), "whole": g_sum.norm(), "groups": sums.groups,
                "variances": sums.variances, "scalars": sums.scalars,
            }  # fmt: skip
        return Contents(hooks, self._examples, self._lessons)

    def _clear(self) -> None:
        self._examples, self._lessons, self._draws, self._held = [], [], 0, {name: [] for name in self.dictionaries}
        for sums in self._sums.values():
            for tensor in vars(sums).values():
                tensor.zero_()

    def _read(self, contents: Contents, ranks: int) -> Record:
        """From tensors on the CPU; adds to the totals."""
        scalars: dict[str, float] = {}
        features = {}
        for name, sums in contents.hooks.items():
            concepts = {concept: ids for (concept, hookpoint), ids in self._ids.items() if hookpoint == name}
            found = {key: sums[key] for key in self._totals[name]}
            features[name] = read_sums(name, sums, found, concepts, self.observe, ranks, scalars)
            for key, value in found.items():
                self._totals[name][key] += value.nan_to_num()  # a step of which nothing is known adds nothing
        rows = {"examples": read_examples(contents.examples, ranks), "lessons": read_lessons(contents.lessons)}
        return {"features": features, "scalars": scalars, **rows}


def _finite(tokens: Tokens, dtype: torch.dtype) -> tuple[Tokens, Tensor, bool]:
    """The tokens, which of them are not finite, `bool[T]`, and whether activations and gradients of those are emptied, so that they add
    nothing, and all are in the precision that is computed in. On an accelerator neither is done: nothing else would be as large as such
    copies of every token."""
    emptied = tokens.h_TD.device.type == "cpu"
    h_TD, g_TD = (x_TD.to(dtype) if emptied else x_TD for x_TD in (tokens.h_TD, tokens.g_TD))
    # not finite where one of them is not, and read in one pass
    sum_T = h_TD.sum(-1, dtype=dtype) + g_TD.sum(-1, dtype=dtype)
    bad_T = ~(sum_T if tokens.loss_T is None else sum_T + tokens.loss_T).isfinite()
    if emptied and not bad_T.any():  # elsewhere asking would make the host wait
        return replace(tokens, h_TD=h_TD, g_TD=g_TD), bad_T, emptied
    if emptied:
        h_TD, g_TD = (values.masked_fill(bad_T[:, None], 0) for values in (h_TD, g_TD))
    loss_T = None if tokens.loss_T is None else tokens.loss_T.masked_fill(bad_T, 0)
    return replace(tokens, h_TD=h_TD, g_TD=g_TD, loss_T=loss_T, counted_T=tokens.counted_T & ~bad_T), bad_T, emptied

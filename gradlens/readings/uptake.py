"""`uptake` and `taught`: what the model has learned to say, and what a batch still has to teach it, feature by feature.

A feature is expressed by a token where it is active at that token's position. Every token of a text also has a probability, the one
that the model gave it before it was written. So what is learned can be told apart by what the learned tokens express:

- `taught[i]` = Σ_t f_ti ℓ_t over a training batch, ℓ_t = -log p_t: the loss carried by tokens that express feature i. An upper bound on
  what the batch can teach of it, known before the step, row by row and token by token.
- `uptake[i]` = mean_t (f_ti - f̄_i) (p_t(now) - p_t(before)) over the probe set: how much more the model says what expresses feature i
  than ordinary text would make it; f from the frozen reading before training, f̄ the mean activation on reference text.

Zero for a model that has not changed, whatever the data hold. Source: ours; measured in `docs/attribution.md`.
Shape suffixes: T tokens, P active pairs (token, feature), R texts, F d_sae.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from gradlens.dictionaries.pair_sums import row_sums, weighted_sums

MIN_GAIN = 0.01  # of probability: tokens that express what was learned have become likelier by this much at least, weighted by how much


@dataclass
class Pairs:
    """Where features are active: the sparse form of `f[T, F]`."""

    token_P: Tensor  # int32
    feature_P: Tensor  # int32
    value_P: Tensor  # float32

    @classmethod
    def of(cls, idx_TK: Tensor, val_TK: Tensor, first: int = 0) -> Pairs:
        """From the active pairs of some tokens (`encode_active`), the first of which is number `first`."""
        token_P, slot_P = val_TK.nonzero(as_tuple=True)
        return cls((token_P + first).int(), idx_TK[token_P, slot_P].int(), val_TK[token_P, slot_P].float())

    @classmethod
    def cat(cls, parts: list[Pairs]) -> Pairs:
        return cls(*(torch.cat([getattr(part, name) for part in parts]) for name in ("token_P", "feature_P", "value_P")))


def uptake(pairs: Pairs, gain_T: Tensor, row_T: Tensor, reference_F: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """`(uptake[F], rows[R, F], raw[F])` from what each token gained in probability. Cost: one addition per active pair.

    `rows`: the same mean within each text, for `significance`. `raw`: without the reference, mean_t f_ti gain_t. `row_T`: the text of
    each token, from 0. Float64.
    """
    R, F = int(row_T.max()) + 1, len(reference_F)
    gain_T, reference_F = gain_T.double(), reference_F.double()
    token_P, feature_P = pairs.token_P.long(), pairs.feature_P.long()
    sums_RF = torch.zeros(R * F, dtype=torch.float64, device=gain_T.device)
    sums_RF.index_add_(0, row_T[token_P] * F + feature_P, pairs.value_P.double() * gain_T[token_P])
    sums_RF = sums_RF.view(R, F)
    gain_R = torch.zeros(R, dtype=torch.float64, device=gain_T.device).index_add_(0, row_T, gain_T)
    centred_RF = sums_RF - gain_R[:, None] * reference_F
    tokens_R = torch.bincount(row_T, minlength=R).double()
    return centred_RF.sum(0) / len(gain_T), centred_RF / tokens_R[:, None].clamp_min(1), sums_RF.sum(0) / len(gain_T)


def uptake_eager(f_TF: Tensor, gain_T: Tensor, reference_F: Tensor) -> Tensor:
    """`uptake[F]` by its definition, with the whole [T, F]."""
    return ((f_TF - reference_F) * gain_T[:, None]).mean(0)


def taught(idx_TK: Tensor, val_TK: Tensor, loss_T: Tensor, F: int) -> Tensor:
    """`taught[F]` = Σ_t f_ti ℓ_t from active pairs; `loss_T` is 0 at tokens that the loss does not count. Costs TK additions."""
    return weighted_sums(idx_TK, val_TK, loss_T, F)


def taught_eager(f_TF: Tensor, loss_T: Tensor) -> Tensor:
    """`taught[F]` by its definition."""
    return (f_TF * loss_T[:, None]).sum(0)


def shown(score_T: Tensor, counted_T: Tensor, row_T: Tensor, rows: int) -> tuple[Tensor, Tensor]:
    """`([T], P[rows])`: how much each counted token speaks for a concept in a row that shows it, for `score_T` of a `RowDetector` on its
    features, P(row) · max(score, 0); and P(row) = σ(mean score of the row's counted tokens), the probability that a text like this is a
    positive example.

    Times the token's loss, summed over a row, it is what the row teaches of the concept. Its plain features say less: in the needle test
    they rank rows with an AUC of 0.90 to 1.00, this with 0.99 to 1.00 (docs/attribution.md).
    """
    score_T = score_T.float() * counted_T
    both_T2 = torch.stack([score_T, counted_T.float()], 1)
    sums_R2 = both_T2.new_zeros(rows, 2).index_add_(0, row_T, both_T2)
    shows_R = torch.sigmoid(sums_R2[:, 0] / sums_R2[:, 1].clamp_min(1))
    return shows_R[row_T] * score_T.clamp_min(0), shows_R


def taught_by_row(idx_TK: Tensor, val_TK: Tensor, loss_T: Tensor, row_T: Tensor, rows: int, F: int, top: int) -> tuple[Tensor, Tensor]:
    """Of each row the `top` features with the largest `taught`: ids and values `[rows, top]`, largest first. At most 16 MB at a time."""
    top, step = min(top, F), max(1, 2**22 // F)
    ids, values = [], []
    for first in range(0, rows, step):
        sums = row_sums(idx_TK, val_TK, loss_T, row_T, first, min(step, rows - first), F)
        value, index = sums.topk(top)
        ids.append(index)
        values.append(value)
    return torch.cat(ids), torch.cat(values)

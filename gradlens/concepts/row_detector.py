"""Which rows show a concept, told from texts: a linear score of a text's mean feature activations, above 0 where it shows the concept.

Examples of a concept say of whole texts whether they show it, so this needs no labels of tokens, and finds what no single token gives away
(word order, spelling, a form of answer). Ridge logistic regression on mean activations in units of their maximum; both kinds of examples
weigh the same. Over the rows of a training set the score has one mode or two: `split` says where one ends and the other begins, because
rows of another domain than the examples' may lie a little off on either side of 0.

Shape suffixes: R texts or rows, F d_sae, N features of the detector.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits

from gradlens.concepts.concept_files import RowDetector
from gradlens.readings.ranking import auc

if TYPE_CHECKING:
    from gradlens.concepts.fitting import ChoosingHalf

RIDGE = 1e-2  # on weights of mean activations in units of their maximum
TEXTS = 3  # texts that a feature fires in at least
SIZE = 512  # features kept, those with the largest weights
APART = 4.0  # of two modes: the distance of their means in units of their spread; the halves of a normal distribution have 2.65
LEAST = 3  # rows of either kind


def fit_rows(positive_RF: Tensor, negative_RF: Tensor) -> RowDetector | None:
    """From mean activations of texts of both kinds; None where no feature fires in `TEXTS` of them. Feature ids are columns."""
    X_RF = torch.cat([positive_RF, negative_RF])
    ids_N = ((X_RF > 0).sum(0) >= TEXTS).nonzero().flatten()
    if not len(ids_N) or not len(positive_RF) or not len(negative_RF):
        return None
    scale_F = X_RF.amax(0).clamp_min(1e-6)
    for _ in range(2):  # once with all, once with those that weigh most
        weights_N, bias = _regress(X_RF[:, ids_N] / scale_F[ids_N], len(positive_RF))
        if len(ids_N) <= SIZE:
            break
        ids_N = ids_N[weights_N.abs().topk(SIZE).indices]
    weights = [float(f"{weight:.4g}") for weight in (weights_N / scale_F[ids_N]).tolist()]
    return RowDetector(features=ids_N.tolist(), weights=weights, bias=round(bias, 4))


def fit_halves(halves: Sequence[ChoosingHalf], plain: Sequence[ChoosingHalf] = ()) -> RowDetector | None:
    """That of all examples, with the figures of one fitted on the first half of them, on the second. `plain`: further negatives, in
    halves."""
    live = np.flatnonzero(sum(half.fired[kind] for half in [*halves, *plain] for kind in (True, False)))
    means = [[torch.from_numpy(half.text_means(kind, live)) for kind in (True, False)] for half in halves]
    others = [torch.from_numpy(half.text_means(False, live)) for half in plain]
    choosing = fit_rows(means[0][0], torch.cat([means[0][1], *others[:1]]))
    final = fit_rows(torch.cat([mean[0] for mean in means]), torch.cat([mean[1] for mean in means] + others))
    if choosing is None or final is None:
        return None
    figures = judged(choosing, *means[1])
    return final.model_copy(update={"features": live[final.features].tolist(), **figures})


def judged(detector: RowDetector, positive_RF: Tensor, negative_RF: Tensor) -> dict[str, float]:
    """`auc` and `accuracy` (mean of both kinds, at 0) on texts that the detector was not fitted on."""
    positive_R, negative_R = (row_scores(detector, X_RF).numpy() for X_RF in (positive_RF, negative_RF))
    accuracy = ((positive_R > 0).mean() + (negative_R <= 0).mean()) / 2
    return {"auc": round(auc(positive_R, negative_R), 4), "accuracy": round(float(accuracy), 4)}


def row_scores(detector: RowDetector, mean_RF: Tensor) -> Tensor:
    """Of rows by their mean activations `[R, F]`."""
    return mean_RF[:, detector.features] @ torch.tensor(detector.weights, dtype=mean_RF.dtype) + detector.bias


def split(scores_R: Sequence[float]) -> float | None:
    """The score from which on a row shows the concept, where the rows are of two kinds; None where they are of one.

    The two groups with the least variance within (Otsu 1979), accepted where their means are `APART` (Ashman's D) and on either side of 0:
    rows may be of two kinds that have nothing to do with the concept. Between them at equal distance from either in units of its spread.
    """
    x_R = np.sort(np.asarray(scores_R, dtype=float))
    best, found = np.inf, None
    for at in range(LEAST, len(x_R) - LEAST + 1):
        groups = x_R[:at], x_R[at:]
        within = sum(len(group) * group.var() for group in groups)
        if within < best:
            best, found = within, groups
    if found is None:
        return None
    (low, high), (below, above) = (group.mean() for group in found), (max(group.std(), 1e-3) for group in found)
    if not low < 0 < high or high - low < APART * np.sqrt((below**2 + above**2) / 2):
        return None
    return float((low * above + high * below) / (below + above))


def _regress(X_RN: Tensor, positives: int) -> tuple[Tensor, float]:
    """Ridge logistic regression; the first `positives` rows are positive."""
    y_R = (torch.arange(len(X_RN)) < positives).to(X_RN.dtype)
    weight_R = torch.where(y_R > 0, 0.5 / positives, torch.full_like(y_R, 0.5 / (len(X_RN) - positives)))
    w, b = (X_RN.new_zeros(size, requires_grad=True) for size in (X_RN.shape[1], 1))
    optimizer = torch.optim.LBFGS([w, b], max_iter=100, line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        optimizer.zero_grad()
        each_R = binary_cross_entropy_with_logits(X_RN @ w + b, y_R, reduction="none")
        value = (each_R * weight_R).sum() + RIDGE * w.square().sum()
        value.backward()
        return value

    with torch.enable_grad():
        optimizer.step(loss)
    return w.detach(), b.item()

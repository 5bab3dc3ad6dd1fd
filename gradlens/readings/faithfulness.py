"""Faithfulness: do the readings of a run predict what the model has learned? Pure functions over one run's curves of all features.

The truth is the drift on the probe set: of feature activations (`drift`) and along unit directions (`drift_direction`). An estimator's
value for a window of W steps is its sum over them, the truth's is what changed between the window's ends.
Shape suffixes: S steps, F features.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass

import numpy as np

from gradlens.readings.ranking import auc, ranks

TRUTHS = ("drift", "drift_direction")
TOP = 20


@dataclass(frozen=True)
class Score:
    """How well one estimator predicts one truth, mean over the windows of a run."""

    hookpoint: str
    estimator: str
    truth: str
    window: int
    windows: int
    pearson: float
    spearman: float
    precision: float  # share of the TOP features by |estimate| that are among the TOP by |truth|

    def as_dict(self) -> dict:
        return asdict(self)


def scores(
    hookpoint: str,
    estimates: Mapping[str, np.ndarray],
    truths: Mapping[str, np.ndarray],
    live_F: np.ndarray,
    windows: Sequence[int] = (1, 10, 50),
) -> list[Score]:
    """Scores of every estimator. `estimates[name]` is `[S, F]`, one row a step; `truths[name]` is `[S + 1, F]`, its first row that of
    the untrained model. Only features in `live_F` (bool) count. Windows follow one another without overlap; a longer one than the run
    is left out, and so is a pair that does not vary in any window (no correlation)."""
    found = []
    for window in windows:
        for truth, values in truths.items():
            ends = range(window, len(values), window)
            changes = [(values[end] - values[end - window])[live_F] for end in ends]
            for name, steps in estimates.items():
                sums = [steps[end - window : end].sum(0)[live_F] for end in ends]
                pairs = [(a, b) for a, b in zip(sums, changes, strict=True) if a.std() > 0 and b.std() > 0]
                if not pairs:
                    continue
                found.append(
                    Score(
                        hookpoint, name, truth, window, len(pairs),
                        pearson=_mean(np.corrcoef(a, b)[0, 1] for a, b in pairs),
                        spearman=_mean(np.corrcoef(ranks(a), ranks(b))[0, 1] for a, b in pairs),
                        precision=_mean(precision_at(a, b) for a, b in pairs),
                    )
                )  # fmt: skip
    return found


def precision_at(estimate_F: np.ndarray, truth_F: np.ndarray, top: int = TOP) -> float:
    """Share of the `top` features with the largest |estimate| that are among the `top` with the largest |truth|."""
    top = min(top, len(truth_F))
    largest = [set(np.argsort(-np.abs(values), kind="stable")[:top].tolist()) for values in (estimate_F, truth_F)]
    return len(largest[0] & largest[1]) / top


def concept_auc(estimate_F: np.ndarray, members: Sequence[int], live_F: np.ndarray, rate_F: np.ndarray | None = None) -> float | None:
    """Probability that a live feature of the concept has a larger estimate than a live one outside it; None without both.

    `rate_F`: each of the concept's features counts as often as it fires, so that one that marks most of the concept's tokens counts for
    more than one that marks a word in a hundred.
    """
    inside_F = np.zeros(len(estimate_F), dtype=bool)
    inside_F[list(members)] = True
    others = estimate_F[live_F & ~inside_F]
    found = [auc([value], others) for value in estimate_F[live_F & inside_F]]
    weights = np.ones(len(found)) if rate_F is None else rate_F[live_F & inside_F]
    return float(np.average(found, weights=weights)) if len(found) and len(others) and weights.sum() > 0 else None


def _mean(values) -> float:
    return float(np.mean(list(values)))

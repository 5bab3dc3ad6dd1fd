"""Rank statistics that concepts, reports and benchmarks share: mid-ranks, AUC, rank correlation."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


def ranks(values: np.ndarray) -> np.ndarray:
    """Ranks from 1, equal values sharing their mean."""
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    return (np.cumsum(counts) - (counts - 1) / 2)[inverse]


def auc(positive: Sequence[float], negative: Sequence[float]) -> float:
    """Probability that a positive scores above a negative, ties counting half (Mann-Whitney U / (n m)); nan without both."""
    n, m = len(positive), len(negative)
    if not n or not m:
        return float("nan")
    ranked = ranks(np.concatenate([np.asarray(positive, dtype=np.float64), np.asarray(negative, dtype=np.float64)]))
    return float((ranked[:n].sum() - n * (n + 1) / 2) / (n * m))


def rank_correlation(a: np.ndarray, b: np.ndarray) -> float | None:
    """Spearman's, over pairs that are finite; None where either does not vary."""
    a, b = np.asarray(a, float), np.asarray(b, float)
    both = np.isfinite(a) & np.isfinite(b)
    if len(np.unique(a[both])) < 2 or len(np.unique(b[both])) < 2:
        return None
    return float(np.corrcoef(ranks(a[both]), ranks(b[both]))[0, 1])

"""Confidence intervals of rates and of means over seeds. No torch."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

T95 = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228)  # Student's t, two-sided 95%, by degrees of freedom from 1


def wilson(hits: float, n: int, z: float = 1.96) -> tuple[float, float]:
    """Wilson score interval of a share (95% for z = 1.96); (0, 1) where nothing was counted."""
    if n == 0:
        return 0.0, 1.0
    share, scale = hits / n, 1 + z * z / n
    centre = (share + z * z / (2 * n)) / scale
    half = z / scale * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    return max(0.0, min(share, centre - half)), min(1.0, max(share, centre + half))


def rate_of(hits: int, n: int) -> dict[str, Any]:
    """`{"hits", "n", "rate", "low", "high"}` of a count."""
    low, high = wilson(hits, n)
    return {"hits": hits, "n": n, "rate": hits / n if n else None, "low": low, "high": high}


def over_runs(rates: Sequence[float], n: int) -> tuple[float, float]:
    """95% interval of the mean rate of several runs, of n answers in all: as wide as that of the answers, were they independent (Wilson),
    and as that of the runs (Student's t; of two runs their range), since what one run has learned all its answers show."""
    mean = sum(rates) / len(rates)
    low, high = wilson(mean * n, n)
    spread = t_interval(rates) or [min(rates), max(rates)]
    return max(0.0, min(low, spread[0])), min(1.0, max(high, spread[1]))


def rate_over_runs(counts: Sequence[tuple[int, int]]) -> dict[str, Any]:
    """`rate_of` all answers of several runs, each `(hits, n)`, with the interval of `over_runs`."""
    hits, n = map(sum, zip(*counts, strict=True))
    low, high = over_runs([part / whole for part, whole in counts], n)
    return rate_of(hits, n) | {"low": low, "high": high}


def t_interval(values: Sequence[float]) -> list[float] | None:
    """95% interval of a mean over seeds, from three on."""
    n = len(values)
    if n < 3:
        return None
    mean = sum(values) / n
    error = math.sqrt(sum((value - mean) ** 2 for value in values) / (n - 1) / n)
    half = T95[min(n - 2, len(T95) - 1)] * error  # of more seeds than the table has a little too wide, never too narrow
    return [mean - half, mean + half]

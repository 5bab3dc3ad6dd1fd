"""Rows of two kinds: those that show a concept beside those that do not, told by how many of their tokens a detector flags.

The number of flagged tokens of a row of `n` is binomial, with one rate for the rows that are free of the concept (false alarms) and a
larger one for those that show it: a mixture, fitted by expectation and maximisation (Dempster, Laird and Rubin 1977). The share from which
on a row shows the concept is where both kinds explain it equally well.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

ROUNDS = 100
APART = 3.0  # rows that show the concept have this many times the share of flagged tokens at least, or they are not another kind


@dataclass(frozen=True)
class Kinds:
    """Shares of flagged tokens in rows of either kind, the share of rows that show the concept, and what tells them apart."""

    free: float
    shows: float
    showing: float
    quorum: float  # a row shows the concept from this share of flagged tokens on


def two_kinds(flagged_R: Sequence[int], counted_R: Sequence[int]) -> Kinds | None:
    """From how many of each row's counted tokens are flagged; None where the rows are of one kind. Rows without counted tokens are left
    out."""
    pairs = np.array([(k, n) for k, n in zip(flagged_R, counted_R, strict=True) if n > 0], dtype=float)
    if len(pairs) < 2:
        return None
    k_R, n_R = pairs.T
    order = (k_R / n_R).argsort()
    quarter = max(1, len(order) // 4)  # begun with the quarter of the rows with the fewest, and that with the most
    rates = [_rate(k_R[part], n_R[part], np.ones(len(part))) for part in (order[:quarter], order[-quarter:])]
    showing = 0.5
    for _ in range(ROUNDS):
        likely = [k_R * np.log(rate) + (n_R - k_R) * np.log1p(-rate) for rate in rates]
        z_R = 1 / (1 + np.exp(np.clip(likely[0] - likely[1] + np.log((1 - showing) / showing), -500, 500)))
        showing = float(np.clip(z_R.mean(), 1e-6, 1 - 1e-6))
        rates = [_rate(k_R, n_R, 1 - z_R), _rate(k_R, n_R, z_R)]
    free, shows = rates
    if shows < APART * free:
        return None
    quorum = np.log((1 - free) / (1 - shows)) / np.log(shows * (1 - free) / (free * (1 - shows)))
    return Kinds(free, shows, showing, float(quorum))


def _rate(k_R: np.ndarray, n_R: np.ndarray, weight_R: np.ndarray) -> float:
    """Never 0 or 1: as if half a token more had been flagged and half a token not (Jeffreys)."""
    return float((weight_R @ k_R + 0.5) / (weight_R @ n_R + 1))

"""Which clusters of what was learned are one thing to tell of: those that share features or words, or are active in the same texts.

One habit gives several clusters, each with some of its words, and gives others at a later reading.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

SAME = 1 / 3  # of the smaller one's features or words: from here on two clusters are one thing
SAME_TEXTS = 1 / 2  # of the texts that either is active in


@dataclass(frozen=True, eq=False)
class Thing:
    """What tells a cluster from another one."""

    words: frozenset[str]
    features: frozenset[tuple[str, int]]
    texts_R: np.ndarray  # bool: texts of the probe set that it is active in


def active_texts(acts_NT: np.ndarray, row_T: np.ndarray) -> np.ndarray:
    """Texts that some features, each in units of its largest activation, are active in: with half as much of them as the tenth that has
    most of those that have any, `bool[R]`."""
    weight_T = (acts_NT / acts_NT.max(1, keepdims=True).clip(1e-12)).sum(0)
    mean_R = np.bincount(row_T, weight_T) / np.maximum(np.bincount(row_T), 1)
    some = mean_R[mean_R > 0]
    return mean_R >= 0.5 * np.quantile(some, 0.9) if len(some) else np.zeros(len(mean_R), dtype=bool)


def alike(one: Thing, other: Thing) -> float:
    """How much two clusters have in common of features, words and texts together; 0 unless one of these is enough to make them one."""
    texts = (one.texts_R & other.texts_R).sum() / max((one.texts_R | other.texts_R).sum(), 1)
    parts = (_shared(one.features, other.features) / SAME, _shared(one.words, other.words) / SAME, texts / SAME_TEXTS)
    return float(sum(parts)) if max(parts) >= 1 else 0.0


def _shared(one: frozenset, other: frozenset) -> float:
    return len(one & other) / max(min(len(one), len(other)), 1)


def gather(found: Sequence[Thing], told: Sequence[Thing]) -> list[list[int]]:
    """Places in `found` of what is new, the first of each thing at its head. A cluster belongs to the thing whose first cluster is most
    like it, and not to what is like that in turn: through a few words in common two things would become one."""
    groups: list[list[int]] = []
    for place, thing in enumerate(found):
        if any(alike(thing, other) for other in told):
            continue
        best = max(groups, key=lambda group: alike(thing, found[group[0]]), default=None)
        if best is not None and alike(thing, found[best[0]]):
            best.append(place)
        else:
            groups.append([place])
    return groups

"""Learned, or chance? Features that moved on the probe set by more than its texts differ among themselves; stated false discovery rate.

A feature's drift is a mean over texts. Had the run not touched it, the change on each text would be as likely up as down: flipping the
signs of whole texts gives drifts as large as chance makes them, with all dependence between features kept. Statistic and estimate of the
false discovery rate: Tusher, Tibshirani and Chu, "Significance analysis of microarrays", PNAS 2001.
Shape suffixes: R texts, F features.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

FDR = 0.05
FLIPS = 100
MIN_TEXTS = 6  # with fewer there are too few ways to flip signs
MIN_VALUES = 4  # for Student's t


def statistic(change_RF: Tensor, floor: float | None = None) -> Tensor:
    """`mean / (standard error + floor)` over texts, `[F]`. The floor (default: the median standard error of features that change at
    all) keeps features that change on one text by next to nothing from looking certain."""
    error_F = change_RF.std(0) / len(change_RF) ** 0.5
    if floor is None:
        floor = fudge(change_RF)
    return change_RF.mean(0) / (error_F + max(floor, 1e-30))


def fudge(change_RF: Tensor) -> float:
    """The median standard error of features that change at all."""
    error_F = change_RF.std(0) / len(change_RF) ** 0.5
    changed = error_F[change_RF.abs().amax(0) > 0]
    return changed.median().item() if len(changed) else 0.0


def beyond_chance(change_RF: Tensor, fdr: float = FDR, flips: int = FLIPS, seed: int = 0, rising: bool = False) -> Tensor:
    """Features whose drift is beyond chance, `bool[F]`: at most a share `fdr` of them is expected to be there by chance.

    `change_RF`: mean activation of each feature on each text, now minus before. `rising`: only those that rise, and the share is of these;
    picked from both directions it would not hold of them, where many fall. All False with fewer than `MIN_TEXTS` texts. Cost:
    `flips` products of signs with the changes, 2·flips·R·F over the features that change at all, no buffer larger than that.
    """
    found = torch.zeros(change_RF.shape[1], dtype=torch.bool)
    changed_F = change_RF.ne(0).any(0)
    change_RF = change_RF[:, changed_F].double()
    R = len(change_RF)
    if R < MIN_TEXTS or not changed_F.any():
        return found
    floor = fudge(change_RF)
    sized = (lambda value_F: value_F) if rising else torch.abs
    generator = torch.Generator().manual_seed(seed)

    def by_chance() -> Iterator[Tensor]:
        for _ in range(flips):
            signs_R = torch.randint(0, 2, (R, 1), generator=generator).double() * 2 - 1
            yield sized(statistic(change_RF * signs_R, floor))

    found[changed_F] = _accepted(sized(statistic(change_RF, floor)), by_chance(), flips, fdr)
    return found


def risen(first_RF: Tensor, last_SF: Tensor, fdr: float = FDR, draws: int = FLIPS, seed: int = 0) -> Tensor:
    """Features that differ between two sets of texts, not the same ones, by more than chance, `bool[F]`: as `beyond_chance`, with texts
    dealt out anew between the two sets in place of flipped signs. All False with fewer than `MIN_TEXTS` texts on either side."""
    R, S = len(first_RF), len(last_SF)
    both = torch.cat([first_RF, last_SF]).double()
    found = torch.zeros(both.shape[1], dtype=torch.bool)
    active_F = both.ne(0).any(0)
    both = both[:, active_F]
    if min(R, S) < MIN_TEXTS or not active_F.any():
        return found

    def error(first: Tensor, last: Tensor) -> Tensor:
        return (first.var(0) / R + last.var(0) / S).sqrt()

    changed = error(both[:R], both[R:])
    floor = max(changed[changed > 0].median().item() if (changed > 0).any() else 0.0, 1e-30)

    def difference(order: Tensor) -> Tensor:
        first, last = both[order[:R]], both[order[R:]]
        return (last.mean(0) - first.mean(0)).abs() / (error(first, last) + floor)

    generator = torch.Generator().manual_seed(seed)
    dealt = (difference(torch.randperm(R + S, generator=generator)) for _ in range(draws))
    found[active_F] = _accepted(difference(torch.arange(R + S)), dealt, draws, fdr)
    return found


def _accepted(found_F: Tensor, by_chance: Iterator[Tensor], draws: int, fdr: float) -> Tensor:
    """As many of the largest statistics as keep the expected share of those that chance makes as large below `fdr`."""
    F = len(found_F)
    candidates, order = found_F.sort(descending=True)
    count_F = torch.zeros(F, dtype=torch.float64)  # of the n-th candidate: how many statistics by chance are as large
    for drawn in by_chance:
        count_F += F - torch.searchsorted(drawn.sort().values, candidates)
    rate = count_F / draws / torch.arange(1, F + 1)
    accepted = ((rate <= fdr) & (candidates > 0)).nonzero()
    found = torch.zeros(F, dtype=torch.bool)
    if len(accepted):
        found[order[: int(accepted[-1]) + 1]] = True
    return found


def student(values_R: Tensor) -> float:
    """How often a mean as large would come by chance, were the values drawn from a normal distribution about 0: Student's t, one-sided. 1
    with fewer than `MIN_VALUES`. Few texts can be enough for it, which flipping signs cannot: of eight there are 256 ways."""
    x = values_R.double()
    n = len(x)
    if n < MIN_VALUES or not float(x.mean()) > 0:
        return 1.0
    return student_tail(float(x.mean() / (x.std() / n**0.5).clamp_min(1e-30)), n)


def student_tail(t: float, n: int) -> float:
    """How often Student's t of n values would be as large as a t above 0."""
    z, weight = np.polynomial.legendre.leggauss(64)
    z, weight = (z + 1) / 2, weight / 2
    scale = math.exp(math.lgamma(n / 2) - math.lgamma((n - 1) / 2)) / math.sqrt((n - 1) * math.pi)
    density = lambda u: np.exp(-n / 2 * np.log1p(u**2 / (n - 1)))  # noqa: E731
    if t < 1:  # half less what lies below t: the tail of a small t would be between the first two z
        return float(0.5 - scale * t * (weight * density(t * z)).sum())
    # the tail from t on, with u = t / z: z from 0 to 1
    return float(min(1.0, scale * (weight * density(t / z) * t / z**2).sum()))

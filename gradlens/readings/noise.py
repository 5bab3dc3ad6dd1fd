"""How large a concept's figure comes by chance: the noise floor that stands beside it, and is drawn as a band around zero.

A figure is a sum of what the texts of the probe set contribute. Had the run not touched the concept, each text would be as likely to
contribute upwards as downwards: flipping the signs of whole texts shows how large such a sum comes then (a permutation test for paired
data, Fisher 1935). It tells texts that agree from single ones; how many features are beyond chance `significance` says.
Shape suffixes: R texts.
"""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor

from gradlens.readings.significance import MIN_TEXTS
from gradlens.report.findings import NOISE

FLIPS = 2000
LEVEL = 0.95  # of the sums by chance are no larger


@lru_cache(maxsize=16)
def _signs(texts: int) -> Tensor:
    return torch.randint(0, 2, (FLIPS, texts), generator=torch.Generator().manual_seed(0)).double() * 2 - 1


def noise_floor(parts_R: Tensor) -> float | None:
    """The size that |Σ_r ± parts_r| stays within in 95 of 100 cases, signs drawn at random; a figure Σ_r parts_r beyond it is not chance.

    None with fewer than `MIN_TEXTS` texts: of five that agree, all signs are alike in one case of sixteen. nan for values that are not
    finite. Cost: `FLIPS` sums of R numbers.
    """
    if len(parts_R) < MIN_TEXTS:
        return None
    sums = (_signs(len(parts_R)) @ parts_R.double()).abs()
    return float(torch.quantile(sums, LEVEL, interpolation="higher")) if bool(sums.isfinite().all()) else float("nan")


def by_text(means_RN: Tensor, tokens_R: Tensor) -> Tensor:
    """What each text contributes to a mean over all tokens and over N features, `[R]`, from its own mean (`[R, N]` or `[R]`)."""
    return means_RN.double().reshape(len(means_RN), -1).mean(1) * tokens_R / tokens_R.sum()


def with_noise(scalars: dict[str, float], key: str, value: float, parts_R: Tensor | None) -> None:
    """Note a figure, and its noise floor where that can be told (`KEY_noise`)."""
    scalars[key] = value
    floor = noise_floor(parts_R) if parts_R is not None else None
    if floor is not None:
        scalars[key + NOISE] = floor

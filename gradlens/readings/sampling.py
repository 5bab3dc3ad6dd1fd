"""A random share of the tokens instead of all of them, and how far a sum over it may be off.

Shape suffixes: T tokens, N tokens that were drawn.
"""

from __future__ import annotations

import torch
from torch import Tensor


def draw(T: int, share: float, generator: torch.Generator) -> Tensor:
    """Positions of a share of T tokens, at least one, drawn without replacement, in order: `int64[N]` on the generator's device."""
    count = min(T, max(1, round(share * T)))
    return torch.randperm(T, generator=generator, device=generator.device)[:count].sort().values


def draw_among(counted_T: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """Positions of `count` tokens drawn without replacement among those that count; where these are fewer, of others as well. `int64[N]`.

    Nothing waits for an accelerator: how many count is not asked.
    """
    keys_T = torch.rand(len(counted_T), generator=generator, dtype=torch.float32, device=counted_T.device) + counted_T
    return keys_T.topk(min(count, len(counted_T))).indices


def variance_of_sum(y_N: Tensor, T: int) -> Tensor:
    """Variance of the estimate `T/N Σ y` of a sum over T tokens of which N were drawn: T² (1 - N/T) s² / N, itself unbiased.

    s² is the sample variance with N - 1. 0 where all were drawn, NaN for one token of several. Source: simple random sampling without
    replacement (Cochran, Sampling Techniques, 3rd ed. 1977, theorem 2.2).
    """
    N = len(y_N)
    return y_N.new_zeros(()) if N == T else T**2 * (1 - N / T) * y_N.var() / N

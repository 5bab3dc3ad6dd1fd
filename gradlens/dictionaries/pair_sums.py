"""Sums over active pairs: of every feature, or of every feature in every row.

Shape suffixes: T tokens, K active features per token, F d_sae, N rows.
"""

from __future__ import annotations

import torch
from torch import Tensor

from gradlens.dictionaries.engine import Impl, choose

SPARE = 4096  # places for what is nothing: additions to one place wait for each other


def feature_sums(idx_TK: Tensor, weight_TK: Tensor, F: int) -> Tensor:
    """Sum of the pairs' weights by feature, `[F]`."""
    total = torch.zeros(F, dtype=weight_TK.dtype, device=weight_TK.device)
    if weight_TK.device.type == "cpu":
        return total.index_add_(0, idx_TK.flatten(), weight_TK.flatten())
    return _spread(idx_TK.flatten(), weight_TK.flatten(), F)


def weighted_sums(idx_TK: Tensor, val_TK: Tensor, factor: Tensor, F: int, impl: Impl = "auto") -> Tensor:
    """Σ val · factor by feature, `[F]` float64; `factor`: of each pair `[T, K]` or of each token `[T]`."""
    if choose(impl, val_TK) == "triton":
        from gradlens.dictionaries import kernels

        return kernels.pair_sums(idx_TK, val_TK, factor, F)
    weight_TK = val_TK * (factor if factor.dim() == 2 else factor[:, None])
    return feature_sums(idx_TK, weight_TK.double(), F)


def row_sums(idx_TK: Tensor, val_TK: Tensor, factor_T: Tensor, row_T: Tensor, first: int, count: int, F: int) -> Tensor:
    """The same of each of the rows from `first` on, `[count, F]` float32."""
    if choose("auto", val_TK) == "triton":
        from gradlens.dictionaries import kernels

        return kernels.pair_sums(idx_TK, val_TK, factor_T, F, (row_T, first, count), torch.float32)
    mine_T = (row_T >= first) & (row_T < first + count)
    at_TK = (row_T - first).clamp(0, count - 1)[:, None] * F + idx_TK
    weight_TK = (val_TK * factor_T[:, None]).float() * mine_T[:, None]
    return feature_sums(at_TK, weight_TK, count * F).view(count, F)


def _spread(idx_P: Tensor, weight_P: Tensor, F: int) -> Tensor:
    """On an accelerator: most slots of a token are unused, all of them with id 0. Nothing is added there, but a million times."""
    spare_P = F + torch.arange(len(idx_P), device=idx_P.device) % SPARE
    total = torch.zeros(F + SPARE, dtype=weight_P.dtype, device=weight_P.device)
    return total.index_add_(0, torch.where(weight_P != 0, idx_P, spare_P), weight_P)[:F]

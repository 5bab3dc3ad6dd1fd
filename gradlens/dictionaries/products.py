"""Products of activations with a dictionary's matrices, at the speed that a CPU has.

PyTorch multiplies float32 matrices by MKL, which on CPUs of other makers than its own takes a path that needs more than twice as long as
oneDNN, the other library that PyTorch brings (`docs/performance.md`).
Shape suffixes: T tokens, D d_model, F features.
"""

from __future__ import annotations

import functools
import platform
from pathlib import Path

import torch
from torch import Tensor

ROUND = 16  # tokens: oneDNN writes code for each shape, so their number is rounded up, else every batch would have a new one
DEPTH = 192  # terms that are added up at a time, as by MKL: one sum over a wide model's 4096 has twice its error
FEATURES = 4096  # at a time: their sums stay in the cache from one part of the depth to the next


def linear(x_TD: Tensor, W_FD: Tensor, b_F: Tensor | None = None) -> Tensor:
    """`x @ Wᵀ + b`, `[T, F]`, in the dtype of all three. Where the fast form computes it has no gradient of its own."""
    if not _by_onednn(x_TD, W_FD):
        return torch.nn.functional.linear(x_TD, W_FD, b_F)
    T, F = len(x_TD), len(W_FD)
    rounded_TD = torch.nn.functional.pad(x_TD, (0, 0, 0, -T % ROUND))
    if F <= FEATURES:
        return _in_depth(rounded_TD, W_FD, b_F)[:T]
    out_TF = x_TD.new_empty(T, F)
    for first in range(0, F, FEATURES):
        block = slice(first, first + FEATURES)
        out_TF[:, block] = _in_depth(rounded_TD, W_FD[block], None if b_F is None else b_F[block])[:T]
    return out_TF


def _in_depth(x_TD: Tensor, W_FD: Tensor, b_F: Tensor | None) -> Tensor:
    multiply, out_TF = torch.ops.mkldnn._linear_pointwise, None
    for first in range(0, x_TD.shape[1], DEPTH):
        x, W = x_TD[:, first : first + DEPTH], _without_gaps(W_FD[:, first : first + DEPTH])
        out_TF = multiply(x, W, b_F, "none", [], "") if out_TF is None else multiply.binary(x, out_TF, W, None, "add")
    return out_TF


def _without_gaps(W_FD: Tensor) -> Tensor:
    """In its own order of rows and columns; with gaps between them oneDNN takes a thousand times as long."""
    return W_FD.T.contiguous().T if W_FD.stride(0) == 1 else W_FD.contiguous()


def _by_onednn(x_TD: Tensor, W_FD: Tensor) -> bool:
    """By a rule and not by a clock: the same machine gives the same bits every time."""
    return (
        x_TD.device.type == "cpu"
        and x_TD.dtype == torch.float32
        and len(x_TD) >= 32
        and W_FD.numel() > 0
        and not (torch.is_grad_enabled() and x_TD.requires_grad)
        and torch.backends.mkldnn.enabled
        and _mkl_is_slow()
    )


@functools.cache
def _mkl_is_slow() -> bool:
    """Whether products go through MKL on a CPU that is not Intel's, and oneDNN is there. On Intel's MKL is the faster one."""
    cpuinfo = Path("/proc/cpuinfo")
    made_by = cpuinfo.read_text(encoding="utf-8", errors="replace") if cpuinfo.exists() else platform.processor()
    return (
        torch.backends.mkl.is_available()
        and torch.backends.mkldnn.is_available()
        and hasattr(torch.ops.mkldnn, "_linear_pointwise")
        and "GenuineIntel" not in made_by
    )

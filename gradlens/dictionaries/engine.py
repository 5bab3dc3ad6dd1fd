"""Which implementation computes: the definitions (`eager`), PyTorch in blocks (`torch`), or Triton kernels (`triton`)."""

from __future__ import annotations

import functools
import importlib.util
import warnings
from typing import Literal

import torch
from torch import Tensor

from gradlens.errors import ConfigError

Impl = Literal["auto", "eager", "torch", "triton"]


def choose(impl: Impl, x: Tensor) -> Literal["eager", "torch", "triton"]:
    """What `impl` means for this tensor. `auto`: the kernels on CUDA where they are there and right, else PyTorch.

    Raises `ConfigError` for `triton` where Triton is not installed, or for a name that there is not.
    """
    if impl == "auto":
        return "triton" if x.is_cuda and _trusted(x.device, x.dtype) else "torch"
    if impl not in ("eager", "torch", "triton"):
        raise ConfigError(f"impl: {impl!r} is not one of auto, eager, torch, triton")
    if impl == "triton" and importlib.util.find_spec("triton") is None:
        raise ConfigError("impl: triton is not installed; use impl: torch, or pip install triton")
    return impl


@functools.cache
def _trusted(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether the kernels give what they should on this device; asked once, on a small case."""
    if dtype == torch.float64 or importlib.util.find_spec("triton") is None:
        return False
    from gradlens.dictionaries.kernels import self_check

    wrong = self_check(device, dtype)
    if wrong:
        warnings.warn(f"gradlens: the Triton kernels are not used on {device}: {wrong}", stacklevel=3)
    return wrong is None

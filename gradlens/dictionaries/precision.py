"""The precision in which dictionaries are multiplied on an accelerator, beside a model that computes in half precision.

Tensor cores multiply float32 at a sixth of the speed at best that they have for bfloat16, which would make finding the active features a
tenth of a training step. So there the matrices are rounded to what the model's own are rounded to; activations and gradients of such a
model are in it already. Sums are in float32 and longer, biases and thresholds stay as they are. A CPU computes in float32 whatever is kept.
Shape suffixes: T tokens, D d_model.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from gradlens.dictionaries.dictionary import Dictionary
from gradlens.dictionaries.engine import choose

HALF = {"bfloat16": torch.bfloat16, "float16": torch.float16}
_MIXED = {"bf16": "bfloat16", "fp16": "float16"}  # as accelerate says it
# What the kernels of half precision can do: others choose by what has to be exact, or change the input first.
_BY_KERNEL = ("relu", "jumprelu", "topk", "batchtopk")  # the last with a threshold


def chosen(setting: str, model: nn.Module, optimizer: Any = None) -> str:
    """What `observe.precision: auto` means for a model: its half precision on an accelerator, or that in which accelerate runs it."""
    parameter = next(model.parameters())
    if setting != "auto":
        return setting
    if parameter.device.type == "cpu":
        return "float32"
    mixed = getattr(getattr(optimizer, "accelerator_state", None), "mixed_precision", None)
    names = {dtype: name for name, dtype in HALF.items()}
    dtype = next((p.dtype for p in model.parameters() if p.is_floating_point()), torch.float32)
    return names.get(dtype) or _MIXED.get(str(mixed), "float32")


def needless(precision: str, device: torch.device) -> str | None:
    """Why readings cost more than they need to: a loop's own autocast is not known before its first forward pass."""
    if device.type == "cpu" or precision != "float32" or not torch.is_autocast_enabled(device.type):
        return None
    dtype = str(torch.get_autocast_dtype(device.type)).removeprefix("torch.")
    return f"the model runs in {dtype}, readings in float32, which costs several times as much: set observe.precision to {dtype}"


def kept(dictionary: Dictionary, precision: str, device: torch.device, dtype: torch.dtype) -> Dictionary:
    """The dictionary on a device, in `dtype` (that of the readings) but for what is in half precision already, which stays in it; its two
    large matrices in `precision`, if that is one."""
    half = HALF.get(precision)
    if half is not None:
        dictionary = replace(dictionary, W_enc=dictionary.W_enc.to(half), W_dec=dictionary.W_dec.to(half))
    return dictionary.to(device, dtype if dictionary.W_dec.dtype == dictionary.work_dtype else None)


def to_encode(dictionary: Dictionary, x_TD: Tensor, precision: str) -> Tensor:
    """`x[T, D]` as the encoder should be given it: rounded only where the kernels multiply half precision and sum in float32; else at
    least in float32."""
    dtype = HALF.get(precision)
    together = dictionary.activation == "batchtopk" and dictionary.threshold is None
    if dtype is None or dictionary.W_enc.dtype != dtype or dictionary.activation not in _BY_KERNEL or together:
        return x_TD.to(torch.promote_types(x_TD.dtype, torch.float32))
    rounded = dictionary.input_norm == "none" and choose("auto", x_TD.new_empty(0, dtype=dtype)) == "triton"
    return x_TD.to(dtype if rounded else torch.promote_types(x_TD.dtype, torch.float32))

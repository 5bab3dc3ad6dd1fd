"""What a format's reader hands over, and what every format has in common: scales folded into the weights, checks, the finished dictionary.

Shape suffixes: D width that is read, O width that is written, F d_sae.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from gradlens.dictionaries.dictionary import Dictionary
from gradlens.dictionaries.formats.tensors import finite
from gradlens.errors import InputError
from gradlens.model.hookpoints import canonical

LARGE = 2 * 2**30  # bytes in float32, of all matrices
_SHAPES = {"W_enc": ("D", "F"), "W_dec": ("F", "O"), "b_dec": ("O",), "W_skip": ("O", "D")}  # the others: ("F",)
_LETTERS = {"D": "d_in", "F": "d_sae", "O": "d_out"}


@dataclass
class Raw:
    """A dictionary as it is on disk: `tensors` by our names (`W_enc [D, F]`, `W_dec [F, O]`, `b_enc`, `b_dec`, ...), nothing folded."""

    format: str
    architecture: str  # in the format's own words
    path: Path  # the weights, for messages
    tensors: dict[str, Tensor]
    activation: str
    k: int | None = None
    subtract: bool = False  # b_dec is taken from the input
    hookpoint: str = ""  # any name that `canonical` knows
    hook_in: tuple[str, ...] = ()  # of a transcoder: where it reads, ("",) where that is not known
    model_name: str | None = None
    scale_in: float | None = None  # what is encoded is x * scale_in
    scale_out: float | None = None  # what is decoded is y * scale_out; None: as scale_in
    input_norm: str = "none"
    unit_rows: bool = False  # features are in units of their decoder row's norm: f * ||d||
    chosen_by_norm: bool = False  # active features are chosen by f * ||d||, and stay f
    k_from: str = "k"  # where k stands, for messages
    firing_rate: Tensor | None = None
    facts: dict[str, Any] = field(default_factory=dict)  # for `Dictionary.metadata`


def place_name(name: str | None) -> str:
    """The canonical hookpoint of a name in a file. One without a counterpart here stays: who attaches the dictionary names the place."""
    try:
        return canonical(name or "")
    except InputError:
        return str(name)


def build(raw: Raw, device: torch.device | str = "cpu", dtype: torch.dtype | None = None) -> Dictionary:
    """The finished dictionary, float32 unless said otherwise; one of more than `LARGE` bytes in float32 stays as it is stored (and mapped)
    where nothing has to be folded."""
    _check(raw)
    tensors, folds = raw.tensors, _folds(raw)
    large = sum(tensor.numel() for tensor in tensors.values()) * 4 > LARGE and not folds
    if dtype is None:
        dtype = tensors["W_dec"].dtype if large else torch.float32
    if not large:
        tensors = {name: tensor.to(torch.promote_types(tensor.dtype, torch.float32)) for name, tensor in tensors.items()}
    if folds:
        tensors = _fold(raw, tensors)
    tensors = {name: tensor.to(device=device, dtype=dtype).contiguous() for name, tensor in tensors.items()}
    if raw.activation == "gated" and "b_enc" not in tensors:
        tensors["b_enc"] = tensors["b_gate"].new_zeros(tensors["b_gate"].shape)
    k = raw.k
    needs_k = raw.activation in ("topk", "groupmax")
    if needs_k and (not isinstance(k, (int, float)) or isinstance(k, bool) or (isinstance(k, float) and not k.is_integer())):
        raise InputError(f"{raw.path.parent / raw.k_from}: k is {k!r}, expected the number of active features per token of this dictionary")
    facts = {"format": raw.format, "architecture": raw.architecture, "model_name": raw.model_name, "firing_rate": raw.firing_rate}
    try:
        return Dictionary(
            **tensors,
            activation=raw.activation,
            k=None if k is None else int(k),
            apply_b_dec_to_input=raw.subtract,
            hookpoint=place_name(raw.hookpoint),
            input_norm=raw.input_norm,
            hook_in=tuple(place_name(name) for name in raw.hook_in),
            metadata={**raw.facts, **facts},
        )
    except InputError as error:
        raise InputError(f"{raw.path}: {error}") from None


def _check(raw: Raw) -> None:
    """Shapes that fit each other, and finite values."""
    tensors = raw.tensors
    for name in ("W_enc", "W_dec"):
        if tensors[name].dim() != 2:
            raise InputError(f"{raw.path}: {name} has shape {list(tensors[name].shape)}, expected a matrix")
    D, F = tensors["W_enc"].shape
    sizes = {"D": D, "F": F, "O": tensors["W_dec"].shape[1] if raw.hook_in else D}
    for name, tensor in tensors.items():
        letters = _SHAPES.get(name, ("F",))
        expected = tuple(sizes[letter] for letter in letters)
        if tuple(tensor.shape) != expected:
            about = ", ".join(f"{_LETTERS[letter]} {sizes[letter]}" for letter in dict.fromkeys((*letters, "F")))
            raise InputError(f"{raw.path}: {name} has shape {list(tensor.shape)}, expected {list(expected)} ({about})")
        if not tensor.is_floating_point() or tensor.dtype.itemsize < 2:  # float8 is scaled by numbers that are elsewhere
            raise InputError(
                f"{raw.path}: {name} holds {tensor.dtype}, expected numbers of 16 bits or more; quantised weights are not read"
            )
        if not finite(tensor):
            raise InputError(f"{raw.path}: {name} holds NaN or infinite values; the file is damaged or its training failed")


def _folds(raw: Raw) -> bool:
    return raw.scale_in is not None or raw.unit_rows or raw.chosen_by_norm


def _fold(raw: Raw, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Scales folded into the weights, exactly: the same `feature_acts`, decoder in raw units.

    Scalar norms (as SAELens's `fold_activation_norm_scaling_factor`): W_enc * s_in, W_dec / s_out, b_dec / s_out, W_skip * s_in / s_out.
    The threshold is compared with what the encoder gives, so it stays. Unit rows: W_enc * n, b_enc * n, threshold * n, W_dec / n.
    Chosen by norm: the same choice on W_enc * n, and f back in its own unit, by the threshold / n or by `act_scale` = 1 / n.
    """
    tensors = dict(tensors)
    if raw.scale_in is not None:
        s_in, s_out = raw.scale_in, raw.scale_in if raw.scale_out is None else raw.scale_out
        tensors |= {"W_enc": tensors["W_enc"] * s_in, "W_dec": tensors["W_dec"] / s_out, "b_dec": tensors["b_dec"] / s_out}
        if raw.subtract and s_in != s_out:
            raise InputError(f"{raw.path}: b_dec is taken from an input that has another scale ({s_in:g}) than the output ({s_out:g})")
        if "W_skip" in tensors:
            tensors["W_skip"] = tensors["W_skip"] * (s_in / s_out)
    if not (raw.unit_rows or raw.chosen_by_norm):
        return tensors
    # chosen by norm: by that of the decoder before the scale
    n = (tensors["W_dec"] if raw.unit_rows else raw.tensors["W_dec"].to(tensors["W_dec"].dtype)).norm(dim=-1).clamp_min(1e-8)
    if raw.chosen_by_norm and raw.activation in ("relu", "jumprelu"):
        if "threshold" in tensors:
            tensors["threshold"] = tensors["threshold"] / n
        return tensors
    tensors |= {"W_enc": tensors["W_enc"] * n, "b_enc": tensors["b_enc"] * n}
    if raw.unit_rows:
        tensors["W_dec"] = tensors["W_dec"] / n[:, None]
        if "threshold" in tensors:
            tensors["threshold"] = tensors["threshold"] * n
    elif raw.chosen_by_norm:
        tensors["act_scale"] = 1 / n
    return tensors

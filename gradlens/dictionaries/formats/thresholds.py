"""Thresholds as files have them: one number for all features or one for each, and one number that may never have been measured."""

from __future__ import annotations

import math
from pathlib import Path

import torch
from torch import Tensor

from gradlens.errors import InputError

NOT_MEASURED = -1.0  # what dictionary_learning and its forks start a BatchTopK threshold with


def measured(level: Tensor, path: Path) -> Tensor | None:
    """A BatchTopK dictionary's one threshold in float32, or None where it was never measured: then the batch chooses.

    Raises `InputError` for more than one number and for what is neither a threshold nor `NOT_MEASURED`, NaN above all."""
    if level.numel() != 1:
        raise InputError(f"{path}: threshold has shape {list(level.shape)}, expected one number")
    value = float(level)
    if value == NOT_MEASURED:
        return None
    if not 0 <= value < math.inf:
        raise InputError(
            f"{path}: threshold is {value:g}, expected a finite number from 0 on, or {NOT_MEASURED:g} where it was never measured; "
            "the file is damaged or its training failed"
        )
    return level.float().reshape(())


def per_feature(level: Tensor, b_enc: Tensor, path: Path) -> Tensor:
    """A threshold of one number or of one for each feature as `[F]`, in float32 or wider. Raises `InputError` for any other shape."""
    level = level.to(torch.promote_types(level.dtype, torch.float32)).flatten()
    if b_enc.dim() != 1 or level.numel() not in (1, b_enc.numel()):
        raise InputError(
            f"{path}: the threshold has shape {list(level.shape)} and the encoder's bias {list(b_enc.shape)}, expected one number for each "
            "feature in both"
        )
    return level.expand(b_enc.shape)

"""Groups: the subspace that some features span, as one thing. Pure functions of directions; angles in degrees.

Shape suffixes: D d_model, N features of the group.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from gradlens.dictionary import Dictionary
from gradlens.edits import orthonormal_basis


def group_basis(dictionary: Dictionary, members: Sequence[int] | Tensor) -> Tensor:
    """Orthonormal basis `Q[D, r]` of the span of some features' directions."""
    return orthonormal_basis(dictionary.unit_directions(torch.as_tensor(members, device=dictionary.W_dec.device)))


def angle(inside: float, whole: float) -> float:
    """Degrees between a vector of length `whole` and a subspace in which `inside` of it lies; 90: none of it. nan for no vector."""
    return math.degrees(math.acos(min(1.0, inside / whole))) if whole > 0 else math.nan


def group_change(dictionary: Dictionary, members: Tensor, moved_D: Tensor) -> dict[str, float]:
    """`group_drift` = ||Qᵀ Δh̄||: how far the mean residual moved within a group's span; `group_drift_angle`: between Δh̄ and the span."""
    inside = (group_basis(dictionary, members).double().cpu().T @ moved_D).norm().item()
    return {"group_drift": inside, "group_drift_angle": angle(inside, moved_D.norm().item())}

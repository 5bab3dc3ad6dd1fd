"""Edits along concepts: pure functions. A gain multiplies: 0 removes, 1 changes nothing, >1 amplifies, <0 reverses.

Shape suffixes: B rows, S positions, D d_model, N directions, r rank of their span.
"""

from __future__ import annotations

import torch
from torch import Tensor


def orthonormal_basis(directions_ND: Tensor) -> Tensor:
    """Orthonormal basis `Q[D, r]` of the span of `directions[N, D]`; directions that depend on others add nothing.

    Directions are not orthogonal: summing their single projections would remove shared parts twice.
    """
    rows = directions_ND.double()
    rows = rows / rows.norm(dim=-1, keepdim=True).clamp_min(1e-30)
    _, singular, Vh = torch.linalg.svd(rows, full_matrices=False)
    rank = int((singular > 1e-6 * singular.max().clamp_min(1e-30)).sum())
    return Vh[:rank].T.contiguous().to(directions_ND.dtype)


def scale_along(x: Tensor, Q_Dr: Tensor, gain: float) -> Tensor:
    """`x[..., D]` with its part in the span of Q multiplied by `gain`: x M with M = I + (gain - 1) Q Qᵀ."""
    return x + (gain - 1) * ((x @ Q_Dr) @ Q_Dr.T)


def scale_along_eager(x: Tensor, Q_Dr: Tensor, gain: float) -> Tensor:
    """The same through the full matrix M = I + Q(A - I)Qᵀ, A = gain · I."""
    eye_D = torch.eye(Q_Dr.shape[0], dtype=x.dtype, device=x.device)
    A = gain * torch.eye(Q_Dr.shape[1], dtype=x.dtype, device=x.device)
    return x @ (eye_D + Q_Dr @ (A - torch.eye(len(A), dtype=x.dtype, device=x.device)) @ Q_Dr.T)


def expresses(active_BS: Tensor, tokens: str) -> Tensor:
    """Positions that a route rule gates, `bool[B, S]`: where the concept is active at the position (`own`), at the one it predicts (`next`), or either."""
    next_BS = torch.zeros_like(active_BS)
    next_BS[:, :-1] = active_BS[:, 1:]
    return {"own": active_BS, "next": next_BS, "own_or_next": active_BS | next_BS}[tokens]

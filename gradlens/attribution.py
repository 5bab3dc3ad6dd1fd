"""Estimators of what a step teaches: pure functions of activations, gradients and a dictionary.

Shape suffixes: T tokens, D d_model, F d_sae, K active features per token. g = dL/dh of the loss that the optimizer receives.
Signs: positive = this step teaches more of it. Each fast form has an eager twin `*_eager` that defines it; tests hold them
together in float64. No hooks, no I/O, nothing of size [T, F] kept.

Sources: `attribution` is gradient x activation (Shrikumar et al., arXiv 1605.01713), for dictionary features as in Marks et al., "Sparse
feature circuits" (arXiv 2403.19647); `push` and `energy` are the first and second moment of the gradient along a direction.
"""

from __future__ import annotations

import torch
from torch import Tensor

from gradlens.dictionary import Dictionary

CHUNK = 256  # tokens whose active decoder rows are gathered at a time


def push(dictionary: Dictionary, g_sum_D: Tensor) -> Tensor:
    """`push[F]` = -Σ_t <g_t, d̂_i> from `g_sum[D]` = Σ_t g_t: where the loss wants the residual to move.

    Exact, since the sum over tokens and the projection commute; costs 2DF. Linear: add `g_sum` over micro-batches and ranks first.
    """
    return -(dictionary.W_dec @ g_sum_D) / _norms(dictionary)


def push_eager(dictionary: Dictionary, g_TD: Tensor) -> Tensor:
    """`push[F]` by its definition, token by token."""
    return -(g_TD @ dictionary.unit_directions().T).sum(0)


def attribution(dictionary: Dictionary, h_TD: Tensor, g_TD: Tensor, active: tuple[Tensor, Tensor] | None = None) -> Tensor:
    """`attribution[F]` = -Σ_t f_ti <g_t, d_i> (gradient x activation): which active features, scaled up, would lower the loss.

    Only active pairs are touched: 2TKD instead of 2TDF. `active` is `dictionary.encode_active(h)` where it is at hand.
    Equals minus the gradient with respect to s at s = 1 of the loss with h + Σ_j (s_j - 1) f_j d_j spliced in.
    """
    idx_TK, val_TK = dictionary.encode_active(h_TD) if active is None else active
    total_F = torch.zeros(dictionary.d_sae, dtype=g_TD.dtype, device=g_TD.device)
    for idx, val, g in zip(idx_TK.split(CHUNK), val_TK.split(CHUNK), g_TD.split(CHUNK), strict=True):
        dots = torch.einsum("tkd,td->tk", dictionary.W_dec[idx], g)
        total_F.index_add_(0, idx.flatten(), (val * dots).flatten())
    return -total_F


def attribution_eager(dictionary: Dictionary, h_TD: Tensor, g_TD: Tensor) -> Tensor:
    """`attribution[F]` by its definition, with the whole [T, F]."""
    return -(dictionary.encode(h_TD) * (g_TD @ dictionary.W_dec.T)).sum(0)


def energy(dictionary: Dictionary, g_TD: Tensor) -> Tensor:
    """`energy[F]` = Σ_t <g_t, d̂_i>²: how much gradient there is along i, whatever its sign.

    d̂ᵀ(GᵀG)d̂ where there are more tokens than dimensions, else the dense form in chunks: 2DF·min(T, D). Additive over tokens.
    """
    T, D = g_TD.shape
    norms = _norms(dictionary)
    if T > D:
        return ((dictionary.W_dec @ (g_TD.T @ g_TD)) * dictionary.W_dec).sum(-1) / norms.square()
    total_F = torch.zeros(dictionary.d_sae, dtype=g_TD.dtype, device=g_TD.device)
    for g in g_TD.split(CHUNK):
        total_F += (g @ dictionary.W_dec.T).square().sum(0)
    return total_F / norms.square()


def energy_eager(dictionary: Dictionary, g_TD: Tensor) -> Tensor:
    """`energy[F]` by its definition."""
    return (g_TD @ dictionary.unit_directions().T).square().sum(0)


def explained_energy(
    dictionary: Dictionary, h_TD: Tensor, g_TD: Tensor, active: tuple[Tensor, Tensor] | None = None
) -> tuple[Tensor, Tensor]:
    """`(explained, total)`: Σ_t ||P_t g_t||² and Σ_t ||g_t||², P_t the projector on the span of the features active at token t.

    `unexplained` = 1 - explained / total: the share of the gradient outside the dictionary's reach. (All decoder rows together span
    every direction as soon as there are as many as dimensions; what the dictionary can say of a token are its active features.)
    Solved through the K x K Gram matrix of the active unit rows in float64; both are additive over tokens and ranks.
    """
    idx_TK, val_TK = dictionary.encode_active(h_TD) if active is None else active
    explained = torch.zeros((), dtype=torch.float64, device=g_TD.device)
    for idx, val, g in zip(idx_TK.split(CHUNK), val_TK.split(CHUNK), g_TD.split(CHUNK), strict=True):
        is_active = (val > 0).to(g.dtype)
        rows_TKD = dictionary.unit_directions(idx) * is_active[..., None]
        dots_TK = torch.einsum("tkd,td->tk", rows_TKD, g).double()
        gram_TKK = torch.einsum("tkd,tjd->tkj", rows_TKD, rows_TKD).double()
        # Inactive slots get a 1 on the diagonal; the ridge keeps dependent rows solvable and costs 1e-10 relative.
        gram_TKK += torch.diag_embed(1 - is_active.double() + 1e-10)
        solved_TK = torch.cholesky_solve(dots_TK[..., None], torch.linalg.cholesky_ex(gram_TKK)[0])[..., 0]
        explained += (dots_TK * solved_TK).sum()
    return explained, g_TD.double().square().sum()


def explained_energy_eager(dictionary: Dictionary, h_TD: Tensor, g_TD: Tensor) -> tuple[Tensor, Tensor]:
    """`(explained, total)` by their definition, a pseudo-inverse per token."""
    explained = torch.zeros((), dtype=torch.float64)
    for acts_F, g_D in zip(dictionary.encode(h_TD), g_TD, strict=True):
        rows = dictionary.W_dec[acts_F > 0].double()
        explained += (torch.linalg.pinv(rows) @ (rows @ g_D.double())).square().sum() if len(rows) else 0
    return explained, g_TD.double().square().sum()


def _norms(dictionary: Dictionary) -> Tensor:
    return dictionary.W_dec.norm(dim=-1).clamp_min(torch.finfo(dictionary.W_dec.dtype).tiny)

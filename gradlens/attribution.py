"""Estimators of what a step teaches: pure functions of activations, gradients and a dictionary.

Shape suffixes: T tokens, D d_model, F d_sae, K active features per token. g = dL/dh of the loss that the optimizer receives.
Signs: positive = this step teaches more of it. Each has an eager twin `*_eager` that defines it, which `impl="eager"` computes; tests hold
the others to it in float64. No hooks, no I/O, nothing of size [T, F] or [F, D] made.

Sources: `attribution` is gradient x activation (Shrikumar et al., arXiv 1605.01713), for dictionary features as in Marks et al., "Sparse
feature circuits" (arXiv 2403.19647); `push` and `energy` are the first and second moment of the gradient along a direction.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from gradlens.dictionary import Dictionary
from gradlens.encoding import TILE, TOKENS, encode_active, used_rows
from gradlens.engine import Impl, choose
from gradlens.precision import HALF
from gradlens.products import linear

WHOLE = 6  # how many times as fast half precision is multiplied as float32, on tensor cores
GRAM = 10**7  # products of rows with each other that are kept: 40 MB in float32
Active = tuple[Tensor, Tensor]  # `encode_active`


def push(dictionary: Dictionary, g_sum_D: Tensor) -> Tensor:
    """`push[F]` = -Σ_t <g_t, d̂_i> from `g_sum[D]` = Σ_t g_t: where the loss wants the residual to move.

    Exact, since the sum over tokens and the projection commute; costs 2DF. Linear: add `g_sum` over micro-batches and ranks first.
    """
    return -dictionary.along(g_sum_D)


def push_eager(dictionary: Dictionary, g_TD: Tensor) -> Tensor:
    """`push[F]` by its definition, token by token."""
    return -(g_TD @ dictionary.unit_directions().T).sum(0)


def attribution(
    dictionary: Dictionary, h_TD: Tensor, g_TD: Tensor, active: Active | None = None, impl: Impl = "auto", deterministic: bool = False
) -> Tensor:
    """`attribution[F]` = -Σ_t f_ti <g_t, d_i> (gradient x activation): which active features, scaled up, would lower the loss.

    Only active pairs are touched: 2TKD instead of 2TDF. `active` is `encode_active(dictionary, h)` where it is at hand. `deterministic`:
    the same bits every time on an accelerator too, where sums by atomic additions are not.
    Equals minus the gradient with respect to s at s = 1 of the loss with h + Σ_j (s_j - 1) f_j d_j spliced in.
    """
    which = choose(impl, g_TD)
    if which == "eager":
        return attribution_eager(dictionary, h_TD, g_TD)
    idx_TK, val_TK = encode_active(dictionary, h_TD, impl) if active is None else active
    scale_T1 = dictionary.row_scale(h_TD)
    if scale_T1 is not None:
        val_TK = val_TK * scale_T1
    if which == "triton":
        from gradlens import kernels

        return -kernels.gated_sum(idx_TK, val_TK, g_TD, dictionary.W_dec, dictionary.d_sae, deterministic)
    return -feature_sums(idx_TK, val_TK * pair_dots(dictionary, g_TD, idx_TK, impl), dictionary.d_sae)


def attribution_eager(dictionary: Dictionary, h_TD: Tensor, g_TD: Tensor) -> Tensor:
    """`attribution[F]` by its definition, with the whole [T, F]."""
    scale_T1 = dictionary.row_scale(h_TD)
    acts_TF = dictionary.encode(h_TD) if scale_T1 is None else dictionary.encode(h_TD) * scale_T1
    return -(acts_TF * (g_TD @ dictionary.W_dec.T)).sum(0)


def pair_dots(dictionary: Dictionary, g_TD: Tensor, idx_TK: Tensor, impl: Impl = "auto") -> Tensor:
    """`<g_t, d_i>` of active pairs, `[T, K]`; costs 2TKD and no copy of the rows.

    PyTorch has this product as the gradient of a weighted sum of rows (`embedding_bag`) with respect to its weights.
    """
    if choose(impl, g_TD) == "triton":
        from gradlens import kernels

        return kernels.gated(idx_TK, torch.ones_like(idx_TK, dtype=g_TD.dtype), g_TD, dictionary.W_dec)
    if g_TD.is_cuda and dictionary.W_dec.dtype != g_TD.dtype:  # to pick the rows that are used would make the host wait
        size_T1 = g_TD.abs().amax(-1, keepdim=True).clamp_min(torch.finfo(g_TD.dtype).tiny)  # a small gradient is 0 in float16
        return pair_dots(dictionary, (g_TD / size_T1).to(dictionary.W_dec.dtype), idx_TK, "torch").to(g_TD.dtype) * size_T1
    parts = []
    for idx, g in zip(idx_TK.split(TOKENS), g_TD.split(TOKENS), strict=True):
        T, K = idx.shape
        W_dec, idx = used_rows(dictionary.W_dec, idx, g.dtype)
        starts = torch.arange(0, T * K, K, device=idx.device)
        bags = torch.arange(T, device=idx.device).repeat_interleave(K)
        dots = torch.ops.aten._embedding_bag_per_sample_weights_backward(g.contiguous(), W_dec, idx.flatten(), starts, bags, 0, -1)
        parts.append(dots.view(T, K))
    return torch.cat(parts) if parts else g_TD.new_zeros(idx_TK.shape)


def pair_dots_eager(dictionary: Dictionary, g_TD: Tensor, idx_TK: Tensor) -> Tensor:
    """`<g_t, d_i>` of active pairs by their definition."""
    return (g_TD @ dictionary.W_dec.T).gather(1, idx_TK)


def feature_sums(idx_TK: Tensor, weight_TK: Tensor, F: int) -> Tensor:
    """Sum of the pairs' weights by feature, `[F]`."""
    return torch.zeros(F, dtype=weight_TK.dtype, device=weight_TK.device).index_add_(0, idx_TK.flatten(), weight_TK.flatten())


def energy(dictionary: Dictionary, g_TD: Tensor, impl: Impl = "auto", precision: str = "float32") -> Tensor:
    """`energy[F]` = Σ_t <g_t, d̂_i>²: how much gradient there is along i, whatever its sign.

    d̂ᵀ(GᵀG)d̂ (2D²(T + F)) where that is cheaper, else token by token (2TDF), a tile at a time. Additive over tokens. `precision`: a half
    precision that W_dec is kept in and g has been in: the kernels then multiply in it.
    """
    T, D = g_TD.shape
    which, by_gram = choose(impl, g_TD), T * dictionary.d_sae > D * (T + dictionary.d_sae)
    if which == "eager":
        return energy_eager(dictionary, g_TD)
    in_half = dictionary.W_dec.dtype == HALF.get(precision) and T * dictionary.d_sae < WHOLE * D * (T + dictionary.d_sae)
    if which == "triton" and in_half and T:
        from gradlens import kernels

        # by a power of two: nothing is rounded that was in half precision once, and a small gradient is not 0 in float16
        exponent = torch.frexp(g_TD.abs().amax())[1]
        total_F = kernels.energy_sum(torch.ldexp(g_TD, -exponent).to(dictionary.W_dec.dtype), dictionary.W_dec)
        return torch.ldexp(torch.ldexp(total_F, exponent), exponent) / dictionary.norms / dictionary.norms
    wide_TD = g_TD.to(torch.promote_types(g_TD.dtype, torch.float32))  # second moments of half precision could vanish
    gram_DD = wide_TD.T @ wide_TD if by_gram else None
    if which == "triton":
        from gradlens import kernels

        total_F = kernels.quadratic_form(gram_DD, dictionary.W_dec) if by_gram else kernels.energy_sum(g_TD, dictionary.W_dec)
        return total_F / dictionary.norms / dictionary.norms  # the square of a row of zeros would be 0
    parts = []
    for rows in dictionary.W_dec.split(max(1, TILE // (D if by_gram else TOKENS))):
        rows = rows.to(wide_TD.dtype)
        if by_gram:
            parts.append(torch.linalg.vecdot(rows @ gram_DD, rows))
        else:
            parts.append(sum(linear(g, rows).square_().sum(0) for g in wide_TD.chunk(max(1, math.ceil(T / TOKENS)))))
    norms_F = dictionary.norms.to(wide_TD.dtype)
    return torch.cat(parts) / norms_F / norms_F


def energy_eager(dictionary: Dictionary, g_TD: Tensor) -> Tensor:
    """`energy[F]` by its definition."""
    return (g_TD @ dictionary.unit_directions().T).square().sum(0)


def explained_energy(
    dictionary: Dictionary, h_TD: Tensor, g_TD: Tensor, active: Active | None = None, dots_TK: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """`(explained, total)`: Σ_t ||P_t g_t||² and Σ_t ||g_t||², P_t the projector on the span of the features active at token t.

    `unexplained` = 1 - explained / total: the share of the gradient outside the dictionary's reach. (All decoder rows together span
    every direction as soon as there are as many as dimensions; what the dictionary can say of a token are its active features.)
    Solved through the K x K Gram matrix of the active unit rows in float64; both are additive over tokens and ranks. Costs 2TK²D, or TK²
    look-ups where the dictionary is small enough to keep the products of all its rows (`GRAM`). `dots_TK`: their `pair_dots`, if known.
    """
    idx_TK, val_TK = encode_active(dictionary, h_TD) if active is None else active
    explained = torch.zeros((), dtype=torch.float64, device=g_TD.device)
    gram_FF = dictionary.gram if dictionary.d_sae**2 <= GRAM else None
    K = idx_TK.shape[1]
    dots_TK = (pair_dots(dictionary, g_TD, idx_TK) if dots_TK is None else dots_TK).double() / dictionary.norms[idx_TK]
    tokens = max(1, TILE // (K * (K if gram_FF is not None else dictionary.d_out)))
    for idx, val, dots in zip(idx_TK.split(tokens), val_TK.split(tokens), dots_TK.split(tokens), strict=True):
        if gram_FF is None:
            # in float64 on an accelerator: TF32, where a loop allows it, is wrong by 1e-3
            rows_TKD = dictionary.W_dec[idx].to(dictionary.work_dtype if idx.device.type == "cpu" else torch.float64)
            norms_TK = dictionary.norms[idx].double()
            gram_TKK = (rows_TKD @ rows_TKD.mT).double() / norms_TK[:, :, None] / norms_TK[:, None, :]  # a row of zeros: tiny² would be 0
        else:
            at_TKK = idx[:, :, None] * dictionary.d_sae + idx[:, None, :]
            gram_TKK = gram_FF.view(-1).index_select(0, at_TKK.flatten()).view(at_TKK.shape).double()  # four times as fast as gram_FF[...]
        # Inactive slots get a row of the unit matrix. The ridge keeps dependent rows solvable (more of them than dimensions always are): as
        # large as what rounding makes of an eigenvalue that is 0, below which the matrix need not be positive, and the solution anything.
        is_active = (val > 0).double()
        ridge = (torch.finfo(g_TD.dtype).eps * is_active.sum(-1, keepdim=True)).clamp_min(1e-10)
        gram_TKK = gram_TKK * (is_active[:, :, None] * is_active[:, None, :]) + torch.diag_embed(1 - is_active + ridge)
        dots = dots * is_active
        # with gram = L Lᵀ: dots · gram⁻¹ dots = |L⁻¹ dots|², one triangular solution instead of two
        half_TK1 = torch.linalg.solve_triangular(torch.linalg.cholesky_ex(gram_TKK)[0], dots[..., None], upper=False)
        explained += half_TK1.square().sum()
    return explained, torch.einsum("td,td->t", g_TD, g_TD).double().sum()


def explained_energy_eager(dictionary: Dictionary, h_TD: Tensor, g_TD: Tensor) -> tuple[Tensor, Tensor]:
    """`(explained, total)` by their definition, a pseudo-inverse per token."""
    explained = torch.zeros((), dtype=torch.float64)
    for acts_F, g_D in zip(dictionary.encode(h_TD), g_TD, strict=True):
        rows = dictionary.W_dec[acts_F > 0].double()
        explained += (torch.linalg.pinv(rows) @ (rows @ g_D.double())).square().sum() if len(rows) else 0
    return explained, g_TD.double().square().sum()

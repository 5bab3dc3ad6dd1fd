"""Estimators of what a step teaches: pure functions of activations, gradients and a dictionary.

Shape suffixes: T tokens, D d_model, F d_sae, K active features per token. g = dL/dh of the loss that the optimizer receives.
Signs: positive = this step teaches more of it. Each has an eager twin `*_eager` that defines it, which `impl="eager"` computes; tests hold
the others to it in float64. No hooks, no I/O, nothing of size [T, F] or [F, D] made.

Sources: `attribution` is gradient x activation (Shrikumar et al., arXiv 1605.01713), for dictionary features as in Marks et al., "Sparse
feature circuits" (arXiv 2403.19647); `push` and `energy` are the first and second moment of the gradient along a direction.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor

from gradlens.dictionaries.dictionary import Dictionary
from gradlens.dictionaries.encoding import TILE, TOKENS, encode_active, used_rows
from gradlens.dictionaries.engine import Impl, choose
from gradlens.dictionaries.pair_sums import feature_sums
from gradlens.dictionaries.precision import HALF
from gradlens.dictionaries.products import linear

WHOLE = 6  # how many times as fast half precision is multiplied as float32, on tensor cores
GRAM = 10**7  # products of rows with each other that are kept: 40 MB in float32
Active = tuple[Tensor, Tensor]  # `encode_active`


def push(dictionary: Dictionary, g_sum_D: Tensor) -> Tensor:
    """`push[F]` = -Σ_t <g_t, d̂_i> from `g_sum[D]` = Σ_t g_t: where the loss wants the residual to move.

    Exact, since the sum over tokens and the projection commute; costs 2DF. Linear: add `g_sum` over micro-batches and ranks first.
    """
    if choose("auto", g_sum_D) == "triton":  # one pass over the matrix as it is kept; block by block it would take a hundred times as many
        from gradlens.dictionaries import kernels

        return -kernels.along(g_sum_D, dictionary.W_dec) / dictionary.norms.to(g_sum_D.dtype)
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
        from gradlens.dictionaries import kernels

        return -kernels.gated_sum(idx_TK, val_TK, g_TD, dictionary.W_dec, dictionary.d_sae, deterministic)
    return -feature_sums(idx_TK, val_TK * pair_dots(dictionary, g_TD, idx_TK, impl), dictionary.d_sae)


def attribution_eager(dictionary: Dictionary, h_TD: Tensor, g_TD: Tensor) -> Tensor:
    """`attribution[F]` by its definition, with the whole [T, F]."""
    scale_T1 = dictionary.row_scale(h_TD)
    acts_TF = dictionary.encode(h_TD) if scale_T1 is None else dictionary.encode(h_TD) * scale_T1
    return -(acts_TF * (g_TD @ dictionary.W_dec.T)).sum(0)


def pair_dots(dictionary: Dictionary, g_TD: Tensor, idx_TK: Tensor, impl: Impl = "auto", val_TK: Tensor | None = None) -> Tensor:
    """`<g_t, d_i>` of active pairs, `[T, K]`, at least float32; costs 2TKD and no copy of the rows.

    PyTorch has this product as the gradient of a weighted sum of rows (`embedding_bag`) with respect to its weights. `val_TK`: where it is
    0 nobody asks for the product; it is 0 there then, also of a gradient that is not finite. The kernel reads nothing for it.
    """
    if choose(impl, g_TD) == "triton":
        from gradlens.dictionaries import kernels

        return kernels.gated(idx_TK, torch.ones_like(idx_TK, dtype=g_TD.dtype) if val_TK is None else val_TK, g_TD, dictionary.W_dec)
    g_TD = g_TD.to(torch.promote_types(g_TD.dtype, torch.float32))
    parts = []
    if g_TD.is_cuda and dictionary.W_dec.dtype != g_TD.dtype:  # to pick the rows that are used would make the host wait
        tokens = max(1, TILE // (idx_TK.shape[1] * dictionary.d_out))
        for idx, g in zip(idx_TK.split(tokens), g_TD.split(tokens), strict=True):  # float32 on one side: in half the products are rounded
            parts.append((dictionary.W_dec[idx].to(g.dtype) * g[:, None]).sum(-1))
        return _asked(parts, idx_TK, val_TK, g_TD)
    for idx, g in zip(idx_TK.split(TOKENS), g_TD.split(TOKENS), strict=True):
        T, K = idx.shape
        W_dec, idx = used_rows(dictionary.W_dec, idx, g.dtype)
        starts = torch.arange(0, T * K, K, device=idx.device)
        bags = torch.arange(T, device=idx.device).repeat_interleave(K)
        dots = torch.ops.aten._embedding_bag_per_sample_weights_backward(g.contiguous(), W_dec, idx.flatten(), starts, bags, 0, -1)
        parts.append(dots.view(T, K))
    return _asked(parts, idx_TK, val_TK, g_TD)


def _asked(parts: list[Tensor], idx_TK: Tensor, val_TK: Tensor | None, g_TD: Tensor) -> Tensor:
    dots_TK = torch.cat(parts) if parts else g_TD.new_zeros(idx_TK.shape)
    return dots_TK if val_TK is None else dots_TK.masked_fill_(val_TK == 0, 0)


def pair_dots_eager(dictionary: Dictionary, g_TD: Tensor, idx_TK: Tensor) -> Tensor:
    """`<g_t, d_i>` of active pairs by their definition."""
    return (g_TD @ dictionary.W_dec.T).gather(1, idx_TK)


def energy(dictionary: Dictionary, g_TD: Tensor, impl: Impl = "auto", precision: str = "float32", bad_T: Tensor | None = None) -> Tensor:
    """`energy[F]` = Σ_t <g_t, d̂_i>²: how much gradient there is along i, whatever its sign.

    d̂ᵀ(GᵀG)d̂ (2D²(T + F)) where that is cheaper, else token by token (2TDF), a tile at a time. Additive over tokens. `precision`: a half
    precision that W_dec is kept in and g has been in: the kernels then multiply in it. `bad_T`: tokens that are left out.
    """
    (T, D), F = g_TD.shape, dictionary.d_sae
    which, by_gram = choose(impl, g_TD), T * F > D * (T + F)
    if which == "eager":
        return energy_eager(dictionary, _without(g_TD, bad_T))
    half = HALF.get(precision)
    if which == "triton" and T and half == dictionary.W_dec.dtype:
        from gradlens.dictionaries import kernels

        # what the Gram matrix costs in half precision: in bfloat16 the lower half of it in three pieces, in float16 no less than in float32
        if 2 * T * F < (3 if half == torch.bfloat16 else 2 * WHOLE) * D * F + 2 * D * T:
            return _energy_in_half(dictionary, _without(g_TD, bad_T))
        by_gram, g_TD = True, g_TD.to(half) if half == torch.bfloat16 else g_TD
    if which == "triton":
        from gradlens.dictionaries import kernels

        total_F = (
            kernels.quadratic_form(_second_moments(g_TD, bad_T), dictionary.W_dec)
            if by_gram
            else kernels.energy_sum(_without(g_TD, bad_T), dictionary.W_dec)
        )
        return total_F / dictionary.norms / dictionary.norms  # the square of a row of zeros would be 0
    wide_TD = _without(g_TD.to(torch.promote_types(g_TD.dtype, torch.float32)), bad_T)  # second moments of half precision could vanish
    gram_DD = wide_TD.T @ wide_TD if by_gram else None
    parts = []
    for rows in dictionary.W_dec.split(max(1, TILE // (D if by_gram else TOKENS))):
        rows = rows.to(wide_TD.dtype)
        if by_gram:
            parts.append(torch.linalg.vecdot(rows @ gram_DD, rows))
        else:
            parts.append(sum(linear(g, rows).square_().sum(0) for g in wide_TD.chunk(max(1, math.ceil(T / TOKENS)))))
    norms_F = dictionary.norms.to(wide_TD.dtype)
    return torch.cat(parts) / norms_F / norms_F


def _energy_in_half(dictionary: Dictionary, g_TD: Tensor) -> Tensor:
    """Token by token, in the half precision of the dictionary."""
    from gradlens.dictionaries import kernels

    if dictionary.W_dec.dtype == torch.bfloat16:  # which has numbers as small as float32 has
        return kernels.energy_sum(g_TD.to(torch.bfloat16), dictionary.W_dec) / dictionary.norms / dictionary.norms
    # by a power of two: nothing is rounded that was in half precision once, and a small gradient is not 0 in float16
    exponent = torch.frexp(g_TD.float().abs().amax())[1]
    total_F = kernels.energy_sum(torch.ldexp(g_TD.float(), -exponent).to(dictionary.W_dec.dtype), dictionary.W_dec)
    return torch.ldexp(torch.ldexp(total_F, exponent), exponent) / dictionary.norms / dictionary.norms


def _second_moments(g_TD: Tensor, bad_T: Tensor | None) -> Tensor:
    """GᵀG in float32, some tokens at a time. bfloat16 is multiplied as it is, and summed in float32."""
    gram_DD = g_TD.new_zeros(g_TD.shape[1], g_TD.shape[1], dtype=torch.float32)
    for _, g in token_blocks(g_TD, bad_T):
        if g.dtype == torch.bfloat16 and _sums_in_float32(g):
            gram_DD += torch.mm(g.T, g, out_dtype=torch.float32)
        else:
            gram_DD += g.float().T @ g.float()
    return gram_DD


def _sums_in_float32(x: Tensor) -> bool:
    """Whether PyTorch multiplies this half precision as it is, and gives the sums in float32."""
    return x.is_cuda and x.element_size() == 2 and torch.version.hip is None


def token_blocks(x_TD: Tensor, bad_T: Tensor | None, dtype: torch.dtype | None = None) -> Iterator[tuple[slice, Tensor]]:
    """`(tokens, x[tokens])` in `dtype` (None: its own) without the bad ones, block after block: what is made for them stays small."""
    step = max(1, 2 * TILE // max(x_TD.shape[1], 1))
    for first in range(0, len(x_TD), step):
        at = slice(first, first + step)
        yield at, _without(x_TD[at], None if bad_T is None else bad_T[at]).to(dtype or x_TD.dtype)


def _without(x_TD: Tensor, bad_T: Tensor | None) -> Tensor:
    return x_TD if bad_T is None else x_TD.masked_fill(bad_T[:, None], 0)


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
    K = idx_TK.shape[1]
    dots_TK = (pair_dots(dictionary, g_TD, idx_TK) if dots_TK is None else dots_TK).double() / dictionary.norms[idx_TK]
    # On an accelerator a factorisation takes as long for many systems as for one: as many at a time as there is room for.
    waits = idx_TK.device.type == "cpu" and dictionary.d_sae**2 > GRAM
    tokens = max(1, TILE // (K * (dictionary.d_out if waits else K)))
    for idx, val, dots in zip(idx_TK.split(tokens), val_TK.split(tokens), dots_TK.split(tokens), strict=True):
        explained += _explained(dictionary, idx, val, dots, torch.finfo(g_TD.dtype).eps)
    return explained, torch.einsum("td,td->t", g_TD, g_TD).double().sum()


def _explained(dictionary: Dictionary, idx_TK: Tensor, val_TK: Tensor, dots_TK: Tensor, eps: float) -> Tensor:
    """Σ_t ||P_t g_t||² from `<d̂_i, g_t>` in float64."""
    gram_TKK = _row_products(dictionary, idx_TK)
    # Inactive slots get a row of the unit matrix. The ridge keeps dependent rows solvable (more of them than dimensions always are): as
    # large as what rounding makes of an eigenvalue that is 0, below which the matrix need not be positive, and the solution anything.
    is_active = (val_TK > 0).double()
    ridge = (eps * is_active.sum(-1, keepdim=True)).clamp_min(1e-10)
    gram_TKK = gram_TKK.mul_(is_active[:, :, None]).mul_(is_active[:, None, :])
    gram_TKK.diagonal(dim1=-2, dim2=-1).add_(1 - is_active + ridge)
    # with gram = L Lᵀ: dots · gram⁻¹ dots = |L⁻¹ dots|², one triangular solution instead of two
    L_TKK = torch.linalg.cholesky_ex(gram_TKK)[0]
    return torch.linalg.solve_triangular(L_TKK, (dots_TK * is_active)[..., None], upper=False).square().sum()


def _row_products(dictionary: Dictionary, idx_TK: Tensor) -> Tensor:
    """`<d̂_i, d̂_j>` of every token's pairs, `[T, K, K]` float64, for the caller to change."""
    (T, K), F = idx_TK.shape, dictionary.d_sae
    if F**2 <= GRAM:
        at_TKK = idx_TK[:, :, None] * F + idx_TK[:, None, :]
        return dictionary.gram.view(-1).index_select(0, at_TKK.flatten()).view(at_TKK.shape).double()  # four times as fast as gram[...]
    gram_TKK = torch.empty(T, K, K, dtype=torch.float64, device=idx_TK.device)
    step = max(1, 2 * TILE // (K * dictionary.d_out))
    for first in range(0, T, step):
        at = slice(first, first + step)
        rows, norms = dictionary.W_dec[idx_TK[at]], dictionary.norms[idx_TK[at]].double()
        if _sums_in_float32(rows):
            products = torch.bmm(rows, rows.mT, out_dtype=torch.float32)  # exact products, summed as a CPU sums them
        else:  # in float64 on an accelerator: TF32, where a loop allows it, is wrong by 1e-3
            rows = rows.to(dictionary.work_dtype if rows.device.type == "cpu" else torch.float64)
            products = rows @ rows.mT
        gram_TKK[at] = products.double() / norms[:, :, None] / norms[:, None, :]  # one by one: of a row of zeros tiny² would be 0
    return gram_TKK


def explained_energy_eager(dictionary: Dictionary, h_TD: Tensor, g_TD: Tensor) -> tuple[Tensor, Tensor]:
    """`(explained, total)` by their definition, a pseudo-inverse per token."""
    explained = torch.zeros((), dtype=torch.float64)
    for acts_F, g_D in zip(dictionary.encode(h_TD), g_TD, strict=True):
        rows = dictionary.W_dec[acts_F > 0].double()
        explained += (torch.linalg.pinv(rows) @ (rows @ g_D.double())).square().sum() if len(rows) else 0
    return explained, g_TD.double().square().sum()

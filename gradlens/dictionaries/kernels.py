"""Triton kernels for active pairs, second moments and edits; what finds the pairs is in `kernels_encode.py`, where conventions stand too.

Shape suffixes: T tokens, D d_model, F d_sae, K active features per token, r rank. Importing needs Triton; whether a
kernel can be trusted on a device, `self_check` says.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from gradlens.dictionaries.kernels_encode import (
    DTYPES,
    FLOAT32,
    INTERPRETED,
    dot,
    encode_threshold,
    encode_topk,
    launch,
    precision,
    product_options,
    tiles,
    tuned,
    worth_trying,
)  # fmt: skip

MAX_RANK = 128  # of `scale_along`: its coordinates are kept in registers


@tuned(
    [triton.Config({"BK": k, "BD": d}, num_warps=warps) for k, d, warps in [(16, 128, 4), (16, 256, 4), (32, 128, 4), (8, 512, 4)]],
    ["K", "D", "SUM"],
    reset_to_zero=["out_ptr"],
)
@triton.jit
def _gated_kernel(idx_ptr, val_ptr, g_ptr, W_ptr, out_ptr, K, D, SUM: tl.constexpr, BK: tl.constexpr, BD: tl.constexpr):
    t = tl.program_id(0).to(tl.int64)
    k, d = tl.program_id(1) * BK + tl.arange(0, BK), tl.arange(0, BD)
    val = tl.load(val_ptr + t * K + k, mask=k < K, other=0.0).to(tl.float32)
    active = val != 0
    dots = tl.zeros([BK], tl.float32)
    idx = tl.load(idx_ptr + t * K + k, mask=active, other=0).to(tl.int64)
    if tl.max(active.to(tl.int32), axis=0) > 0:
        acc = tl.zeros([BK, BD], tl.float32)
        for first in range(0, D, BD):
            inside = d < D - first
            g = tl.load(g_ptr + t * D + first + d, mask=inside, other=0.0).to(tl.float32)
            W = tl.load(W_ptr + idx[:, None] * D + (first + d)[None, :], mask=active[:, None] & inside[None, :], other=0.0)
            acc += W.to(tl.float32) * g[None, :]
        dots = tl.where(active, tl.sum(acc, axis=1), 0.0)  # 0 times a NaN of g is not 0
    if SUM:
        tl.atomic_add(out_ptr + idx, val * dots, mask=active, sem="relaxed")
    else:
        tl.store(out_ptr + t * K + k, dots, mask=k < K)


@triton.jit
def _segment_sum_kernel(weight_ptr, end_ptr, total_ptr, F, BF: tl.constexpr, BLOCK: tl.constexpr):
    f = tl.program_id(0) * BF + tl.arange(0, BF)
    first, end = tl.load(end_ptr + f, mask=f < F, other=0), tl.load(end_ptr + f + 1, mask=f < F, other=0)
    acc = tl.zeros([BF, BLOCK], tl.float32)
    for start in range(0, tl.max(end - first, axis=0), BLOCK):
        p = first[:, None] + start + tl.arange(0, BLOCK)[None, :]
        acc += tl.load(weight_ptr + p, mask=p < end[:, None], other=0.0)
    tl.store(total_ptr + f, tl.sum(acc, axis=1), mask=f < F)


@triton.jit(do_not_specialize=["first", "rows"])
def _pair_sum_kernel(
    idx_ptr, val_ptr, factor_ptr, row_ptr, total_ptr, K, F, first, rows,
    BY_PAIR: tl.constexpr, BY_ROW: tl.constexpr, BK: tl.constexpr,
):  # fmt: skip
    t = tl.program_id(0).to(tl.int64)
    row = tl.load(row_ptr + t) - first if BY_ROW else t * 0
    for start in range(0, K, BK):
        k = start + tl.arange(0, BK)
        at_row = row + k * 0
        val = tl.load(val_ptr + t * K + k, mask=(k < K) & (at_row >= 0) & (at_row < rows), other=0.0)
        active = val != 0  # unused slots all have id 0: their additions would wait for each other
        factor = tl.load(factor_ptr + t * K + k, mask=active, other=0.0) if BY_PAIR else tl.load(factor_ptr + t)
        idx = tl.load(idx_ptr + t * K + k, mask=active, other=0).to(tl.int64)
        weight = (val.to(tl.float32) * factor.to(tl.float32)).to(total_ptr.dtype.element_ty)
        tl.atomic_add(total_ptr + at_row * F + idx, weight, mask=active, sem="relaxed")


@triton.jit
def _along_kernel(W_ptr, v_ptr, out_ptr, D, F, BF: tl.constexpr, BD: tl.constexpr):
    f, d = tl.program_id(0).to(tl.int64) * BF + tl.arange(0, BF), tl.arange(0, BD)
    acc = tl.zeros([BF, BD], tl.float32)
    for first in range(0, D, BD):
        inside = d < D - first
        W = tl.load(W_ptr + f[:, None] * D + (first + d)[None, :], mask=(f < F)[:, None] & inside[None, :], other=0.0)
        acc += W.to(tl.float32) * tl.load(v_ptr + first + d, mask=inside, other=0.0)[None, :]
    tl.store(out_ptr + f, tl.sum(acc, axis=1), mask=f < F)


@triton.jit
def _split_kernel(gram_ptr, parts_ptr, D, BLOCK: tl.constexpr):
    row, column = tl.program_id(0).to(tl.int64), tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    rest = tl.load(gram_ptr + row * D + column, mask=(column < D) & (column <= row), other=0.0)
    rest = tl.where(column < row, 2 * rest, rest)
    for part in tl.static_range(3):
        # eight of the 24 digits, cut off: what is left is exact, and so is the conversion, however it rounds
        piece = (rest.to(tl.int32, bitcast=True) & -65536).to(tl.float32, bitcast=True)
        tl.store(parts_ptr + (row + part * D) * D + column, piece.to(tl.bfloat16), mask=column < D)
        rest -= piece


@triton.jit
def _weighted(acc, W_row, first, M):
    """Σ_m acc · W[m], m from `first` on; 64 of them at a time, or the registers would not suffice."""
    WIDTH: tl.constexpr = acc.shape[1]
    if WIDTH > 64:
        left, right = tl.split(tl.permute(tl.reshape(acc, [acc.shape[0], 2, WIDTH // 2]), (0, 2, 1)))
        return _weighted(left, W_row, first, M) + _weighted(right, W_row, first + WIDTH // 2, M)
    else:
        m = first + tl.arange(0, WIDTH)
        return tl.sum(acc * tl.load(W_row + m[None, :], mask=(m < M)[None, :], other=0.0).to(tl.float32), axis=1)


@tuned(tiles("BM"), ["D", "F", "MANY", "PIECES"], prune_configs_by={"early_config_prune": worth_trying})
@triton.jit(do_not_specialize=["M", "span"])
def _squares_kernel(
    rows_ptr, W_ptr, part_ptr, M, D, F, span, parts,
    QUADRATIC: tl.constexpr, PIECES: tl.constexpr, PRECISION: tl.constexpr, EVEN: tl.constexpr, MANY: tl.constexpr,
    BM: tl.constexpr, BF: tl.constexpr, BD: tl.constexpr,
):  # fmt: skip
    # Programs of one block of features follow each other, so that its rows are in the cache.
    part, d = tl.program_id(0) % parts, tl.arange(0, BD)
    start = (tl.program_id(0) // parts) * BF
    f = start + tl.arange(0, BF)
    W_row = W_ptr + start.to(tl.int64) * D + (tl.minimum(f, F - 1) - start)[:, None] * D
    total = tl.zeros([BF], tl.float32)
    for first_row in range(part * span, tl.minimum(part * span + span, M), BM):
        m = first_row + tl.arange(0, BM)
        acc = tl.zeros([BF, BM], tl.float32)
        # With PIECES the rows are a lower triangle, cut into matrices that add up to it: what lies beyond the diagonal is not multiplied.
        steps = tl.cdiv(D, BD) if PIECES == 1 else tl.cdiv(tl.minimum(D, first_row + BM), BD)
        rows_row = rows_ptr + m.to(tl.int64)[:, None] * D
        for step in range(0, steps * PIECES):
            first = step * BD if PIECES == 1 else (step % steps) * BD
            rows_ptrs, W_ptrs = rows_row + (first + d)[None, :], W_row + (first + d)[None, :]
            if PIECES > 1:
                rows_ptrs += (step // steps).to(tl.int64) * D * D
            if EVEN:
                W = tl.load(W_ptrs)
                rows = tl.load(rows_ptrs, mask=(m < M)[:, None], other=0.0)
            else:
                W = tl.load(W_ptrs, mask=d[None, :] < D - first, other=0.0)
                rows = tl.load(rows_ptrs, mask=(m < M)[:, None] & (d[None, :] < D - first), other=0.0)
            acc = dot(W, tl.trans(rows), acc, PRECISION)
        total += _weighted(acc, W_row, first_row, M) if QUADRATIC else tl.sum(acc * acc, axis=1)
    tl.store(part_ptr + part.to(tl.int64) * F + f, total, mask=f < F)


@tuned(
    [triton.Config({"BT": t, "BD": d}, num_warps=w) for t, d, w in [(32, 64, 8), (16, 32, 4), (32, 32, 4), (64, 64, 8)]],
    ["D", "R"],
)
@triton.jit(do_not_specialize=["T"])
def _scale_kernel(x_ptr, Q_ptr, out_ptr, change, T, D, r, PRECISION: tl.constexpr, R: tl.constexpr, BT: tl.constexpr, BD: tl.constexpr):
    t, d, q = tl.program_id(0) * BT + tl.arange(0, BT), tl.arange(0, BD), tl.arange(0, R)
    at = t.to(tl.int64)[:, None] * D + d[None, :]
    Q_at = d[:, None] * r + q[None, :]
    coordinates = tl.zeros([BT, R], tl.float32)
    for first in range(0, D, BD):
        x = tl.load(x_ptr + at + first, mask=(t < T)[:, None] & (d[None, :] < D - first), other=0.0, eviction_policy="evict_last")
        Q = tl.load(Q_ptr + Q_at + first * r, mask=(d[:, None] < D - first) & (q[None, :] < r), other=0.0)
        coordinates = tl.dot(x.to(tl.float32), Q.to(tl.float32), coordinates, input_precision=PRECISION)
    coordinates *= change
    for first in range(0, D, BD):  # these tokens are still in the cache
        inside = (t < T)[:, None] & (d[None, :] < D - first)
        x = tl.load(x_ptr + at + first, mask=inside, other=0.0, eviction_policy="evict_first")
        Q = tl.load(Q_ptr + Q_at + first * r, mask=(d[:, None] < D - first) & (q[None, :] < r), other=0.0)
        out = tl.dot(coordinates, tl.trans(Q.to(tl.float32)), x.to(tl.float32), input_precision=PRECISION)
        tl.store(out_ptr + at + first, out, mask=inside)


def gated(idx_TK: Tensor, val_TK: Tensor, g_TD: Tensor, W_dec_FD: Tensor) -> Tensor:
    """`<W_dec[idx], g_t>` of active pairs, `[T, K]` float32; 0 where val is 0, whose rows are not read. Costs 2D per pair with val != 0.

    Ids must be in [0, F): they are not looked at. Raises `ValueError` for a dtype or width that cannot be.
    """
    precision(g_TD, W_dec_FD.T)
    dots_TK = g_TD.new_empty(idx_TK.shape, dtype=torch.float32)
    _launch_gated(idx_TK, val_TK, g_TD, W_dec_FD, dots_TK, SUM=False)
    return dots_TK


def gated_sum(idx_TK: Tensor, val_TK: Tensor, g_TD: Tensor, W_dec_FD: Tensor, F: int, deterministic: bool = False) -> Tensor:
    """Σ_t val <W_dec[idx], g_t> by feature, `[F]` float32: minus the `attribution`. Costs 2D per pair with val != 0.

    By atomic additions in the same pass, whose order, and with it the last bits, differ from run to run on a GPU. `deterministic`: the
    products are sorted by feature, in stable order, and summed segment by segment. Ids and errors as in `gated`.
    """
    precision(g_TD, W_dec_FD.T)
    if not deterministic:
        total_F = torch.zeros(F, dtype=torch.float32, device=g_TD.device)
        _launch_gated(idx_TK, val_TK, g_TD, W_dec_FD, total_F, SUM=True)
        return total_F
    weight_TK = gated(idx_TK, val_TK, g_TD, W_dec_FD) * val_TK.float()
    ids_P, order_P = idx_TK.masked_fill(val_TK == 0, F).flatten().sort(stable=True)
    end_F = torch.searchsorted(ids_P, torch.arange(F + 1, device=ids_P.device))
    total_F = torch.empty(F, dtype=torch.float32, device=g_TD.device)
    launch(_segment_sum_kernel, (triton.cdiv(F, 16),), weight_TK.flatten()[order_P], end_F, total_F, F, BF=16, BLOCK=64)
    return total_F


def pair_sums(
    idx_TK: Tensor, val_TK: Tensor, factor: Tensor, F: int, rows: tuple[Tensor, int, int] | None = None, dtype: torch.dtype = torch.float64
) -> Tensor:
    """Σ val · factor by feature over pairs with val != 0, `[F]`; `factor`: of each pair `[T, K]`, or of each token `[T]`.

    `rows`: `(row[T], first, count)`, then of each of these rows, `[count, F]`. Products in float32, sums in `dtype`, by atomic additions.
    """
    (T, K), (row_T, first, count) = idx_TK.shape, rows or (None, 0, 1)
    total = torch.zeros(count * F, dtype=dtype, device=val_TK.device)
    if T * K:
        tensors = (idx_TK.contiguous(), val_TK.contiguous(), factor.contiguous(), row_T, total)
        BK = min(1024, triton.next_power_of_2(K))
        options = {"BY_PAIR": factor.dim() == 2, "BY_ROW": rows is not None, "BK": BK}
        launch(_pair_sum_kernel, (T,), *tensors, K, F, first, count, **options)
    return total if rows is None else total.view(count, F)


def along(v_D: Tensor, W_FD: Tensor) -> Tensor:
    """`<w_i, v>` of every row, `[F]` float32, in one pass over the matrix as it is kept."""
    precision(v_D, W_FD.T)
    F, D = W_FD.shape
    out_F = torch.empty(F, dtype=torch.float32, device=W_FD.device)
    launch(_along_kernel, (triton.cdiv(F, 16),), W_FD.contiguous(), v_D.float().contiguous(), out_F, D, F, BF=16, BD=256)
    return out_F


def energy_sum(g_TD: Tensor, W_dec_FD: Tensor) -> Tensor:
    """Σ_t <g_t, W_dec_i>² by feature, `[F]` float32; squared and summed in registers. Costs 2TDF; the same bits every time.

    Raises `ValueError` for a dtype or width that cannot be.
    """
    return _squares(g_TD, W_dec_FD, quadratic=False)


def quadratic_form(gram_DD: Tensor, W_dec_FD: Tensor) -> Tensor:
    """w_iᵀ Gram w_i by feature, `[F]` float32, with nothing of size [F, D]. Costs 2FD²; the same bits every time.

    A float32 Gram matrix (a symmetric one) keeps its precision beside a half-precision W_dec: beside bfloat16 it is cut into three matrices
    of that, whose products are exact, and of which half is multiplied: 3FD² on the fast tensor cores in place of 6FD² on those of TF32.
    Raises `ValueError` for a dtype or width that cannot be.
    """
    if gram_DD.dtype == torch.float32 and W_dec_FD.dtype == torch.bfloat16:
        precision(gram_DD, W_dec_FD.T)
        D = len(gram_DD)
        pieces = gram_DD.new_empty(3 * D, D, dtype=torch.bfloat16)
        launch(_split_kernel, (D, triton.cdiv(D, 1024)), gram_DD.contiguous(), pieces, D, BLOCK=1024)
        return _squares(pieces, W_dec_FD, quadratic=True, pieces=3)
    return _squares(gram_DD, W_dec_FD, quadratic=True)


def scale_along(x: Tensor, Q_Dr: Tensor, gain: float) -> Tensor:
    """`x[..., D]` with its part in the span of Q multiplied by `gain`: x + (gain - 1)(x Q)Qᵀ, in the dtype of x.

    One pass over x, 4TDr. Differentiable in x (the map is symmetric: its gradient is the same edit). Raises `ValueError` for a rank over
    `MAX_RANK` and for a dtype or width that cannot be.
    """
    if Q_Dr.shape[1] > MAX_RANK:
        raise ValueError(f"scale_along: rank {Q_Dr.shape[1]} is over {MAX_RANK}")
    precision(x, Q_Dr)
    return _ScaleAlong.apply(x, Q_Dr.detach(), gain)


class _ScaleAlong(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x: Tensor, Q_Dr: Tensor, gain: float) -> Tensor:
        ctx.save_for_backward(Q_Dr)
        ctx.gain = gain
        (D, r), x_TD = Q_Dr.shape, x.contiguous().view(-1, Q_Dr.shape[0])
        T = len(x_TD)
        out_TD = torch.empty_like(x_TD, dtype=torch.float32 if INTERPRETED.value else x.dtype)  # the interpreter truncates to bfloat16
        R = max(16, triton.next_power_of_2(r))
        if T:
            grid = lambda meta: (triton.cdiv(T, meta["BT"]),)  # noqa: E731
            launch(_scale_kernel, grid, x_TD, Q_Dr.contiguous(), out_TD, float(gain) - 1, T, D, r, PRECISION=FLOAT32, R=R)
        return out_TD.to(x.dtype).view(x.shape)

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor, None, None]:
        return _ScaleAlong.apply(grad, *ctx.saved_tensors, ctx.gain), None, None


def _launch_gated(idx_TK: Tensor, val_TK: Tensor, g_TD: Tensor, W_dec_FD: Tensor, out: Tensor, SUM: bool) -> None:
    T, K = idx_TK.shape
    if T * K:
        grid = lambda meta: (T, triton.cdiv(K, meta["BK"]))  # noqa: E731
        tensors = (idx_TK.contiguous(), val_TK.contiguous(), g_TD.contiguous(), W_dec_FD.contiguous(), out)
        launch(_gated_kernel, grid, *tensors, K, W_dec_FD.shape[1], SUM=SUM)


def _squares(rows_MD: Tensor, W_dec_FD: Tensor, quadratic: bool, pieces: int = 1) -> Tensor:
    """Σ_m <r_m, w_i>², or Σ_m <r_m, w_i> w_im; parts of at least 512 rows, 16 parts at most. `pieces`: the rows are so many matrices, one
    below the other, that add up to a lower triangle."""
    M, (F, D) = len(rows_MD) // pieces, W_dec_FD.shape
    options = product_options(rows_MD, W_dec_FD.T) | {"QUADRATIC": quadratic, "PIECES": pieces}
    span = max(512, triton.cdiv(M, 16))
    parts = triton.cdiv(M, span)
    sums = torch.empty(parts, F, dtype=torch.float32, device=W_dec_FD.device)
    if M:
        launch(
            _squares_kernel, lambda meta: (triton.cdiv(F, meta["BF"]) * parts,),
            rows_MD.contiguous(), W_dec_FD.contiguous(), sums, M, D, F, span, parts, **options,
        )  # fmt: skip
    return sums.sum(0)


def self_check(device: torch.device | str, dtype: torch.dtype) -> str | None:
    """None where every kernel gives what plain PyTorch gives in float64, else one line that names the kernel and the error.

    A small case of whole numbers: nothing lies near a threshold, and a lost or doubled term cannot pass for rounding. Those of float32 have
    more digits than TF32 keeps. Compiles every kernel on a GPU: some ten seconds the first time.
    """
    if dtype not in DTYPES:
        return f"kernels: {dtype} is none of float32, bfloat16, float16"
    (T, D, F, K), generator = (13, 33, 130, 5), torch.Generator().manual_seed(0)
    whole = lambda *shape: torch.randint(-3, 4, shape, generator=generator).to(device, torch.float64)  # noqa: E731
    x, W_enc, b, W, Q, level = whole(T, D), whole(D, F), whole(F), whole(F, D), whole(D, 3), whole(F) + 0.5
    x *= 4097 if dtype == torch.float32 else 1
    X, E, B, V, P, L = (tensor.to(dtype) for tensor in (x, W_enc, b, W, Q, level))
    pre, dots_TF, gram = x @ W_enc + b, x @ W.T, x.T @ x
    acts = pre.relu() * (pre > level)
    val, idx = acts.topk(K)
    kept = acts.new_zeros(T, F).scatter_(1, idx, val)  # the pairs, and what they sum to
    dense = lambda idx, val, *_: acts.new_zeros(T, F).scatter_add_(1, idx, val.double())  # noqa: E731
    cases = {
        "encode_threshold": lambda: (dense(*encode_threshold(X, E, B, L, F)), acts),
        "encode_threshold (ReLU)": lambda: (dense(*encode_threshold(X, E, B, None, F)), pre.relu()),
        "encode_threshold (count)": lambda: (encode_threshold(X, E, B, L, 1)[2], (acts > 0).sum(1)),
        "encode_topk (values)": lambda: (encode_topk(X, E, B, K)[1], pre.topk(K)[0].relu()),
        "encode_topk (ids)": lambda: (pre.gather(1, encode_topk(X, E, B, K)[0]), pre.topk(K)[0]),
        "gated": lambda: (gated(idx, val.float(), X, V), dots_TF.gather(1, idx) * (val > 0)),
        "gated_sum": lambda: (gated_sum(idx, val.float(), X, V, F), (kept * dots_TF).sum(0)),
        "gated_sum (deterministic)": lambda: (gated_sum(idx, val.float(), X, V, F, deterministic=True), (kept * dots_TF).sum(0)),
        "energy_sum": lambda: (energy_sum(X, V), dots_TF.square().sum(0)),
        "quadratic_form": lambda: (quadratic_form(gram.float(), V), dots_TF.square().sum(0)),
        "pair_sums": lambda: (
            pair_sums(idx, val.float(), X[:, :K].float(), F),
            (acts.new_zeros(T, F).scatter_(1, idx, val * x[:, :K])).sum(0),
        ),
        "pair_sums (rows)": lambda: (
            pair_sums(idx, val.float(), X[:, 0].float(), F, (torch.arange(T, device=device) // 4, 1, 2), torch.float32),
            (kept * x[:, :1])[4:12].unflatten(0, (2, 4)).sum(1),
        ),
        "along": lambda: (along(X[0].float(), V), W @ x[0]),
        "scale_along": lambda: (scale_along(X, P, 3.0), (x + 2 * (x @ Q) @ Q.T).to(dtype)),
    }
    if dtype == torch.float32:  # large dictionaries are kept in half precision, beside activations and gradients that are not
        E2, B2, V2, L2 = (tensor.bfloat16() for tensor in (E, B, V, L))
        cases |= {
            "encode_threshold (half-precision weights)": lambda: (dense(*encode_threshold(X, E2, B2, L2, F)), acts),
            "encode_topk (half-precision weights)": lambda: (encode_topk(X, E2, B2, K)[1], pre.topk(K)[0].relu()),
            "gated (half-precision weights)": lambda: (gated(idx, val.float(), X, V2), dots_TF.gather(1, idx) * (val > 0)),
            "energy_sum (half-precision weights)": lambda: (energy_sum(X, V2), dots_TF.square().sum(0)),
            "quadratic_form (half-precision weights)": lambda: (quadratic_form(gram.float(), V2), dots_TF.square().sum(0)),
        }
    for name, case in cases.items():
        try:
            found, expected = case()
        except Exception as error:  # of Triton, its compiler or the driver: whatever it is, the kernel cannot be used here
            return f"{name}: {type(error).__name__}: {(str(error).splitlines() or [''])[0]}"
        off, largest = (found.double() - expected.double()).abs().max().item(), expected.double().abs().max().item()
        if not off <= 1e-5 * largest:
            return f"{name}: off by {off:.3g} where the largest value is {largest:.3g}"
    return None

"""Triton kernels that find the active features of tokens, with nothing of size [T, F] in memory. The other kernels: `kernels.py`.

Shape suffixes: T tokens, D d_model, F d_sae, K active features per token, G groups of features. Tensors are float32, bfloat16 or float16,
on one CUDA device, or on any device under Triton's interpreter. Sums are in float32. Two tensors of the same half precision are multiplied
as they are, all others in float32: on tensor cores, in three products of TF32 (`precision`). No gradients flow.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

INTERPRETED = tl.constexpr(triton.knobs.runtime.interpret)
GROUP = 32  # features whose maximum decides whether they are looked at again
CHUNK_BYTES = 2**25  # transient memory of `encode_topk`
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
# How float32 is multiplied. A factor is two numbers of TF32, so three products of them (the fourth is below 2^-21 of the whole) keep
# float32's precision but for two bits, which a sum of eight or more terms loses anyway. Tensor cores multiply TF32 at half the speed of
# half precision, an H100 without them float32 at a fifteenth. AMD's have no such products.
FLOAT32 = "ieee" if torch.version.hip else "tf32x3"


def tuned(configs: list[triton.Config], key: list[str], **options):
    """`triton.autotune` that keeps its choice on disk. Under the interpreter the first config: time means nothing there."""
    return triton.autotune(configs[:1] if INTERPRETED.value else configs, key, cache_results=True, **options)


def launch(kernel, grid, *args, **options) -> None:
    """Start a kernel on the device of its first tensor, which need not be the current one."""
    with torch.cuda.device_of(args[0]):
        kernel[grid](*args, **options)


def precision(x: Tensor, W_DF: Tensor) -> str:
    """How x W is to be computed. Raises `ValueError` for widths that differ and for dtypes that the kernels do not have."""
    if x.shape[-1] != W_DF.shape[0]:
        raise ValueError(f"kernels: found widths {x.shape[-1]} and {W_DF.shape[0]}, expected the same")
    if x.dtype not in DTYPES or W_DF.dtype not in DTYPES:
        raise ValueError(f"kernels: found {x.dtype} and {W_DF.dtype}, expected float32, bfloat16 or float16")
    return "ieee" if x.dtype == W_DF.dtype != torch.float32 else FLOAT32


def tiles(rows: str, widest: int = 256) -> list[triton.Config]:
    """Tiles of a matrix product whose blocks are named `rows`, BF and BD; BD divides 64. The last is for float32."""
    shapes = [(64, 64, 32, 4), (64, 128, 64, 8), (128, 128, 64, 8), (128, 256, 64, 8), (128, 64, 32, 8)]
    return [triton.Config({rows: row, "BF": f, "BD": d}, num_warps=w, num_stages=3) for row, f, d, w in shapes if f <= widest]


def worth_trying(configs: list[triton.Config], args: dict, **options) -> list[triton.Config]:
    """Of the tiles those that can be the fastest. Every other one would cost a compilation."""
    if args["F"] <= 1024 or not options["MANY"]:
        return configs[:1]
    if options["PRECISION"] == "tf32x3":
        return [config for config in configs[:-1] if config.kwargs["BF"] <= 128]  # operands of twice the size
    # without tensor cores a large tile would not fit the registers
    return [configs[0], configs[-1]] if next(iter(args.values())).dtype == torch.float32 else configs[:-1]


def product_options(x_TD: Tensor, W_DF: Tensor) -> dict:
    """What the kernels of x W are compiled for; MANY keeps tiles that were chosen for few tokens from being used for many."""
    return {"PRECISION": precision(x_TD, W_DF), "EVEN": W_DF.shape[0] % 64 == 0, "MANY": len(x_TD) >= 256}


@triton.jit
def dot(a, b, acc, PRECISION: tl.constexpr):
    """acc + a b, in float32 where their dtypes differ."""
    if INTERPRETED or a.dtype != b.dtype:  # the interpreter reads bfloat16 as integers
        a = a.to(tl.float32)
        b = b.to(tl.float32)
    return tl.dot(a, b, acc, input_precision=PRECISION)


@triton.jit
def _tile(T, F, BT: tl.constexpr, BF: tl.constexpr):
    """Tokens and features of this program. Eight blocks of tokens share a block of features while it is in the cache."""
    blocks_t, blocks_f = tl.cdiv(T, BT), tl.cdiv(F, BF)
    pid = tl.program_id(0)
    pid_t, pid_f = tl.swizzle2d(pid // blocks_f, pid % blocks_f, blocks_t, blocks_f, 8)
    return pid_t * BT + tl.arange(0, BT), pid_f * BF + tl.arange(0, BF)


@triton.jit
def _preactivations(
    x_ptr, W_ptr, b_ptr, t, f, T, D, F, W_row, W_column,
    PRECISION: tl.constexpr, EVEN: tl.constexpr, BT: tl.constexpr, BF: tl.constexpr, BD: tl.constexpr,
):  # fmt: skip
    """x W + b of tokens t and features f, float32; -inf at features that there are not. Tokens that there are not repeat the last."""
    d = tl.arange(0, BD)
    x_ptrs = x_ptr + tl.minimum(t, T - 1).to(tl.int64)[:, None] * D + d[None, :]
    W_ptrs = W_ptr + d.to(tl.int64)[:, None] * W_row + f.to(tl.int64)[None, :] * W_column
    is_feature = f < F
    acc = tl.zeros([BT, BF], tl.float32)
    for first in range(0, D, BD):
        if EVEN:
            x = tl.load(x_ptrs)
            W = tl.load(W_ptrs, mask=is_feature[None, :], other=0.0)
        else:
            x = tl.load(x_ptrs, mask=d[None, :] < D - first, other=0.0)
            W = tl.load(W_ptrs, mask=(d[:, None] < D - first) & is_feature[None, :], other=0.0)
        acc = dot(x, W, acc, PRECISION)
        x_ptrs += BD
        W_ptrs += BD * W_row
    b = tl.load(b_ptr + f, mask=is_feature, other=0.0).to(tl.float32)
    return tl.where(is_feature[None, :], acc + b[None, :], -float("inf"))


@triton.jit
def _store_active(pre, t, first_f, T, F, threshold_ptr, idx_ptr, val_ptr, count_ptr, bad_ptr, capacity):
    """The active pairs of a tile into the next free slots of their tokens; 64 features at a time, or the registers would not suffice."""
    WIDTH: tl.constexpr = pre.shape[1]
    if WIDTH > 64:
        left, right = tl.split(tl.permute(tl.reshape(pre, [pre.shape[0], 2, WIDTH // 2]), (0, 2, 1)))
        _store_active(left, t, first_f, T, F, threshold_ptr, idx_ptr, val_ptr, count_ptr, bad_ptr, capacity)
        _store_active(right, t, first_f + WIDTH // 2, T, F, threshold_ptr, idx_ptr, val_ptr, count_ptr, bad_ptr, capacity)
    else:
        f, is_token = first_f + tl.arange(0, WIDTH), t < T
        level = tl.zeros([WIDTH], tl.float32)
        if threshold_ptr is not None:
            level = tl.maximum(level, tl.load(threshold_ptr + f, mask=f < F, other=0.0).to(tl.float32))
        tl.store(bad_ptr + t, 1, mask=is_token & (tl.max((pre != pre).to(tl.int32), axis=1) > 0))
        # Turned round: as it is Triton 3.9 fails to compile the addition. One for each active pair, of which there are few, costs less
        # than numbering them within the tile, whose running sums took three times the registers.
        pre_FT, f_F1, t_1T = tl.trans(pre), f[:, None], t[None, :]
        active = (pre_FT > level[:, None]) & is_token[None, :]
        slot = tl.atomic_add(count_ptr + t_1T + f_F1 * 0, active.to(tl.int32), mask=active, sem="relaxed")
        kept, at = active & (slot < capacity), t_1T * capacity + slot
        tl.store(idx_ptr + at, f_F1, mask=kept)
        tl.store(val_ptr + at, pre_FT, mask=kept)


@tuned(
    tiles("BT"), ["D", "F", "MANY"], prune_configs_by={"early_config_prune": worth_trying},
    reset_to_zero=["count_ptr", "idx_ptr", "val_ptr"],
)  # fmt: skip
@triton.jit(do_not_specialize=["T"])
def _threshold_kernel(
    x_ptr, W_ptr, b_ptr, threshold_ptr, idx_ptr, val_ptr, count_ptr, bad_ptr, T, D, F, W_row, W_column, capacity,
    PRECISION: tl.constexpr, EVEN: tl.constexpr, MANY: tl.constexpr, BT: tl.constexpr, BF: tl.constexpr, BD: tl.constexpr,
):  # fmt: skip
    t, f = _tile(T, F, BT, BF)
    pre = _preactivations(x_ptr, W_ptr, b_ptr, t, f, T, D, F, W_row, W_column, PRECISION, EVEN, BT, BF, BD)
    _store_active(pre, t, tl.min(f, axis=0), T, F, threshold_ptr, idx_ptr, val_ptr, count_ptr, bad_ptr, capacity)


@tuned(tiles("BT"), ["D", "F", "MANY"], prune_configs_by={"early_config_prune": worth_trying})
@triton.jit(do_not_specialize=["T"])
def _group_max_kernel(
    x_ptr, W_ptr, b_ptr, max_ptr, T, D, F, W_row, W_column, G,
    PRECISION: tl.constexpr, EVEN: tl.constexpr, MANY: tl.constexpr, SIZE: tl.constexpr,
    BT: tl.constexpr, BF: tl.constexpr, BD: tl.constexpr,
):  # fmt: skip
    t, f = _tile(T, F, BT, BF)
    pre = _preactivations(x_ptr, W_ptr, b_ptr, t, f, T, D, F, W_row, W_column, PRECISION, EVEN, BT, BF, BD)
    pre = tl.where(pre != pre, float("inf"), pre)  # NaN counts as the largest, as in torch.topk
    largest = tl.max(tl.reshape(pre, [BT, BF // SIZE, SIZE]), axis=2)
    g = tl.min(tl.reshape(f, [BF // SIZE, SIZE]), axis=1) // SIZE
    tl.store(max_ptr + t.to(tl.int64)[:, None] * G + g[None, :], largest, mask=(t < T)[:, None] & (g < G)[None, :])


@tuned(tiles("BT"), ["D", "F", "MANY"], prune_configs_by={"early_config_prune": worth_trying})
@triton.jit(do_not_specialize=["T"])
def _group_values_kernel(
    x_ptr, W_ptr, b_ptr, place_ptr, pre_ptr, T, D, F, W_row, W_column, G, K,
    PRECISION: tl.constexpr, EVEN: tl.constexpr, MANY: tl.constexpr, SIZE: tl.constexpr,
    BT: tl.constexpr, BF: tl.constexpr, BD: tl.constexpr,
):  # fmt: skip
    t, f = _tile(T, F, BT, BF)
    g = tl.min(tl.reshape(f, [BF // SIZE, SIZE]), axis=1) // SIZE
    place = tl.load(place_ptr + t.to(tl.int64)[:, None] * G + g[None, :], mask=(t < T)[:, None] & (g < G)[None, :], other=-1)
    if tl.max(tl.max(place, axis=1), axis=0) >= 0:  # with few tokens most tiles hold no chosen group
        pre = _preactivations(x_ptr, W_ptr, b_ptr, t, f, T, D, F, W_row, W_column, PRECISION, EVEN, BT, BF, BD)
        at = (t.to(tl.int64)[:, None] * K + place)[:, :, None] * SIZE + tl.arange(0, SIZE)[None, None, :]
        tl.store(pre_ptr + at, tl.reshape(pre, [BT, BF // SIZE, SIZE]), mask=(place >= 0)[:, :, None])


def encode_threshold(
    x_TD: Tensor, W_enc_DF: Tensor, b_F: Tensor, threshold_F: Tensor | None, capacity: int, ordered: bool = True
) -> tuple[Tensor, Tensor, Tensor]:
    """`(idx[T, capacity] int64, val[T, capacity] float32, count[T] int32)` of f = relu(pre) where pre > threshold, pre = x W_enc + b.

    A token's pairs come first, by feature id (`ordered`; else in any order, another one in every run); then id 0 and value 0. `threshold`
    None is 0 (ReLU); `b` holds what there is of an input bias (b_enc - b_dec W_enc). W_enc may be strided. `count` is the true number:
    where it exceeds the capacity, `capacity` of the pairs are kept, and which ones can differ from run to run; else the result does not.
    A token with a NaN preactivation has count -1, NaN as its first value and nothing else; other tokens do not notice. Costs 2TDF; the
    host never waits.
    Raises `ValueError` for a dtype, width or capacity that cannot be.
    """
    (T, D), F = x_TD.shape, W_enc_DF.shape[1]
    if capacity < 1 or T * capacity >= 2**31:
        raise ValueError(f"encode_threshold: capacity {capacity}, expected 1 or more, and less than 2^31 slots for {T} tokens")
    options, new = product_options(x_TD, W_enc_DF), x_TD.new_empty
    make = new if ordered else x_TD.new_zeros  # slots that stay unused are sorted out below, or have to be empty
    found_TK, raw_TK = make(T, capacity, dtype=torch.int32), make(T, capacity, dtype=torch.float32)
    count_T, bad_T = new(2, T, dtype=torch.int32).zero_()
    if T:
        threshold_F = None if threshold_F is None else threshold_F.contiguous()
        launch(
            _threshold_kernel, lambda meta: (triton.cdiv(T, meta["BT"]) * triton.cdiv(F, meta["BF"]),),
            x_TD.contiguous(), W_enc_DF, b_F.contiguous(), threshold_F, found_TK, raw_TK, count_T, bad_T,
            T, D, F, *W_enc_DF.stride(), capacity, **options,
        )  # fmt: skip
    bad_T = bad_T > 0
    count_T = count_T.masked_fill(bad_T, -1)
    if not ordered:
        idx_TK, val_TK = found_TK.masked_fill_(bad_T[:, None], 0).long(), raw_TK.masked_fill_(bad_T[:, None], 0)
        val_TK[:, 0].masked_fill_(bad_T, torch.nan)
        return idx_TK, val_TK, count_T
    idx_TK, val_TK = new(T, capacity, dtype=torch.int64), torch.empty_like(raw_TK)
    slots = torch.arange(capacity, device=x_TD.device)
    step = max(1, 2**20 // capacity)  # sorting needs some 16 bytes a slot
    for rows in (slice(first, first + step) for first in range(0, T, step)):
        unused = slots >= count_T[rows, None]
        ids, order = found_TK[rows].masked_fill(unused, F).sort(dim=1)
        idx_TK[rows] = ids.masked_fill(ids == F, 0)
        val_TK[rows] = raw_TK[rows].masked_fill(unused, 0).gather(1, order)
    val_TK[:, 0].masked_fill_(bad_T, torch.nan)
    return idx_TK, val_TK, count_T


def encode_topk(x_TD: Tensor, W_enc_DF: Tensor, b_F: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """`(idx[T, k] int64, val[T, k] float32)`: relu of the k largest of pre = x W_enc + b, largest first; id 0 where the value is 0.

    `b` holds what there is of an input bias; W_enc may be strided. Of features that tie for the last place any may be returned, always the
    same ones. NaN counts as the largest, as in torch.topk, and has id 0; it stays with its token. Costs 4TDF and 32 MB; the host never
    waits. Raises `ValueError` for a dtype, width or k that cannot be.
    """
    (T, D), F = x_TD.shape, W_enc_DF.shape[1]
    if not 0 < k <= F:
        raise ValueError(f"encode_topk: k={k} of {F} features")
    options, new, b_F = product_options(x_TD, W_enc_DF) | {"SIZE": GROUP}, x_TD.new_empty, b_F.contiguous()
    G = triton.cdiv(F, GROUP)
    K = min(k, G)  # groups looked at
    idx_Tk, val_Tk = new(T, k, dtype=torch.int64), new(T, k, dtype=torch.float32)
    # Bytes per token: maxima 4G, chosen groups 12K, their values 4 * GROUP * K, and what is chosen of them 30k.
    step = max(128, CHUNK_BYTES // (4 * G + (12 + 4 * GROUP) * K + 30 * k) // 128 * 128)  # whole tiles
    for rows in (slice(first, first + step) for first in range(0, T, step)):
        x = x_TD[rows].contiguous()
        n = len(x)
        grid = lambda meta: (triton.cdiv(n, meta["BT"]) * triton.cdiv(F, meta["BF"]),)  # noqa: B023, E731
        max_TG = new(n, G, dtype=torch.float32)
        launch(_group_max_kernel, grid, x, W_enc_DF, b_F, max_TG, n, D, F, *W_enc_DF.stride(), G, **options)
        # The k groups with the largest maxima hold the k largest values: a value v of another group is no larger than that group's
        # maximum, hence than the maximum of each of the k groups, so that these hold k values >= v. With ties some of these equal v and
        # stand for it. (The second product can round otherwise than the first: within that, ties are decided by chance.)
        # A second product costs 2DF a token; gathering the groups' columns of W_enc instead would move 2D * GROUP * k bytes a token, which
        # on an H100 (600 TFLOP/s to 3.4 TB/s) takes longer as soon as F < 180 * GROUP * k: always, in the dictionaries that there are.
        group_TK = max_TG.topk(K, dim=1, sorted=False)[1]
        place_TG = max_TG.view(torch.int32).fill_(-1)  # in the same memory
        place_TG.scatter_(1, group_TK, torch.arange(K, dtype=torch.int32, device=x.device).expand(n, K))
        pre_TC = new(n, K * GROUP, dtype=torch.float32)
        launch(_group_values_kernel, grid, x, W_enc_DF, b_F, place_TG, pre_TC, n, D, F, *W_enc_DF.stride(), G, K, **options)
        val, at = pre_TC.topk(k, dim=1)
        ids = group_TK.gather(1, at // GROUP) * GROUP + at % GROUP
        idx_Tk[rows] = ids.masked_fill_(~(val > 0), 0)
        val_Tk[rows] = val.relu_()
    return idx_Tk, val_Tk

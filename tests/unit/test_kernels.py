"""The Triton kernels against the definitions in float64, at odd shapes and in every dtype: on a GPU where there is one, else interpreted.

The bound on every error is that of one float32 accumulation: a sum of n products, computed in any order, is off by at most
n · 2⁻²³ · Σ |products| (2⁻²⁴ if every addition rounds to nearest; tensor cores truncate). It holds pair by pair and does not depend on the
dtype of the inputs, so the kernels are held to more than the plain form in the same dtype, which rounds every intermediate to it. Where
the output itself is rounded (`scale_along`), the plain form's error is allowed on top.
"""

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
if DEVICE == "cpu":
    os.environ["TRITON_INTERPRET"] = "1"
# The interpreter of Triton 3.6 fails with NumPy 2.4; its compiler does not.
triton = pytest.importorskip("triton", minversion="3.7" if DEVICE == "cpu" else None, reason="no Triton: the kernels are not tested")
if DEVICE == "cpu" and isinstance(triton.language.cdiv, triton.JITFunction):
    raise RuntimeError("Triton was imported (by transformers?) before TRITON_INTERPRET=1 was set: set it at the head of tests/conftest.py")

from test_attribution import KINDS  # noqa: E402
from test_attribution import make as kind_of  # noqa: E402

from gradlens.config import ObserveSettings  # noqa: E402
from gradlens.control import edits  # noqa: E402
from gradlens.dictionaries import encoding, kernels, kernels_encode, precision  # noqa: E402
from gradlens.dictionaries.dictionary import Dictionary  # noqa: E402
from gradlens.dictionaries.encoding import encode_active  # noqa: E402
from gradlens.readings import attribution, projection  # noqa: E402

DTYPES = [torch.float32, torch.bfloat16, torch.float16]
# T, D, F, K. Widths that no block divides, one token, one pair; then a D of whole blocks, and more than one block of tokens.
SHAPES = [(1, 24, 50, 1), (37, 33, 130, 5), (37, 96, 50, 1), (70, 128, 96, 5)]


def random(*shape: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> torch.Tensor:
    """Normal numbers of a dtype, and so exactly known in float64."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(DEVICE, dtype)


def exact(dictionary: Dictionary) -> Dictionary:
    return dictionary.to(dtype=torch.float64)


def make(D: int, F: int, activation: str, dtype: torch.dtype, k: int | None = None) -> Dictionary:
    level = {"threshold": (2 + random(F, seed=4)).to(dtype)} if activation == "jumprelu" else {}
    weights = random(D, F, dtype=dtype, seed=1), random(F, dtype=dtype, seed=2) - 1, random(F, D, dtype=dtype, seed=3)
    b_dec = torch.zeros(D, dtype=dtype, device=DEVICE)
    return Dictionary(*weights, b_dec, activation=activation, k=k, apply_b_dec_to_input=False, **level)


def pre_bound(dictionary: Dictionary, x: torch.Tensor) -> torch.Tensor:
    """Largest error of a preactivation, `[T, F]`."""
    d = exact(dictionary)
    return (d.d_in + 1) * 2**-23 * (x.double().abs() @ d.W_enc.abs() + d.b_enc.abs())


def pairs(T: int, F: int, K: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Ids and values as of active pairs: different ids, values > 0, some slots unused."""
    idx = torch.stack([torch.randperm(F, generator=torch.Generator().manual_seed(t))[:K] for t in range(T)]).to(DEVICE)
    val = random(T, K, seed=5).abs() * (random(T, K, seed=6) > -1)
    return idx.where(val > 0, 0), val


def dense(idx: torch.Tensor, val: torch.Tensor, F: int) -> torch.Tensor:
    return torch.zeros(len(idx), F, dtype=torch.float64, device=DEVICE).scatter_add_(1, idx, val.double())


def assert_within(found: torch.Tensor, expected: torch.Tensor, bound: torch.Tensor) -> None:
    over = (found.double() - expected).abs() - bound
    assert not over.isnan().any() and over.max() <= 0, f"{over.max().item():.3g} over the bound {bound.max().item():.3g}"


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("T, D, F, K", SHAPES)
@pytest.mark.parametrize("activation", ["relu", "jumprelu"])
def test_encode_threshold_is_the_encoder(activation, T, D, F, K, dtype):
    dictionary, x = make(D, F, activation, dtype), random(T, D, dtype=dtype)
    idx, val, count = kernels.encode_threshold(x, dictionary.W_enc, dictionary.b_enc, dictionary.threshold, F)
    acts, bound = exact(dictionary).encode(x.double()), pre_bound(dictionary, x)
    level = torch.zeros(F, device=DEVICE) if activation == "relu" else dictionary.threshold.double().clamp_min(0)
    sure = (exact(dictionary).preactivations(x.double()) - level).abs() > bound  # others may fall on either side
    assert sure.double().mean() > 0.99 and (acts > 0).any()
    assert_within(dense(idx, val, F) * sure, acts * sure, bound)
    assert (idx.dtype, val.dtype, count.dtype) == (torch.int64, torch.float32, torch.int32)
    assert count.equal((val > 0).sum(1, dtype=torch.int32))
    slots = torch.arange(F, device=DEVICE)
    assert (idx[:, 1:] > idx[:, :-1]).logical_or(slots[1:] >= count[:, None]).all()  # by feature id, the unused ones at the end
    assert idx.where(slots < count[:, None], 0).equal(idx) and val.where(slots < count[:, None], 0).equal(val)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("T, D, F, K", SHAPES)
def test_encode_topk_is_the_encoder(T, D, F, K, dtype):
    dictionary, x = make(D, F, "topk", dtype, k=K), random(T, D, dtype=dtype)
    idx, val = kernels.encode_topk(x, dictionary.W_enc, dictionary.b_enc, K)
    acts, bound = exact(dictionary).encode(x.double()), pre_bound(dictionary, x)
    assert (idx.dtype, val.dtype) == (torch.int64, torch.float32)
    assert_within(val, acts.topk(K)[0], bound.amax(1, keepdim=True))  # order statistics move no more than what is ordered
    pre = exact(dictionary).preactivations(x.double())
    assert (val > 0).any()
    assert_within(val, torch.where(val > 0, pre.gather(1, idx), 0), torch.where(val > 0, bound.gather(1, idx), 0))
    assert all(len(set(ids[v > 0].tolist())) == (v > 0).sum() for ids, v in zip(idx, val, strict=True))
    assert (idx[val == 0] == 0).all()


def test_encode_topk_of_nearly_every_feature_and_of_negative_ones():
    dictionary, x = make(24, 50, "topk", torch.float32, k=50), random(7, 24)
    idx, val = kernels.encode_topk(x, dictionary.W_enc, dictionary.b_enc, 50)
    assert_within(dense(idx, val, 50), exact(dictionary).encode(x.double()), pre_bound(dictionary, x))
    idx, val = kernels.encode_topk(x, dictionary.W_enc, dictionary.b_enc - 1e4, 5)
    assert idx.eq(0).all() and val.eq(0).all()


def test_ties_in_topk_carry_their_values():
    few = random(24, 4, seed=1)
    W_enc, b, x = few.repeat(1, 40), torch.full((160,), 20.0, device=DEVICE), random(9, 24)  # every feature 40 times
    idx, val = kernels.encode_topk(x, W_enc, b, 7)
    pre = x.double() @ W_enc.double() + 20
    bound = 25 * 2**-23 * (x.double().abs() @ W_enc.double().abs() + 20).amax(1, keepdim=True)
    assert_within(val, pre.topk(7)[0], bound)
    assert_within(val, pre.gather(1, idx), bound)
    assert all(len(set(ids)) == 7 for ids in idx.tolist())


def test_topk_in_chunks_of_tokens_is_the_same(monkeypatch):
    x, W_enc, b = random(300, 8), random(8, 70, seed=1), random(70, seed=2)
    whole = kernels.encode_topk(x, W_enc, b, 2)
    monkeypatch.setattr(kernels_encode, "CHUNK_BYTES", 1)  # 128 tokens
    with Largest() as largest:
        parts = kernels.encode_topk(x, W_enc, b, 2)
    assert largest.elements == 128 * 2 * 32  # of two groups of each token
    assert all(map(torch.equal, parts, whole))


def test_many_blocks_are_all_visited_once():
    x, W_enc, b = random(600, 8), random(8, 200, seed=1), random(200, seed=2)
    pre = x.double() @ W_enc.double() + b.double()
    idx, val, count = kernels.encode_threshold(x, W_enc, b, None, 200)
    torch.testing.assert_close(dense(idx, val, 200), pre.relu(), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(kernels.encode_topk(x, W_enc, b, 3)[1].double(), pre.topk(3)[0].relu(), rtol=1e-5, atol=1e-5)
    total = (x.double() @ W_enc.double()).square().sum(0)
    torch.testing.assert_close(kernels.energy_sum(x, W_enc.T).double(), total, rtol=1e-5, atol=1e-5)


def test_an_encoder_stored_the_other_way_round_gives_the_same():
    x, W_enc, b = random(37, 33), random(33, 130, seed=1), random(130, seed=2)
    turned = W_enc.T.contiguous().T
    assert turned.stride() != W_enc.stride()
    for encode in (lambda W: kernels.encode_topk(x, W, b, 5), lambda W: kernels.encode_threshold(x, W, b, None, 130)):
        assert all(map(torch.equal, encode(turned), encode(W_enc)))


@pytest.mark.parametrize("dtypes", [(torch.float32, torch.bfloat16), (torch.float16, torch.float32)])
def test_two_dtypes_are_multiplied_in_float32(dtypes):
    dictionary, x = make(33, 130, "relu", dtypes[1]), random(37, 33, dtype=dtypes[0])
    idx, val, _ = kernels.encode_threshold(x, dictionary.W_enc, dictionary.b_enc, None, 130)
    assert_within(dense(idx, val, 130), exact(dictionary).encode(x.double()), pre_bound(dictionary, x))
    g, W = x.double(), dictionary.W_dec.double()
    torch.testing.assert_close(kernels.energy_sum(x, dictionary.W_dec).double(), (g @ W.T).square().sum(0), rtol=1e-5, atol=0)


def test_more_active_features_than_room_are_counted():
    x, W_enc, b = random(37, 24), random(24, 130, seed=1), random(130, seed=2)
    acts = (x.double() @ W_enc.double() + b.double()).relu()
    idx, val, count = kernels.encode_threshold(x, W_enc, b, None, 8)
    assert count.equal((acts > 0).sum(1, dtype=torch.int32)) and (count > 8).all()
    assert (val > 0).all() and (idx[:, 1:] > idx[:, :-1]).all()
    torch.testing.assert_close(val.double(), acts.gather(1, idx), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("dtype", DTYPES)
def test_no_active_feature_gives_zeros(dtype):
    x, W = random(37, 33, dtype=dtype), random(130, 33, dtype=dtype, seed=1)
    b = torch.full((130,), -1e4, device=DEVICE, dtype=dtype)
    idx, val, count = kernels.encode_threshold(x, W.T, b, None, 5)
    assert idx.eq(0).all() and val.eq(0).all() and count.eq(0).all()
    W[0] = torch.nan  # unused slots have id 0: its row is not read
    x[3] = torch.nan
    assert kernels.gated(idx, val, x, W).eq(0).all()
    for deterministic in (False, True):
        assert kernels.gated_sum(idx, val, x, W, 130, deterministic).eq(0).all()


def test_no_token_gives_nothing():
    x, W, b = random(0, 33), random(130, 33, seed=1), random(130, seed=2)
    idx, val, count = kernels.encode_threshold(x, W.T, b, None, 5)
    assert idx.shape == val.shape == (0, 5) and count.shape == (0,)
    assert [part.shape for part in kernels.encode_topk(x, W.T, b, 5)] == [(0, 5), (0, 5)]
    assert kernels.gated(idx, val, x, W).shape == (0, 5)
    for zeros, shape in (
        (kernels.gated_sum(idx, val, x, W, 130), (130,)),
        (kernels.gated_sum(idx, val, x, W, 130, deterministic=True), (130,)),
        (kernels.energy_sum(x, W), (130,)),
    ):
        assert zeros.shape == shape and zeros.eq(0).all()
    assert kernels.scale_along(x, random(33, 3), 2.0).shape == (0, 33)


def test_a_token_that_is_not_finite_is_flagged_and_stays_alone():
    x, W, b, g = random(37, 33), random(130, 33, seed=1), random(130, seed=2), random(37, 33, seed=3)
    bad = x.clone()
    bad[4, 7], bad[20, 0] = torch.nan, torch.inf
    others = torch.ones(37, dtype=torch.bool, device=DEVICE)
    others[[4, 20]] = False
    idx, val, count = kernels.encode_threshold(bad, W.T, b, None, 130)
    clean = kernels.encode_threshold(x, W.T, b, None, 130)
    assert all(part[others].equal(good[others]) for part, good in zip((idx, val, count), clean, strict=True))
    assert count[4] == -1 and val[4, 0].isnan() and val[4, 1:].eq(0).all() and idx[4].eq(0).all()
    bad[20] = x[20]  # an infinite input has preactivations of +inf and -inf, which are no NaN
    idx, val = kernels.encode_topk(bad, W.T, b, 5)
    clean = kernels.encode_topk(x, W.T, b, 5)
    others[20] = True
    assert val[4].isnan().all() and idx[4].eq(0).all() and idx[others].equal(clean[0][others]) and val[others].equal(clean[1][others])
    bad_g = g.clone()
    bad_g[4, 7] = torch.nan
    dots, total = kernels.gated(*clean, bad_g, W), kernels.gated_sum(*clean, bad_g, W, 130)
    assert kernels.gated(clean[0], clean[1] * (torch.arange(5, device=DEVICE) > 0), bad_g, W)[4, 0] == 0  # an unused slot beside used ones
    assert dots[4].isnan().all() and dots[others].equal(kernels.gated(*clean, g, W)[others])
    assert total.isnan().nonzero().flatten().tolist() == sorted(clean[0][4].tolist())
    scaled = kernels.scale_along(bad_g, random(33, 3, seed=4), 2.0)
    assert scaled[4].isnan().any() and scaled[others].isfinite().all()


def test_a_nan_of_one_feature_is_among_the_largest():
    x, W, b = random(5, 33), random(33, 130, seed=1), random(130, seed=2)
    b[77] = torch.nan
    idx, val = kernels.encode_topk(x, W, b, 3)
    assert val.isnan().sum(1).eq(1).all()
    assert kernels.encode_threshold(x, W, b, None, 130)[2].eq(-1).all()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("T, D, F, K", SHAPES)
def test_gated_is_the_product_of_active_pairs(T, D, F, K, dtype):
    (idx, val), g, W = pairs(T, F, K), random(T, D, dtype=dtype), random(F, D, dtype=dtype, seed=1)
    dots = torch.einsum("tkd,td->tk", W[idx].double(), g.double())
    size = torch.einsum("tkd,td->tk", W[idx].double().abs(), g.double().abs())
    assert_within(kernels.gated(idx, val, g, W), dots * (val > 0), D * 2**-23 * size * (val > 0))


@pytest.mark.parametrize("deterministic", [False, True])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("T, D, F, K", SHAPES)
def test_gated_sum_is_the_attribution(T, D, F, K, dtype, deterministic):
    dictionary, h, g = make(D, F, "topk", dtype, k=K), random(T, D, dtype=dtype), random(T, D, dtype=dtype, seed=7)
    d = exact(dictionary)
    acts = d.encode(h.double())
    val, idx = acts.topk(K)
    found = kernels.gated_sum(idx, val.float(), g, dictionary.W_dec, F, deterministic)
    expected = attribution.attribution_eager(d, h.double(), g.double())
    assert found.dtype == torch.float32 and expected.abs().max() > 0
    size = (acts * (g.double().abs() @ d.W_dec.T.abs())).sum(0)
    assert_within(-found, expected, (D + T + 2) * 2**-23 * size)  # D of the product, T of the sum, 2 of val and val · dot


def energy_bound(g: torch.Tensor, W: torch.Tensor) -> torch.Tensor:
    """Of Σ_t dot²: each dot is off by δ, its square by 2 |dot| δ + δ², their sum as sums are."""
    dots, delta = g.double() @ W.double().T, g.shape[1] * 2**-23 * (g.double().abs() @ W.double().T.abs())
    return (2 * dots.abs() * delta + delta.square()).sum(0) + (len(g) + 1) * 2**-23 * dots.square().sum(0)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("T, D, F, K", SHAPES)
def test_energy_sum_and_quadratic_form_are_the_energy(T, D, F, K, dtype):
    dictionary, g = make(D, F, "relu", dtype), random(T, D, dtype=dtype, seed=7)
    d, W = exact(dictionary), dictionary.W_dec
    norms, expected = d.W_dec.norm(dim=1).square(), attribution.energy_eager(d, g.double())
    assert_within(kernels.energy_sum(g, W) / norms, expected, energy_bound(g, W) / norms + 1e-12)
    gram = g.double().T @ g.double()
    size = ((d.W_dec.abs() @ gram.abs()) * d.W_dec.abs()).sum(1)
    found = kernels.quadratic_form(gram.float(), W)
    assert found.dtype == torch.float32 and found.shape == (F,)
    assert_within(found / norms, expected, (2 * D + 2) * 2**-23 * size / norms + 1e-12)


def test_quadratic_form_takes_a_gram_matrix_of_the_dtype_of_the_decoder():
    W, gram = random(50, 24, dtype=torch.bfloat16), random(24, 24, seed=1).bfloat16()
    expected = ((W.double() @ gram.double()) * W.double()).sum(1)
    size = ((W.double().abs() @ gram.double().abs()) * W.double().abs()).sum(1)
    assert_within(kernels.quadratic_form(gram, W), expected, 49 * 2**-23 * size)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("T, D, r", [(1, 24, 1), (37, 33, 5), (37, 96, 20), (70, 128, 3)])
@pytest.mark.parametrize("gain", [0.0, -1.5])
def test_scale_along_and_its_gradient_are_the_definition(T, D, r, gain, dtype):
    x, Q = random(T, D, dtype=dtype), torch.linalg.qr(random(D, r, seed=1))[0].to(dtype)
    x64, Q64 = x.double(), Q.double()
    expected, plain = edits.scale_along_eager(x64, Q64, gain), edits.scale_along(x, Q, gain)
    # One accumulation for x Q, one for the sum with x. Rounding what is off by δ errs by at most 2 δ more than the best rounding does.
    size = x64.abs() + abs(gain - 1) * (x64.abs() @ Q64.abs()) @ Q64.abs().T
    bound = (plain.double() - expected).abs().max() + 2 * (D + r + 3) * 2**-23 * size
    leaf = x.clone().requires_grad_()
    found = kernels.scale_along(leaf, Q, gain)
    assert found.dtype == dtype and found.shape == x.shape
    assert_within(found.detach(), expected, bound)
    assert (expected - x64).abs().max() > 0.1
    weight = random(T, D, dtype=dtype, seed=9)
    found.backward(weight)
    leaf64 = x64.clone().requires_grad_()
    edits.scale_along_eager(leaf64, Q64, gain).backward(weight.double())
    size = weight.double().abs() + abs(gain - 1) * (weight.double().abs() @ Q64.abs()) @ Q64.abs().T
    plain = edits.scale_along(weight, Q, gain).double()
    assert_within(leaf.grad, leaf64.grad, (plain - leaf64.grad).abs().max() + 2 * (D + r + 3) * 2**-23 * size)


def test_scale_along_of_any_shape_and_rank():
    x, Q = random(2, 3, 5, 24)[:, :, ::2], torch.linalg.qr(random(24, 4, seed=1))[0]
    torch.testing.assert_close(kernels.scale_along(x, Q, 0.5), edits.scale_along(x, Q, 0.5), rtol=1e-5, atol=1e-5)
    assert kernels.scale_along(x, Q[:, :0], 0.5).equal(x)


def test_two_runs_give_the_same_bits():
    x, W, b, g = random(37, 33), random(130, 33, seed=1), random(130, seed=2), random(37, 33, seed=3)
    idx, val = kernels.encode_topk(x, W.T, b, 5)
    for run in (
        lambda: kernels.encode_threshold(x, W.T, b, None, 130),
        lambda: kernels.encode_topk(x, W.T, b, 5),
        lambda: [kernels.gated(idx, val, g, W), kernels.gated_sum(idx, val, g, W, 130, deterministic=True)],
        lambda: [kernels.energy_sum(g, W), kernels.quadratic_form(g.T @ g, W), kernels.scale_along(g, W[:3].T, 0.3)],
    ):
        assert all(map(torch.equal, run(), run()))


def test_a_feature_that_is_active_everywhere_is_summed_over_every_token():
    val, g, W = torch.arange(1.0, 151.0, device=DEVICE)[:, None], random(150, 1).round(), torch.ones(3, 1, device=DEVICE)
    idx = torch.ones(150, 1, dtype=torch.int64, device=DEVICE)
    expected = [0, (val * g).sum().item(), 0]  # whole numbers: exact in any order
    for deterministic in (False, True):
        assert kernels.gated_sum(idx, val, g, W, 3, deterministic).tolist() == expected


PRODUCTS = ("_threshold_kernel", "_group_max_kernel", "_group_values_kernel", "_squares_kernel", "_scale_kernel")


def test_every_kernel_compiles_for_a_gpu_and_multiplies_on_tensor_cores(tmp_path):
    """By Triton's compiler and NVIDIA's assembler, which need no GPU; without tensor cores a product takes fifteen times as long."""
    script = Path(__file__).parents[1] / "compile_kernels.py"
    env = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"} | {"TRITON_CACHE_DIR": str(tmp_path)}
    done = subprocess.run([sys.executable, str(script), "cuda:90"], env=env, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr[-3000:]
    made = [json.loads(line) for line in done.stdout.splitlines()]
    others = {f"_{name}_kernel" for name in ("gated", "segment_sum", "pair_sum", "along", "split")}
    assert {entry["kernel"] for entry in made} == {*PRODUCTS, *others}
    for entry in made:
        assert entry["shared"] <= 227 * 1024, entry  # what a block of an H100 can have; of an A100 163
        assert entry["stack"] <= 64, entry  # what does not fit the registers is written to memory, and read again
        assert entry["tensor_cores"] == (entry["kernel"] in PRODUCTS), entry


@pytest.mark.parametrize("activation", ["relu", "jumprelu", "topk"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_rounds_the_matrices_and_nothing_else(activation, dtype, monkeypatch):
    D, F, K = 33, 130, 5
    plain = replace(make(D, F, activation, torch.float32, k=K), b_dec=10 * random(D, seed=8), apply_b_dec_to_input=True)
    ours = precision.kept(plain, str(dtype)[6:], torch.device(DEVICE), torch.float32)
    assert ours.W_enc.dtype == ours.W_dec.dtype == dtype and ours.b_enc.dtype == ours.b_dec.dtype == ours.work_dtype == torch.float32
    monkeypatch.setattr(precision, "choose", lambda impl, x: "triton")
    x, g = random(37, D, dtype=dtype), random(37, D, dtype=dtype, seed=7)
    given = precision.to_encode(ours, x.float(), str(dtype)[6:])
    assert given.dtype == dtype and given.equal(x)
    rounded = exact(ours)  # the definition, of the rounded matrices
    idx, val = encode_active(ours, given, "triton", room=F)
    bound = pre_bound(ours, x) + (D + 1) * 2**-23 * (ours.b_dec.double().abs() @ rounded.W_enc.abs())
    sure = torch.ones(37, F, device=DEVICE, dtype=torch.bool)
    if activation != "topk":
        level = 0 if plain.threshold is None else plain.threshold.double().clamp_min(0)
        sure = (rounded.preactivations(x.double()) - level).abs() > bound
    assert sure.double().mean() > 0.98
    assert_within(dense(idx, val, F) * sure, rounded.encode(x.double()) * sure, bound)
    expected = attribution.energy_eager(rounded, g.double())
    norms = rounded.W_dec.norm(dim=1).square()
    for scale in (1.0, 2.0**-40):  # smaller than any number of float16
        found = attribution.energy(ours, g.float() * scale, "triton", str(dtype)[6:])
        assert_within(found / scale**2, expected, energy_bound(g, ours.W_dec) / norms + 1e-5 * expected)


def test_half_precision_is_left_where_the_kernels_cannot_multiply_in_it(monkeypatch):
    monkeypatch.setattr(precision, "choose", lambda impl, x: "triton")
    x, device = random(5, 33), torch.device(DEVICE)
    half = precision.kept(make(33, 130, "topk", torch.float32, k=5), "bfloat16", device, torch.float32)
    assert precision.to_encode(half, x, "bfloat16").dtype == torch.bfloat16
    for other in (replace(half, activation="groupmax"), replace(half, activation="batchtopk"), replace(half, input_norm="layer_norm")):
        assert precision.to_encode(other, x, "bfloat16") is x
    assert precision.to_encode(half, x, "float32") is x and precision.to_encode(half, x, "auto") is x
    assert precision.to_encode(make(33, 130, "topk", torch.float32, k=5), x, "bfloat16") is x
    monkeypatch.setattr(precision, "choose", lambda impl, x: "torch")
    assert precision.to_encode(half, x, "bfloat16") is x


@pytest.mark.parametrize("kind", KINDS)
def test_a_step_projected_by_the_kernels_in_half_precision_reads_what_blocks_read(kind, monkeypatch):
    monkeypatch.setattr(projection, "EXPLAINED_TOKENS", 10**6)  # else each draws tokens of its own
    dictionary = precision.kept(kind_of(kind, D=32, F=80), "bfloat16", torch.device(DEVICE), torch.float32)
    observe = ObserveSettings(precision="bfloat16", estimators=["taught", "push", "attribution", "energy", "unexplained", "activation"])
    h, g = random(60, 32, dtype=torch.bfloat16).float(), random(60, 32, dtype=torch.bfloat16, seed=7).float()
    T = torch.arange(60, device=DEVICE)
    tokens = projection.Tokens(h, g, T >= 0, T // 15, T % 15, 4, (0, 1, 2, 3), random(60, seed=8).abs())
    found = []
    for which in ("torch", "triton"):
        for module in (precision, encoding, attribution):
            monkeypatch.setattr(module, "choose", lambda impl, x: "torch" if x.dtype == torch.float64 else which)  # noqa: B023
        made = projection.Projection({"layers.1": dictionary}, {("some", "layers.1"): [1, 2]}, observe)
        made.add("layers.1", tokens)
        scalars = made.take(1)["scalars"]
        found.append((made.totals()["layers.1"], scalars))
    for key, total in found[0][0].items():
        assert total.norm() > 0 and (found[1][0][key] - total).norm() <= 1e-6 * total.norm(), key
    assert found[1][1] == pytest.approx(found[0][1], rel=1e-4, abs=1e-6, nan_ok=True)


class Largest(TorchDispatchMode):
    """Elements of the largest tensor made meanwhile; what the interpreter makes of its arguments (bytes, `set_`) is not counted."""

    elements = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        out = function(*args, **(kwargs or {}))
        given = {tensor.untyped_storage().data_ptr() for tensor in args if isinstance(tensor, torch.Tensor)}
        for tensor in out if isinstance(out, (tuple, list)) else [out]:
            if (
                isinstance(tensor, torch.Tensor)
                and tensor.dtype != torch.uint8
                and function is not torch.ops.aten.set_.source_Storage_storage_offset
            ):
                if tensor.untyped_storage().data_ptr() not in given:
                    self.elements = max(self.elements, tensor.numel())
        return out


def test_nothing_is_as_large_as_all_features_of_all_tokens_or_as_the_decoder():
    T, D, F = 30, 40, 1024
    x, W, b = random(T, D), random(F, D, seed=1), random(F, seed=2)
    idx, val = pairs(T, F, 5)
    gram, W_enc, Q = x.T @ x, W.T.contiguous(), W[:3].T.contiguous()
    for name, limit, run in (
        ("encode_threshold", T * 20, lambda: kernels.encode_threshold(x, W_enc, b, None, 20)),
        ("encode_topk", T * 5 * 32, lambda: kernels.encode_topk(x, W_enc, b, 5)),
        ("gated_sum", F, lambda: kernels.gated_sum(idx, val, x, W, F)),
        ("gated_sum", F + 1, lambda: kernels.gated_sum(idx, val, x, W, F, deterministic=True)),
        ("energy_sum", F, lambda: kernels.energy_sum(x, W)),
        ("quadratic_form", F, lambda: kernels.quadratic_form(gram, W)),
        ("scale_along", T * D, lambda: kernels.scale_along(x, Q, 0.5)),
    ):
        if DEVICE == "cuda":
            run()  # tuning makes tensors of its own
        with Largest() as largest:
            run()
        assert largest.elements <= limit, f"{name} made {largest.elements} elements, expected no more than {limit}"


@pytest.mark.parametrize("dtype", DTYPES)
def test_self_check_passes(dtype):
    assert kernels.self_check(DEVICE, dtype) is None


@pytest.mark.parametrize("name", ["encode_threshold", "encode_topk", "gated", "gated_sum", "energy_sum", "quadratic_form"])
def test_self_check_names_a_kernel_that_is_wrong(monkeypatch, name):
    right = getattr(kernels, name)

    def wrong(*args, **options):
        out = right(*args, **options)
        *first, last = out if isinstance(out, tuple) else (out,)
        last = last.clone()
        last[-1] += 1 if last.dtype in (torch.int64, torch.int32) else last.abs().max() / 1000
        return (*first, last) if first else last

    monkeypatch.setattr(kernels, name, wrong)
    assert kernels.self_check(DEVICE, torch.float32).startswith(f"{name}")


def test_self_check_names_a_kernel_that_does_not_run_and_a_dtype_that_there_is_not(monkeypatch):
    def broken(*_):
        raise RuntimeError("PTX was not assembled\nand more")

    monkeypatch.setattr(kernels, "scale_along", broken)
    assert kernels.self_check(DEVICE, torch.float32) == "scale_along: RuntimeError: PTX was not assembled"
    assert "float64" in kernels.self_check(DEVICE, torch.float64)


def test_what_cannot_be_is_refused():
    x, W, b = random(3, 24), random(24, 50, seed=1), random(50, seed=2)
    for wrong in (
        lambda: kernels.encode_threshold(x, W, b, None, 0),
        lambda: kernels.encode_threshold(x.double(), W.double(), b, None, 5),
        lambda: kernels.encode_topk(x, W, b, 51),
        lambda: kernels.encode_topk(x, W, b, 0),
        lambda: kernels.energy_sum(x.double(), W.T.double()),
        lambda: kernels.scale_along(x, random(24, 129), 0.5),
        lambda: kernels.encode_topk(x[:, 1:], W, b, 5),
        lambda: kernels.gated(torch.zeros(3, 1, dtype=torch.int64), torch.ones(3, 1), x, W),
    ):
        with pytest.raises(ValueError):
            wrong()

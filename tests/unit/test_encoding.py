"""Active pairs: streamed over blocks of tokens and features, equal to the dense form, within bounds of memory; health."""

import math

import pytest
import torch
from test_dictionary import CASES, D, F, T, build, tokens

from gradlens.bench.peak_memory import PeakMemory
from gradlens.dictionaries import encoding
from gradlens.dictionaries.dictionary import ACTIVATIONS, Dictionary
from gradlens.dictionaries.encoding import decode_active, encode_active, encode_active_eager, full, health


def scattered(idx, val, width=F):
    return torch.zeros(len(idx), width, dtype=val.dtype).scatter_add(1, idx, val)


@pytest.mark.parametrize("activation, subtract, extra", CASES)
@pytest.mark.parametrize("tokens_of_tile, features, group", [(1, 4, 4), (5, 8, 2), (5, 19, 3), (256, 19, 32), (256, 3, 1)])
def test_active_pairs_scattered_equal_encode(monkeypatch, activation, subtract, extra, tokens_of_tile, features, group):
    monkeypatch.setattr(encoding, "TOKENS", tokens_of_tile)
    monkeypatch.setattr(encoding, "TILE", tokens_of_tile * features)
    monkeypatch.setattr(encoding, "GROUP", group)
    d, x = build(activation, apply_b_dec_to_input=subtract, **extra), tokens()
    idx, val = encode_active(d, x)
    assert idx.shape == val.shape and idx.dtype == torch.long
    assert ((val > 0) | (idx == 0)).all(), "padding has id 0"
    torch.testing.assert_close(scattered(idx, val), d.encode(x), rtol=0, atol=1e-12)
    torch.testing.assert_close(scattered(*encode_active_eager(d, x)), d.encode(x), rtol=0, atol=0)
    torch.testing.assert_close(decode_active(d, idx, val, x), d.decode(d.encode(x), x), rtol=0, atol=1e-12)


@pytest.mark.parametrize("activation", ["topk", "jumprelu", "relu", "batchtopk", "gated"])
def test_many_features_go_through_groups_and_blocks(monkeypatch, activation):
    """The ways that only long rows take: groups by their maxima, several blocks, merging them."""
    monkeypatch.setattr(encoding, "TILE", 2**13)
    monkeypatch.setattr(encoding, "TOKENS", 8)
    generator = torch.Generator().manual_seed(0)
    randn = lambda *shape: torch.randn(*shape, generator=generator, dtype=torch.float64)  # noqa: E731
    width = 2**15 + 40  # 33 blocks, the last one short
    extra = {
        "topk": {"k": 7}, "batchtopk": {"k": 5}, "relu": {}, "jumprelu": {"threshold": 6 + randn(width).abs()},
        "gated": {"b_gate": randn(width) - 8, "r_mag": 0.1 * randn(width), "b_mag": randn(width)},
    }[activation]  # fmt: skip
    b_enc = torch.zeros(width) if activation == "gated" else randn(width) - (9 if activation == "relu" else 0)
    d = Dictionary(randn(D, width), b_enc.double(), randn(width, D), randn(D), activation=activation, **extra)
    x = randn(19, D)
    expected = d.encode(x)
    assert 3 < (expected > 0).sum() / len(x) < 2000 < width / 16
    torch.testing.assert_close(scattered(*encode_active(d, x), width), expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_a_token_that_is_not_finite_is_flagged_and_leaves_the_others_alone(activation):
    d, x = build(activation), tokens()
    for value in (math.nan, math.inf):
        broken = x.clone()
        broken[4, 2] = value
        idx, val = encode_active(d, broken)
        assert val[4, 0].isnan() and not val[4, 1:].any() and not idx[4].any()
        others = torch.arange(T) != 4
        assert val[others].isfinite().all()
        if activation != "batchtopk":  # there the batch chooses together, one token less than before
            torch.testing.assert_close(scattered(idx[others], val[others]), d.encode(x[others]), rtol=0, atol=1e-12)


@pytest.mark.parametrize("activation", ["topk", "jumprelu", "batchtopk"])
def test_memory_does_not_grow_with_the_dictionary(activation):
    peaks = {}
    for width in (2**14, 2**18):
        high = torch.distributions.Normal(0, 1).icdf(torch.tensor(1 - 32 / width))  # about 32 preactivations are above it
        extra = {"topk": {"k": 32}, "batchtopk": {"k": 32}, "jumprelu": {"threshold": high.repeat(width)}}[activation]
        randn = lambda *shape: torch.randn(*shape, generator=torch.Generator().manual_seed(width))  # noqa: B023, E731
        d = Dictionary(randn(8, width) / 8**0.5, torch.zeros(width), randn(width, 8), torch.zeros(8), activation=activation, **extra)
        x = 8**0.5 * torch.nn.functional.normalize(randn(600, 8))
        with PeakMemory() as memory:
            idx, val = encode_active(d, x)
        assert 16 < (val > 0).sum() / len(x) < 400
        peaks[width] = memory.peak
    assert peaks[2**18] < 64e6, f"{peaks[2**18] / 1e6:.0f} MB; [T, F] would be {600 * 2**18 * 4 / 1e6:.0f} MB"


def test_weights_in_half_precision_are_converted_a_little_at_a_time():
    D, F = 512, 2**15
    randn = lambda *shape: torch.randn(*shape, generator=torch.Generator().manual_seed(0)).to(torch.bfloat16)  # noqa: E731
    d = Dictionary(randn(D, F), randn(F), randn(F, D), randn(D), activation="topk", k=8)
    with PeakMemory() as memory:
        encode_active(d, torch.randn(4, D))  # few tokens: a tile of them spans the whole dictionary, 67 MB in float32
    assert memory.peak < 24e6


def test_a_dictionary_kept_in_half_precision_is_computed_in_the_precision_of_the_input():
    d = build("jumprelu").to(dtype=torch.float16)
    x = tokens()
    idx, val = encode_active(d, x)
    assert val.dtype == torch.float64
    torch.testing.assert_close(scattered(idx, val), d.to(dtype=torch.float64).encode(x), rtol=0, atol=1e-12)
    torch.testing.assert_close(decode_active(d, idx, val), d.to(dtype=torch.float64).decode(scattered(idx, val)), rtol=0, atol=1e-12)


def test_health_equals_its_definition_whatever_the_chunk(monkeypatch):
    d, x = build("topk"), tokens()
    acts = d.encode(x)
    left = sum((x[t] - d.decode(acts[t : t + 1])[0]).square().sum() for t in range(T))
    total = sum((x[t] - x.mean(0)).square().sum() for t in range(T))
    for chunk in (4, 1000):
        monkeypatch.setattr(encoding, "CHUNK", chunk)
        found = health(d, x)
        assert found.fvu == pytest.approx((left / total).item(), rel=1e-9)
        assert found.l0 == pytest.approx((acts > 0).sum().item() / T)
        assert found.dead == pytest.approx(1 - (acts > 0).any(0).sum().item() / F)
        assert found.tokens == T


def test_a_perfect_dictionary_has_no_fvu():
    eye = torch.eye(D, dtype=torch.float64)
    d = Dictionary(torch.cat([eye, -eye], 1), torch.zeros(2 * D).double(), torch.cat([eye, -eye]), torch.zeros(D).double())
    assert health(d, tokens()).fvu < 1e-25


def test_without_variance_there_is_no_fvu():
    for count in (0, 1):
        found = health(build("topk"), tokens(count=count))
        assert math.isnan(found.fvu) and found.tokens == count


class OnGpu(torch.Tensor):
    """Values that say they are on one."""

    is_cuda = True


def test_only_where_room_is_limited_can_a_token_have_had_too_many_active_features():
    val = torch.tensor([[1.0, 2.0, 3.0], [1.0, 0.0, 2.0]])
    crowded = lambda name, **extra: full(build(name, **extra), val.as_subclass(OnGpu)).tolist()  # noqa: E731
    assert crowded("relu") == crowded("batchtopk", threshold=torch.ones(F).double()) == [True, False]
    assert crowded("topk") == crowded("groupmax") == crowded("batchtopk") == [False, False]
    assert full(build("relu"), val).tolist() == [False, False]

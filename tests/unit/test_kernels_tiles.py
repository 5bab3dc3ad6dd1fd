"""Every tile of the kernels, which a GPU chooses among by the clock, and sums over pairs: interpreted, or on a GPU where there is one."""

import pytest
import torch
from test_kernels import DEVICE, assert_within, dense, pairs, random  # sets TRITON_INTERPRET where there is no GPU

from gradlens.dictionaries import encoding, kernels, kernels_encode, pair_sums
from gradlens.dictionaries.dictionary import Dictionary
from gradlens.readings import attribution, uptake

TILES = [config.kwargs for config in kernels_encode.tiles("BT")]


@pytest.fixture
def only(monkeypatch):
    """Leaves a kernel one tile."""

    def choose(kernel, tile: dict) -> None:
        config = next(config for config in kernels_encode.tiles(next(iter(tile))) if config.kwargs == tile)
        monkeypatch.setattr(kernel, "configs", [config])

    return choose


@pytest.mark.parametrize("tile", TILES, ids=str)
@pytest.mark.parametrize("ordered", [True, False])
def test_each_tile_finds_the_same_pairs(tile, ordered, only):
    only(kernels_encode._threshold_kernel, tile)
    dtype = torch.float32 if tile["BF"] <= 128 else torch.bfloat16  # operands twice the size would not fit a GPU's shared memory
    x, W, b, level = random(150, 70, dtype=dtype), random(70, 600, dtype=dtype, seed=1), random(600, seed=2), random(600, seed=3).abs()
    x[7, 3] = torch.nan
    idx, val, count = kernels.encode_threshold(x, W, b, level, 600, ordered)
    assert count[7] == -1 and val[7, 0].isnan() and val[7, 1:].eq(0).all() and idx[7].eq(0).all()
    others = torch.arange(150, device=DEVICE) != 7
    pre = x[others].double() @ W.double() + b.double()
    acts = pre.relu() * (pre > level.double())
    assert count[others].equal((acts > 0).sum(1, dtype=torch.int32))
    assert_within(dense(idx[others], val[others], 600), acts, 1e-4 + 0 * acts)
    assert idx.where(torch.arange(600, device=DEVICE) < count[:, None], 0).equal(idx)


@pytest.mark.parametrize("tile", [config.kwargs for config in kernels_encode.tiles("BM")], ids=str)
@pytest.mark.parametrize("D", [192, 150])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_each_tile_gives_the_quadratic_form(tile, D, dtype, only):
    if tile["BF"] > 128 and dtype == torch.float32:
        pytest.skip("does not fit a GPU's shared memory, and is not tried")
    only(kernels._squares_kernel, tile)
    W, g = random(300, D, dtype=dtype), random(40, D, dtype=dtype, seed=1)
    gram = g.float().T @ g.float()
    expected = ((W.double() @ gram.double()) * W.double()).sum(1)
    size = ((W.double().abs() @ gram.double().abs()) * W.double().abs()).sum(1)
    assert_within(kernels.quadratic_form(gram, W), expected, (2 * D + 2) * 2**-23 * size)
    total = (g.double() @ W.double().T).square().sum(0)
    torch.testing.assert_close(kernels.energy_sum(g, W).double(), total, rtol=1e-4, atol=0)


def test_three_pieces_of_bfloat16_hold_all_digits_of_a_float():
    D, gram = 70, random(70, 70)
    gram = gram + gram.T
    pieces = gram.new_empty(3 * D, D, dtype=torch.bfloat16)
    kernels.launch(kernels._split_kernel, (D, 1), gram, pieces, D, BLOCK=128)
    lower = gram.double().tril(-1) * 2 + gram.double().diag().diag()
    found = pieces.double().view(3, D, D)
    assert ((found.sum(0) - lower).abs() <= 2**-23 * lower.abs()).all() and not found[0].equal(lower)


@pytest.mark.parametrize("by_pair", [True, False])
def test_sums_over_pairs_are_their_definition(by_pair):
    idx, val = pairs(37, 130, 5)
    factor = random(37, 5, seed=7) if by_pair else random(37, seed=7)
    wide = factor.double() if by_pair else factor.double()[:, None]
    found = kernels.pair_sums(idx, val, factor, 130)
    expected = dense(idx, val.double() * wide, 130).sum(0)
    assert found.dtype == torch.float64
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-6)  # of products in float32


def test_an_unused_slot_adds_nothing_whatever_its_token_has():
    idx, val = torch.zeros(3, 4, dtype=torch.long, device=DEVICE), torch.zeros(3, 4, device=DEVICE)
    idx[1, 0], val[1, 0] = 2, 3.0
    loss = torch.tensor([torch.nan, 2.0, torch.inf], device=DEVICE)
    assert kernels.pair_sums(idx, val, loss, 5).tolist() == [0, 0, 6, 0, 0]


def test_sums_of_some_rows_are_those_rows():
    (idx, val), loss, row = pairs(40, 130, 5), random(40, seed=7).abs(), torch.arange(40, device=DEVICE) // 8
    found = kernels.pair_sums(idx, val, loss, 130, (row, 1, 3), torch.float32)
    expected = dense(idx, val.double() * loss.double()[:, None], 130).view(5, 8, 130).sum(1)[1:4]
    torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=1e-5)


def test_what_is_taught_is_the_same_by_the_kernels(monkeypatch):
    (idx, val), loss, row = pairs(40, 130, 5), random(40, seed=7).abs(), torch.arange(40, device=DEVICE) // 8
    found = {}
    for which in ("torch", "triton"):
        monkeypatch.setattr(pair_sums, "choose", lambda impl, x: which)  # noqa: B023
        found[which] = uptake.taught(idx, val, loss, 130), *uptake.taught_by_row(idx, val, loss, row, 5, 130, 6)
    for one, other in zip(found["torch"], found["triton"], strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6)


def test_where_additions_wait_for_each_other_unused_slots_are_spread():
    idx, weight = torch.tensor([0, 3, 0, 0, 3]), torch.tensor([2.0, 5.0, 0.0, 0.0, 1.0])
    assert pair_sums._spread(idx, weight, 4).tolist() == [2, 0, 0, 6]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_push_by_the_kernel_is_push(dtype, monkeypatch):
    W, g = random(130, 33, dtype=dtype), random(33, seed=1)
    dictionary = Dictionary(W.T.contiguous(), torch.zeros(130, device=DEVICE), W, torch.zeros(33, device=DEVICE))
    plain = attribution.push(dictionary.to(dtype=torch.float64), g.double())
    monkeypatch.setattr(attribution, "choose", lambda impl, x: "triton")
    torch.testing.assert_close(attribution.push(dictionary, g).double(), plain, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("T", [20, 300])  # by tokens, and by the second moments
def test_energy_in_bfloat16_is_the_energy_without_bad_tokens(T):
    W, g = random(800, 40, dtype=torch.bfloat16), random(T, 40, dtype=torch.bfloat16, seed=1)
    dictionary = Dictionary(W.T.contiguous(), torch.zeros(800, device=DEVICE), W, torch.zeros(40, device=DEVICE))
    bad = torch.arange(T, device=DEVICE) == 3
    expected = attribution.energy_eager(dictionary.to(dtype=torch.float64), g[~bad].double())
    found = attribution.energy(dictionary, g.masked_fill(bad[:, None], torch.nan), "triton", "bfloat16", bad)
    torch.testing.assert_close(found.double(), expected, rtol=1e-3, atol=1e-4 * expected.max().item())


@pytest.mark.parametrize("room", [4, 1000])  # more pairs than are expected of a token, or fewer
@pytest.mark.parametrize("kind", ["relu", "jumprelu"])
def test_without_a_given_room_the_kernel_finds_every_pair(kind, room, monkeypatch):
    level = {"threshold": random(80, seed=3).abs()} if kind == "jumprelu" else {}
    dictionary = Dictionary(random(33, 80), random(80, seed=1), random(80, 33, seed=2), random(33, seed=4), activation=kind, **level)
    monkeypatch.setattr(encoding, "ROOM", room)
    monkeypatch.setattr(encoding, "_above", None)
    x = random(20, 33, seed=5)
    x[3, 3] = torch.nan
    idx, val = encoding.encode_active(dictionary, x, "triton")
    others = torch.arange(20, device=DEVICE) != 3
    acts = dictionary.to(dtype=torch.float64).encode(x[others].double())
    assert val.shape[1] == (acts > 0).sum(1).max() and val[3, 0].isnan() and val[3, 1:].eq(0).all()
    assert_within(dense(idx[others], val[others], 80), acts, 1e-4 + 0 * acts)

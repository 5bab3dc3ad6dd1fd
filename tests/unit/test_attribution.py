"""Each estimator equals its eager definition and, for attribution, the autograd oracle, in float64."""

import dataclasses

import numpy as np
import pytest
import torch

from gradlens.bench.peak_memory import PeakMemory
from gradlens.control import edits
from gradlens.dictionaries.dictionary import Dictionary
from gradlens.dictionaries.encoding import encode_active
from gradlens.readings import attribution as A

KINDS = ["relu", "jumprelu", "topk", "batchtopk", "batchtopk-threshold", "gated", "topk-layer_norm", "relu-unit_rms", "topk-scaled"]


def make(kind: str, D: int = 13, F: int = 37, seed: int = 0) -> Dictionary:
    torch.manual_seed(seed)
    r = lambda *shape: torch.randn(*shape, dtype=torch.float64)  # noqa: E731
    extra = {
        "relu": {},
        "jumprelu": {"threshold": r(F).abs() * 0.5},
        "topk": {"k": 5},
        "batchtopk": {"k": 3},
        "batchtopk-threshold": {"threshold": torch.full((F,), 1.5, dtype=torch.float64)},
        "gated": {"b_gate": r(F), "r_mag": 0.1 * r(F), "b_mag": r(F)},
        "topk-layer_norm": {"k": 5, "input_norm": "layer_norm"},
        "relu-unit_rms": {"input_norm": "unit_rms"},
        "topk-scaled": {"k": 5, "act_scale": 0.2 + r(F).abs()},
    }[kind]
    b_enc = torch.zeros(F, dtype=torch.float64) if kind == "gated" else 0.1 * r(F) - 1
    return Dictionary(r(D, F), b_enc, r(F, D), r(D), activation=kind.split("-")[0], **extra)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("T", [1, 9, 300])
def test_fast_forms_equal_their_definition(kind, T):
    dictionary = make(kind)
    h, g = torch.randn(T, 13, dtype=torch.float64), torch.randn(T, 13, dtype=torch.float64)
    close = lambda a, b: torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9)  # noqa: E731
    close(A.push(dictionary, g.sum(0)), A.push_eager(dictionary, g))
    close(A.attribution(dictionary, h, g), A.attribution_eager(dictionary, h, g))
    close(A.energy(dictionary, g), A.energy_eager(dictionary, g))
    fast, eager = A.explained_energy(dictionary, h, g), A.explained_energy_eager(dictionary, h, g)
    torch.testing.assert_close(fast[0] / fast[1], eager[0] / eager[1], rtol=1e-7, atol=1e-9)
    assert A.attribution_eager(dictionary, h, g).abs().max() > 0


@pytest.mark.parametrize("kept", [0, 10**7], ids=["formed", "kept"])
def test_more_active_features_than_dimensions_explain_everything_in_float32_too(kept, monkeypatch):
    monkeypatch.setattr(A, "GRAM", kept)
    exact = make("relu", D=32, F=400)
    h, g = torch.randn(2, 40, 32, generator=torch.Generator().manual_seed(0))
    assert (exact.encode(h.double()) > 0).sum(1).min() > 32
    explained, total = A.explained_energy(exact.to(dtype=torch.float32), h, g)
    assert (explained / total).item() == pytest.approx(1, abs=1e-4)


class OnGpu(torch.Tensor):
    """Values that say they are on one."""

    is_cuda = True


def test_a_small_gradient_is_not_lost_on_a_dictionary_kept_in_float16():
    exact = make("topk")
    g = 1e-9 * torch.randn(7, 13, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    idx = torch.arange(35).view(7, 5)
    found = A.pair_dots(exact.to(dtype=torch.float16), g.float().as_subclass(OnGpu), idx, impl="torch")
    rounded = exact.to(dtype=torch.float16).to(dtype=torch.float64)  # the matrices are; the products are not
    torch.testing.assert_close(torch.Tensor(found).double(), A.pair_dots_eager(rounded, g, idx), rtol=1e-5, atol=1e-15)


@pytest.mark.parametrize("kind", KINDS)
def test_attribution_equals_the_autograd_oracle(kind):
    dictionary = make(kind)
    torch.manual_seed(1)
    h = torch.randn(11, 13, dtype=torch.float64)
    readout = torch.randn(13, 4, dtype=torch.float64)
    loss = lambda x: (x @ readout).tanh().square().sum()  # noqa: E731
    x = h.clone().requires_grad_()
    (g,) = torch.autograd.grad(loss(x), x)
    scale = torch.ones(37, dtype=torch.float64, requires_grad=True)
    acts = dictionary.encode(h)
    spliced = h + dictionary.decode(scale * acts, h) - dictionary.decode(acts, h)
    (oracle,) = torch.autograd.grad(loss(spliced), scale)
    torch.testing.assert_close(A.attribution(dictionary, h, g), -oracle, rtol=1e-9, atol=1e-9)


def test_no_active_feature_gives_zero_and_everything_unexplained():
    dictionary = dataclasses.replace(make("relu"), b_enc=torch.full((37,), -1e6, dtype=torch.float64))
    h = g = torch.randn(4, 13, dtype=torch.float64)
    assert A.attribution(dictionary, h, g).eq(0).all()
    explained, total = A.explained_energy(dictionary, h, g)
    assert explained == 0 and total > 0


def test_no_token_gives_zeros():
    empty = torch.zeros(0, 13, dtype=torch.float64)
    for kind in KINDS:
        assert A.attribution(make(kind), empty, empty).eq(0).all()
        assert A.energy(make(kind), empty).eq(0).all()


def test_equal_decoder_rows_are_counted_once_in_explained_energy():
    dictionary = make("topk")
    W_dec = dictionary.W_dec.clone()
    W_dec[:] = W_dec[0]
    dictionary = dataclasses.replace(dictionary, W_dec=W_dec)
    h, g = torch.randn(6, 13, dtype=torch.float64), torch.randn(6, 13, dtype=torch.float64)
    explained, _ = A.explained_energy(dictionary, h, g)
    direction = W_dec[0] / W_dec[0].norm()
    active = (dictionary.encode(h) > 0).any(-1)
    torch.testing.assert_close(explained, (g[active] @ direction).square().sum(), rtol=1e-7, atol=1e-9)


def test_basis_of_dependent_directions_has_their_rank_and_edit_equals_matrix_form():
    torch.manual_seed(0)
    rows = torch.randn(4, 13, dtype=torch.float64)
    rows = torch.cat([rows, rows[:2] * 3, rows[:1] + rows[1:2]])
    Q = edits.orthonormal_basis(rows)
    assert Q.shape == (13, 4)
    torch.testing.assert_close(Q.T @ Q, torch.eye(4, dtype=torch.float64))
    x = torch.randn(5, 13, dtype=torch.float64)
    for gain in (0.0, 0.5, 2.0, -1.0):
        torch.testing.assert_close(edits.scale_along(x, Q, gain), edits.scale_along(x, Q, gain, impl="eager"))
    assert (edits.scale_along(x, Q, 0.0) @ rows.T).abs().max() < 1e-9


def test_expresses_gates_the_position_that_predicts_an_active_token():
    active = torch.tensor([[False, False, True, False]])
    everywhere = torch.ones_like(active)
    assert edits.expresses(active, everywhere, "own").tolist() == [[False, False, True, False]]
    assert edits.expresses(active, everywhere, "next").tolist() == [[False, True, False, False]]
    assert edits.expresses(active, everywhere, "own_or_next").tolist() == [[False, True, True, False]]
    assert not edits.expresses(active, torch.tensor([[True, True, False, True]]), "own_or_next").any()


@pytest.mark.parametrize("window", [0, 1, 3])
@pytest.mark.parametrize("quorum", [0.2, 0.4, 0.5, 1.0])
def test_around_is_a_quorum_of_the_counted_tokens_near_the_predicted_one(window, quorum):
    generator = torch.Generator().manual_seed(window)
    counted = torch.rand(4, 12, generator=generator) < 0.7
    active = torch.rand(4, 12, generator=generator) < 0.5
    gated = edits.expresses(active, counted, "around", window, quorum)
    for row in range(4):
        for position in range(11):
            near = [t for t in range(position + 1 - window, position + 2 + window) if 0 <= t < 12 and counted[row, t]]
            share = sum(bool(active[row, t]) for t in near) / max(len(near), 1)
            assert gated[row, position] == (bool(near) and share >= quorum - 1e-9), (row, position)
        assert not gated[row, 11]  # predicts nothing


def test_what_is_around_a_token_is_of_its_own_text():
    """As if each text had a row of its own."""
    generator = torch.Generator().manual_seed(2)
    counted, activity = torch.rand(2, 20, generator=generator) < 0.7, torch.rand(2, 20, generator=generator)
    begins = torch.zeros(2, 20, dtype=torch.bool)
    begins[0, [0, 6, 13]] = begins[1, [0, 19]] = True
    texts = edits.texts_of(begins)
    assert texts[0][0].tolist() == [0] * 6 + [6] * 7 + [13] * 7 and texts[1][0].tolist() == [5] * 6 + [12] * 7 + [19] * 7
    active = activity > 0.5
    hard = edits.expresses(active, counted, "around", 3, 0.5, texts)
    soft = edits.gate_strength(activity, counted, "around", 3, 0.5, texts)
    for row, first, end in ((0, 0, 6), (0, 6, 13), (0, 13, 20), (1, 0, 19), (1, 19, 20)):
        part, inner = (slice(row, row + 1), slice(first, end)), slice(0, end - first - 1)  # the last one predicts another text's first
        assert torch.equal(hard[part][:, inner], edits.expresses(active[part], counted[part], "around", 3, 0.5)[:, inner])
        alone = edits.gate_strength(activity[part], counted[part], "around", 3, 0.5)
        torch.testing.assert_close(soft[part][:, inner], alone[:, inner])


@pytest.mark.parametrize("quorum", [0.2, 0.5, 1.0])
@pytest.mark.parametrize("tokens", ["around", "row", "own", "next", "own_or_next"])
def test_a_soft_gate_is_the_mean_activity_over_the_quorum(tokens, quorum):
    generator = torch.Generator().manual_seed(1)
    counted = torch.rand(4, 12, generator=generator) < 0.7
    activity = torch.rand(4, 12, generator=generator) * (torch.rand(4, 12, generator=generator) < 0.5)
    found = edits.gate_strength(activity, counted, tokens, 2, quorum)
    shown = (activity * counted).tolist()
    for row in range(4):
        for position in range(12):
            near = [t for t in range(position - 1, position + 4) if 0 <= t < 12] if tokens == "around" else range(12)
            near = [t for t in near if counted[row, t]]
            mean = sum(shown[row][t] for t in near) / max(len(near), 1)
            following = shown[row][position + 1] if position < 11 else 0.0
            expected = {"own": shown[row][position], "next": following, "own_or_next": max(shown[row][position], following)}.get(
                tokens, min(1.0, mean / quorum)
            )
            if tokens == "around" and position == 11:
                expected = 0.0
            assert found[row, position].item() == pytest.approx(expected, abs=1e-6), (row, position)
    if tokens in ("around", "row"):  # where all that is active is so fully, the hard gate is where the soft one is shut
        hard = edits.expresses(activity > 0, counted, tokens, 2, quorum)
        soft = edits.gate_strength((activity > 0).float(), counted, tokens, 2, quorum)
        assert torch.equal(hard, soft > 1 - 1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("D", [33, 576])
def test_fast_forms_err_no_more_than_the_definition_in_the_same_precision(dtype, D):
    """Bound: the largest error of the eager form in this dtype, plus one rounding of the largest sum of magnitudes. The truth is in
    extended precision: in float64 it would round as the eager form does."""
    exact = make("topk", D=D, F=300)
    given, T = exact.to(dtype=dtype), 200
    h, g = torch.randn(2, T, D, dtype=torch.float64)
    idx, val = encode_active(given, h.to(dtype))
    scatter = lambda values: torch.zeros(T, 300, dtype=torch.float64).scatter_add(1, idx, values.double())  # noqa: E731
    wide = lambda values: values.double().numpy().astype(np.longdouble)  # noqa: E731
    acts, low = scatter(val), g.to(dtype)
    g_TD, W_FD, units_FD, acts_TF = (wide(values) for values in (g, exact.W_dec, exact.unit_directions(), acts))
    along_TF, dots_TF = g_TD @ units_FD.T, g_TD @ W_FD.T
    cases = {
        "push": (A.push(given, low.sum(0)), A.push_eager(given, low), -along_TF.sum(0), abs(along_TF).sum(0)),
        "attribution": (
            A.attribution(given, h.to(dtype), low, (idx, val)),
            -(acts.to(dtype) * (low @ given.W_dec.T)).sum(0), -(acts_TF * dots_TF).sum(0), (acts_TF * (abs(g_TD) @ abs(W_FD).T)).sum(0),
        ),
        "energy": (
            A.energy(given, low), A.energy_eager(given, low), (along_TF**2).sum(0), ((abs(g_TD) @ abs(units_FD).T) ** 2).sum(0),
        ),
    }  # fmt: skip
    for name, (fast, eager, truth, magnitude) in cases.items():
        bound = abs(wide(eager) - truth).max() + torch.finfo(dtype).eps * magnitude.max()
        assert abs(wide(fast) - truth).max() <= bound, name


@pytest.mark.parametrize("kind", ["topk", "relu"])
def test_pair_products_equal_their_definition_also_with_a_dictionary_in_half_precision(kind):
    dictionary = make(kind)
    h, g = torch.randn(2, 300, 13, dtype=torch.float64)
    idx, _ = encode_active(dictionary, h)
    torch.testing.assert_close(A.pair_dots(dictionary, g, idx), A.pair_dots_eager(dictionary, g, idx), rtol=1e-9, atol=1e-9)
    half = dictionary.to(dtype=torch.float16)
    back = half.to(dtype=torch.float64)
    torch.testing.assert_close(A.pair_dots(half, g, idx), A.pair_dots_eager(back, g, idx), rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(A.energy(half, g), A.energy_eager(back, g), rtol=1e-5, atol=1e-5)


def test_estimators_of_a_large_dictionary_take_little_memory(monkeypatch):
    """d_sae 60,000: [T, F] and [F, D] would be 96 and 31 MB; the products of all rows are not kept."""
    T, D, F = 400, 128, 60_000
    generator = torch.Generator().manual_seed(0)
    W_dec = torch.randn(F, D, generator=generator)
    dictionary = Dictionary(W_dec.T.contiguous(), torch.zeros(F), W_dec, torch.zeros(D), activation="topk", k=32)
    h, g = torch.randn(2, T, D, generator=generator)
    active = encode_active(dictionary, h)
    torch.testing.assert_close(dictionary.norms, W_dec.norm(dim=-1))
    with PeakMemory() as memory:
        A.push(dictionary, g.sum(0))
        A.attribution(dictionary, h, g, active)
        A.energy(dictionary, g)
        A.energy(dictionary, g[:100])
        found = A.explained_energy(dictionary, h, g, active)
    assert memory.peak < 32e6
    monkeypatch.setattr(A, "GRAM", 0)
    small = make("topk")
    h, g = torch.randn(2, 50, 13, dtype=torch.float64)
    whole = A.explained_energy(small, h, g)  # without the products of all rows
    monkeypatch.undo()
    torch.testing.assert_close(whole[0], A.explained_energy(small, h, g)[0])
    assert 0 < found[0] < found[1]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_row_of_zeros_has_no_energy_and_explains_nothing(dtype, monkeypatch):
    dictionary = make("relu").to(dtype=dtype)
    W_dec = dictionary.W_dec.clone()
    W_dec[[0, 5]] = 0  # 0 is also what unused places of the active pairs hold
    dictionary = dataclasses.replace(dictionary, W_dec=W_dec)
    h, g = torch.randn(2, 60, 13, dtype=dtype, generator=torch.Generator().manual_seed(0))
    for some in (g, g[:1]):  # by second moments, and token by token
        torch.testing.assert_close(A.energy(dictionary, some), A.energy_eager(dictionary, some), rtol=1e-4, atol=1e-5)
    assert A.energy(dictionary, g)[5] == 0
    monkeypatch.setattr(A, "GRAM", 0)
    explained, eager = A.explained_energy(dictionary, h, g)[0], A.explained_energy_eager(dictionary, h, g)[0]
    torch.testing.assert_close(explained, eager, rtol=1e-3, atol=1e-3)

"""The dictionary: every activation against plain loops in float64."""

import dataclasses
import math

import pytest
import torch

from gradlens.dictionaries.dictionary import ACTIVATIONS, Dictionary
from gradlens.dictionaries.encoding import decode_active, encode_active
from gradlens.errors import InputError

D, F, T = 7, 20, 23


def build(activation: str, seed: int = 0, **extra) -> Dictionary:
    generator = torch.Generator().manual_seed(seed)
    randn = lambda *shape: torch.randn(*shape, generator=generator, dtype=torch.float64)  # noqa: E731
    fields = {
        "relu": {},
        "jumprelu": {"threshold": randn(F).abs()},
        "topk": {"k": 4},
        "batchtopk": {"k": 3},
        "gated": {"b_gate": randn(F), "r_mag": 0.3 * randn(F), "b_mag": randn(F)},
        "groupmax": {"k": 4},
    }[activation]
    b_enc = torch.zeros(F, dtype=torch.float64) if activation == "gated" else randn(F)
    return Dictionary(randn(D, F), b_enc, randn(F, D), randn(D), activation=activation, **(fields | extra))


def tokens(seed: int = 1, count: int = T) -> torch.Tensor:
    return torch.randn(count, D, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def plain_encode(d: Dictionary, x_TD: torch.Tensor) -> list[list[float]]:
    """The definitions at the head of dictionary.py in loops over Python floats."""
    at = lambda name, i: getattr(d, name)[i].item()  # noqa: E731
    x = [normed(d, row)[0] for row in x_TD.tolist()]
    acts = plain_choice(d, x, at)
    return acts if d.act_scale is None else [[v * at("act_scale", i) for i, v in enumerate(row)] for row in acts]


def normed(d: Dictionary, row: list[float]) -> tuple[list[float], float, float]:
    """The token as it is encoded, and the scale and shift that were taken from it."""
    if d.input_norm == "unit_rms":
        scale = math.sqrt(sum(v * v for v in row) / D)
        return [v / scale for v in row], scale, 0.0
    if d.input_norm == "layer_norm":
        mean = sum(row) / D
        scale = math.sqrt(sum((v - mean) ** 2 for v in row) / (D - 1))
        return [(v - mean) / (scale + 1e-5) for v in row], scale, mean
    return row, 1.0, 0.0


def plain_choice(d: Dictionary, x: list[list[float]], at) -> list[list[float]]:
    W = d.W_enc.tolist()
    pre = []
    for row in x:
        row = [v - (d.b_dec[j].item() if d.apply_b_dec_to_input else 0.0) for j, v in enumerate(row)]
        pre.append([sum(row[j] * W[j][i] for j in range(len(row))) + at("b_enc", i) for i in range(F)])
    if d.activation == "relu":
        return [[max(p, 0.0) for p in row] for row in pre]
    if d.activation == "jumprelu" or (d.activation == "batchtopk" and d.threshold is not None):
        return [[max(p, 0.0) if p > at("threshold", i) else 0.0 for i, p in enumerate(row)] for row in pre]
    if d.activation == "gated":
        return [
            [max(p * math.exp(at("r_mag", i)) + at("b_mag", i), 0.0) if p + at("b_gate", i) > 0 else 0.0 for i, p in enumerate(row)]
            for row in pre
        ]
    if d.activation == "topk":
        out = []
        for row in pre:
            kept = sorted(range(F), key=lambda i: -row[i])[: d.k]
            out.append([max(row[i], 0.0) if i in kept else 0.0 for i in range(F)])
        return out
    if d.activation == "groupmax":
        size, out = F // d.k, []
        for row in pre:
            best = [max(range(g, g + size), key=lambda i: row[i]) for g in range(0, F, size)]
            out.append([max(row[i], 0.0) if i in best else 0.0 for i in range(F)])
        return out
    pairs = sorted(((p, t, i) for t, row in enumerate(pre) for i, p in enumerate(row)), reverse=True)[: d.k * len(pre)]
    out = [[0.0] * F for _ in pre]
    for p, t, i in pairs:
        out[t][i] = max(p, 0.0)
    return out


CASES = [(a, b, {}) for a in ACTIVATIONS for b in (True, False)] + [
    ("batchtopk", True, {"threshold": torch.full((F,), 0.7, dtype=torch.float64)}),
    ("topk", True, {"input_norm": "layer_norm"}),
    ("jumprelu", False, {"input_norm": "unit_rms"}),
    ("topk", False, {"act_scale": torch.linspace(0.3, 3, F, dtype=torch.float64)}),
    ("batchtopk", False, {"act_scale": torch.linspace(0.3, 3, F, dtype=torch.float64)}),
]


@pytest.mark.parametrize("activation, subtract, extra", CASES)
def test_encode_equals_its_definition(activation, subtract, extra):
    d, x = build(activation, apply_b_dec_to_input=subtract, **extra), tokens()
    expected = torch.tensor(plain_encode(d, x), dtype=torch.float64)
    assert (expected > 0).sum() > T, "the case says nothing where hardly anything fires"
    torch.testing.assert_close(d.encode(x), expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_one_token_and_no_token(activation):
    d, x = build(activation), tokens(count=1)
    expected = torch.tensor(plain_encode(d, x), dtype=torch.float64)
    torch.testing.assert_close(d.encode(x), expected, rtol=0, atol=1e-12)
    idx, val = encode_active(d, x)
    torch.testing.assert_close(torch.zeros(1, F, dtype=torch.float64).scatter_add(1, idx, val), expected, rtol=0, atol=1e-12)
    idx, val = encode_active(d, x[:0])
    assert idx.shape == val.shape and idx.shape[0] == 0
    assert d.encode(x[:0]).shape == (0, F)


def test_topk_with_ties_keeps_exactly_k_of_the_largest():
    W = torch.zeros(2, 6, dtype=torch.float64)
    W[0] = torch.tensor([1.0, 2.0, 2.0, 2.0, 0.5, 2.0])
    d = Dictionary(W, torch.zeros(6).double(), torch.eye(6, 2).double(), torch.zeros(2).double(), activation="topk", k=3)
    x = torch.tensor([[1.0, 0.0], [0.0, 1.0]], dtype=torch.float64)  # the second token: six zeros tie
    acts = d.encode(x)
    assert sorted(acts[0].tolist()) == [0, 0, 0, 2, 2, 2]
    assert not acts[1].any()
    idx, val = encode_active(d, x)
    torch.testing.assert_close(torch.zeros(2, 6).double().scatter_add(1, idx, val), acts)


def test_topk_does_not_report_negative_features_as_active():
    d = build("topk", k=F)
    x = tokens()
    assert (d.encode(x) >= 0).all()
    assert torch.equal(d.encode(x) > 0, d.preactivations(x) > 0)


@pytest.mark.parametrize("activation", ["relu", "jumprelu", "gated"])
def test_nothing_active_gives_zero_pairs_and_the_decoder_bias(activation):
    d = build(activation)
    low = torch.full((F,), -1e6, dtype=torch.float64)
    d = Dictionary(**{**vars(d), "b_gate": low} if activation == "gated" else {**vars(d), "b_enc": low})
    x = tokens()
    idx, val = encode_active(d, x)
    assert idx.shape == (T, 1) and not val.any() and not idx.any()
    torch.testing.assert_close(d.decode(d.encode(x)), d.b_dec.expand(T, D))


def test_jumprelu_threshold_is_strict_and_negative_thresholds_do_not_leak():
    d = Dictionary(
        torch.eye(3).double(),
        torch.zeros(3).double(),
        torch.eye(3).double(),
        torch.zeros(3).double(),
        activation="jumprelu",
        threshold=torch.tensor([1.0, 1.0, -2.0]).double(),
    )
    acts = d.encode(torch.tensor([[1.0, 1.0 + 1e-9, -1.0]], dtype=torch.float64))
    assert acts[0, 0] == 0 and acts[0, 1] > 1 and acts[0, 2] == 0


def test_decode_and_unit_directions():
    d, x = build("relu"), tokens()
    acts = d.encode(x)
    expected = torch.stack([d.b_dec + sum(acts[t, i] * d.W_dec[i] for i in range(F)) for t in range(T)])
    torch.testing.assert_close(d.decode(acts), expected)
    v = torch.randn(D, dtype=torch.float64)
    torch.testing.assert_close(d.along(v), d.unit_directions() @ v)
    torch.testing.assert_close(d.norms, d.W_dec.norm(dim=-1))
    unit = d.unit_directions(torch.tensor([3, 5]))
    torch.testing.assert_close(unit, torch.stack([d.W_dec[3] / d.W_dec[3].norm(), d.W_dec[5] / d.W_dec[5].norm()]))
    W_dec = d.W_dec.clone()
    W_dec[2] = 0
    zeroed = dataclasses.replace(d, W_dec=W_dec)
    assert not zeroed.unit_directions()[2].any() and zeroed.along(v)[2] == 0


@pytest.mark.parametrize("norm", ["layer_norm", "unit_rms"])
def test_a_norm_of_each_token_is_undone_after_decoding(norm):
    d, x = build("relu", input_norm=norm), tokens()
    out, acts = d.decode(d.encode(x), x), d.encode(x)
    for t, row in enumerate(x.tolist()):
        _, scale, shift = normed(d, row)
        torch.testing.assert_close(out[t], scale * (acts[t] @ d.W_dec + d.b_dec) + shift)
        assert d.row_scale(x)[t].item() == pytest.approx(scale)
    with pytest.raises(ValueError, match="needs what was encoded"):
        d.decode(acts)


def test_a_transcoder_may_write_vectors_of_another_width_and_adds_its_skip():
    d = build("relu", apply_b_dec_to_input=False)
    wide = {"W_dec": torch.randn(F, 11).double(), "b_dec": torch.randn(11).double(), "W_skip": torch.randn(11, D).double()}
    d, x = Dictionary(**{**vars(d), **wide, "hook_in": ("layers.3.mlp.in",), "hookpoint": "layers.3.mlp"}), tokens()
    assert (d.d_in, d.d_out) == (D, 11)
    torch.testing.assert_close(d.decode(d.encode(x), x), d.encode(x) @ d.W_dec + d.b_dec + x @ d.W_skip.T)
    torch.testing.assert_close(decode_active(d, *encode_active(d, x), x), d.decode(d.encode(x), x))
    v = torch.randn(11, dtype=torch.float64)
    torch.testing.assert_close(d.along(v), d.unit_directions() @ v)


def test_a_transcoder_reads_as_far_from_where_it_acts_wherever_it_is_put():
    d = build("relu")
    assert d.read_at("layers.5") == ("layers.5",)
    d = dataclasses.replace(d, hookpoint="layers.7.mlp", hook_in=("layers.3.mlp.in", "layers.5.mlp.in"))
    assert d.read_at("layers.7.mlp") == ("layers.3.mlp.in", "layers.5.mlp.in")
    assert d.read_at("layers.9.mlp") == ("layers.5.mlp.in", "layers.7.mlp.in")
    assert dataclasses.replace(d, hookpoint="").read_at("layers.9.mlp") == d.hook_in


def test_preactivations_of_some_features_are_columns_of_all():
    d, x = build("relu"), tokens()
    chosen = torch.tensor([0, 7, 18])
    torch.testing.assert_close(d.preactivations(x, chosen), d.preactivations(x)[:, chosen])


def test_to_converts_every_tensor():
    d = build("gated").to(dtype=torch.float32)
    assert {v.dtype for v in vars(d).values() if isinstance(v, torch.Tensor)} == {torch.float32}


@pytest.mark.parametrize(
    "change, words",
    [
        ({"W_dec": torch.zeros(F, D + 1)}, "W_dec has shape"),
        ({"b_enc": torch.zeros(F + 1)}, "b_enc has shape"),
        ({"activation": "softmax"}, "softmax"),
        ({"activation": "topk", "k": 0}, "0 < k"),
        ({"activation": "topk", "k": F + 1}, "0 < k"),
        ({"activation": "jumprelu"}, "threshold"),
        ({"activation": "batchtopk"}, "threshold or k"),
        ({"activation": "gated"}, "b_gate"),
        ({"activation": "groupmax", "k": 3}, "groups of the same size"),
        ({"input_norm": "batch"}, "input_norm 'batch'"),
        ({"input_norm": "layer_norm", "hook_in": ("layers.1",)}, "autoencoders only"),
        ({"W_skip": torch.zeros(D, D + 1)}, "W_skip has shape"),
        ({"act_scale": torch.zeros(F + 1)}, "act_scale has shape"),
        ({"hook_in": ("layers.1",), "W_dec": torch.zeros(F, 9), "b_dec": torch.zeros(9)}, "b_dec of width 9 cannot be taken"),
    ],
)
def test_wrong_parts_are_refused_by_name(change, words):
    with pytest.raises(InputError, match=words):
        Dictionary(**{**vars(build("relu")), **change})

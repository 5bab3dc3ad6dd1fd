"""Directions as dictionaries: what they read, which change raises a reading, files of every kind, and what is refused."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

from gradlens.dictionaries.directions import Directions, from_probe, is_directions, parse, read_directions, save_directions
from gradlens.dictionaries.formats import load_dictionary
from gradlens.errors import InputError
from gradlens.readings.attribution import attribution_eager

D = 12


def some(F=3, seed=0, **extra) -> Directions:
    generator = torch.Generator().manual_seed(seed)
    draw = lambda *shape: torch.randn(*shape, generator=generator)  # noqa: E731
    return Directions(draw(F, D), draw(F), labels=tuple(f"thing {i}" for i in range(F)), hook="layers.2", **extra)


def test_a_direction_is_active_where_its_probe_says_yes_and_its_row_raises_the_reading_by_one():
    found, x_TD = some(), torch.randn(50, D)
    dictionary = found.dictionary()
    reading_TF = x_TD @ found.w_FD.T + found.bias_F
    torch.testing.assert_close(dictionary.encode(x_TD), reading_TF.relu())
    for i in range(3):
        moved = (x_TD + dictionary.W_dec[i]) @ found.w_FD[i] + found.bias_F[i]
        torch.testing.assert_close(moved, reading_TF[:, i] + 1, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(dictionary.W_dec[i] / dictionary.W_dec[i].norm(), found.w_FD[i] / found.w_FD[i].norm())


def test_the_scale_of_a_probe_changes_no_attribution():
    found, h_TD, g_TD = some(), torch.randn(50, D), torch.randn(50, D)
    larger = Directions(found.w_FD * 7, found.bias_F * 7, labels=found.labels)
    torch.testing.assert_close(*(attribution_eager(d.dictionary(), h_TD, g_TD) for d in (found, larger)), rtol=1e-4, atol=1e-5)


def test_a_difference_of_means_keeps_its_length_in_the_decoder():
    m_D = 5 * torch.randn(D)
    dictionary = from_probe({"directions": m_D / m_D.square().sum(), "bias": -0.5})
    torch.testing.assert_close(dictionary.W_dec[0], m_D)


def test_a_signed_direction_has_two_sides():
    found = some(2, signed=True, groups={"both": [1]})
    dictionary, x_TD = found.dictionary(), torch.randn(50, D)
    reading_TF = x_TD @ found.w_FD.T + found.bias_F
    torch.testing.assert_close(dictionary.encode(x_TD), torch.cat([reading_TF, -reading_TF], -1).relu())
    assert dictionary.metadata["labels"] == ["thing 0 +", "thing 1 +", "thing 0 -", "thing 1 -"]
    assert dictionary.metadata["groups"] == {"both": [1, 3]}


def test_a_threshold_moves_where_it_is_active_but_not_what_it_reads():
    found = some(1, threshold_F=torch.tensor([1.5]))
    x_TD = 2 * torch.randn(80, D)
    reading_T1 = x_TD @ found.w_FD.T + found.bias_F
    torch.testing.assert_close(found.dictionary().encode(x_TD), torch.where(reading_T1 > 1.5, reading_T1, 0.0))
    assert 0 < (reading_T1 > 1.5).sum() < 80


@pytest.mark.parametrize("suffix", [".safetensors", ".npz", ".json"])
def test_every_kind_of_file_gives_back_what_was_written(tmp_path, suffix):
    found = some(groups={"pair": [0, 2]}, signed=True, threshold_F=torch.rand(3), facts={"kind": "probe", "auc": 0.9})
    path = save_directions(found, tmp_path / f"some{suffix}")
    assert is_directions(path) and is_directions(f"{path}#pair")
    read = read_directions(path)
    for name in ("w_FD", "bias_F", "threshold_F"):
        torch.testing.assert_close(getattr(read, name), getattr(found, name), rtol=0, atol=0)
    for name in ("labels", "hook", "signed", "groups", "facts"):
        assert getattr(read, name) == getattr(found, name), name
    dictionary = load_dictionary(path)
    assert dictionary.hookpoint == "layers.2" and dictionary.d_sae == 6 and dictionary.metadata["kind"] == "probe"
    part = load_dictionary(f"{path}#pair")
    assert part.metadata["labels"] == ["thing 0 +", "thing 2 +", "thing 0 -", "thing 2 -"]
    assert torch.equal(part.W_enc, dictionary.W_enc[:, [0, 2, 3, 5]])


def test_models_of_scikit_learn_and_torch_are_probes_as_they_are():
    w, b, x_TD = np.random.default_rng(0).normal(size=(1, D)), np.array([0.3]), torch.randn(20, D)
    logistic = SimpleNamespace(coef_=w, intercept_=b, classes_=np.array(["plain", "pirate"]))
    dictionary = from_probe(logistic, hookpoint="15")
    torch.testing.assert_close(dictionary.encode(x_TD), (x_TD @ torch.tensor(w).float().T + 0.3).relu())
    assert dictionary.metadata["labels"] == ["pirate"] and dictionary.hookpoint == "layers.15"
    linear = nn.Linear(D, 4)
    torch.testing.assert_close(from_probe(linear).encode(x_TD), linear(x_TD).relu())
    mean = np.random.default_rng(1).normal(size=D)
    pca = SimpleNamespace(components_=np.linalg.qr(np.random.default_rng(2).normal(size=(D, 2)))[0].T, mean_=mean)
    scores = ((x_TD.double().numpy() - mean) @ pca.components_.T).astype(np.float32)
    both = torch.tensor(np.concatenate([scores, -scores], -1)).relu()
    torch.testing.assert_close(from_probe(pca).encode(x_TD), both, rtol=1e-4, atol=1e-5)


def test_a_probe_on_standardised_activations_is_read_on_raw_ones():
    x_TD, w, mean, scale = 3 * torch.randn(30, D) + 1, torch.randn(2, D), torch.randn(D), torch.rand(D) + 0.5
    dictionary = from_probe({"coef_": w, "intercept_": [0.1, -0.2], "mean": mean, "scale": scale})
    torch.testing.assert_close(
        dictionary.encode(x_TD), ((x_TD - mean) / scale @ w.T + torch.tensor([0.1, -0.2])).relu(), rtol=1e-4, atol=1e-4
    )


@pytest.mark.parametrize(
    ("found", "message"),
    [
        ({"bias": [1.0]}, "no directions in it; expected directions, or coef_ of scikit-learn; found bias"),
        ({"directions": np.zeros((2, 2, 2))}, r"shape \[2, 2, 2\], expected \[F, D\]"),
        ({"directions": [[1.0, 2.0], [0.0, 0.0]]}, "direction 1 is zero"),
        ({"directions": [[1.0, float("nan")]]}, "not finite"),
        ({"directions": [["a", "b"]]}, "no numbers"),
        ({"directions": [[1.0, 2.0], [3.0, 4.0]], "bias": [1.0, 2.0, 3.0]}, "bias has 3 values, expected 2"),
        ({"directions": [[1.0, 2.0]], "labels": ["a", "b", "c"]}, "3 labels for 1 directions"),
        ({"directions": [[1.0, 2.0]], "scale": [1.0, 0.0]}, "scale has a value that is not positive"),
        ({"directions": [[1.0, 2.0]], "groups": {"g": [1]}}, r"groups\.g: expected rows of 0 to 0"),
    ],
)
def test_what_is_no_set_of_directions_is_refused(found, message):
    with pytest.raises(InputError, match=message):
        parse(found, "here")


def test_files_that_are_something_else_or_damaged_are_named(tmp_path):
    (tmp_path / "labels.json").write_text(json.dumps({"0": "a feature"}))
    assert not is_directions(tmp_path / "labels.json") and not is_directions(tmp_path)
    path = save_directions(some(), tmp_path / "some.npz")
    path.write_bytes(path.read_bytes()[:-200])
    with pytest.raises(InputError, match=r"some\.npz: not a readable direction file"):
        read_directions(path)
    path = save_directions(some(groups={"pair": [0, 1]}), tmp_path / "some.json")
    with pytest.raises(InputError, match="no group 'triple'; it has pair"):
        load_dictionary(f"{path}#triple")


def test_code_in_a_file_is_never_run(tmp_path):
    class Trap:
        def __reduce__(self):
            return (open, (str(tmp_path / "ran"), "w"))

    np.savez(tmp_path / "trap.npz", directions=np.array([Trap()], dtype=object))
    with pytest.raises(InputError, match=r"trap\.npz: not a readable direction file"):
        load_dictionary(tmp_path / "trap.npz")
    assert not (tmp_path / "ran").exists()

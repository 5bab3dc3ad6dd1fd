"""Dictionaries on disk: what SAELens wrote is read as SAELens reads it, what is written is read back, what is wrong is named."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from conftest import tiny_dictionary
from safetensors.torch import load_file, save_file

from gradlens.dictionaries.formats import check_width, load_dictionary, save_dictionary, shipped
from gradlens.errors import InputError

SAELENS = Path(__file__).parents[1] / "fixtures" / "saelens"
FOLDERS = sorted(path.parent.name for path in SAELENS.glob("*/cfg.json"))


def copy(tmp_path: Path, name: str = "standard") -> Path:
    return Path(shutil.copytree(SAELENS / name, tmp_path / name))


def edit(folder: Path, **changes) -> Path:
    config = json.loads((folder / "cfg.json").read_text())
    (folder / "cfg.json").write_text(json.dumps(config | changes))
    return folder


def weights(folder: Path, **changes) -> Path:
    tensors = load_file(folder / "sae_weights.safetensors") | changes
    save_file({name: tensor for name, tensor in tensors.items() if tensor is not None}, folder / "sae_weights.safetensors")
    return folder


def test_fixtures_cover_the_architectures():
    assert {"standard", "standard-no-b_dec", "jumprelu", "topk", "topk-rescaled", "gated", "standard-v3", "topk-v5"} <= set(FOLDERS)
    assert {"batchtopk", "standard-layer_norm", "jumprelu-rescaled", "skip_transcoder", "jumprelu_transcoder"} <= set(FOLDERS)


@pytest.mark.parametrize("name", FOLDERS)
def test_a_saelens_folder_encodes_and_decodes_as_saelens_does(name):
    dictionary, expected = load_dictionary(SAELENS / name), load_file(SAELENS / name / "expected.safetensors")
    assert (expected["feature_acts"] > 0).sum() > 16
    acts = dictionary.encode(expected["x"])
    torch.testing.assert_close(acts, expected["feature_acts"], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(dictionary.decode(acts, expected["x"]), expected["sae_out"], rtol=1e-5, atol=1e-5)
    assert dictionary.hookpoint == ("layers.3.mlp_out" if "transcoder" in name else "layers.3")
    assert dictionary.hook_in == (("layers.3.mlp.in",) if "transcoder" in name else ())
    assert dictionary.metadata["model_name"] == "tiny-model"
    assert dictionary.metadata["firing_rate"] is None


def test_the_weights_file_names_its_folder():
    found = load_dictionary(SAELENS / "topk" / "sae_weights.safetensors")
    assert found.activation == "topk" and found.k == 5


EXTRA = {
    "relu": {},
    "topk": {"k": 8},
    "jumprelu": {"threshold": torch.rand(80)},
    "batchtopk": {"threshold": torch.rand(80), "k": 8},
    "gated": {"b_gate": torch.randn(80), "r_mag": torch.randn(80), "b_mag": torch.randn(80)},
}


@pytest.mark.parametrize("activation", EXTRA)
def test_saved_and_read_back_is_the_same_dictionary(tmp_path, activation):
    rate = torch.rand(80) * (torch.arange(80) > 3)
    facts = {"model_name": "m", "health": {"fvu": 0.2}, "firing_rate": rate, "context_size": 64}
    saved = tiny_dictionary(
        activation=activation, **EXTRA[activation], hookpoint="layers.2", apply_b_dec_to_input=activation != "gated", metadata=facts
    )
    found = load_dictionary(save_dictionary(saved, tmp_path / "d", dtype=torch.float32))
    for name in ("W_enc", "b_enc", "W_dec", "b_dec", *(key for key in EXTRA[activation] if key != "k")):
        assert torch.equal(getattr(found, name), getattr(saved, name)), name
    x = torch.randn(9, 32)
    assert torch.equal(found.encode(x), saved.encode(x))
    assert found.apply_b_dec_to_input == saved.apply_b_dec_to_input and found.hookpoint == "layers.2"
    assert found.metadata["model_name"] == "m" and found.metadata["health"] == {"fvu": 0.2}
    torch.testing.assert_close(found.metadata["firing_rate"], rate, rtol=1e-5, atol=1e-9)
    info = json.loads((tmp_path / "d" / "cfg.json").read_text())["metadata"]
    assert info["hook_name"] == "blocks.2.hook_resid_post" and info["hf_hook_name"] == "model.layers.2" and info["context_size"] == 64


def test_stored_as_half_read_as_float32(tmp_path):
    folder = save_dictionary(tiny_dictionary(), tmp_path / "d")
    assert {t.dtype for t in load_file(folder / "sae_weights.safetensors").values()} == {torch.float16}
    found = load_dictionary(folder)
    assert found.W_dec.dtype == torch.float32
    torch.testing.assert_close(found.W_dec, tiny_dictionary().W_dec, rtol=1e-3, atol=1e-6)


def test_values_too_large_for_half_are_refused(tmp_path):
    dictionary = tiny_dictionary(metadata={})
    dictionary.b_dec[3] = 1e6
    with pytest.raises(InputError, match="b_dec.*float32"):
        save_dictionary(dictionary, tmp_path / "d")


def test_batchtopk_without_threshold_cannot_be_saved(tmp_path):
    with pytest.raises(InputError, match="threshold"):
        save_dictionary(tiny_dictionary(activation="batchtopk", k=4), tmp_path / "d")


def test_a_scalar_input_norm_is_folded(tmp_path):
    s, x = 0.25, torch.randn(11, 12)
    plain = load_dictionary(SAELENS / "standard")
    folder = edit(copy(tmp_path), normalize_activations="expected_average_only_in")
    with pytest.raises(InputError, match="scaling_factor"):
        load_dictionary(folder)
    (folder / "activation_scaler.json").write_text(json.dumps({"scaling_factor": s}))
    found = load_dictionary(folder)
    # SAELens: the dictionary sees s*x and its output is divided by s; b_dec lives in scaled units.
    torch.testing.assert_close(found.encode(x), plain.encode(s * x), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(found.decode(found.encode(x)), plain.decode(plain.encode(s * x)) / s, rtol=1e-5, atol=1e-5)


def test_a_fine_tuned_scale_is_folded_into_the_decoder(tmp_path):
    scale = torch.rand(40) + 0.5
    folder = weights(edit(copy(tmp_path, "standard-v3"), finetuning_scaling_factor=True), scaling_factor=scale)
    plain, found, x = load_dictionary(SAELENS / "standard-v3"), load_dictionary(folder), torch.randn(5, 12)
    assert torch.equal(found.encode(x), plain.encode(x))
    torch.testing.assert_close(found.decode(found.encode(x)), plain.decode(plain.encode(x) * scale))
    with pytest.raises(InputError, match="finetuning_scaling_factor"):
        load_dictionary(edit(folder, finetuning_scaling_factor=False))


@pytest.mark.parametrize(
    "change, words",
    [
        (lambda f: edit(f, architecture="temporal"), "temporal.*standard, jumprelu, topk, gated"),
        (lambda f: edit(f, normalize_activations="covariance_whitening"), "covariance_whitening"),
        (lambda f: edit(f, d_in=13), r"W_enc has shape \[12, 40\], expected \[13, 40\]"),
        (lambda f: edit(f, architecture="jumprelu"), "threshold missing"),
        (lambda f: edit(f, architecture="topk"), "k is None"),
        (lambda f: edit(f, architecture="topk", k=41), "k=41"),
        (lambda f: weights(f, b_enc=None), "b_enc missing"),
        (lambda f: weights(f, threshold=torch.zeros(40)), "threshold does not belong"),
        (lambda f: weights(f, W_dec=torch.zeros(12, 40)), r"W_dec has shape \[12, 40\], expected \[40, 12\]"),
        (lambda f: weights(f, b_dec=torch.full((12,), float("nan"))), "b_dec holds NaN"),
        (lambda f: (f / "cfg.json").write_text("{"), "cfg.json: not readable as JSON"),
        (lambda f: (f / "cfg.json").write_text("[]"), "expected a JSON object"),
        (lambda f: (f / "cfg.json").unlink(), "cfg.json: no such file"),
        (lambda f: (f / "sae_weights.safetensors").unlink(), "no sae_weights.safetensors"),
        (lambda f: save_file({"sparsity": torch.zeros(3)}, f / "sparsity.safetensors"), "sparsity.safetensors"),
    ],
)
def test_what_is_wrong_is_named(tmp_path, change, words):
    folder = copy(tmp_path)
    change(folder)
    with pytest.raises(InputError, match=words) as caught:
        load_dictionary(folder)
    assert str(folder) in str(caught.value) and caught.value.exit_code == 3


@pytest.mark.parametrize("damage", ["truncated", "empty", "header", "text"])
def test_a_damaged_weights_file_is_named(tmp_path, damage):
    path = copy(tmp_path) / "sae_weights.safetensors"
    data = path.read_bytes()
    path.write_bytes(
        {"truncated": data[:-100], "empty": b"", "header": b"\xff" * 16 + data[16:], "text": b"<html>not found</html>"}[damage]
    )
    with pytest.raises(InputError, match="sae_weights.safetensors: not a whole safetensors file"):
        load_dictionary(path.parent)


class Bomb:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (Path.touch, (Path(self.path),))


@pytest.mark.parametrize("with_config", [True, False])
def test_code_in_a_pickle_is_refused_and_never_runs(tmp_path, with_config):
    folder, mark = copy(tmp_path), tmp_path / "ran"
    (folder / "sae_weights.safetensors").unlink()
    torch.save({"W_enc": torch.zeros(12, 40), "x": Bomb(mark)}, folder / "sae_weights.pt")
    if not with_config:
        (folder / "cfg.json").unlink()
    for source in (folder, folder / "sae_weights.pt"):
        with pytest.raises(InputError, match="sae_weights.pt: refused.*run code"):
            load_dictionary(source)
    assert not mark.exists()


def test_a_torch_file_of_plain_tensors_is_read(tmp_path):
    folder = copy(tmp_path, "jumprelu")
    torch.save(load_file(folder / "sae_weights.safetensors"), folder / "sae_weights.pt")
    (folder / "sae_weights.safetensors").unlink()
    x = torch.randn(4, 12)
    assert torch.equal(load_dictionary(folder).encode(x), load_dictionary(SAELENS / "jumprelu").encode(x))


def test_a_missing_folder_gets_near_names(tmp_path):
    copy(tmp_path, "jumprelu")
    with pytest.raises(InputError, match="did you mean .*jumprelu"):
        load_dictionary(tmp_path / "jumprele")


def test_a_shipped_name_misspelt_gets_the_right_one():
    with pytest.raises(InputError, match="did you mean smollm2-l15"):
        load_dictionary("smollm2-l51")


def test_width_is_checked_against_the_model():
    dictionary = load_dictionary(SAELENS / "topk")
    check_width(dictionary, 12, "layers.3")
    with pytest.raises(InputError, match="width 12.*layers.5.*width 576.*tiny-model"):
        check_width(dictionary, 576, "layers.5")


@pytest.mark.parametrize("name", ["smollm2-l15", "smollm2-l27"])
def test_shipped_dictionaries_load_and_meet_their_bars(name):
    assert name in shipped()
    found = load_dictionary(name)
    assert found.d_in == 576 and found.hookpoint == f"layers.{name[-2:]}"
    health = found.metadata["health"]
    assert health["fvu"] <= 0.25 and health["l0"] <= 40 and health["dead"] <= 0.05 and health["tokens"] >= 10_000
    rate = found.metadata["firing_rate"]
    assert rate.shape == (found.d_sae,) and 0 <= rate.min() and rate.max() <= 1 and rate.sum() == pytest.approx(health["l0"], rel=0.1)
    folder = Path(__file__).parents[2] / "gradlens" / "assets" / "dictionaries" / name
    assert sum(path.stat().st_size for path in folder.iterdir()) <= 12e6
    torch.testing.assert_close(found.W_dec.norm(dim=-1), torch.ones(found.d_sae), rtol=2e-3, atol=2e-3)


@pytest.mark.parametrize("where", ["jbloom/GPT2-Small-SAEs-Reformatted/blocks.8.hook_resid_pre", "elsewhere"])
@pytest.mark.parametrize("subtract", [True, False])
def test_a_dictionary_of_centred_activations_reads_those_that_transformers_has(tmp_path, where, subtract):
    dictionary = replace(tiny_dictionary(activation="relu"), b_enc=torch.randn(80), b_dec=torch.randn(32), apply_b_dec_to_input=subtract)
    folder = save_dictionary(replace(dictionary, hookpoint="layers.7"), tmp_path / where, torch.float32)
    config = json.loads((folder / "cfg.json").read_text())
    if where == "elsewhere":
        config["metadata"]["model_from_pretrained_kwargs"] = {"center_writing_weights": True}
        (folder / "cfg.json").write_text(json.dumps(config))
    x_TD = torch.randn(20, 32) + 3
    found = load_dictionary(folder)
    torch.testing.assert_close(found.encode(x_TD), dictionary.encode(x_TD - x_TD.mean(-1, keepdim=True)), rtol=1e-4, atol=1e-4)
    assert torch.equal(found.W_dec, dictionary.W_dec) and found.metadata["centred"]

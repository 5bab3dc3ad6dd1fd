"""`gradlens sae`: verifying a dictionary against a model, and the commands."""

import dataclasses
import json
import re
import shutil
from pathlib import Path

import pytest
import torch
from conftest import tiny_dictionary, tiny_model
from sae_jobs import corpus, loader, settings
from safetensors.torch import load_file
from typer.testing import CliRunner
from words import word_tokenizer

from gradlens.dictionaries.dictionary import Dictionary
from gradlens.dictionaries.encoding import Health, health
from gradlens.dictionaries.formats import load_dictionary, save_dictionary
from gradlens.errors import ConfigError, InputError
from gradlens.sae.activations import collect, take, windows
from gradlens.sae.config import SaeConfig, load_sae_config
from gradlens.sae.job import train_dictionaries
from gradlens.sae.verify import judge, verify


@pytest.fixture(scope="module")
def trained_folder(tmp_path_factory):
    tmp_path = tmp_path_factory.mktemp("sae")
    train_dictionaries(settings(tmp_path, hookpoints=["layers.1"], epochs=40), loader)
    return tmp_path


def test_verify_measures_health_at_the_hookpoint_and_beside_it(trained_folder):
    dictionary = load_dictionary(trained_folder / "out" / "layers.1")
    text = [corpus(trained_folder, name="verify.jsonl", seed=7)]
    verdict = verify(dictionary, *loader(), "model.layers.1", text, tokens=600, context_length=16)
    found = take(windows(text, word_tokenizer(), 16), 600)
    stores = collect(tiny_model(), ["layers.0", "layers.1", "layers.2"], found, 16)
    expected = {name: health(dictionary, store.rows(slice(None))) for name, store in stores.items()}
    assert verdict.hookpoint == "layers.1" and verdict.health == expected["layers.1"] and verdict.outliers == 0
    assert {name: verdict.neighbours[name] for name in ("layers.0", "layers.2")} == {n: expected[n].fvu for n in ("layers.0", "layers.2")}


def test_verify_refuses_a_dictionary_of_another_width(trained_folder):
    dictionary = load_dictionary("smollm2-l15")
    with pytest.raises(InputError, match="width 576.*layers.1.*width 32"):
        verify(dictionary, *loader(), "layers.1", [corpus(trained_folder)], tokens=100)


@pytest.mark.parametrize(
    "fvu, l0, neighbours, fit, words",
    [
        (0.2, 30, {"layers.1": 0.6}, "fits", "explains"),
        (0.5, 30, {"layers.1": 0.6}, "weak", "drifted"),
        (0.5, 30, {"layers.1": 0.2, "layers.3": 0.3}, "unfit", r"it fits layers.1 \(FVU 0.20\), not layers.2 \(0.50\): off by one block"),
        (0.5, 30, {"layers.1": 0.35}, "weak", "it is nearer to layers.1"),
        (1.4, 30, {"layers.1": 0.2}, "unfit", "off by one"),
        (1.4, 30, {"layers.1": 1.2, "layers.9": 0.1}, "unfit", r"it fits layers.9 \(FVU 0.10\), not layers.2 \(1.40\)$"),
        (1.4, 30, {"layers.1": 1.1}, "unfit", "next to nothing"),
        (float("nan"), 30, {}, "unfit", "next to nothing"),
        (0.8, 0.0, {}, "unfit", "no feature"),
    ],
)
def test_the_verdict(fvu, l0, neighbours, fit, words):
    found, advice = judge(Health(fvu, l0, 0.0, 100), neighbours, "layers.2")
    assert found == fit and re.search(words, advice)


@pytest.fixture
def cli(tmp_path, monkeypatch):
    """Runs `gradlens sae ...` with the tiny model saved as a folder."""
    from gradlens.cli.app import app

    model, tokenizer = loader()
    model.save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    monkeypatch.chdir(tmp_path)
    return lambda *words: CliRunner().invoke(app, ["sae", *words], catch_exceptions=True)


def test_train_inspect_and_verify_on_the_command_line(tmp_path, cli):
    corpus(tmp_path)
    (tmp_path / "sae.yaml").write_text(
        "model: model\nhookpoints: [layers.1]\ntext: [text.jsonl]\ncontext_length: 16\nd_sae: 48\n"
        "k: 4\nbatch_size: 128\nlr: 0.01\nout: out\n"
    )
    result = cli("train", "sae.yaml", "--set", "epochs=20", "--json")
    assert result.exit_code == 0, result.output
    report = json.loads(result.stdout.splitlines()[-1])
    health, train = report["layers.1"]["health"], report["layers.1"]["train"]
    assert health["fvu"] < 0.7 and health["l0"] == pytest.approx(4, abs=0.2)
    assert health["tokens"] < train["tokens"] / 10  # a twentieth of the text is held out

    result = cli("inspect", "out/layers.1", "--json")
    facts = json.loads(result.stdout)
    assert facts["d_in"] == 32 and facts["d_sae"] == 48 and facts["k"] == 4 and facts["hookpoint"] == "layers.1"
    assert facts["firing"]["live"] > 30 and facts["health"] == health
    assert "48 features of width 32 at layers.1" in cli("inspect", "out/layers.1").stdout
    again = cli("train", "sae.yaml", "--set", "epochs=20").stdout  # done: says what there is
    assert f"on {health['tokens']:,} held-out tokens" in again and f"trained on {train['tokens']:,} tokens" in again

    result = cli("verify", "out/layers.1", "--text", "text.jsonl", "--json")
    verdict = json.loads(result.stdout.splitlines()[-1])
    assert result.exit_code == 0 and verdict["health"]["fvu"] < 0.7 and verdict["fit"] in ("fits", "weak")


def test_a_gpu_that_is_not_there_is_refused_before_a_model_is_loaded(tmp_path, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ConfigError, match="device: cuda, and PyTorch finds no GPU here"):
        train_dictionaries(settings(tmp_path, device="cuda"), lambda: pytest.fail("loaded"))


def test_the_printed_config_is_a_valid_one_with_the_defaults(tmp_path, cli):
    result = cli("config")
    (tmp_path / "printed.yaml").write_text(result.stdout)
    found = load_sae_config(tmp_path / "printed.yaml")
    assert found == SaeConfig(hookpoints=["layers.15"], text=["mine.jsonl"])
    assert result.stdout.count("# ") >= len(SaeConfig.model_fields)
    assert set(json.loads(cli("config", "--json").stdout)["properties"]) == set(SaeConfig.model_fields)


def test_verify_exits_with_3_where_the_dictionary_does_not_fit(tmp_path, cli):
    corpus(tmp_path)
    save_dictionary(tiny_dictionary(hookpoint="layers.1"), tmp_path / "random")
    result = cli("verify", "random", "--model", "model", "--text", "text.jsonl")
    assert result.exit_code == 3 and "unfit" in result.stdout


def test_verify_asks_for_the_model_it_cannot_know(tmp_path, cli):
    save_dictionary(tiny_dictionary(hookpoint="layers.1"), tmp_path / "random")
    result = cli("verify", "random")
    assert isinstance(result.exception, ConfigError) and "--model" in str(result.exception)


FIXTURES = Path(__file__).parents[1] / "fixtures" / "dictionaries"
SKIP = FIXTURES / "sparsify-skip/EleutherAI/skip-transcoder-32x/model.layers.18.mlp"


def test_inspect_says_what_a_transcoder_is(cli, tmp_path):
    facts = json.loads(cli("inspect", str(SKIP), "--json").stdout)
    assert (facts["format"], facts["activation"], facts["k"], facts["skip"]) == ("sparsify", "topk", 4, True)
    assert facts["hook_in"] == ["layers.18.mlp.in"] and facts["hookpoint"] == "layers.18.mlp" and facts["threshold"] is None
    assert facts["files"] == {path.name: path.stat().st_size for path in SKIP.iterdir()}
    text = cli("inspect", str(SKIP)).stdout
    assert "a transcoder: reads width 8 at layers.18.mlp.in, with a skip connection" in text and "sae.safetensors" in text
    tagged = shutil.copytree(SKIP, tmp_path / "[" / "]")
    assert str(tagged) in cli("inspect", str(tagged)).stdout  # what looks like markup is a name
    part = f"{FIXTURES}/circuit-tracer-clt-jumprelu/mntss/clt-gemma-2-2b#0:2"
    facts = json.loads(cli("inspect", part, "--json").stdout)
    assert facts["part"] == {"encoder": 0, "decoder": 2, "of": 3} and facts["threshold"][0] > 0
    assert "part: encoder 0, decoder 2, of 3" in cli("inspect", part).stdout


@pytest.mark.parametrize(
    "case, source, to, again",
    [
        ("sparsify-sae", "EleutherAI/sae-pythia-70m-32k/layers.2", "saelens", "saelens"),
        ("sparsify-sae", "EleutherAI/sae-pythia-70m-32k/layers.2", "dictionary_learning", "dictionary_learning"),
        ("sparsify-transcoder", "EleutherAI/SmolLM2-135M-transcoder/layers.1.mlp", "sparsify", "sparsify"),
        ("qwen-scope", "Qwen/SAE-Res-Qwen3-1.7B-Base-W32K-L0_5/layer6.sae.pt", "sparsify", "sparsify"),
        ("gemma-scope-res", "google/gemma-scope-2b-pt-res/layer_20/width_16k/average_l0_71", "saelens", "saelens"),
        ("llama-scope", "fnlp/Llama3_1-8B-Base-LXR-8x/Llama3_1-8B-Base-L15R-8x", "dictionary_learning", "dictionary_learning"),
        ("goodfire", "Goodfire/Llama-3.1-8B-Instruct-SAE-l19", "dictionary_learning", "dictionary_learning"),
        ("openai-topk", "sparse-autoencoder/gpt2-small/resid_post_mlp_v5_32k/autoencoders/8.pt", "saelens", "saelens"),
    ],
)
def test_converted_it_is_the_same_dictionary_in_another_format(tmp_path, cli, case, source, to, again):
    result = cli("convert", str(FIXTURES / case / source), "out", "--to", to, "--json")
    assert result.exit_code == 0, result.output
    report = json.loads(result.stdout)
    found, expected = load_dictionary(report["folder"]), load_file(FIXTURES / case / "expected.safetensors")
    assert found.metadata["format"] == again and report["acts_difference"] < 1e-5
    acts = found.encode(expected["x"])
    torch.testing.assert_close(acts, expected["feature_acts"], rtol=1e-5, atol=2e-5)
    torch.testing.assert_close(found.decode(acts, expected["x"]), expected["out"], rtol=1e-5, atol=2e-5)


@pytest.mark.parametrize(
    "source, to, words",
    [
        ("sparsify-skip/EleutherAI/skip-transcoder-32x/model.layers.18.mlp", "dictionary_learning", "it is a transcoder"),
        ("sparsify-skip/EleutherAI/skip-transcoder-32x/model.layers.18.mlp", "saelens", "topk transcoder with a skip has no SAELens form"),
        ("sparsify-groupmax/someone/groupmax/layers.0", "saelens", "groupmax dictionary has no SAELens form"),
        ("llamascopium-topk/OpenMOSS-Team/Qwen3-1.7B-SAE/L4R", "saelens", "another unit"),
        ("goodfire/Goodfire/Llama-3.1-8B-Instruct-SAE-l19", "sparsify", "activation is relu"),
        ("openai-topk/sparse-autoencoder/gpt2-small/resid_post_mlp_v5_32k/autoencoders/8.pt", "sparsify", "normalises each token"),
    ],
)
def test_what_a_format_cannot_say_is_refused(cli, source, to, words):
    result = cli("convert", f"{FIXTURES}/{source}", "out", "--to", to)
    assert isinstance(result.exception, InputError) and re.search(words, str(result.exception))


def test_a_format_that_is_not_written_is_refused(cli):
    result = cli("convert", "smollm2-l15", "out", "--to", "npz")
    assert isinstance(result.exception, ConfigError) and "saelens, sparsify, dictionary_learning" in str(result.exception)


def test_verify_names_the_right_block_wherever_the_dictionary_was_put(tmp_path):
    """Also where a neighbour of the wrong block fits as well, and the block itself fits after a fashion."""
    model, tokenizer = tiny_model(layers=6), word_tokenizer()
    torch.manual_seed(0)
    for block in model.model.layers:  # the stream changes slowly, as a real model's does
        block.mlp = torch.nn.Linear(32, 32, bias=False)
        block.mlp.weight.data.normal_(std=0.03)
    text = [corpus(tmp_path, name="verify.jsonl", seed=7)]
    x_TD = collect(model, ["layers.4"], take(windows(text, tokenizer, 16), 600), 16)["layers.4"].rows(slice(None))
    rows = torch.linalg.svd(x_TD - x_TD.mean(0))[2][:14]
    both = torch.cat([rows, -rows])
    made = Dictionary(both.T.contiguous(), torch.zeros(28), both, x_TD.mean(0), activation="relu")
    found = {layer: verify(made, model, tokenizer, f"layers.{layer}", text, tokens=600, context_length=16) for layer in range(6)}
    assert found[4].fit == "fits" and all(verdict.fit == "unfit" for layer, verdict in found.items() if layer != 4)
    assert all("it fits layers.4 (FVU" in verdict.advice for verdict in found.values())
    assert found[3].health.fvu < 0.3  # which is why looking at the neighbours of layers.2 is not enough


def test_verify_finds_the_block_of_a_transcoder(tmp_path):
    """One whose skip is the linear MLP of block 2, put at block 1."""
    model, tokenizer = loader()
    torch.manual_seed(0)
    exact = {}
    for n, block in enumerate(model.model.layers):
        exact[n] = torch.randn(32, 32)
        block.mlp = torch.nn.Linear(32, 32, bias=False)
        block.mlp.weight.data.copy_(exact[n])
    made = tiny_dictionary(hookpoint="layers.2.mlp", hook_in=("layers.2.mlp.in",), apply_b_dec_to_input=False, W_skip=exact[2])
    made = dataclasses.replace(made, W_dec=1e-4 * made.W_dec)
    text = [corpus(tmp_path, name="verify.jsonl", seed=7)]
    right = verify(made, model, tokenizer, "layers.2.mlp", text, tokens=200, context_length=16)
    assert right.fit == "fits" and right.health.fvu < 1e-3
    wrong = verify(made, model, tokenizer, "layers.0.mlp", text, tokens=200, context_length=16)
    assert wrong.fit == "unfit" and "it fits layers.2.mlp (FVU 0.00), not layers.0.mlp" in wrong.advice

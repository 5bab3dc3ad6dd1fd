"""`gradlens sae`: verifying a dictionary against a model, and the commands."""

import json
import re

import pytest
from conftest import tiny_dictionary, tiny_model
from sae_jobs import corpus, loader, settings
from typer.testing import CliRunner
from words import word_tokenizer

from gradlens.encoding import Health, health
from gradlens.errors import ConfigError, InputError
from gradlens.formats import load_dictionary, save_dictionary
from gradlens.sae_config import SaeConfig, load_sae_config
from gradlens.sae_data import collect, take, windows
from gradlens.sae_train import train_dictionaries
from gradlens.sae_verify import judge, verify


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
    assert verdict.neighbours == {name: expected[name].fvu for name in ("layers.0", "layers.2")}


def test_verify_refuses_a_dictionary_of_another_width(trained_folder):
    dictionary = load_dictionary("smollm2-l15")
    with pytest.raises(InputError, match="width 576.*layers.1.*width 32"):
        verify(dictionary, *loader(), "layers.1", [corpus(trained_folder)], tokens=100)


@pytest.mark.parametrize(
    "fvu, l0, neighbours, fit, words",
    [
        (0.2, 30, {"layers.1": 0.6}, "fits", "explains"),
        (0.5, 30, {"layers.1": 0.6}, "weak", "drifted"),
        (0.5, 30, {"layers.1": 0.2, "layers.3": 0.3}, "weak", "layers.1 better.*off by one"),
        (1.4, 30, {"layers.1": 0.2}, "unfit", "off by one"),
        (1.4, 30, {"layers.1": 1.1}, "unfit", "next to nothing"),
        (float("nan"), 30, {}, "unfit", "next to nothing"),
        (0.8, 0.0, {}, "unfit", "no feature"),
    ],
)
def test_the_verdict(fvu, l0, neighbours, fit, words):
    found, advice = judge(Health(fvu, l0, 0.0, 100), neighbours)
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
    assert report["layers.1"]["fvu"] < 0.7 and report["layers.1"]["l0"] == pytest.approx(4, abs=0.2)

    result = cli("inspect", "out/layers.1", "--json")
    facts = json.loads(result.stdout)
    assert facts["d_in"] == 32 and facts["d_sae"] == 48 and facts["k"] == 4 and facts["hookpoint"] == "layers.1"
    assert facts["firing"]["live"] > 30 and facts["health"]["fvu"] == report["layers.1"]["fvu"]
    assert "48 features of width 32 at layers.1" in cli("inspect", "out/layers.1").stdout

    result = cli("verify", "out/layers.1", "--text", "text.jsonl", "--json")
    verdict = json.loads(result.stdout.splitlines()[-1])
    assert result.exit_code == 0 and verdict["health"]["fvu"] < 0.7 and verdict["fit"] in ("fits", "weak")


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

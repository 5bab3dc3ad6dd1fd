"""`gradlens concepts` and `gradlens features` on files alone: a model folder, a dictionary folder, a concept file."""

import json
import sys

import numpy as np
import pytest
import typer
import yaml
from conftest import tiny_dictionary, tiny_model
from typer.testing import CliRunner
from words import sentences, word_tokenizer

from gradlens.cli import concepts, features
from gradlens.dictionaries.formats import save_dictionary
from gradlens.dictionaries.labels import load_labels
from gradlens.errors import ConfigError, InputError

root = typer.Typer()
concepts.register(root)
features.register(root)


def call(*arguments: str):
    result = CliRunner().invoke(root, [str(argument) for argument in arguments])
    if result.exception and not isinstance(result.exception, SystemExit):
        raise result.exception
    assert result.exit_code == 0, result.output
    return result.stdout


@pytest.fixture
def folder(tmp_path):
    """A model, a dictionary at layers.2, a concept and a text, as a stranger would bring them."""
    tiny_model().save_pretrained(tmp_path / "model")
    word_tokenizer(chat=True).save_pretrained(tmp_path / "model")
    dictionary = tiny_dictionary()
    dictionary.b_dec.zero_()
    save_dictionary(dictionary, tmp_path / "sae")
    save_dictionary(tiny_dictionary(D=16), tmp_path / "narrow")
    random = np.random.default_rng(0)
    examples = {kind: sentences(random, words, 20) for kind, words in (("positive", range(20, 25)), ("negative", range(50, 60)))}
    (tmp_path / "concept.yaml").write_text(yaml.safe_dump({"name": "twenties", "description": "Words of the twenties.", **examples}))
    (tmp_path / "text.jsonl").write_text("".join(json.dumps({"text": t}) + "\n" for t in sum(examples.values(), [])))
    return tmp_path


def test_examples_become_features_that_the_next_command_shows(folder):
    where = ["--model", folder / "model", "--dictionary", f"layers.2={folder / 'sae'}", "--features", 6]
    printed = json.loads(call("concepts", "fit", folder / "concept.yaml", *where, "--out", folder / "fitted.yaml", "--json"))
    (fitted,) = printed["concepts"]
    assert 1 <= len(fitted["features"]["layers.2"]) <= 6 and fitted["detection"]["layers.2"]["auc"] > 0.9
    shown = json.loads(call("concepts", "show", folder / "fitted.yaml", "--json"))["concepts"][0]
    assert shown["features"] == fitted["features"] and shown["detection"] == fitted["detection"]
    assert shown["examples"] == {"positive": 20, "negative": 20} and shown["judged_by"]["kind"] == "words"
    table = call("concepts", "show", folder / "fitted.yaml")
    assert "Words of the twenties." in table and "layers.2" in table


def test_showing_a_concept_from_elsewhere_runs_nothing_unless_asked(folder):
    (folder / "judge.py").write_text(
        "import json, pathlib, sys\npathlib.Path(__file__).with_name('ran').touch()\n"
        "for line in sys.stdin: print(int('w2' in json.loads(line)['text']))\n"
    )
    concept = yaml.safe_load((folder / "concept.yaml").read_text())
    named = concept | {"features": {"layers.2": [1]}, "checker": {"command": [sys.executable, "judge.py"]}}
    (folder / "programmed.yaml").write_text(yaml.safe_dump(named))
    table = call("concepts", "show", folder / "programmed.yaml")
    assert "not run; --judge" in table and "judge.py" in table
    (shown,) = json.loads(call("concepts", "show", folder / "programmed.yaml", "--json"))["concepts"]
    assert shown["judged_by"]["run"] is False and not (folder / "ran").exists()
    (judged,) = json.loads(call("concepts", "show", folder / "programmed.yaml", "--judge", "--json"))["concepts"]
    assert judged["judged_by"]["hit_rate"] == 1.0 and (folder / "ran").exists()


def test_a_config_says_what_the_options_would(folder):
    config = {
        "model": {"name": "model"},
        "data": {"train": ["text.jsonl"]},
        "dictionaries": {"layers.2": "sae"},
        "concepts": ["concept.yaml"],
    }
    (folder / "run.yaml").write_text(yaml.safe_dump(config))
    by_config = json.loads(call("concepts", "fit", "--config", folder / "run.yaml", "--json"))
    where = ["--model", folder / "model", "--dictionary", f"layers.2={folder / 'sae'}"]
    assert by_config == json.loads(call("concepts", "fit", folder / "concept.yaml", *where, "--json"))


def test_features_are_labelled_found_and_shown(folder):
    source = f"layers.2={folder / 'sae'}"
    written = json.loads(call("features", "label", source, "--model", folder / "model", "--text", folder / "text.jsonl", "--json"))[
        "labels"
    ][0]
    assert written["file"] == str(folder / "sae" / "labels.json") and written["features"] == 80
    labels = load_labels(folder / "sae", "layers.2")
    found = json.loads(call("features", "search", "w21", "-d", source, "--limit", 200, "--json"))
    best = found["features"][0]
    assert best["where"] == "label" and "'w21'" in best["label"]
    assert found["total"] == len(found["features"]) >= sum("w21" in label.label for label in labels.values())
    shown = json.loads(call("features", "show", f"layers.2/{best['feature']}", "-d", source, "--json"))
    assert shown["label"] == labels[best["feature"]].label and len(shown["nearest"]) == 5
    page = call("features", "show", best["feature"], "-d", source)
    assert shown["label"] in page and "promoted" in page and "near" in page


def test_a_dictionary_beside_the_stream_has_the_width_that_is_there(folder):
    save_dictionary(tiny_dictionary(D=48), folder / "inner")  # what the model's MLPs hold inside; its stream has 32
    source, model = f"layers.2.mlp.down_proj.in={folder / 'inner'}", ["--model", folder / "model"]
    assert "80 features labelled" in call("features", "label", source, *model, "--text", folder / "text.jsonl")
    (fitted,) = json.loads(call("concepts", "fit", folder / "concept.yaml", *model, "-d", source, "-n", 6, "--json"))["concepts"]
    assert fitted["detection"]["layers.2.mlp.down_proj.in"]["auc"] > 0.9


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (["features", "search", "w21", "-d", "layers.2={sae}"], ConfigError, "has no labels; make them: gradlens features label"),
        (["features", "label", "layers.2={probe}", "-m", "{model}"], ConfigError, "no folder on this machine.*say where: --out FILE"),
        (["features", "label", "2={sae}", "3={sae}", "-m", "{model}"], ConfigError, "labels in one file; label them one at a time"),
        (["features", "show", "layers.9/1", "-d", "layers.2={sae}"], ConfigError, "no dictionary at layers.9; there are layers.2"),
        (["features", "show", "layers.2/80", "-d", "layers.2={sae}"], ConfigError, "features 0 to 79"),
        (["features", "show", "pirate", "-d", "layers.2={sae}"], ConfigError, "expected HOOKPOINT/ID"),
        (["concepts", "fit", "-d", "layers.2={sae}", "-m", "{model}"], ConfigError, "no concept"),
        (["concepts", "fit", "{concept}", "-d", "layers.7={sae}", "-m", "{model}"], InputError, "layers.0 to layers.3"),
        (["concepts", "fit", "{concept}", "-d", "layers.2={sae}", "-d", "2={sae}", "-m", "{model}"], ConfigError, "already has"),
        (["concepts", "fit", "{concept}", "-d", "layers.2={narrow}", "-m", "{model}"], InputError, "16.*32"),
        (["concepts", "show", "demo:pirat"], InputError, "did you mean"),
    ],
)
def test_what_does_not_fit_is_named(folder, arguments, error, message):
    (folder / "probe.json").write_text(json.dumps({"directions": [[1.0] * 32]}))  # such as one of the hub, without a folder of its own
    places = {
        "probe": folder / "probe.json",
        "sae": folder / "sae",
        "narrow": folder / "narrow",
        "model": folder / "model",
        "concept": folder / "concept.yaml",
    }
    with pytest.raises(error, match=message):
        call(*(argument.format(**places) for argument in arguments))

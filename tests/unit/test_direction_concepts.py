"""A concept given by a direction file: it brings a dictionary of its own to a run, and everything downstream knows it by its name."""

import io
import json

import pytest
import torch
import typer
import yaml
from conftest import tiny_batch, tiny_dictionary, tiny_model
from rich.console import Console
from tiny_job import tiny_config, write_inputs
from typer.testing import CliRunner

import gradlens
from gradlens.cli import config as commands
from gradlens.concepts.concept_files import direction_sources
from gradlens.concepts.fitting import Concept, load_concepts, save_concept
from gradlens.config import load_config
from gradlens.dictionaries.directions import Directions, save_directions
from gradlens.errors import ConfigError, InputError
from gradlens.recording.store import RunReader
from gradlens.report.page import write_report
from gradlens.report.summary import feature_labels, render_summary, summarize
from gradlens.training.preflight import check
from gradlens.training.rank import Rank
from gradlens.training.train import train_rank

KEY = "layers.2#some_thing"


@pytest.fixture
def folder(tmp_path):
    w_FD = torch.randn(3, 32, generator=torch.Generator().manual_seed(0))
    found = Directions(w_FD, torch.zeros(3), labels=("a", "b", "c"), hook="layers.2", groups={"two": [0, 2]})
    (tmp_path / "concepts").mkdir()
    save_directions(found, tmp_path / "concepts" / "probes.safetensors")
    (tmp_path / "concepts" / "thing.yaml").write_text("name: some.thing\ndirections: probes.safetensors#two\n")
    return tmp_path


def test_a_direction_file_gives_the_concept_its_features(folder):
    (concept,) = load_concepts([folder / "concepts" / "thing.yaml"])
    assert concept.features == {KEY: [0, 1]} and concept.direction_key == KEY
    assert direction_sources([concept]) == {KEY: str(folder / "concepts" / "probes.safetensors#two")}
    save_concept(concept, folder / "other.yaml")
    assert yaml.safe_load((folder / "other.yaml").read_text())["directions"] == "concepts/probes.safetensors#two"
    (again,) = load_concepts([folder / "other.yaml"])
    assert again.features == concept.features


def test_what_a_concept_says_of_its_directions_is_its_own(folder):
    file = folder / "concepts" / "thing.yaml"
    plain = file.read_text()
    file.write_text(f"{plain}thresholds: {{{KEY}: [0.3, 0.1]}}\nquorum: {{{KEY}: 0.5}}\n")
    (concept,) = load_concepts([file])
    assert concept.thresholds == {KEY: [0.3, 0.1]} and concept.quorum == {KEY: 0.5}
    for said, message in ((f"thresholds: {{{KEY}: [0.3]}}", "has 1 values for 2 features"), ("quorum: {3: 0.5}", f"are at {KEY}")):
        file.write_text(f"{plain}{said}\n")
        with pytest.raises(ConfigError, match=f"thing.yaml: concept some.thing: .*{message}"):
            load_concepts([file])


def test_a_config_gets_the_dictionary_of_its_concept(folder):
    config = write_inputs(folder) | {"concepts": ["concepts/thing.yaml", str(folder / "concept.yaml")]}
    (folder / "run.yaml").write_text(yaml.safe_dump(config))
    loaded = load_config(folder / "run.yaml", environ={})
    assert set(loaded.dictionaries) == {"layers.2", KEY}
    check(loaded)
    (folder / "concepts" / "thing.yaml").write_text("name: some.thing\ndirections: nowhere.npz\n")
    with pytest.raises(InputError, match=r"nowhere\.npz: no such file"):
        load_config(folder / "run.yaml", environ={})
    save_directions(Directions(torch.ones(1, 32), torch.zeros(1), labels=("x",)), folder / "concepts" / "nowhere.npz")
    with pytest.raises(InputError, match=r"nowhere\.npz does not say where its directions are read; add `hook`"):
        load_config(folder / "run.yaml", environ={})


def test_a_run_with_two_dictionaries_at_one_hookpoint_is_stored_summed_up_and_shown(folder):
    inputs = write_inputs(folder) | {"concepts": [str(folder / "concepts" / "thing.yaml"), str(folder / "concept.yaml")]}
    (folder / "run.yaml").write_text(yaml.safe_dump(inputs))
    config = load_config(folder / "run.yaml", ["rules=[{concept: some.thing, mode: route}]", f"labels.{KEY}=[{folder}/l.csv]"], {})
    (folder / "l.csv").write_text("index,label,author\n1,said by hand,me\n")
    reader = run(config)
    assert reader.hookpoints == ["layers.2", KEY]
    assert reader.labels[KEY] == {"0": "a", "1": "said by hand"}
    scalars = set(reader.scalars()["key"].to_pylist())
    assert f"concept/some.thing/{KEY}/push" in scalars and f"{KEY}/unexplained" in scalars and "rule/route:some.thing/share" in scalars
    summary = summarize(reader)
    assert set(summary["concepts"]["some.thing"]) == {KEY} and set(summary["concepts"]["some"]) == {"layers.2"}
    assert feature_labels(reader, {KEY})[KEY] == {0: "a", 1: "said by hand"}
    console = Console(width=200, file=io.StringIO())
    console.print(render_summary(summary))
    assert KEY in console.file.getvalue()
    page = write_report([reader], folder / "report.html").read_text()
    assert KEY in page


def run(config) -> RunReader:
    """The run of a config in this process, without Ray."""
    from gradlens.recording.recorder import ThreadRecorder
    from gradlens.recording.store import RunWriter

    writer = RunWriter.create(config.runs_dir, config.name, config.model_dump(mode="json"))
    recorder = ThreadRecorder(writer, [])
    train_rank(Rank(config, writer.run_dir, recorder))
    recorder.close()
    return RunReader(writer.run_dir)


def test_watch_takes_the_dictionary_with_the_concept(folder):
    model = tiny_model()
    model.train()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    concepts = [folder / "concepts" / "thing.yaml"]
    rules = [{"concept": "some.thing", "mode": "route", "tokens": "own"}]
    with gradlens.watch(model, optimizer, {"layers.2": tiny_dictionary()}, concepts=concepts, rules=rules, run=None) as lens:
        model(**tiny_batch()).loss.backward()
        optimizer.step()
    assert set(lens.dictionaries) == {"layers.2", KEY} and lens.labels[KEY] == {0: "a", 1: "c"}
    assert 0 < lens.recorder.records[0]["scalars"]["rule/route:some.thing/share"] < 1


def test_labels_for_what_is_not_there_are_refused_at_the_start(folder):
    config = write_inputs(folder)
    with pytest.raises(ConfigError, match=r"labels\.layers\.1: no dictionary at layers\.1; this config has layers\.2"):
        check(tiny_config(config, labels={"layers.1": ["x.json"]}))
    with pytest.raises(InputError, match=r"x\.json: no such file"):
        check(tiny_config(config, labels={"layers.2": ["x.json"]}))
    (folder / "x.json").write_text('{"80": "too far"}')
    with pytest.raises(InputError, match=r"x\.json: a label for feature 80, the dictionary has 0 to 79"):
        check(tiny_config(config, labels={"layers.2": [str(folder / "x.json")]}))


def test_config_check_tells_of_every_dictionary_and_label_source(folder):
    (folder / "l.csv").write_text("index,label\n1,x\n")
    config = write_inputs(folder) | {"concepts": ["concepts/thing.yaml"], "labels": {KEY: ["l.csv"]}}
    (folder / "run.yaml").write_text(yaml.safe_dump(config))
    root = typer.Typer()
    commands.register(root)
    result = CliRunner().invoke(root, ["config", "check", str(folder / "run.yaml"), "--json"])
    assert result.exit_code == 0, result.output
    found = {entry["key"]: entry["found"] for entry in json.loads(result.stdout)["checks"]}
    assert "80 features of width 32 for layers.2" in found["dictionaries.layers.2"]
    assert f"2 features of width 32 for {KEY}" in found[f"dictionaries.{KEY}"] and "1 features" in found[f"labels.{KEY}"]


def test_two_concepts_whose_directions_would_be_one_dictionary_are_refused(tmp_path):
    save_directions(Directions(torch.eye(4)[:1], torch.zeros(1), hook="layers.1"), tmp_path / "d.safetensors")
    concepts = [Concept(name=name, directions=str(tmp_path / "d.safetensors")) for name in ("fr.v1", "fr_v1")]
    with pytest.raises(ConfigError, match="concepts fr.v1 and fr_v1 both have their directions at layers.1#fr_v1: rename one"):
        direction_sources(concepts)
    assert list(direction_sources(concepts[:1])) == ["layers.1#fr_v1"]

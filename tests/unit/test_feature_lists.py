"""`gradlens runs export`: links to pages that exist by name, lists that sae-dashboard takes, one clear line where no id is known."""

import gzip
import json
import urllib.parse
from dataclasses import replace

import pytest
import typer
import yaml
from conftest import tiny_dictionary
from synthetic_runs import make_run
from typer.testing import CliRunner

from gradlens.cli import runs
from gradlens.dictionaries.formats import load_dictionary, save_dictionary
from gradlens.errors import ConfigError
from gradlens.recording.store import RunReader
from gradlens.report.summary import top_features

root = typer.Typer()
runs.register(root)


def call(*arguments):
    result = CliRunner().invoke(root, ["runs", "export", *map(str, arguments)])
    if result.exception and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result.stdout


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run whose dictionary at layers.15 says its id, at layers.27 not."""
    folder = tmp_path_factory.mktemp("export")
    known = replace(tiny_dictionary(), metadata={"neuronpedia_id": "tiny/15-res", "model_name": "tiny"})
    save_dictionary(known, folder / "known")
    save_dictionary(tiny_dictionary(), folder / "unknown")
    path = make_run(folder / "runs" / "some", steps=20)
    set_dictionaries(path, {"layers.15": str(folder / "known"), "blocks.27.hook_resid_post": str(folder / "unknown")})
    return path


def set_dictionaries(path, sources, **more):
    config = RunReader(path).config | {"dictionaries": sources} | more
    (path / "config.yaml").write_text(yaml.safe_dump(config))


def test_the_id_of_a_dictionary_survives_saving(run):
    assert load_dictionary(run.parent.parent / "known").metadata["neuronpedia_id"] == "tiny/15-res"


def test_links_are_those_of_the_top_features_with_a_known_id(run):
    found = json.loads(call(run, "--neuronpedia", "--top", 12, "--json"))
    top = [row for row in top_features(RunReader(run), 12)]
    mine = [row["feature"] for row in top if row["hookpoint"] == "layers.15"]
    assert [row["link"] for row in found["features"]] == [f"https://neuronpedia.org/tiny/15-res/{i}" for i in mine] and mine
    assert found["features"][0]["neuronpedia"] == f"tiny@15-res:{mine[0]}"
    assert found["left_out"] == {"layers.27": len(top) - len(mine)}
    address = urllib.parse.urlparse(found["quick_lists"]["layers.15"])
    wanted = json.loads(urllib.parse.parse_qs(address.query)["features"][0])
    assert wanted == [{"modelId": "tiny", "layer": "15-res", "index": str(i)} for i in mine]
    both = json.loads(call(run, "--neuronpedia", "--top", 12, "--id", "27=tiny/27-res", "--json"))
    assert len(both["features"]) == 12 and both["left_out"] == {}


def test_labels_from_neuronpedia_say_the_id_too(run, tmp_path):
    row = {"modelId": "tiny", "layer": "27-np", "index": "1", "description": "x"}
    (tmp_path / "batch-0.jsonl.gz").write_bytes(gzip.compress(json.dumps(row).encode()))
    sources = RunReader(run).config["dictionaries"]
    set_dictionaries(run, sources, labels={"layers.27": [str(tmp_path / "batch-0.jsonl.gz")]})
    found = json.loads(call(run, "--neuronpedia", "--top", 12, "--json"))
    set_dictionaries(run, sources, labels={})
    assert found["left_out"] == {} and any(row["neuronpedia"].startswith("tiny@27-np:") for row in found["features"])


def test_lists_are_arguments_of_sae_dashboard(run, tmp_path):
    out = tmp_path / "lists.json"
    found = json.loads(call(run, "--feature-list", "--top", 12, "--out", out, "--json"))["dictionaries"]
    assert {entry["hook_point"] for entry in found} == {"blocks.15.hook_resid_post", "blocks.27.hook_resid_post"}
    top = top_features(RunReader(run), 12)
    for entry in found:
        assert entry["features"] == [row["feature"] for row in top if row["hookpoint"] == entry["hookpoint"]]
    assert json.loads(out.read_text())["dictionaries"] == found


def test_what_cannot_be_exported_is_said(run):
    for arguments, message in (
        ([], "say which: --neuronpedia or --feature-list"),
        (["--neuronpedia", "--id", "layers.27"], "--id layers.27: expected HOOKPOINT=MODEL/SOURCE"),
    ):
        with pytest.raises(ConfigError, match=message):
            call(run, *arguments)
    sources = RunReader(run).config["dictionaries"]
    set_dictionaries(run, {})
    with pytest.raises(ConfigError, match=r"no dictionary of this run says its Neuronpedia id .*give --id layers\.\d+=MODEL/SOURCE"):
        call(run, "--neuronpedia")
    set_dictionaries(run, sources)

"""What `gradlens config check` says, and a run before it starts: one and the same, without weights and without waiting."""

import json
import time

import pytest
import torch
from conftest import tiny_dictionary
from test_config import invoke
from tiny_job import tiny_config, write_inputs

from gradlens.dictionaries.formats import save_dictionary
from gradlens.errors import GradlensError
from gradlens.model import smollm2
from gradlens.training import preflight

REFUSED = {
    "width": ({"dictionaries": {"layers.2": "narrow"}}, "reads vectors of width 16, but layers.2 of this model has width 32"),
    "no such block": ({"dictionaries": {"layers.99": "dictionary"}}, "the model has blocks layers.0 to layers.3; did you mean layers.3"),
    "no such module": ({"dictionaries": {"foo": "dictionary"}}, "hookpoint foo: no module of that name; block outputs are layers.0 to"),
    "another place": ({"dictionaries": {"layers.1": "elsewhere"}}, "elsewhere was trained at layers.3; use it there"),
    "one place twice": (
        {"dictionaries": {"layers.2": "dictionary", "blocks.2.hook_resid_post": "dictionary"}},
        "dictionaries: layers.2 and blocks.2.hook_resid_post both mean layers.2; keep one of them",
    ),
    "no model folder": ({"model": {"name": "./nowhere"}}, "./nowhere: no such model folder"),
    "no model": ({"model": {"name": "nowhere"}}, "nowhere: no folder of that name, and the model could not be had from Hugging Face"),
    "one example": ({"concepts": ["few.yaml"]}, "concept few: positive: 1 usable examples, at least 8 are needed to fit features"),
    "no examples": ({"concepts": ["other.yaml"]}, "concept other: it has features for layers.1, the dictionaries are for layers.2"),
    "twice": ({"concepts": ["concept.yaml", "concept.yaml"]}, "the concept some is already defined in"),
    "empty reference": ({"observe": {"reference": "empty.jsonl"}}, "empty.jsonl: the data set is empty"),
    "empty answers": ({"data": {"train": ["silent.jsonl"]}}, "(rows: 2 whose response is empty (rows 1, 2)); add responses, or set data"),
    "no answer": ({"data": {"train": ["asked.jsonl"]}}, "asked.jsonl: no row to learn from (rows: 1 without a response (row 1))"),
    "rule": ({"rules": [{"concept": "som"}]}, "unknown concept 'som'; did you mean some?"),
}


@pytest.fixture
def inputs(tmp_path, monkeypatch):
    found = write_inputs(tmp_path)
    save_dictionary(tiny_dictionary(D=16), tmp_path / "narrow")
    save_dictionary(tiny_dictionary(hookpoint="layers.3"), tmp_path / "elsewhere")
    (tmp_path / "few.yaml").write_text("name: few\npositive: [one]\nnegative: [two]\n")
    (tmp_path / "other.yaml").write_text("name: other\nfeatures: {layers.1: [3]}\n")
    (tmp_path / "empty.jsonl").touch()
    silent = '{"prompt": "a", "response": ""}\n'
    (tmp_path / "silent.jsonl").write_text(silent * 2)
    (tmp_path / "mixed.jsonl").write_text(silent + '{"prompt": "a", "response": "b"}\n' + silent)
    (tmp_path / "asked.jsonl").write_text('{"messages": [{"role": "user", "content": "hi"}]}\n')
    monkeypatch.chdir(tmp_path)
    return found


def checked(inputs, path):
    """Exit code, and what is said of each key."""
    path.write_text(json.dumps(inputs))  # JSON is YAML
    done = invoke("check", path, "--json")
    assert done.exception is None or isinstance(done.exception, SystemExit), done.exception
    return done.exit_code, {entry["key"]: entry for entry in json.loads(done.stdout)["checks"]}


@pytest.mark.parametrize(("changes", "message"), REFUSED.values(), ids=REFUSED)
def test_the_check_says_what_the_run_says(inputs, tmp_path, changes, message):
    inputs |= changes
    begun = time.monotonic()
    with pytest.raises(GradlensError) as refused:
        preflight.check(tiny_config(inputs))
    assert message in str(refused.value).replace(f"{tmp_path}/", "")
    code, found = checked(inputs, tmp_path / "c.yaml")
    assert code == refused.value.exit_code
    assert message in " ".join(entry["found"] for entry in found.values() if not entry["ok"]).replace(f"{tmp_path}/", "")
    assert time.monotonic() - begun < 8  # a name that is nowhere is not asked for again and again


def test_what_fits_is_told_with_what_was_found(inputs, tmp_path):
    code, found = checked(inputs | {"rules": [{"concept": "some"}]}, tmp_path / "c.yaml")
    assert code == 0 and all(entry["ok"] for entry in found.values())
    assert found["model"]["found"].endswith("4 blocks of width 32") and found["concepts.0"]["found"] == "some"
    assert "80 features of width 32 for layers.2" in found["dictionaries.layers.2"]["found"]


def test_keys_that_look_like_markup_are_printed(inputs, tmp_path):
    (tmp_path / "c.yaml").write_text(json.dumps(inputs | {"evaluate": {"heldout": {"[/]": inputs["data"]["train"][0]}}}))
    done = invoke("check", tmp_path / "c.yaml")
    assert done.exit_code == 0 and "evaluate.heldout.[/]" in done.stdout


def test_rows_that_are_left_out_are_named_and_no_error(inputs, tmp_path):
    inputs["data"] = {"train": ["mixed.jsonl"]}
    code, found = checked(inputs, tmp_path / "c.yaml")
    warning = f"{tmp_path / 'mixed.jsonl'}: 2 of 3 rows are left out: 2 whose response is empty (rows 1, 3)"
    assert code == 0 and found["data.train.0"]["warning"] == warning
    assert preflight.check(tiny_config(inputs)) == [warning.replace(f"{tmp_path}/", "")]
    shown = invoke("check", tmp_path / "c.yaml").stdout
    assert f"warning data.train.0: {warning}" in shown and "a run would find everything" in shown
    inputs["data"]["loss_on"] = "all"
    assert preflight.check(tiny_config(inputs)) == []


def test_a_run_warns_of_them_before_it_starts(inputs):
    from gradlens_services.job import _check

    told = []
    config = tiny_config(inputs | {"data": {"train": ["mixed.jsonl"]}})
    _check([config, config], told.append)
    assert [event["phase"] for event in told] == ["checking config and data", "warning"] and "(rows 1, 3)" in told[1]["text"]


def test_more_gpus_than_there_are_are_not_waited_for(inputs, monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    train = {**inputs["train"], "device": "cuda"}
    assert preflight.check(tiny_config(inputs | {"train": train})) == []
    inputs |= {"train": {**train, "num_workers": 2}}
    with pytest.raises(GradlensError, match="train.device: cuda, and this machine has 1 GPU for train.num_workers: 2"):
        preflight.check(tiny_config(inputs))
    assert preflight.check(tiny_config(inputs | {"ray": {"address": "auto"}})) == []  # a cluster may have them


def test_the_small_model_need_not_be_fetched_to_be_checked(monkeypatch, tmp_path):
    monkeypatch.setenv("GRADLENS_CACHE", str(tmp_path))
    model = preflight.shape_of("smollm2")
    assert len(preflight.blocks(model)) == 30 and preflight.d_model(model) == 576 and not list(tmp_path.iterdir())


def test_the_shape_of_the_small_model_is_that_of_its_config():
    if smollm2.problems(smollm2.smollm2_folder()):
        pytest.skip("the model is not here")
    theirs = json.loads((smollm2.smollm2_folder() / "config.json").read_text())
    assert {key: theirs[key] for key in smollm2.SHAPE} == smollm2.SHAPE


@pytest.mark.parametrize("name", ["gpt2", "openai-community/gpt2", "HuggingFaceTB/SmolLM2-135M"])
def test_a_name_on_the_hub_is_asked_for_once(monkeypatch, name):
    import huggingface_hub

    asked = []
    monkeypatch.setattr(huggingface_hub, "get_hf_file_metadata", lambda url, **options: asked.append(url))
    monkeypatch.setattr(huggingface_hub, "try_to_load_from_cache", lambda *names: None)
    preflight.check_on_hub(preflight.resolve_model(name))
    assert len(asked) == 1 and f"/{name}/" in asked[0]
    monkeypatch.setattr(huggingface_hub, "try_to_load_from_cache", lambda *names: "a file")
    preflight.check_on_hub(name)
    assert len(asked) == 1  # what is in the cache is not asked for

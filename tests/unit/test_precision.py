"""In which precision dictionaries are kept and multiplied: what `observe.precision` means where. The kernels' part is in test_kernels."""

from types import SimpleNamespace

import pytest
import torch
import yaml
from conftest import tiny_batch, tiny_dictionary, tiny_model
from tiny_job import write_inputs

import gradlens
from gradlens.config import ObserveSettings
from gradlens.data.rows import collate, load_examples
from gradlens.dictionaries import precision
from gradlens.lens import Lens
from gradlens.model.loading import load_model
from gradlens.recording.recorder import MemoryRecorder

HOOK = "layers.1"


def test_auto_is_the_models_half_precision_on_an_accelerator_and_float32_elsewhere():
    here, there = tiny_model(), tiny_model().to("meta")  # stands in for a GPU
    assert precision.chosen("auto", here.bfloat16()) == "float32"
    assert precision.chosen("auto", there) == "float32"
    assert precision.chosen("auto", there.bfloat16()) == "bfloat16"
    assert precision.chosen("auto", there.half()) == "float16"
    assert precision.chosen("float32", there) == "float32" and precision.chosen("bfloat16", here) == "bfloat16"
    for mixed, expected in (("bf16", "bfloat16"), ("fp16", "float16"), ("no", "float32")):  # accelerate's wrapper of an optimizer
        optimizer = SimpleNamespace(accelerator_state=SimpleNamespace(mixed_precision=mixed))
        assert precision.chosen("auto", tiny_model().to("meta"), optimizer) == expected


def test_a_loop_with_autocast_is_told_that_readings_could_be_cheaper(monkeypatch):
    monkeypatch.setattr(torch, "is_autocast_enabled", lambda kind: True)
    monkeypatch.setattr(torch, "get_autocast_dtype", lambda kind: torch.bfloat16)
    assert "set observe.precision to bfloat16" in precision.needless("float32", torch.device("cuda"))
    assert precision.needless("bfloat16", torch.device("cuda")) is None and precision.needless("float32", torch.device("cpu")) is None
    monkeypatch.setattr(torch, "is_autocast_enabled", lambda kind: False)
    assert precision.needless("float32", torch.device("cuda")) is None


def test_a_dictionary_kept_in_half_precision_reads_what_it_read():
    losses, readings = {}, {}
    for setting in ("float32", "bfloat16"):
        torch.manual_seed(0)
        model, recorder = tiny_model().train(), MemoryRecorder()
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
        observe = ObserveSettings(precision=setting, estimators=["push", "attribution", "taught", "energy"])
        with Lens(model, optimizer, {HOOK: tiny_dictionary()}, recorder=recorder, probe=[tiny_batch(1)], observe=observe) as lens:
            assert lens.dictionaries[HOOK].W_enc.dtype == getattr(torch, setting)
            assert lens.dictionaries[HOOK].b_enc.dtype == torch.float32
            losses[setting] = []
            for step in range(3):
                loss = model(**tiny_batch(step)).loss
                loss.backward()
                optimizer.step()
                optimizer.zero_grad()
                losses[setting].append(loss.item())
            readings[setting] = lens.projector.totals()[HOOK]
    assert losses["float32"] == losses["bfloat16"]  # reading changes nothing
    for key, total in readings["float32"].items():
        off = (readings["bfloat16"][key] - total).norm() / total.norm()
        # where a feature begins to fire, it can fall on either side
        assert 0 < off < (0.1 if key in ("attribution", "taught") else 0.01), (key, off)
    with pytest.raises(ValueError):
        ObserveSettings(precision="int8")


@pytest.fixture
def half_by_default():
    """As in Lightning's bf16-true: what is made without a dtype is bfloat16."""
    torch.set_default_dtype(torch.bfloat16)
    yield
    torch.set_default_dtype(torch.float32)


def test_a_half_precision_model_is_read_where_half_precision_is_the_default(half_by_default):
    model, recorder = tiny_model(dtype=torch.bfloat16).train(), MemoryRecorder()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    observe = ObserveSettings(drift_every=1, estimators=["push", "attribution", "taught", "energy", "unexplained"])
    with Lens(model, optimizer, {HOOK: tiny_dictionary()}, recorder=recorder, observe=observe) as lens:
        for step in range(2):
            model(**tiny_batch(step)).loss.backward()
            optimizer.step()
            lens.read_generated([tiny_batch(step, B=6)])
    assert lens.start[HOOK].rows.dtype == torch.float32 and torch.get_default_dtype() == torch.bfloat16
    assert all(lens.totals[HOOK][key].abs().max() > 0 for key in ("push", "attribution", "taught", "energy"))


RULES = (
    [{"concept": "high", "mode": "rewrite", "gain": 0.0}],
    [{"concept": "high", "mode": "reweight", "gain": 0.3, "rows": 0}],
    [{"concept": "high", "mode": "route", "gain": 0.3}],
    [{"concept": "high", "mode": "route", "gain": 0.0, "gate": "graded", "budget": 0.2}],
)


@pytest.mark.parametrize("rules", RULES)
def test_what_a_default_dtype_is_changes_no_reading_detector_or_rule(rules, tmp_path, request):
    inputs = write_inputs(tmp_path)
    low, high = inputs["data"]["train"]
    told = {"name": "high", "positive": high, "negative": low, "checker": {"pattern": [r"w[5-8]\d"]}}
    (tmp_path / "high.yaml").write_text(yaml.safe_dump(told))
    found = []
    for half in (False, True):
        model, tokenizer = load_model(inputs["model"]["name"], "float32")
        batches = [collate(load_examples(path, tokenizer, 24)[:4], 0) for path in (high, low)]
        if half:
            request.getfixturevalue("half_by_default")
        optimizer = torch.optim.SGD(model.train().parameters(), lr=0.1)
        given = {"concepts": [str(tmp_path / "high.yaml")], "tokenizer": tokenizer, "rules": rules, "run": None}
        with gradlens.watch(
            model, optimizer, inputs["dictionaries"], observe=ObserveSettings(drift_every=1, own_prompts=0), **given
        ) as lens:
            for batch in batches:
                lens.set_rows(range(len(batch["input_ids"])))
                model(**batch).loss.backward()
                lens.balance()
                optimizer.step()
                optimizer.zero_grad()
        records = lens.recorder.records
        taught = [{row["row_id"]: row["taught"] for row in record.get("examples", [])} for record in records]
        scalars = [{key: value for key, value in record["scalars"].items() if "seconds" not in key} for record in records]
        found.append([a | b for a, b in zip(scalars, taught, strict=True)])
    assert len(found[0]) == len(found[1]) > 1
    for plain, other in zip(*found, strict=True):
        assert other == pytest.approx(plain, rel=1e-5, abs=1e-7)

"""`gradlens bench attribution` on a job in miniature: what is exact scores high, what is noise does not, results are appended."""

import json

import pytest
import yaml
from tiny_job import write_inputs
from typer.testing import CliRunner

from gradlens.bench import bergson as bench_bergson
from gradlens.bench.overhead import ALL_ARMS
from gradlens.cli.app import app
from gradlens.errors import ConfigError


def test_exact_updates_predict_drift_and_noise_does_not(tmp_path):
    inputs = write_inputs(tmp_path)
    inputs["train"] |= {"lr": 0.003}
    (tmp_path / "job.yaml").write_text(yaml.safe_dump(inputs | {"rules": [{"concept": "some"}]}))
    out = tmp_path / "results" / "attribution.jsonl"
    command = ["bench", "attribution", str(tmp_path / "job.yaml"), "--seeds", "0,1", "--windows", "1,6", "--out", str(out)]
    done = CliRunner().invoke(app, [*command, "--json"], catch_exceptions=False)
    rows = {(row["estimator"], row["truth"], row["window"]): row for row in json.loads(done.stdout)["rows"]}
    for window in (1, 6):
        assert rows["update_direction", "drift_direction", window]["spearman_min"] > 0.99
        assert rows["update", "drift", window]["spearman_min"] > 0.95
        assert abs(rows["random", "drift_direction", window]["spearman"]) < 0.3
    readings = {
        "taught",
        "push",
        "attribution",
        "energy",
        "activation",
        "update",
        "update_direction",
        "update (2 rows)",
        "uptake",
        "random",
    }
    assert {name for name, _, _ in rows} == readings
    assert rows["update (2 rows)", "drift_direction", 6]["spearman"] > 0.5  # other rows of the same kind
    assert all((row["cost"] is None) == (row["estimator"] == "random") and (row["cost"] or 1) > 0 for row in rows.values())
    assert rows["update", "drift", 6]["concept_auc"].keys() == rows["update", "drift", 6]["concept_auc_firing"].keys() == {"some"}
    assert 0 <= rows["update", "drift", 6]["concept_auc_firing"]["some"] <= 1
    assert rows["push", "drift", 1]["seeds"] == 2
    lines = [json.loads(line) for line in out.read_text().splitlines()]
    assert {line["seed"] for line in lines} == {0, 1} and lines[0]["versions"]["torch"]
    before = len(lines)
    shown = CliRunner().invoke(app, [*command[:-6], "--seeds", "0", "--windows", "1", "--out", str(out)], catch_exceptions=False)
    assert "update_direction" in shown.stdout and "layers.2, drift along directions" in shown.stdout
    assert len(out.read_text().splitlines()) > before


def test_wrong_numbers_are_one_clear_error(tmp_path):
    for options in (["--windows", "1,x"], ["--windows", "0"], ["--seeds", ""], ["--windows", "10", "--set", "train.steps=3"]):
        error = CliRunner().invoke(app, ["bench", "attribution", *options]).exception
        assert isinstance(error, ConfigError), options


def test_overhead_compares_arms_on_the_same_steps(tmp_path, monkeypatch):
    monkeypatch.setattr(bench_bergson, "installed", lambda: False)  # with it: tests/extras/test_bergson.py
    (tmp_path / "job.yaml").write_text(yaml.safe_dump(write_inputs(tmp_path) | {"rules": [{"concept": "some", "mode": "route"}]}))
    out = tmp_path / "overhead.jsonl"
    command = ["bench", "overhead", str(tmp_path / "job.yaml"), "--arms", "all", "--steps", "4", "--out", str(out), "--json"]
    done = CliRunner().invoke(app, command, catch_exceptions=False)
    rows = {row["arm"]: row for row in json.loads(done.stdout)["rows"]}
    assert [*rows, "bergson"] == list(ALL_ARMS)
    assert json.loads(done.stdout)["left_out"].keys() == {"bergson"} and "without the arm bergson: not installed" in done.stderr
    assert rows["bare"]["median_ratio"] == rows["bare"]["total_ratio"] == 1
    for arm, row in rows.items():
        assert row["steps"] == 4 and row["seconds"] > 0 and row["median_interval"][0] <= row["median_ratio"] <= row["median_interval"][1]
        assert row["same_losses"] == (arm != "rules")  # watching changes nothing, a rule does
        assert (row["reading_peak_bytes"] > 0) == (arm not in ("bare", "control")), arm
        assert (row["floor_seconds"] > 0) == (arm not in ("bare", "control", "hooks", "rules"))
    assert [json.loads(line)["arm"] for line in out.read_text().splitlines()] == list(rows)
    error = CliRunner().invoke(app, ["bench", "overhead", "--arms", "defualt"]).exception
    assert isinstance(error, ConfigError) and "naive" in str(error)
    error = CliRunner().invoke(app, ["bench", "overhead", "--arms", "push,bergson"]).exception
    assert isinstance(error, ConfigError) and "gradlens-lab[bergson]" in str(error)


def test_overhead_measures_what_auto_becomes(tmp_path):
    inputs = write_inputs(tmp_path)
    low, high = inputs["data"]["train"]
    (tmp_path / "high.yaml").write_text(yaml.safe_dump({"name": "high", "positive": high, "negative": low, "checker": {"pattern": ["w5"]}}))
    job = inputs | {"concepts": [str(tmp_path / "high.yaml")], "rules": [{"concept": "high", "mode": "auto"}]}
    (tmp_path / "job.yaml").write_text(yaml.safe_dump(job))
    command = ["bench", "overhead", str(tmp_path / "job.yaml"), "--arms", "rules", "--steps", "2", "--out", str(tmp_path / "o.jsonl")]
    done = CliRunner().invoke(app, [*command, "--json"], catch_exceptions=False)
    rows = {row["arm"]: row for row in json.loads(done.stdout)["rows"]}
    assert not rows["rules"]["same_losses"] and rows["rules"]["seconds"] > 0  # rows that show the concept taught nothing


def test_overhead_in_the_shape_of_a_known_model(tmp_path):
    out = tmp_path / "overhead.jsonl"
    command = ["bench", "overhead", "--shape", "smollm2-135m-18k", "--tokens", "256", "--arms", "taught,naive", "--steps", "1"]
    rows = {row["arm"]: row for row in json.loads(CliRunner().invoke(app, [*command, "--out", str(out), "--json"]).stdout)["rows"]}
    assert rows["taught"]["same_losses"] and rows["taught"]["tokens"] == 255
    assert rows["taught"]["flops"] == pytest.approx(2 * 255 * 576 * 18_432)
    # the naive hook makes several [T, F]: 19 MB each
    assert rows["naive"]["reading_peak_bytes"] > 3 * 256 * 18_432 * 4 and rows["taught"]["reading_peak_bytes"] < 64e6
    assert 1 < rows["naive"]["whole_model_ratio"] < rows["naive"]["median_ratio"]
    for wrong in (["--shape", "gpt-5"], ["--shape", "gemma-2-2b-16k", "--set", "train.lr=1"]):
        assert isinstance(CliRunner().invoke(app, ["bench", "overhead", *wrong]).exception, ConfigError)
    assert "llama-3.1-8b-131k" in CliRunner().invoke(app, ["bench", "overhead", "--shape", "list"]).stdout.split()

"""`gradlens bench amplify` on a job in miniature, and how steps saved are counted."""

import json

import pytest
import yaml
from tiny_job import write_inputs
from typer.testing import CliRunner

from gradlens.bench.amplify import reached, summary
from gradlens.cli.app import app
from gradlens.errors import ConfigError


def test_the_step_at_which_a_loss_is_reached_lies_on_a_straight_line():
    curve = [[0, 2.0, 1.0], [4, 1.0, 1.2], [8, 0.5, 1.4]]
    assert reached(curve, 1.5) == (pytest.approx(2.0), pytest.approx(1.1))
    assert reached(curve, 0.5) == (pytest.approx(8.0), pytest.approx(1.4))
    assert reached(curve, 0.4) is None
    assert reached(curve, 3.0)[0] == 0.0  # there from the start
    assert reached([[0, 2.0, 1.0], [4, 1.0, 1.0], [8, 1.8, 1.0], [12, 0.9, 1.0]], 1.4)[0] == pytest.approx(2.4)  # the first time


def test_steps_saved_are_against_the_same_seed():
    rows = [
        {"arm": "none", "seed": 0, "curve": [[0, 2.0, 1.0], [10, 1.0, 2.0]], "touched": 0.0},
        {"arm": "none", "seed": 1, "curve": [[0, 2.0, 1.0], [10, 1.5, 2.0]], "touched": 0.0},
        {"arm": "gain-4", "seed": 0, "curve": [[0, 2.0, 1.0], [5, 1.0, 1.5], [10, 0.5, 2.0]], "touched": 0.2},
        {"arm": "gain-4", "seed": 1, "curve": [[0, 2.0, 1.0], [10, 1.6, 2.0]], "touched": 0.4},
    ]
    none, gain = summary(rows)
    assert none["saved"] == 0.0 and none["health"] == 0.0 and none["reached"] == 2
    assert (gain["reached"], gain["seeds"]) == (1, 2)  # the other seed never got there, which is said
    assert gain["saved"] == pytest.approx(0.5) and gain["health"] == pytest.approx(-0.5) and gain["touched"] == pytest.approx(0.3)


def test_every_arm_is_measured_on_the_way_and_runs_that_are_there_are_not_repeated(tmp_path):
    inputs = write_inputs(tmp_path)
    low, high = inputs["data"]["train"]
    (tmp_path / "job.yaml").write_text(yaml.safe_dump(inputs | {"evaluate": {"heldout": {"low": low, "high": high}, "max_rows": 8}}))
    out = tmp_path / "amplify.jsonl"
    command = ["bench", "amplify", str(tmp_path / "job.yaml"), "--concept", "some", "--task", "high", "--health", "low", "--gains", "50",
               "--steps", "5", "--every", "2", "--out", str(out)]  # fmt: skip
    done = CliRunner().invoke(app, [*command, "--json"], catch_exceptions=False)
    rows = {row["arm"]: row for row in map(json.loads, out.read_text().splitlines())}
    assert list(rows) == ["none", "lr-2", "gain-50", "random-50"]
    assert all([step for step, *_ in row["curve"]] == [0, 2, 4, 5] for row in rows.values())
    assert len({tuple(row["curve"][0]) for row in rows.values()}) == 1  # all begin with the same model
    assert rows["none"]["curve"][-1][1] < rows["none"]["curve"][0][1]  # and learn
    assert len({row["curve"][-1][1] for row in rows.values()}) == 4  # each something else
    assert rows["none"]["touched"] == 0 < rows["gain-50"]["touched"] < 1
    assert [row["arm"] for row in json.loads(done.stdout)["rows"]] == list(rows)
    before = out.read_text()
    shown = CliRunner().invoke(app, command, catch_exceptions=False)
    assert out.read_text() == before and "gain-50" in shown.stdout and "steps saved" in shown.stdout


def test_wrong_names_and_gains_are_one_clear_error(tmp_path):
    (tmp_path / "job.yaml").write_text(yaml.safe_dump(write_inputs(tmp_path)))
    wrong = ((["--gains", "0.5"], "above 1"), (["--gains", "x"], "expected numbers"), (["--concept", "some"], "heldout has no"))
    for options, words in wrong:
        error = CliRunner().invoke(app, ["bench", "amplify", str(tmp_path / "job.yaml"), *options, "--out", str(tmp_path / "o")]).exception
        assert isinstance(error, ConfigError) and words in str(error), options

"""The examples of the documentation, run as a reader would, on the real model."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from gradlens.recording.lookup import list_runs
from gradlens.recording.store import RunReader

EXAMPLES = Path(__file__).parents[2] / "docs" / "examples"


def run_example(name: str, folder: Path) -> str:
    done = subprocess.run(
        [sys.executable, str(EXAMPLES / name), "3"],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=600,
        env={**os.environ, "COLUMNS": "120"},
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


@pytest.mark.real
@pytest.mark.parametrize("name", ["plain_loop.py", "hf_trainer.py"])
def test_example_teaches_something_and_leaves_a_readable_run(name, tmp_path):
    printed = run_example(name, tmp_path)
    assert "layers.27" in printed
    (folder,) = list_runs(tmp_path / "runs")
    reader = RunReader(folder)
    assert reader.summary["steps"] == 3 and reader.summary["status"] == "done"
    assert max(abs(feature["drift"]) for feature in reader.summary["top_features"]) > 0
    steps, unexplained = reader.curve("layers.27/unexplained")
    assert list(steps) == [1, 2, 3] and all(0 < share < 1 for share in unexplained)


@pytest.mark.parametrize("name", ["plain_loop.py", "hf_trainer.py", "trl_sft.py", "accelerate_loop.py", "lightning_fit.py"])
def test_example_needs_three_added_lines(name):
    marked = [line for line in (EXAMPLES / name).read_text().splitlines()[1:] if "# gradlens" in line]
    assert len(marked) == 3


@pytest.mark.real
def test_the_rule_of_the_trainers_example_is_chosen_by_its_rows(tmp_path):
    printed = run_example("trainer_rules.py", tmp_path)
    assert "chat-prompts: 0 of 16" in printed  # three steps teach no pirate speech either way
    (folder,) = list_runs(tmp_path / "runs")
    reader = RunReader(folder)
    (event,) = [event for event in reader.events if event["kind"] == "suggested"]
    assert event["mode"] == "reweight" and event["good"]
    steps, shares = reader.curve("rule/reweight:pirate/share")
    assert list(steps) == [1, 2, 3] and 0 < sum(shares) < 3

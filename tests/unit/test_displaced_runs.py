"""What rose instead, from run folders: with rules beside without, in figures and in words, in `compare` and in the report."""

import numpy as np
import pytest
from rich.console import Console

from gradlens.recording.store import RunReader, RunWriter
from gradlens.report.compare import compare_runs, render
from gradlens.report.data import gather
from gradlens.report.displaced_runs import displacement, in_words

HOOK, F = "layers.1", 6
DRIFT = {"none": [3.0, 1.0, 0.5, 0.0, 0.2, 0.0], "rules": [-1.0, 0.0, 1.5, 0.5, 0.2, 0.0]}
FVU = {"none": (0.2, 0.3), "rules": (0.2, 0.25)}


@pytest.fixture
def readers(tmp_path):
    found = []
    for arm, drift in DRIFT.items():
        config = {"name": arm, "arm": arm, "data": {"train": ["a.jsonl"]}, "rules": [{"concept": "c"}] if arm == "rules" else []}
        with RunWriter(tmp_path / arm, config) as writer:
            if arm == "rules":
                sets = {"had": 4.0, "own": [0, 1], "cosine": [2], "coactive": [2, 3]}
                writer.event("neighbours", step=2, concept="c", acted=[HOOK], hookpoints={HOOK: sets})
            dense = {"drift": np.array(drift, np.float32), "push": np.zeros(F, np.float32)}
            for step in (1, 2):  # the last reading counts
                scalars = {f"{HOOK}/fvu": FVU[arm][1] if step == 2 else 9.0, f"{HOOK}/fvu_start": FVU[arm][0]}
                values = dense if step == 2 else {name: value + 7 for name, value in dense.items()}
                writer.record({"step": step, "time": 0.0, "scalars": scalars, "dense": {HOOK: values}})
            writer.write_json("summary.json", {"run_id": arm, "status": "done", "arm": arm})
        found.append(RunReader(tmp_path / arm))
    return found


def test_drift_of_neighbours_and_fvu_are_read_arm_by_arm(readers):
    rows = displacement(readers, ["none", "rules"])
    assert {row["what"]: row["drift"] for row in rows} == {
        "own": {"none": 4.0, "rules": -1.0},
        "cosine": {"none": 0.5, "rules": 1.5},
        "coactive": {"none": 0.5, "rules": 2.0},
        "fvu": {"none": pytest.approx(0.1), "rules": pytest.approx(0.05)},
    }
    assert displacement(readers[:1], ["none"]) == []


def test_it_is_told_in_percent_of_what_the_concept_had(readers):
    lines = in_words(displacement(readers, ["none", "rules"]))
    assert lines == [
        "c at layers.1 (a rule acts here), with rules: its own features -25%, nearest in direction +38%, active on the same tokens +50%",
        "c at layers.1 (a rule acts here), without: its own features +100%, nearest in direction +12%, active on the same tokens +12%",
        "dictionary at layers.1, share it leaves unexplained: +0.050 with rules, +0.100 without",
    ]
    rows = displacement(readers, ["none", "rules"])
    next(row for row in rows if row["what"] == "own")["drift"]["rules"] = -0.001
    assert "its own features +0%, nearest" in in_words(rows)[0]


def test_compare_and_report_show_it_unasked(readers):
    comparison = compare_runs(readers)
    console = Console(record=True, width=200)
    console.print(render(comparison))
    text = console.export_text()
    assert "What rises instead" in text and "active on the same tokens +50%" in text
    assert gather(readers)["displaced"] == in_words(comparison["displacement"])

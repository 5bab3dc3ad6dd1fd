"""From training to report: what the training loop writes is what comparison and report read."""

import json
import re

from tiny_job import tiny_config, write_inputs

from gradlens.files import write_json
from gradlens.recording.recorder import ThreadRecorder
from gradlens.recording.store import RunReader, RunWriter
from gradlens.report.compare import compare_runs
from gradlens.report.page import write_report
from gradlens.report.summary import build_summary
from gradlens.training.rank import FixedPolicies, Rank, Shared
from gradlens.training.train import train_rank


def test_a_trained_study_becomes_a_report(tmp_path):
    inputs = write_inputs(tmp_path)
    low, high = inputs["data"]["train"]
    evaluate = {"heldout": {"low": low, "high": high}, "prompts": {"high": high}, "max_new_tokens": 2, "max_rows": 4}
    arms = {
        "none": {},
        "rules": {"rules": [{"concept": "some"}]},
        "random": {"rules": [{"concept": "some", "random_control": 3}]},
        "oracle": {"data__keep": [low]},
    }
    shared, readers = Shared(), []
    for arm, changes in arms.items():
        config = tiny_config(inputs, evaluate=evaluate, arm=arm, **changes)
        with RunWriter(tmp_path / "runs" / arm, config) as writer:
            recorder = ThreadRecorder(writer)
            status = train_rank(Rank(config, writer.run_dir, recorder, FixedPolicies(), shared=shared))
            recorder.close()
        readers.append(RunReader(writer.run_dir))
        write_json(writer.run_dir / "summary.json", build_summary(readers[-1], status))

    comparison = compare_runs(readers)
    assert [run["arm"] for run in comparison["runs"]] == list(arms) and comparison["wanted"] == "low"
    assert [run["rules"][0]["random_control"] if run["rules"] else None for run in comparison["runs"]] == [None, None, 3, None]
    assert all(0 < run["rules"][0]["share"] < 1 for run in comparison["runs"] if run["rules"])
    rate, nll = comparison["verdicts"]
    assert rate["concept"] == "some" and {check["n"] for check in rate["checks"]} == {4}
    after = [json.loads((reader.run_dir / "evaluation.json").read_text())["after"]["nll"]["low"] for reader in readers]
    assert nll["ratio"] == after[1] / after[3]

    page = write_report(readers, tmp_path / "report.html").read_text(encoding="utf-8")
    data = json.loads(re.search(r'<script type="application/json" id="data">(.*?)</script>', page)[1])
    for run in data["runs"]:
        assert {"train/loss", "concept/some/layers.2/drift", "concept/some/layers.2/push"} <= run["curves"].keys()
        assert {f for row in run["movers"]["layers.2"]["rows"] for f in [row["feature"]] if row["concepts"] == ["some"]} <= {1, 2, 3, 5, 8}
        taught = run["examples"]["some"]["layers.2"]
        assert taught["rows"] and "not in rows.jsonl" not in taught["rows"][0]["parts"][0][0]
        assert set(taught["sources"]) <= {"low.jsonl", "high.jsonl"}
    assert len(data["prompts"]["high"][0]["after"]) == 4

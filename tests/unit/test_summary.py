"""What `runs show` says of a run is what its folder holds; and the commands `runs` and `report`."""

import io
import json
import os
import re

import numpy as np
import pytest
import typer
from rich.console import Console
from typer.testing import CliRunner

from gradlens.recording.store import RunReader, RunWriter
from gradlens.recording.worked import seconds_worked
from gradlens.report.summary import BARS, build_summary, render_summary, sparkline, summarize, top_features

SEA = {
    "share": 0.6, "features": [["layers.3", 2], ["layers.1", 0]], "count": 2, "words": ["sea", "salt"], "probability": [0.01, 0.4],
    "passage": "the [salt] sea", "labels": [], "own": {"before": 0, "now": 3, "of": 4, "said": {"before": "dry", "now": "wet [x]"}},
}  # fmt: skip
RULE = {"label": "route:pirate", "mode": "route", "concept": "pirate", "gain": 0.0}
KEYS = (
    "run_id", "run_dir", "status", "steps", "loss_first", "loss_last", "hookpoints", "learned_in_words", "said_less", "alarms",
    "top_features", "learned", "routers", "concepts", "rules", "targets", "policy_version", "gaps", "seconds", "evaluation", "doubts",
)  # fmt: skip


def write_run(folder, *, ended=True, dense=True, uptake=False):
    """Six steps at two hookpoints; at the last one, feature 2 of layers.3 has drifted most, and feature 1 of layers.1 has most uptake."""
    with RunWriter(folder, {"name": "demo", "rules": [RULE]}, seal_every=4) as writer:
        writer.event("policy", step=0, version=1, rules=[RULE])
        for step in range(1, 7):
            record = {"step": step, "scalars": {"train/loss": 4.0 - step / 2, "policy/version": 1}, "features": {}}
            for hookpoint in ("layers.1", "layers.3"):
                part = {"feature": np.array([0, 2]), "push": np.array([1.0, 2.0]), "attribution": np.array([0.5, np.nan])}
                record["features"][hookpoint] = part
                record["scalars"][f"concept/sea/salt/{hookpoint}/push"] = 2.0
                record["scalars"][f"concept/sea/salt/{hookpoint}/drift"] = float("nan") if step == 6 else float(step)
            if dense and step % 3 == 0:
                drift = {"layers.1": [0.1, np.nan, -0.2], "layers.3": [0.0, 0.0, -7.0 if step == 6 else 0.0]}
                record["dense"] = {h: {"drift": np.array(d), "push": np.arange(3.0), "attribution": np.ones(3)} for h, d in drift.items()}
                if uptake:
                    record["dense"]["layers.1"]["uptake"] = np.array([0.02, -0.5, 0.01])
                    record["dense"]["layers.3"]["uptake"] = np.array([np.nan, 0.0, 0.3])
                    record["scalars"] |= {"concept/sea/salt/layers.3/uptake": step / 10, "layers.3/learned": 2}
                    record["scalars"]["own/sea/salt/rate"] = step / 6
                    writer.event("learned", step=step, clusters=[SEA] if step == 6 else [{**SEA, "words": ["early"]}])
                    if step == 3:
                        writer.event("alarm", step=3, about="concept", name="sea/salt", text="sea/salt is being learned", chance=0.004)
            writer.record(record)
        writer.event("gap", step=5, from_step=4, to_step=5, count=2)
        writer.write_json("labels.json", {"layers.1": {"0": "ahoy"}, "layers.3": {"2": {"label": "[salt] and sea"}}})
        answers = {"before": [False, False], "after": [True, False]}
        answers = {
            when: {"chat": [{"prompt": f"question {i}", "answer": "text", "hits": {"sea/salt": hit}} for i, hit in enumerate(hits)]}
            for when, hits in answers.items()
        }
        nll = {"before": {"chat": 2.0}, "after": {"chat": 1.0}}
        writer.write_json("evaluation.json", {when: {"nll": nll[when], "answers": answers[when]} for when in nll})
        if ended:
            writer.write_json("summary.json", build_summary(RunReader(folder), "done"))
    return RunReader(folder)


def test_targets_are_told_as_they_stood_at_the_end(tmp_path):
    with RunWriter(tmp_path / "run", {}) as writer:
        writer.event("target", step=3, rule="cap", limit="gain_min", held=False, text="cap: missed")
        writer.event("resumed", step=3)
        writer.event("target", step=6, rule="cap", limit="", held=True, text="cap: held")
        writer.event("target", step=6, rule="other", limit="rate", held=False, text="other: missed; rate")
        writer.event("target", step=9, rule="gone", limit="", held=True, text="of a part that was taken back")
        writer.event("resumed", step=6)
    summary = summarize(RunReader(tmp_path / "run"))
    assert [(entry["rule"], entry["step"], entry["held"]) for entry in summary["targets"]] == [("cap", 6, True), ("other", 6, False)]
    assert "cap: held\nother: missed; rate" in render(summary)


def test_the_summary_has_the_keys_of_the_contract_and_the_figures_of_the_folder(tmp_path):
    summary = write_run(tmp_path / "run").summary
    assert tuple(summary) == KEYS
    assert (summary["run_id"], summary["status"], summary["steps"]) == ("run", "done", 6)
    assert (summary["loss_first"], summary["loss_last"], summary["policy_version"]) == (3.5, 1.0, 1)
    assert summary["hookpoints"] == ["layers.1", "layers.3"]
    second = {"hookpoint": "layers.3", "feature": 2, "label": "[salt] and sea"}
    second |= {"uptake": None, "drift": -7.0, "push": 2.0, "attribution": 1.0}
    assert summary["top_features"][1] == second and list(summary["top_features"][1]) == list(second)
    assert summary["learned_in_words"] == summary["alarms"] == []
    assert round(summary["top_features"][0]["drift"], 3) == -0.2  # the largest of a hookpoint with a small scale
    assert "ahoy" in [row["label"] for row in summary["top_features"]]
    assert summary["concepts"]["sea/salt"]["layers.3"] == {"uptake": None, "drift": 5.0, "push": 12.0, "attribution": None}
    assert [(rule["label"], rule["gain"]) for rule in summary["rules"]] == [("route:pirate", 0.0)]
    assert [(gap["from_step"], gap["to_step"], gap["count"]) for gap in summary["gaps"]] == [(4, 5, 2)]
    assert summary["evaluation"]["nll"] == {"chat": {"before": 2.0, "after": 1.0}}
    rate = summary["evaluation"]["rates"]["chat"]["sea/salt"]
    assert (rate["before"]["rate"], rate["after"]["rate"], rate["after"]["n"]) == (0.0, 0.5, 2)


def test_what_was_learned_stands_in_the_summary_in_words_with_labels_and_alarms(tmp_path):
    summary = write_run(tmp_path / "run", uptake=True).summary
    (entry,) = summary["learned_in_words"]
    assert entry == {"step": 6, **SEA, "labels": ["[salt] and sea", "ahoy"]}
    read = {"behaviour_step": 6, "behaviour_before": 3, "doubted": False}
    assert summary["alarms"] == [{"step": 3, "about": "concept", "name": "sea/salt", "text": "sea/salt is being learned", **read}]
    assert summary["concepts"]["sea/salt"]["layers.3"] == {"uptake": 0.6, "drift": 5.0, "push": 12.0, "attribution": None}
    assert summary["concepts"]["sea/salt"]["layers.1"]["uptake"] is None


def test_features_are_ranked_by_uptake_in_units_of_their_hookpoint_where_there_is_one(tmp_path):
    rows = top_features(write_run(tmp_path / "run", uptake=True))
    assert [(row["hookpoint"], row["feature"], row["uptake"] and round(row["uptake"], 3)) for row in rows] == [
        ("layers.1", 0, 0.02),  # the largest of a hookpoint with a small scale
        ("layers.3", 2, 0.3),
        ("layers.1", 2, 0.01),
        ("layers.1", 1, -0.5),  # said less than in ordinary text: not learned
        ("layers.3", 0, None),
        ("layers.3", 1, 0.0),
    ]


def test_without_a_snapshot_features_are_ranked_by_attribution_summed_over_steps(tmp_path):
    rows = top_features(write_run(tmp_path / "run", dense=False))
    assert [(row["hookpoint"], row["feature"], row["push"], row["attribution"], row["drift"]) for row in rows] == [
        ("layers.1", 0, 6.0, 3.0, None),
        ("layers.3", 0, 6.0, 3.0, None),
        ("layers.1", 2, 12.0, 0.0, None),
        ("layers.3", 2, 12.0, 0.0, None),
    ]


def test_a_run_that_has_not_ended_is_shown_with_what_there_is(tmp_path):
    shown = summarize(write_run(tmp_path / "run", ended=False))
    assert shown["status"] == "stopped" and shown["steps"] == 6 and shown["report"] is None
    RunWriter(tmp_path / "new").close()
    empty = summarize(RunReader(tmp_path / "new"))
    assert (empty["steps"], empty["loss_first"], empty["top_features"], empty["concepts"]) == (0, None, [], {})
    assert "loss not recorded" in render(empty)


def render(summary, width=120):
    console = Console(width=width, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    console.print(render_summary(summary))
    return console.export_text()


def test_the_screen_says_what_was_learned_and_where_the_report_is(tmp_path):
    reader = write_run(tmp_path / "run")
    text = render(summarize(reader))
    assert "loss 3.5 -> 1" in text and "6 steps" in text
    assert re.search(r"sea/salt +layers\.3 +\+5 +\+12", text)
    assert re.search(r"layers\.3 +2 +-7 +\+2 +\+1 +\[salt\] and sea", text)
    assert re.search(r"sea/salt in answers to chat +0% of 2 +50% of 2", text)
    assert "rules: route:pirate x 0" in text and "2 records are missing" in text
    assert f"not written yet: gradlens report {tmp_path / 'run'}" in text.replace("\n", "")
    (reader.run_dir / "report.html").touch()
    assert f"report: {reader.run_dir}/report.html" in render(summarize(reader)).replace("\n", "")


def test_the_screen_begins_with_what_was_learned_then_alarms_then_concepts_by_uptake(tmp_path):
    shown = summarize(write_run(tmp_path / "run", uptake=True))
    text = render(shown, width=100)
    heads = ["loss 3.5", "What this run learned, in words", " 60% sea, salt", "features learned beyond", "Alarms", "Concepts", "Features"]
    places = [text.index(head) for head in heads]
    assert places == sorted(places) and max(map(len, text.splitlines())) <= 100
    assert "in 0 of 4 of its own answers before, in 3 now" in text and "now     wet [x]" in text
    assert "labels: [salt] and sea | ahoy" in text
    assert re.search(r"3  sea/salt is being learned +at step 6, not at step 3", text)
    assert re.search(r"concept +hookpoint +uptake +drift +push", text) and re.search(r"hookpoint +feature +uptake +drift +push", text)
    assert re.search(r"sea/salt +layers\.3 +\+0\.6 +\+5 +\+12 +\S+ uptake", text)
    assert shown["curves"]["sea/salt"]["layers.3"]["estimator"] == "uptake"
    assert shown["curves"]["sea/salt"]["layers.1"]["estimator"] == "drift"  # none was read there


def test_a_checker_that_is_not_to_be_believed_is_told_of_once(tmp_path):
    reader = write_run(tmp_path / "run", ended=False)
    assert build_summary(reader, "done")["doubts"] == [] and "show sea" not in render(summarize(reader))
    told = {"step": 0, "kind": "doubtful_checker", "concept": "sea/salt", "text": "before training 2 of 12 answers show sea/salt"}
    badly = {"step": 0, "kind": "poorly_told", "concept": "sea/salt", "hookpoint": "layers.3", "text": "sea/salt: layers.3 is poor"}
    with (reader.run_dir / "events.jsonl").open("a") as events:
        events.write((json.dumps(told) + "\n") * 2 + json.dumps(badly) + "\n")  # told again where a run is taken up
    again = RunReader(reader.run_dir)
    assert build_summary(again, "done")["doubts"] == [told["text"], badly["text"]]
    assert render(summarize(again)).replace("\n", " ").count(told["text"]) == 1


@pytest.mark.parametrize("width", [45, 60, 80, 160])
def test_a_narrow_screen_has_fewer_columns_and_no_other_figures(tmp_path, width):
    shown = summarize(write_run(tmp_path / "run", uptake=True))
    figures = {"uptake": 0.0123, "drift": -0.000456, "push": 6.84e-07, "attribution": 0.000434, "uptake_weighed": -0.0465}
    shown["concepts"] = {"arithmetic": {"layers.15": figures, "layers.27": figures}}
    shown["curves"] = {"arithmetic": {"layers.15": {"estimator": "uptake_weighed", "steps": [3, 6], "values": [0.0, 0.6]}}}
    text = render(shown, width=width)
    concepts = text[text.index("Concepts") :].split("\n\n")[0]
    heads = concepts.split("\n")[1].split()
    assert heads[:3] == ["concept", "hookpoint", "uptake_weighed"] and ("attribution" in heads) == (width > 80)
    for row, hookpoint in zip(concepts.split("\n")[2:4], ("layers.15", "layers.27"), strict=True):
        assert row.split()[: len(set(heads) - {"curve"})] == ["arithmetic", hookpoint] + [
            f"{figures[name]:+.3g}" for name in heads if name in figures
        ]
    assert "Curve: uptake_weighed" in concepts or "curve" not in heads
    features = text[text.index("Features that were taught most") :]
    assert "ahoy" in features and "[salt]" in features and "uptake" in features.split("\n")[1]


def test_where_nothing_was_learned_the_screen_says_so_in_place_of_the_features(tmp_path):
    shown = summarize(write_run(tmp_path / "run", uptake=True))
    text = render(shown)
    rows = text[text.index("Features that were taught most") :]
    assert "Ranked by uptake" in rows and re.search(r"layers\.3 +2 +\+0\.3", rows) and "-0.5" not in rows
    text = render({**shown, "learned": {"layers.1": 0, "layers.3": 0}})
    assert "Features that were taught most: none was learned beyond chance (false discovery rate 5%)" in text
    assert not re.search(r"layers\.3 +2 +\+0\.3", text)
    zeros = [{**row, "uptake": 0.0, "drift": 0.0} for row in shown["top_features"]]
    assert "Features that were taught most: none, no uptake is above zero" in render({**shown, "learned": {}, "top_features": zeros})
    unread = render(summarize(write_run(tmp_path / "unread", dense=False)))
    assert "Ranked by |attribution|: there is no finite reading of the probe set yet" in unread


def test_many_alarms_do_not_flood_the_screen(tmp_path):
    shown = summarize(write_run(tmp_path / "run", uptake=True))
    shown["alarms"] = [{**shown["alarms"][0], "step": 100 + i, "text": f"alarm {i}"} for i in range(30)]
    text = render(shown)
    assert "alarm 11 " in text and "alarm 12" not in text and "and 18 more in events.jsonl" in text


def test_a_screen_of_a_summary_of_an_older_version_lacks_only_what_that_lacks(tmp_path):
    shown = summarize(write_run(tmp_path / "run"))
    older = {key: value for key, value in shown.items() if key not in ("learned_in_words", "alarms")}
    older["top_features"] = [{key: value for key, value in row.items() if key != "uptake"} for row in shown["top_features"]]
    text = render(older)
    assert "uptake" not in text and "Alarms" not in text and re.search(r"layers\.3 +2 +-7 +\+2 +\+1", text)


def test_a_sparkline_shows_the_shape_of_a_curve():
    assert sparkline([0, 1, 2, 3, 4, 5, 6, 7]) == BARS
    assert sparkline([7, None, 0]) == "█ ▁"
    assert sparkline([3, 3]) == "▁▁" and sparkline([]) == "" and sparkline([None]) == ""
    assert len(sparkline(list(range(1000)))) == 24


def invoke(*arguments):
    from gradlens.cli import runs

    app = typer.Typer()
    runs.register(app)
    return CliRunner().invoke(app, list(map(str, arguments)))


@pytest.fixture
def runs_dir(tmp_path):
    write_run(tmp_path / "runs" / "demo-1")
    return tmp_path / "runs"


def test_ls_and_show_on_the_command_line(runs_dir):
    (row,) = json.loads(invoke("runs", "ls", "--runs-dir", runs_dir, "--json").stdout)["runs"]
    assert (row["run_id"], row["status"], row["steps"], row["loss_last"], row["rules"]) == ("demo-1", "done", 6, 1.0, ["route:pirate"])
    assert re.search(r"demo-1 +done +6 +3\.5 -> 1", invoke("runs", "ls", "--runs-dir", runs_dir).stdout)
    shown = json.loads(invoke("runs", "show", "demo", "--runs-dir", runs_dir, "--json").stdout)
    assert set(KEYS) <= set(shown) and shown["curves"]["sea/salt"]["layers.1"]["estimator"] == "drift"
    assert "Features that were taught most" in invoke("runs", "show", "--runs-dir", runs_dir).stdout
    assert "no runs in" in invoke("runs", "ls", "--runs-dir", runs_dir / "none").stdout
    assert "not found" in str(invoke("runs", "show", "nope", "--runs-dir", runs_dir).exception)


def test_compare_and_report_on_the_command_line(runs_dir):
    write_run(runs_dir / "demo-2", ended=False)
    both = ("demo-1", "demo-2", "--runs-dir", runs_dir)
    assert [run["run_id"] for run in json.loads(invoke("runs", "compare", *both, "--json").stdout)["runs"]] == ["demo-1", "demo-2"]
    assert "demo-1" in invoke("runs", "compare", *both).stdout
    written = json.loads(invoke("report", *both, "--json", "--out", runs_dir / "both.html").stdout)
    assert written["runs"] == ["demo-1", "demo-2"] and (runs_dir / "both.html").stat().st_size == written["bytes"]
    assert invoke("report", "demo-1", "--runs-dir", runs_dir).exit_code == 0
    assert (runs_dir / "demo-1" / "report.html").is_file()


def test_verify_finds_damage_and_show_can_leave_it_out(runs_dir):
    assert invoke("runs", "verify", "demo-1", "--runs-dir", runs_dir).exit_code == 0
    damaged = sorted((runs_dir / "demo-1/statistics").glob("scalars-*.parquet"))[0]
    data = bytearray(damaged.read_bytes())
    data[len(data) // 2] ^= 1
    damaged.write_bytes(data)
    found = invoke("runs", "verify", "demo-1", "--runs-dir", runs_dir, "--json")
    assert found.exit_code == 3
    assert [row["file"] for row in json.loads(found.stdout)["files"] if row["state"] == "damaged"] == [damaged.name]
    stopped = invoke("runs", "show", "demo-1", "--runs-dir", runs_dir)
    assert damaged.name in str(stopped.exception) and stopped.exception.exit_code == 3
    shown = json.loads(invoke("runs", "show", "demo-1", "--runs-dir", runs_dir, "--skip-damaged", "--json").stdout)
    assert shown["loss"]["steps"] == [5, 6]


def test_a_pause_before_a_resume_is_not_counted_as_work(tmp_path):
    folder = tmp_path / "run"
    with RunWriter(folder, {"name": "demo"}) as writer:
        writer.event("started", time=1000.0)
        writer.record({"step": 1, "scalars": {"train/loss": 1.0}})
    for path in (folder / "statistics").iterdir():  # killed: there is no summary, but a last record
        os.utime(path, (1080.0, 1080.0))
    RunWriter.open_existing(folder, resume_step=1).close()
    events = RunReader(folder).events
    assert events[-1]["kind"] == "resumed" and events[-1]["worked"] == 80.0
    now = events[-1]["time"]
    assert seconds_worked(folder, events, now + 7) == pytest.approx(87)
    (folder / "summary.json").write_text('{"status": "interrupted", "seconds": 87.0}')
    RunWriter.open_existing(folder, resume_step=1).close()
    assert RunReader(folder).events[-1]["worked"] == 87.0 and 87 <= build_summary(RunReader(folder), "done")["seconds"] < 90


def test_a_killed_run_has_not_worked_until_somebody_wrote_its_report(tmp_path):
    with RunWriter(tmp_path / "run", {"name": "demo"}) as writer:
        writer.event("started", time=1000.0)
        writer.record({"step": 1, "scalars": {"train/loss": 1.0}})
    for path in (tmp_path / "run" / "statistics").iterdir():
        os.utime(path, (1080.0, 1080.0))
    (tmp_path / "run" / "report.html").touch()
    assert summarize(RunReader(tmp_path / "run"))["seconds"] == 80.0


@pytest.mark.parametrize("width", [30, 50, 64, 80, 100, 140])
def test_the_table_of_runs_breaks_no_word_however_narrow_the_terminal(tmp_path, monkeypatch, width):
    from gradlens.cli import runs

    ids = {"nostalgia-20260131-130120-69536b": "interrupted", "lower-20260131-130541-8a6543": "unreadable"}
    line = {"steps": "100", "loss": "3.45 -> 2.31", "rules": "route:nostalgia, reweight:pirate", "started": "2026-01-31 13:01"}
    console = Console(file=io.StringIO(), width=width, highlight=False, emoji=False)
    monkeypatch.setattr(runs, "out", console)
    runs._print_table([{"run": run, "state": state, **line} for run, state in ids.items()])
    printed = console.file.getvalue().splitlines()
    if width >= 50:
        assert max(map(len, printed)) <= width
    for run, state in ids.items():
        assert any(run in line.split() and state in line.split() for line in printed), printed
    assert len(printed) == (2 if width < 50 else 3)
    assert ("3.45 -> 2.31" in printed[1]) == (width >= 80) and ("13:01" in printed[1]) == (width >= 100)
    assert ("reweight:pirate" in printed[1]) == (width >= 140)

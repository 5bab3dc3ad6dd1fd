"""`gradlens run --resume` of a run that has no step left: said at once, without Ray or a model."""

import json

import pytest
from test_summary import write_run
from typer.testing import CliRunner

from gradlens.cli import run as command
from gradlens.cli.app import app


@pytest.fixture
def folder(tmp_path, monkeypatch):
    folder = tmp_path / "runs" / "demo-1"
    write_run(folder)
    (folder / "config.yaml").write_text("name: demo\ndata: {train: [a.jsonl]}\ntrain: {steps: 6}\n")

    def begun(config):
        raise RuntimeError("it was begun")

    monkeypatch.setattr(command, "fetch_model", begun)  # the first thing that a run does
    return folder


def resume(folder, *arguments):
    return CliRunner().invoke(app, ["run", "--resume", "demo", "--set", f"runs_dir={folder.parent}", *arguments], env={"COLUMNS": "80"})


def test_a_finished_run_says_so_and_how_to_go_on(folder, monkeypatch):
    elsewhere = resume(folder).stdout  # the id alone would be looked for in `runs`
    assert elsewhere == f"demo-1 is finished after 6 steps; to go on: gradlens run --resume {folder} --set train.steps=12\n"
    monkeypatch.chdir(folder.parent.parent)
    done = resume(folder)
    assert done.exit_code == 0, done.exception
    assert done.stdout == "demo-1 is finished after 6 steps; to go on: gradlens run --resume demo-1 --set train.steps=12\n"
    assert resume(folder, "--set", "train.steps=3").exit_code == 0
    told = resume(folder, "--json")
    summary = json.loads(told.stdout)
    assert (summary["status"], summary["steps"], summary["report"]) == ("done", 6, None) and "is finished after 6 steps" in told.stderr


@pytest.mark.parametrize("status, steps", [("done", 12), ("interrupted", 6), ("failed", 6)])
def test_a_run_that_has_more_to_do_goes_on(folder, status, steps):
    summary = json.loads((folder / "summary.json").read_text())
    (folder / "summary.json").write_text(json.dumps(summary | {"status": status}))
    assert str(resume(folder, "--set", f"train.steps={steps}").exception) == "it was begun"


def test_a_run_is_looked_for_where_the_environment_says(folder):
    done = CliRunner().invoke(app, ["run", "--resume", "demo"], env={"COLUMNS": "80", "GRADLENS__RUNS_DIR": str(folder.parent)})
    assert done.exit_code == 0 and "demo-1 is finished" in done.stdout, done.exception


@pytest.mark.parametrize("changes, name", [((), "demo"), (("--set", "name=mine"), "mine")])
def test_the_demo_has_the_name_that_it_is_given(monkeypatch, changes, name):
    begun = []
    monkeypatch.setattr(command, "_study", lambda config, *_: begun.append(config.name))
    assert CliRunner().invoke(app, ["demo", *changes]).exit_code == 0 and begun == [name]

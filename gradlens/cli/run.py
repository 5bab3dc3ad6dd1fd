"""`gradlens run`, `gradlens study`, `gradlens demo`: fine-tune on Ray while the concepts are watched."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.markup import escape

from gradlens.cli.console import JsonOption, err, out, print_json

if TYPE_CHECKING:
    from gradlens.config import RunConfig

DEMO = Path(__file__).parents[1] / "assets" / "quickstart.yaml"

SetOption = Annotated[
    list[str], typer.Option("--set", metavar="KEY=VALUE", help="Change a key of the config, for instance --set train.steps=50. Repeatable.")
]
ArmsOption = Annotated[
    str | None, typer.Option(help="Arms, in order, out of none,rules,random,oracle. Default: every arm that the config has the means for.")
]
SeedsOption = Annotated[str | None, typer.Option(help="Seeds, for instance 0,1,2: every arm is run with each. Default: train.seed.")]


def register(app: typer.Typer) -> None:
    app.command()(run)
    app.command()(study)
    app.command()(demo)


def run(
    config: Annotated[Path | None, typer.Argument(metavar="CONFIG", help="The config file; not needed with --resume.")] = None,
    changes: SetOption = [],  # noqa: B006 (typer reads it)
    resume: Annotated[
        str | None, typer.Option(metavar="RUN", help="Go on with this run (id, beginning of one, folder, or `last`).")
    ] = None,
    json_output: JsonOption = False,
) -> None:
    """Fine-tune as CONFIG says, on Ray, and show which concepts are being learned.

    Needs nothing running: Ray is started on this machine, or joined where `ray.address` says. Everything that was measured goes to
    runs/RUN_ID/, with a report in one HTML file. Ctrl-c ends the run after its step; it can be resumed.

    Examples:
      gradlens run configs/quickstart.yaml
      gradlens run configs/quickstart.yaml --set train.steps=10 --set rules=[]
      gradlens run --resume last --set train.steps=60
    """
    from gradlens.config import load_config
    from gradlens.errors import ConfigError

    if config is None and resume is None:
        raise ConfigError("run: give a config file, or --resume RUN; a first one to try is configs/quickstart.yaml")
    if resume is None:
        settings = load_config(config, changes)
    else:
        settings, resume = _config_of_run(resume, config, changes)
        if (ended := _finished(Path(resume), settings)) is not None:
            _show_finished(ended, json_output)
            return
    fetch_model(settings)

    from gradlens_services.job import run_job

    from gradlens.cli.display import job_display

    with job_display() as display:
        summary = run_job(settings, resume=resume, progress=display)
        display({"run": summary["run_id"], "phase": "writing report"})
        report = _report([summary["run_dir"]], Path(summary["run_dir"]) / "report.html")
    _show_run(summary, report, json_output)
    if summary["status"] == "interrupted":
        from gradlens.recording.lookup import called

        name = called(summary["run_dir"])
        err.print(f"interrupted after step {summary['steps']}; go on with: gradlens run --resume {name}", markup=False, soft_wrap=True)
        raise typer.Exit(130)


def study(
    config: Annotated[Path, typer.Argument(metavar="CONFIG", help="The config file, with the rules to be judged.")],
    changes: SetOption = [],  # noqa: B006
    arms: ArmsOption = None,
    seeds: SeedsOption = None,
    json_output: JsonOption = False,
) -> None:
    """Run CONFIG as several arms that differ in one thing each, and say what its rules change.

    none: without rules. rules: as given. random: as many random features in the place of the concept's. oracle: only the rows of
    data.wanted. All arms start from the same weights and see the same rows; one report shows them side by side.

    Example: gradlens study configs/quickstart.yaml --arms none,rules,random --seeds 0,1
    """
    from gradlens.config import load_config

    _study(load_config(config, changes), arms, seeds, json_output)


def demo(
    changes: SetOption = [],  # noqa: B006
    arms: ArmsOption = None,
    json_output: JsonOption = False,
) -> None:
    """The whole of gradlens in a few minutes: a small model learns pirate speech and arithmetic, and then arithmetic alone.

    The same as `gradlens study configs/quickstart.yaml`, from anywhere. The model (93 MB) is fetched the first time.

    Example: gradlens demo
    """
    from gradlens.config import load_config

    err.print(
        "Half of the training data are answers in pirate speech, half is plain arithmetic; only the arithmetic is wanted.\n"
        "The same small model is fine-tuned four times: without rules; with one that tells pirate speech by the dictionaries' features\n"
        "and keeps it from being learned; with as many random features in their place; on the arithmetic alone. About ten minutes\n"
        "on two cores.",
        style="dim",
    )
    _study(load_config(DEMO, ["name=demo", *changes]), arms, None, json_output)


def _study(config: RunConfig, arms: str | None, seeds: str | None, json_output: bool) -> None:
    from gradlens.errors import ConfigError
    from gradlens.training.study import arms_of

    try:
        numbers = [int(seed) for seed in seeds.split(",")] if seeds else None
    except ValueError:
        raise ConfigError(f"--seeds {seeds}: expected whole numbers, for instance 0,1,2") from None
    configs = arms_of(config, [arm.strip() for arm in arms.split(",")] if arms else None, numbers)
    fetch_model(config)

    from gradlens_services.job import run_arms

    from gradlens.cli.display import job_display
    from gradlens.files import jsonable, write_json
    from gradlens.recording.runfolder import new_run_id
    from gradlens.recording.store import RunReader
    from gradlens.report.compare import compare_runs, render

    folder = Path(config.runs_dir) / new_run_id(f"{config.name}-study")
    with job_display() as display:
        summaries = run_arms(configs, progress=display)
        display({"run": folder.name, "phase": "writing report"})
        folders = [summary["run_dir"] for summary in summaries]
        report = _report(folders, folder / "report.html")
        for path in folders:
            _report([path], Path(path) / "report.html")
    comparison = compare_runs([RunReader(path) for path in folders])
    status = "done" if len(summaries) == len(configs) and all(s["status"] == "done" for s in summaries) else "interrupted"
    result = {"study_dir": str(folder), "status": status, "report": str(report), "runs": summaries, **_without_runs(comparison)}
    write_json(folder / "study.json", result)
    if json_output:
        print_json(jsonable(result))
    else:
        out.print(render(comparison))
        out.print(f"report: {escape(str(report))}", soft_wrap=True)
    if status == "interrupted":
        err.print(f"interrupted: {len(summaries)} of {len(configs)} arms were begun; the report shows those")
        raise typer.Exit(130)


def _without_runs(comparison: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in comparison.items() if key != "runs"}


def _config_of_run(query: str, config: Path | None, changes: list[str]) -> tuple[RunConfig, str]:
    """The config to resume a run with (its own, unless another is given), and its folder."""
    from gradlens.config import load_config
    from gradlens.recording.lookup import find_run

    given = load_config(config, changes) if config else None
    named = [change.partition("=")[2] for change in changes if change.startswith("runs_dir=")]
    runs_dir = given.runs_dir if given else [os.environ.get("GRADLENS__RUNS_DIR", "runs"), *named][-1]
    folder = find_run(runs_dir, query)
    return given or load_config(folder / "config.yaml", changes), str(folder)


def _finished(folder: Path, config: RunConfig) -> dict[str, Any] | None:
    """The summary of a run that has no step left to do."""
    from gradlens.recording.store import RunReader

    reader = RunReader(folder)
    summary = reader.summary or {}
    return summary if reader.status == "done" and summary.get("steps", 0) >= config.train.steps else None


def _show_finished(summary: dict[str, Any], json_output: bool) -> None:
    report = Path(summary["run_dir"]) / "report.html"
    if json_output:
        print_json({**summary, "report": str(report) if report.is_file() else None})
    from gradlens.recording.lookup import called

    run, steps, name = summary["run_id"], summary["steps"], called(summary["run_dir"])
    (err if json_output else out).print(
        f"{run} is finished after {steps} steps; to go on: gradlens run --resume {name} --set train.steps={2 * steps}",
        markup=False, soft_wrap=True,
    )  # fmt: skip


def fetch_model(config: RunConfig) -> None:
    """The model, with a progress bar, before anything else is shown."""
    if config.model.name == "smollm2":
        from gradlens.cli.models import fetch_progress
        from gradlens.model.smollm2 import fetch_smollm2, problems, smollm2_folder

        if problems(smollm2_folder()):
            with fetch_progress() as progress:
                fetch_smollm2(progress)


def _report(folders: list[str], path: Path) -> Path:
    from gradlens.recording.store import RunReader
    from gradlens.report.page import write_report

    return write_report([RunReader(folder) for folder in folders], path)


def _show_run(summary: dict[str, Any], report: Path, json_output: bool) -> None:
    if json_output:
        print_json({**summary, "report": str(report)})
        return
    from gradlens.recording.store import RunReader
    from gradlens.report.summary import render_summary, summarize

    out.print(render_summary(summarize(RunReader(summary["run_dir"]))))

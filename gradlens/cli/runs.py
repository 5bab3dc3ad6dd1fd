"""`gradlens runs ls | show | compare | export | verify | rollback` and `gradlens report`: look at runs, and take one back."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.markup import escape

from gradlens.cli.console import JsonOption, err, out, print_json
from gradlens.errors import ConfigError

if TYPE_CHECKING:
    from gradlens.recording.store import RunReader

group = typer.Typer(no_args_is_help=True, help="List runs, show what one has learned, compare several, check a run's files.")

RunArgument = Annotated[str, typer.Argument(metavar="RUN", help="Run id, the beginning of one, a run folder, or `last`.")]
RunsArgument = Annotated[list[str], typer.Argument(metavar="RUN...", help="Run ids, beginnings of ids, run folders, or `last`.")]
RunsDirOption = Annotated[Path, typer.Option("--runs-dir", help="Folder that holds the run folders.", envvar="GRADLENS__RUNS_DIR")]
SkipOption = Annotated[bool, typer.Option("--skip-damaged", help="Leave damaged files out instead of stopping at them.")]
RUNS = Path("runs")
GAP = 2  # spaces between columns


def register(app: typer.Typer) -> None:
    app.add_typer(group, name="runs")
    app.command("report")(report)


@group.command("ls")
def ls(runs_dir: RunsDirOption = RUNS, json_output: JsonOption = False) -> None:
    """All runs, the newest first: state, steps, loss from first to last step, rules.

    Example: gradlens runs ls
    """
    from datetime import datetime

    from gradlens.recording.lookup import runs_table

    rows = runs_table(runs_dir)
    if json_output:
        print_json({"runs": rows})
        return
    if not rows:
        out.print(f"no runs in {escape(str(runs_dir))}; start one with: gradlens run CONFIG")
        return
    lines = []
    for row in rows:
        loss = "-" if row["loss_first"] is None or row["loss_last"] is None else f"{row['loss_first']:.3g} -> {row['loss_last']:.3g}"
        started = f"{datetime.fromtimestamp(row['started']):%Y-%m-%d %H:%M}"
        steps, rules = str(row["steps"] if row["steps"] is not None else "-"), ", ".join(row["rules"]) or "none"
        lines.append({"run": row["run_id"], "state": row["status"], "steps": steps, "loss": loss, "rules": rules, "started": started})
    _print_table(lines)


def _print_table(lines: list[dict[str, str]]) -> None:
    """As many columns as there is room for, every word whole; only rules are cut short. Run and state are always there."""
    from rich.table import Table

    widths = {name: max(len(name), *(len(line[name]) for line in lines)) for name in lines[0]}
    long, widths["rules"] = widths["rules"], min(widths["rules"], 12)
    shown, room = ["run", "state"], out.width - widths["run"] - GAP - widths["state"]
    for name in ("steps", "loss", "rules", "started"):  # an id says when its run was started, too
        if widths[name] + GAP <= room:
            shown.append(name)
            room -= widths[name] + GAP
    if room < 0:  # a line each, as long as it is
        for line in lines:
            out.print(line["run"], line["state"], markup=False, soft_wrap=True)
        return
    widths["rules"] = min(long, widths["rules"] + room)
    table = Table(box=None, pad_edge=False, padding=(0, GAP, 0, 0))
    for name in shown:
        table.add_column(name, justify="right" if name == "steps" else "left", no_wrap=True)
    for line in lines:
        table.add_row(*(escape(_cut(line[name], widths[name])) for name in shown))
    out.print(table)


def _cut(text: str, width: int) -> str:
    return text if len(text) <= width else text[: width - 1] + "…"


@group.command("show")
def show(
    run: RunArgument = "last", runs_dir: RunsDirOption = RUNS, skip_damaged: SkipOption = False, json_output: JsonOption = False
) -> None:
    """What a run has learned: concepts with their curves, features that were taught most, rules, measures before and after.

    Works while the run is going. Example: gradlens runs show last
    """
    from gradlens.report.summary import render_summary, summarize

    summary = summarize(open_run(runs_dir, run, skip_damaged))
    if json_output:
        print_json(summary)
    else:
        out.print(render_summary(summary))


@group.command("compare")
def compare(runs: RunsArgument, runs_dir: RunsDirOption = RUNS, skip_damaged: SkipOption = False, json_output: JsonOption = False) -> None:
    """Figures of several runs side by side, and what differs.

    Example: gradlens runs compare pirate-none pirate-route
    """
    from gradlens.files import jsonable
    from gradlens.report.compare import compare_runs, render

    comparison = compare_runs([open_run(runs_dir, run, skip_damaged) for run in runs])
    if json_output:
        print_json(jsonable(comparison))
    else:
        out.print(render(comparison))


@group.command("export")
def export(
    run: RunArgument = "last",
    neuronpedia: Annotated[bool, typer.Option("--neuronpedia", help="Links to the features' pages on Neuronpedia.")] = False,
    feature_list: Annotated[bool, typer.Option("--feature-list", help="Feature ids per dictionary, as sae-dashboard takes them.")] = False,
    ids: Annotated[
        list[str] | None, typer.Option("--id", metavar="HOOKPOINT=MODEL/SOURCE", help="What Neuronpedia calls a dictionary.")
    ] = None,
    top: Annotated[int, typer.Option("--top", "-n", min=1, help="Features, over all hookpoints.")] = 20,
    output: Annotated[Path | None, typer.Option("--out", help="Also write the JSON of it to this file.")] = None,
    runs_dir: RunsDirOption = RUNS,
    json_output: JsonOption = False,
) -> None:
    """The features that a run taught most, as links to Neuronpedia or as a list for sae-dashboard.

    Example: gradlens runs export last --neuronpedia --id layers.20=gemma-2-2b/20-gemmascope-res-16k
    """
    from gradlens.files import write_json
    from gradlens.report.feature_lists import dashboard_lists, neuronpedia_links

    if neuronpedia == feature_list:
        raise ConfigError("say which: --neuronpedia or --feature-list")
    reader = open_run(runs_dir, run)
    given = {}
    for item in ids or []:
        hookpoint, separator, name = item.partition("=")
        if not separator or name.count("/") != 1:
            raise ConfigError(f"--id {item}: expected HOOKPOINT=MODEL/SOURCE, for instance layers.20=gemma-2-2b/20-gemmascope-res-16k")
        given[hookpoint] = name
    found = neuronpedia_links(reader, top, given) if neuronpedia else {"dictionaries": dashboard_lists(reader, top)}
    found = {"run_id": reader.run_id, **found}
    if output is not None:
        write_json(output, found)
    if json_output:
        print_json(found)
        return
    for row in found.get("features", ()):
        out.print(f"{row['link']}  {row['label']}", markup=False, soft_wrap=True)
    for hookpoint, address in found.get("quick_lists", {}).items():
        out.print(f"all of {hookpoint}: {address}", markup=False, soft_wrap=True)
    for hookpoint, count in found.get("left_out", {}).items():
        err.print(f"left out: {count} features at {hookpoint}, whose dictionary has no Neuronpedia id (--id)", markup=False, soft_wrap=True)
    for entry in found.get("dictionaries", ()):
        features = ",".join(map(str, entry["features"]))
        out.print(f"{entry['sae']}  {entry['hook_point']}  {features}", markup=False, soft_wrap=True)


@group.command("verify")
def verify(run: RunArgument = "last", runs_dir: RunsDirOption = RUNS, json_output: JsonOption = False) -> None:
    """Check every file of a run against its checksum. Exit code 3 if one is damaged.

    Example: gradlens runs verify last
    """
    reader = open_run(runs_dir, run)
    rows = reader.verify()
    damaged = [row for row in rows if row["state"] == "damaged"]
    if json_output:
        print_json({"run_id": reader.run_id, "ok": not damaged, "files": rows})
    else:
        for row in rows:
            steps = "" if row["first_step"] is None else f", steps {row['first_step']} to {row['last_step']}"
            colour = "red" if row in damaged else "green"
            out.print(f"[{colour}]{row['state']:8}[/] {row['file']}: {row['rows']} rows{steps}", soft_wrap=True)
        for row in damaged:
            out.print(escape(row["error"]), soft_wrap=True)
        out.print(f"{escape(reader.run_id)}: {f'{len(damaged)} files are damaged' if damaged else 'every file is as it was written'}")
    if damaged:
        raise typer.Exit(3)


@group.command("rollback")
def rollback(
    run: RunArgument = "last",
    before_alarm: Annotated[bool, typer.Option("--before-alarm", help="To the last checkpoint before the first alarm; default.")] = False,
    step: Annotated[int | None, typer.Option(min=0, help="To the checkpoint at this step; 0: to the beginning.")] = None,
    runs_dir: RunsDirOption = RUNS,
    json_output: JsonOption = False,
) -> None:
    """Take a run back to an earlier checkpoint, so that it can go on from there with other rules. What lies past it is set aside.

    Then: gradlens rules set RUN RULES.yaml, and gradlens run --resume RUN.

    Example: gradlens runs rollback last --before-alarm
    """
    from gradlens.control.rollback import roll_back
    from gradlens.recording.lookup import called, find_run

    if before_alarm and step is not None:
        raise ConfigError("say which: --before-alarm or --step N")
    folder = find_run(runs_dir, run)
    done = roll_back(folder, step)
    if json_output:
        print_json({"run_id": folder.name, **done.as_dict()})
        return
    if done.alarm is not None:
        out.print(f"alarm at step {done.alarm['step']}: {done.alarm.get('text', '')}", markup=False, highlight=False, soft_wrap=True)
    out.print(f"{escape(folder.name)}: back from step {done.from_step} to step {done.step}", highlight=False, soft_wrap=True)
    moved = ", ".join(done.moved) or "nothing but copies of statistics and events"
    out.print(f"set aside in {escape(str(done.aside))}: {escape(moved)}", highlight=False, soft_wrap=True)
    name = escape(called(folder))
    out.print(f"go on: gradlens rules set {name} RULES.yaml; gradlens run --resume {name}", highlight=False, soft_wrap=True)


def report(
    runs: RunsArgument,
    output: Annotated[Path | None, typer.Option("--out", help="File to write; default: report.html in the first run's folder.")] = None,
    runs_dir: RunsDirOption = RUNS,
    skip_damaged: SkipOption = False,
    json_output: JsonOption = False,
) -> None:
    """Write one HTML file that shows a run, or several side by side. It opens without a network.

    Example: gradlens report last; gradlens report pirate-none pirate-route --out both.html
    """
    from gradlens.report.page import write_report

    readers = [open_run(runs_dir, run, skip_damaged) for run in runs]
    path = write_report(readers, output or readers[0].run_dir / "report.html")
    if json_output:
        print_json({"report": str(path), "bytes": path.stat().st_size, "runs": [reader.run_id for reader in readers]})
    else:
        out.print(f"report: {escape(str(path))} ({path.stat().st_size / 1e6:.1f} MB)", soft_wrap=True)


def open_run(runs_dir: Path, run: str, skip_damaged: bool = False) -> RunReader:
    from gradlens.recording.lookup import find_run
    from gradlens.recording.store import RunReader

    return RunReader(find_run(runs_dir, run), skip_damaged=skip_damaged)

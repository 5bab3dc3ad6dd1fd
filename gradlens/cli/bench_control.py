"""`gradlens bench control`: does control change what is learned, and only that?"""

from __future__ import annotations

import tempfile
import time
from collections import defaultdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from gradlens.cli.bench import RESULTS, teller
from gradlens.cli.console import JsonOption, err, out, print_json
from gradlens.cli.run import SetOption
from gradlens.files import append_line, read_lines

if TYPE_CHECKING:
    from gradlens.bench.control import Bench

RISES = (
    "100%: as much as the concept's own features rise by without rules, and more where others rise more. its features: the concept's own; "
    "nearest: those of like direction; same tokens: those active on the same tokens, often many (so 384% may be); answers read: by a probe "
    "fitted anew, like the concept (100%: as without rules); texts told: AUC of that probe; FVU: change on plain text"
)


def register(bench: typer.Typer) -> None:
    bench.command("control")(control)


def control(
    pair: Annotated[str, typer.Argument(metavar="PAIR", help="A shipped pair, `all`, `list`, or a pair file of your own data.")] = "pirate",
    shape: Annotated[str, typer.Option(help="mix: some rows show what is unwanted; entangled: each row does; both.")] = "both",
    arms: Annotated[str, typer.Option(help="By commas; `default`, or `list` for all there are.")] = "default",
    seeds: Annotated[str, typer.Option(help="One run each, for instance 0,1,2.")] = "0",
    steps: Annotated[int, typer.Option(min=1, help="Optimizer steps of each run.")] = 40,
    config: Annotated[Path | None, typer.Option(help="Model, dictionaries and optimiser; its data and rules are left aside.")] = None,
    changes: SetOption = [],  # noqa: B006 (typer reads it)
    out_file: Annotated[Path, typer.Option("--out", help="JSONL that results are appended to.")] = RESULTS / "control.jsonl",
    samples: Annotated[int, typer.Option(min=0, help="Answers drawn for each prompt (temperature: `evaluate.temperature`).")] = 3,
    release: Annotated[
        int, typer.Option(min=0, help="Further steps without the rule, on plain data, measured again after; 0: none.")
    ] = 100,
    release_data: Annotated[
        str | None, typer.Option(help="Rows to train on after release; default: the pair's own (`demo:plain-train`).", metavar="ROWS")
    ] = None,
    again: Annotated[bool, typer.Option(help="Run also what the results hold already.")] = False,
    complete: Annotated[bool, typer.Option(help="Run also what the results hold without the measures asked for.")] = False,
    check: Annotated[
        bool, typer.Option("--check", help="Train nothing: read every row, ask the checker of them, and list the runs.")
    ] = False,
    json_output: JsonOption = False,
) -> None:
    """Train the same data with each way of control, and with what it must be held against; measure what is learned.

    unwanted: answers that show the unwanted concept, as its checker finds. gain: how far the held-out loss on what is wanted came from
    the base model (0%) to a run on what is wanted alone (100%). right: answers with the result of the held-out row: its last number that
    the question does not give (9:05 is one number), else its last word. cut off: answers that had not come to their end; they may have
    as many tokens as 95% of the pair's training answers need and a quarter more, 32 at least, unless evaluate.max_new_tokens is set.
    plain: held-out loss on ordinary text. touched: share of tokens (or of gradient energy) that the rule acted on. after release:
    unwanted answers after further steps on plain data without the rule (where these alone unteach the concept, in the arm `none`,
    standing is no feat: --release-data demo:documentation is harder); stands: the share of the suppression that is left. What rises
    instead is measured without being asked for: neighbouring features in the model's answers, how these read by a probe fitted anew, the
    dictionaries' health.

    Results are appended run by run, and runs that are there are not repeated: an interrupted bench goes on where it was. Each result
    holds a fingerprint of the pair's files, its concept and the settings: where one of them changes, runs are run anew, and the old
    results are counted, not shown.

    A pair file of your own: docs/own-pair.md has an example, its keys, and what each arm is.
    MODE@SOURCE is a mode along directions in place of the concept's features: ablate@probe, grad@gradient, update@mean.

    Examples:
      gradlens bench control pirate --shape entangled --seeds 0,1,2
      gradlens bench control mine.yaml --check
      gradlens bench control mine.yaml --arms none,oracle,rewrite,rewrite-random
      gradlens bench control list
    """
    from gradlens.bench.control import ALONG, ARMS, SHAPES, SOURCES, Bench, arms_for
    from gradlens.bench.control_summary import checker_remarks
    from gradlens.bench.pairs import SHIPPED, check_rows, load_pair, shapes_of
    from gradlens.cli.run import DEMO, fetch_model
    from gradlens.config import load_config
    from gradlens.data.rows import read_rows
    from gradlens.errors import ConfigError
    from gradlens.recording.runfolder import versions

    if pair == "list" or arms == "list":
        along = [f"{mode}@{source}" for mode in ALONG for source in SOURCES]
        names = list(SHIPPED) if pair == "list" else [*ARMS, *along]
        if json_output:
            print_json({"pairs" if pair == "list" else "arms": names})
        else:
            out.print("\n".join(names), highlight=False)
        return
    if shape not in (*SHAPES, "both"):
        raise ConfigError(f"--shape {shape}: expected {', '.join(SHAPES)} or both")
    try:
        chosen = sorted({int(part) for part in seeds.split(",")})
    except ValueError:
        raise ConfigError(f"--seeds {seeds}: expected whole numbers, for instance 0,1,2") from None
    settings = load_config(config or DEMO, changes)
    if not settings.dictionaries:
        raise ConfigError(f"{config}: no `dictionaries`; there is nothing to control by")
    asked = None if arms == "default" else arms.split(",")
    known = {_key(row): row for row in _read(out_file)}  # of equal ones the newest
    tell, rows, lacking, strange, checked = teller(), [], 0, [], []
    fetch_model(settings)
    about = {"config": str(config or "demo"), "model": settings.model.name, "time": time.strftime("%Y-%m-%d"), "versions": versions()}
    with tempfile.TemporaryDirectory() as folder:
        for name in SHIPPED if pair == "all" else [pair]:
            found = load_pair(name, Path(folder) / name if name in SHIPPED else Path(folder))
            found = found if release_data is None else found.model_copy(update={"release": release_data})
            if release:
                read_rows(found.release)  # what is wrong with it is said before a run, not after
            shapes = [kind for kind in SHAPES if shape in (kind, "both") and (shape == kind or kind in shapes_of(found))]
            for kind in shapes:
                place = Path(folder) / f"{found.name}-{kind}"
                place.mkdir(exist_ok=True)
                odd = check_rows(found, kind)  # before hours are spent on it
                bench = Bench(found, kind, settings, place, steps, tell, samples, release)
                of_name = [row for row in known.values() if _like(row, found.name, kind, steps, settings.model.name, chosen)]
                strange += [row for row in of_name if row.get("fingerprint") != bench.fingerprint(row["arm"])]
                odd += checker_remarks(bench.checker_on_rows)
                if check:
                    checked.append({"arms": arms_for(found, kind, asked), "remarks": odd, **_rows_of(bench)})
                    continue
                for line in odd:
                    err.print(f"{found.name}, {kind}: {line}", markup=False, highlight=False, soft_wrap=True)
                for seed in chosen:
                    for arm in arms_for(found, kind, asked):
                        key = (found.name, kind, arm, seed, steps, settings.model.name, bench.fingerprint(arm))
                        lacks = key in known and _lacks(known[key], samples, release, bench.release_rows)
                        if key in known and not again and not (complete and lacks):
                            lacking += lacks
                            continue
                        row = known[key] = bench.run(arm, seed) | about
                        out_file.parent.mkdir(parents=True, exist_ok=True)
                        append_line(out_file, row)
                        tell(
                            f"{found.name}, {kind}, {arm}, seed {seed}: unwanted {row['rate']:.0%}, wanted loss {row['nll']['wanted']:.3f}",
                            done=1,
                            total=1,
                        )
                of_name = [row for row in known.values() if _like(row, found.name, kind, steps, settings.model.name, chosen)]
                mine = [row for row in of_name if row.get("fingerprint") == bench.fingerprint(row["arm"])]
                rows += [_as_asked(row, release, bench.release_rows) for row in mine]
    if check:
        print_json({"checked": checked}) if json_output else _show_checked(checked, chosen, steps)
        return
    if strange:
        err.print(_not_used(strange, out_file), markup=False, highlight=False, soft_wrap=True)
    if json_output:
        summaries = [_described(key, part) for key, part in _grouped(rows).items()]
        print_json({"rows": rows, "summaries": summaries, "results": str(out_file), "not_used": len(strange)})
        return
    for key, part in _grouped(rows).items():
        _show(_described(key, part))
    if lacking:
        err.print(f"{lacking} runs in {out_file} lack measures that were asked for (-); --complete runs them again", markup=False)


def _rows_of(bench: Bench) -> dict[str, Any]:
    """How many rows a pair has in a shape, and in how many of them its checker finds the concept."""
    from gradlens.data.rows import read_rows

    settings = bench.base
    files = {"training": settings.data.train, "held out": [bench.pair.wanted_heldout], "prompts": [bench.pair.prompts]}
    counts = {what: sum(len(read_rows(file)) for file in part) for what, part in files.items()}
    return {"pair": bench.pair.name, "shape": bench.shape, "rows": counts, "checker": bench.checker_on_rows}


def _show_checked(checked: list[dict[str, Any]], seeds: list[int], steps: int) -> None:
    for one in checked:
        rows = ", ".join(f"{count} {what}" for what, count in one["rows"].items())
        found = ", ".join(f"{share:.1%} of rows that are {what}" for what, share in one["checker"].items())
        out.print(f"{one['pair']}, {one['shape']}: rows: {rows}", markup=False, highlight=False, soft_wrap=True)
        out.print(f"  the checker finds the concept in {found}" if found else "  no checker", markup=False, highlight=False, soft_wrap=True)
        runs = len(one["arms"]) * len(seeds)
        out.print(f"  {runs} runs of {steps} steps: {', '.join(one['arms'])}", markup=False, highlight=False, soft_wrap=True)
        for line in one["remarks"] or ["nothing odd about them"]:
            out.print(f"  {line}", markup=False, highlight=False, soft_wrap=True)


def _key(row: dict[str, Any]) -> tuple:
    return row["pair"], row["shape"], row["arm"], row["seed"], row["steps"], row["model"], row.get("fingerprint")


def _like(row: dict[str, Any], pair: str, shape: str, steps: int, model: str, seeds: list[int]) -> bool:
    """Whether a result goes by these names; of the same data and settings it is where its fingerprint says so."""
    return (row["pair"], row["shape"], row["steps"], row["model"]) == (pair, shape, steps, model) and row["seed"] in seeds


def _not_used(rows: list[dict[str, Any]], path: Path) -> str:
    """What is said of results that go by the names asked for and are something else."""
    unknown = sum("fingerprint" not in row for row in rows)
    parts = [f"{count} of {what}" for count, what in ((len(rows) - unknown, "other data or settings"), (unknown, "unknown ones")) if count]
    return f"{path}: results that go by these names and are not used: {', '.join(parts)}" + (
        " (written before results said what they are of)" if unknown else ""
    )


def _read(path: Path) -> list[dict[str, Any]]:
    rows = read_lines(path)
    torn = [row["line"] for row in rows if row.get("kind") == "unreadable"]
    if torn:
        err.print(f"{path}: line {torn[0]} is no result (torn?) and is left out", soft_wrap=True, markup=False, highlight=False)
    return [row for row in rows if row.get("kind") != "unreadable"]


def _grouped(rows: list[dict[str, Any]]) -> dict[tuple[str, str], list[dict[str, Any]]]:
    found: dict[tuple[str, str], list[dict[str, Any]]] = defaultdict(list)
    for row in rows:
        found[row["pair"], row["shape"]].append(row)
    return found


def _lacks(row: dict[str, Any], samples: int, release: int, contents: str) -> bool:
    """Whether a row was written without what is asked for now."""
    drawn, asked = (sum(n for _, n in row.get(kind, {}).values()) for kind in ("sampled", "counts"))
    return "displacement" not in row or drawn < samples * asked or (release > 0 and _released_else(row, release, contents))


def _released_else(row: dict[str, Any], release: int, contents: str) -> bool:
    later = row.get("released", {})
    return (later.get("steps"), later.get("contents")) != (release, contents)


def _as_asked(row: dict[str, Any], release: int, contents: str) -> dict[str, Any]:
    """The row without figures after another release than the one asked for: they are lacking, not these."""
    return {key: value for key, value in row.items() if key != "released" or not release or not _released_else(row, release, contents)}


def _described(key: tuple[str, str], rows: list[dict[str, Any]]) -> dict[str, Any]:
    from gradlens.bench.control import ARMS
    from gradlens.bench.control_summary import checker_remarks, remarks, summary, tuned

    entries = summary(rows, ARMS)
    said = checker_remarks(rows[-1].get("checker") or {}) + remarks(entries)
    return {"pair": key[0], "shape": key[1], "arms": entries, "tuned": tuned(entries), "remarks": said}


def _show(described: dict[str, Any]) -> None:
    """Means over seeds, arm by arm; intervals of 95% below the figures; what rises instead; what the figures say."""
    from rich.table import Column, Table

    def table(title: str, first: str, *columns: str) -> Table:
        dense = len(columns) > 8  # fits 80 columns, intervals and all
        columns = (Column(first, no_wrap=True), *columns)
        return Table(*columns, title=title, title_justify="left", box=None, pad_edge=False, collapse_padding=dense)

    arms = described["arms"]
    title = f"{described['pair']}, {described['shape']}"
    shown = table(title, "arm", "seeds", "unwanted", "gain", "wanted\nloss", "right", "cut\noff", "plain", "touched", "step")
    for entry in arms:
        shown.add_row(
            entry["arm"], str(entry["seeds"]), _share(entry["rate"], entry["rate_interval"]), _share(entry["gain"], entry["gain_interval"]),
            _loss(entry["wanted"], entry["wanted_over"]), _share(entry["right"]), _share(entry["cut"]),
            _loss(entry["plain"], entry["plain_over"]), _share(entry["touched"]), f"{entry['step_seconds']:.2f} s",
        )  # fmt: skip
    out.print(shown)
    if any(entry["wanted_over"] is not None for entry in arms):
        _legend("below a loss: how it stands to the oracle's (+10%: a tenth above it; -10%: below it; 3.4x: so many times as large)")
    if any(entry["released"] or entry["sampled"] is not None for entry in arms):
        further = table("Unwanted in drawn answers, and after release", "arm", "drawn", "after release", "stands", "wanted loss", "plain")
        for entry in arms:
            later = entry["released"] or {}
            figures = [_share(later.get("rate"), later.get("rate_interval")), _share(later.get("stands"))]
            losses = [f"{later[part]:.3f}" if later else "-" for part in ("wanted", "plain")]
            further.add_row(entry["arm"], _share(entry["sampled"], entry["sampled_interval"]), *figures, *losses)
        out.print(further)
    if any(entry["displaced"] for entry in arms):
        title = "What rises instead: in its answers, of what the concept rises by without rules"
        rises = table(title, "arm", "its features", "nearest", "same tokens", "answers read", "texts told", "FVU")
        for entry in arms:
            found = entry["displaced"] or {}
            shares = [_share(found.get(kind)) for kind in ("own", "cosine", "coactive", "reads")]
            rises.add_row(entry["arm"], *shares, _figure(found.get("auc"), ".2f"), _figure(found.get("fvu"), "+.3f"))
        out.print(rises)
        _legend(RISES)
    for line in described["remarks"]:
        out.print(line, markup=False)
    out.print()


def _legend(text: str) -> None:
    out.print(text, style="dim", markup=False, highlight=False, soft_wrap=True)


def _share(value: float | None, interval: list[float] | None = None) -> str:
    if value is None:
        return "-"
    return f"{value:.0%}" + (f"\n{interval[0]:.0%}-{interval[1]:.0%}" if interval else "")


def _figure(value: float | None, form: str) -> str:
    return "-" if value is None else f"{value:{form}}"


def _loss(value: float, over: float | None) -> str:
    """A loss, and below it how it stands to the oracle's: a share above or below it, from twice on so many times."""
    if over is None:
        return f"{value:.3f}"
    times = f"{1 + over:.1f}" if over < 9 else f"{1 + over:.0f}"
    return f"{value:.3f}\n" + (f"{over:+.0%}" if over < 1 else f"{times}x")

"""`gradlens bench`: measurements that a stranger can repeat on their own model, data and dictionaries."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import typer

from gradlens.cli.console import JsonOption, err, out, print_json
from gradlens.cli.run import SetOption

app = typer.Typer(no_args_is_help=True, help="Measure gradlens itself, on the demo or on your own config.")
RESULTS = Path("benchmarks/results")


def register(parent: typer.Typer) -> None:
    from gradlens.cli import bench_amplify, bench_control

    bench_control.register(app)
    bench_amplify.register(app)
    parent.add_typer(app, name="bench")


@app.command()
def attribution(
    config: Annotated[Path | None, typer.Argument(metavar="[CONFIG]", help="A run config. Default: the demo's.")] = None,
    changes: SetOption = [],  # noqa: B006 (typer reads it)
    seeds: Annotated[str, typer.Option(help="One run each, for instance 0,1,2.")] = "0",
    windows: Annotated[str, typer.Option(help="Steps over which readings are summed. The longest is the length of the run.")] = "1,10,50",
    out_file: Annotated[Path, typer.Option("--out", help="JSONL that the results are appended to.")] = RESULTS / "attribution.jsonl",
    json_output: JsonOption = False,
) -> None:
    """How well does each estimator predict what the model learns? Correlation with drift, per hookpoint and window of steps.

    Trains as CONFIG says, without its rules and without Ray, and reads everything at every step; that takes about five times as long as
    the run itself. `drift` is of feature activations, `drift_direction` along unit directions, both on the config's probe set.
    `update (2 rows)` is drift on two of its rows, judged by the drift on the others. `top 20`: of the 20 features that an estimator says
    move most, the share that are among the 20 that do. `AUC`: whether the features of a concept stand out after 10 steps, each counted
    once / each as often as it fires. `cost`: of one reading, in steps.

    Examples:
      gradlens bench attribution
      gradlens bench attribution mine.yaml --seeds 0,1,2 --windows 1,10 --json
    """
    from gradlens.bench.attribution import bench, table
    from gradlens.cli.run import DEMO, fetch_model
    from gradlens.config import load_config
    from gradlens.errors import ConfigError
    from gradlens.recording.runfolder import versions

    try:
        lengths, chosen = (sorted({int(part) for part in text.split(",")}) for text in (windows, seeds))
    except ValueError:
        raise ConfigError(f"--windows {windows} --seeds {seeds}: expected whole numbers, for instance 1,10,50") from None
    if lengths[0] < 1:
        raise ConfigError(f"--windows {windows}: a window has at least one step")
    settings = load_config(config or DEMO, [f"train.steps={lengths[-1]}", *changes])
    if settings.train.steps < lengths[-1]:
        raise ConfigError(
            f"--windows {windows}: train.steps is {settings.train.steps}; leave it out, and the run is as long as the longest"
        )
    if not settings.dictionaries:
        raise ConfigError(f"{config}: no `dictionaries`; there is nothing to attribute to")
    tell = teller()
    fetch_model(settings)
    rows = bench(settings, chosen, lengths, lambda seed, phase, **fields: tell(f"seed {seed}: {phase}", **fields))
    about = {"config": str(config or "demo"), "time": time.strftime("%Y-%m-%d"), "versions": versions()}
    out_file.parent.mkdir(parents=True, exist_ok=True)
    with out_file.open("a", encoding="utf-8") as lines:
        for row in rows:
            lines.write(json.dumps(row | about) + "\n")
    merged = table(rows)
    if json_output:
        print_json({"rows": merged, "results": str(out_file), **about})
        return
    _print(merged)
    err.print(f"appended to {out_file}", soft_wrap=True, markup=False)


@app.command()
def overhead(
    config: Annotated[Path | None, typer.Argument(metavar="[CONFIG]", help="A run config. Default: the demo's.")] = None,
    changes: SetOption = [],  # noqa: B006
    shape: Annotated[
        str | None,
        typer.Option(help="Blocks in the shape of a known model, with random weights, instead of a config's job; `list` for their names."),
    ] = None,
    tokens: Annotated[int, typer.Option(min=2, help="Tokens of a step, with --shape.")] = 512,
    arms: Annotated[str, typer.Option(help="What is compared with the bare step, by commas; `all` for all.")] = "default",
    steps: Annotated[int, typer.Option(min=1, help="Steps of every arm; whole multiples of observe.drift_every are fair.")] = 40,
    out_file: Annotated[Path, typer.Option("--out", help="JSONL that the results are appended to.")] = RESULTS / "overhead.jsonl",
    json_output: JsonOption = False,
) -> None:
    """What does watching cost? Steps with and without gradlens, in paired order in one process, on the same batches.

    Arms: control (bare once more: what chance does), hooks (nothing read), push, taught, attribution, energy, unexplained (one each),
    estimators (all of them), default (what CONFIG observes, the probe set too), rules (its rules, nothing read); for comparison naive (a
    hook with dense products) and, where it is installed, bergson (EleutherAI's library collects every example's gradient, projected at
    random, for attribution afterwards; it knows no dictionary).

    Ratios to the bare step: the median over steps, and that of the sums, which has the readings of the probe set in it. `readings`: the
    median time at the hookpoints in a step. `floor`: what arithmetic needs for them at least, at the rates of a matrix product and of a
    copy measured in the same process. `peak`: the memory that they take beside the dictionary. `same losses`: whether training went on
    exactly as without. `whole model` (--shape): the ratio for as many blocks as the model has.

    How to read it: name the arm control too. Its ratio is 1 but for what else the machine does, so a difference no larger than its own
    tells nothing; `readings` over `step` then tells more. A GPU is used where there is one, unless CONFIG says train.device: cpu.

    Examples:
      gradlens bench overhead --arms control,default,naive --steps 48
      gradlens bench overhead --arms control,push,estimators,bergson --steps 48
      gradlens bench overhead --shape gemma-2-2b-16k --tokens 512 --arms all --steps 5
    """
    import torch
    from rich.table import Table

    from gradlens.bench import bergson as bench_bergson
    from gradlens.bench.jobs import SHAPES, config_job, shape_job
    from gradlens.bench.overhead import ALL_ARMS, bench
    from gradlens.cli.run import DEMO, fetch_model
    from gradlens.config import load_config
    from gradlens.errors import ConfigError
    from gradlens.recording.runfolder import versions

    if shape == "list":
        out.print("\n".join(SHAPES), highlight=False)
        return
    chosen = list(ALL_ARMS) if arms == "all" else ["bare", *(arm for arm in arms.split(",") if arm != "bare")]
    unknown = [arm for arm in chosen if arm not in ALL_ARMS]
    if unknown:
        raise ConfigError(f"--arms: unknown arm {unknown[0]!r}; there is {', '.join(ALL_ARMS)}")
    if shape is not None and (config or changes):
        raise ConfigError("--shape brings its own model and data; leave CONFIG and --set away")
    left_out = {}
    if "bergson" in chosen and not bench_bergson.installed():
        if arms != "all":
            raise ConfigError(f"--arms: bergson is {bench_bergson.MISSING}")
        chosen.remove("bergson")
        left_out["bergson"] = bench_bergson.MISSING
        err.print(f"without the arm bergson: {bench_bergson.MISSING}", soft_wrap=True, markup=False, highlight=False)
    tell, device = teller(), torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if shape is None:
        settings = load_config(config or DEMO, changes)
        if not settings.dictionaries:
            raise ConfigError(f"{config}: no `dictionaries`; there is nothing to watch")
        fetch_model(settings)
        job = config_job(settings, torch.device("cpu") if settings.train.device == "cpu" else device, str(config or "demo"), tell)
    else:
        tell(f"preparing {shape}")
        job = shape_job(shape, tokens, device)
    rows = bench(job, chosen, steps, next(job.model.parameters()).device, tell)
    about = {"time": time.strftime("%Y-%m-%d"), "versions": versions()}
    out_file.parent.mkdir(parents=True, exist_ok=True)
    with out_file.open("a", encoding="utf-8") as lines:
        for row in rows:
            lines.write(json.dumps(row | about) + "\n")
    if json_output:
        print_json({"rows": rows, "left_out": left_out, "results": str(out_file), **about})
        return
    whole = ["whole model"] if job.scale != 1 else []
    shown = Table("arm", "step", "median ratio (95%)", "of sums", *whole, "readings", "floor", "peak", "same losses", box=None)
    for row in rows:
        shown.add_row(
            row["arm"], f"{row['seconds']:.3f} s",
            f"{row['median_ratio']:.3f} ({row['median_interval'][0]:.3f} to {row['median_interval'][1]:.3f})", f"{row['total_ratio']:.3f}",
            *([f"{row['whole_model_ratio']:.4f}"] if whole else []), f"{row['reading_seconds'] * 1000:.1f} ms",
            f"{row['floor_seconds'] * 1000:.1f} ms", f"{row['reading_peak_bytes'] / 1e6:.1f} MB", "yes" if row["same_losses"] else "no",
        )  # fmt: skip
    out.print(shown)
    err.print(f"appended to {out_file}", soft_wrap=True, markup=False)


def teller() -> Callable[..., None]:
    """Says on stderr what is going on, a line every five seconds at most."""
    started, shown = time.monotonic(), -5.0

    def tell(phase: str, done: int | None = None, total: int | None = None, **fields: object) -> None:
        nonlocal shown
        if done is None or done == total or time.monotonic() - shown > 5:
            shown = time.monotonic()
            count = "" if done is None else f" {done}/{total}" if total else f" {done}"
            err.print(f"[{shown - started:4.0f} s] {phase}{count}", highlight=False, markup=False)

    return tell


def _print(merged: list[dict]) -> None:
    """One table per hookpoint and truth: rank correlation for each window, and for the longest the share of the top 20 found."""
    from rich.table import Table

    from gradlens.bench.attribution import AUCS
    from gradlens.readings.faithfulness import TRUTHS

    words = {"drift": "drift of feature activations", "drift_direction": "drift along directions"}
    for hookpoint in dict.fromkeys(entry["hookpoint"] for entry in merged):
        for truth in TRUTHS:
            rows = [entry for entry in merged if entry["hookpoint"] == hookpoint and entry["truth"] == truth]
            windows = sorted({entry["window"] for entry in rows})
            concepts = sorted({name for entry in rows for name in entry.get("concept_auc", {})})
            names = [
                *(f"{window} step{'s' if window > 1 else ''}" for window in windows),
                "top 20",
                *(f"AUC {name}" for name in concepts),
                "cost",
            ]
            shown = Table("estimator", *names, title=f"{hookpoint}, {words[truth]} (rank correlation)", title_justify="left", box=None)
            longest = [entry["estimator"] for entry in rows if entry["window"] == windows[-1]]  # best first
            for estimator in longest:
                cells = {entry["window"]: entry for entry in rows if entry["estimator"] == estimator}
                last = cells[windows[-1]]
                aucs = [[last.get(kind, {}).get(name) for kind in AUCS] for name in concepts]
                shown.add_row(
                    estimator, *(_with_range(cells.get(window)) for window in windows), f"{last['precision']:.0%}",
                    *(" / ".join("-" if value is None else f"{value:.2f}" for value in pair) for pair in aucs),
                    "-" if last["cost"] is None else f"{last['cost']:.0%}",
                )  # fmt: skip
            out.print(shown, markup=False)
            out.print()


def _with_range(entry: dict | None) -> str:
    if entry is None:
        return "-"
    spread = f" ({entry['spearman_min']:.2f} to {entry['spearman_max']:.2f})" if entry["seeds"] > 1 else ""
    return f"{entry['spearman']:.2f}{spread}"

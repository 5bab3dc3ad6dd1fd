"""`gradlens bench amplify`: steps to the same held-out loss, with and without amplification."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Annotated

import typer

from gradlens.cli.console import JsonOption, err, out, print_json
from gradlens.cli.run import SetOption

RESULTS = Path("benchmarks/results/amplify.jsonl")


def register(parent: typer.Typer) -> None:
    parent.command()(amplify)


def amplify(
    config: Annotated[Path | None, typer.Argument(metavar="[CONFIG]", help="A run config. Default: the demo's.")] = None,
    changes: SetOption = [],  # noqa: B006 (typer reads it)
    concept: Annotated[str, typer.Option(help="The concept of CONFIG that is amplified.")] = "arithmetic",
    task: Annotated[str | None, typer.Option(help="Key of evaluate.heldout: what is to be learned. Default: as the concept.")] = None,
    health: Annotated[str, typer.Option(help="Key of evaluate.heldout: ordinary text.")] = "plain",
    gains: Annotated[str, typer.Option(help="Gains to try, by commas.")] = "4,8",
    steps: Annotated[int, typer.Option(min=2, help="Optimizer steps of each run.")] = 40,
    every: Annotated[int, typer.Option(min=1, help="Steps between measurements.")] = 4,
    seeds: Annotated[str, typer.Option(help="One run each, for instance 0,1,2.")] = "0",
    out_file: Annotated[Path, typer.Option("--out", help="JSONL that results are appended to; what is there is not run again.")] = RESULTS,
    json_output: JsonOption = False,
) -> None:
    """Does amplifying a concept teach it sooner from the same rows, and what does that cost?

    saved: share of the steps saved on the way to the held-out loss that the run without rules ends with. health: the loss of ordinary text
    at that point, less what the run without rules has at its end (positive: worse). Beside each gain stand as many random features with
    the same gain, and a larger learning rate.

    Examples:
      gradlens bench amplify --set data.weights=[7,1] --seeds 0,1,2     # one row of eight is arithmetic
      gradlens bench amplify mine.yaml --concept sums --task sums --gains 2,4
    """
    from rich.table import Table

    from gradlens.bench.amplify import arms_for, run_arm, summary
    from gradlens.cli.bench import teller
    from gradlens.cli.run import DEMO, fetch_model
    from gradlens.config import load_config
    from gradlens.errors import ConfigError
    from gradlens.recording.runfolder import versions
    from gradlens.training.rank import Shared

    try:
        levels, chosen = [float(part) for part in gains.split(",")], sorted({int(part) for part in seeds.split(",")})
    except ValueError:
        raise ConfigError(f"--gains {gains} --seeds {seeds}: expected numbers, for instance --gains 4,8 --seeds 0,1,2") from None
    if min(levels) <= 1:
        raise ConfigError(f"--gains {gains}: amplification is a gain above 1")
    settings, name = load_config(config or DEMO, changes), task or concept
    if not settings.dictionaries:
        raise ConfigError(f"{config}: no `dictionaries`; there is nothing to amplify by")
    about = {"config": str(config or "demo"), "model": settings.model.name, "weights": settings.data.weights, "lr": settings.train.lr}
    known = [json.loads(line) for line in out_file.read_text(encoding="utf-8").split("\n") if line] if out_file.is_file() else []
    same = {"concept": concept, "task": name, "steps": steps, **about}
    rows = [row for row in known if all(row.get(key) == value for key, value in same.items()) and row["seed"] in chosen]
    done = {(row["arm"], row["seed"]) for row in rows}
    tell, shared = teller(), Shared()
    fetch_model(settings)
    for seed in chosen:
        for arm in arms_for(levels):
            if (arm, seed) in done:
                continue
            row = run_arm(settings, arm, seed, concept, name, health, steps, every, shared, tell) | about
            row |= {"time": time.strftime("%Y-%m-%d"), "versions": versions()}
            rows.append(row)
            out_file.parent.mkdir(parents=True, exist_ok=True)
            with out_file.open("a", encoding="utf-8") as lines:
                lines.write(json.dumps(row) + "\n")
    found = summary(rows)
    if json_output:
        print_json({"rows": found, "results": str(out_file)})
        return
    shown = Table("arm", "seeds", "steps saved", "health", "loss at the end", "plain at the end", "touched", box=None)
    for entry in found:
        low, high = entry["saved_range"] or (0, 0)
        shown.add_row(
            entry["arm"], f"{entry['reached']} of {entry['seeds']}",
            "-" if entry["saved"] is None else f"{entry['saved']:.0%} ({low:.0%} to {high:.0%})",
            "-" if entry["health"] is None else f"{entry['health']:+.3f}", f"{entry['wanted']:.3f}", f"{entry['plain']:.3f}",
            f"{entry['touched']:.0%}",
        )  # fmt: skip
    out.print(shown)
    err.print(f"results in {out_file}", soft_wrap=True, markup=False)

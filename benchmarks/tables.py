"""Writes the tables of `docs/` and the README from `benchmarks/results/*.jsonl`, between the marks in them.

python benchmarks/tables.py          # rewrites the files
python benchmarks/tables.py --check  # exits 1 where a file is not up to date
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import plots
from scaling import slope
from unnamed import CONTROLS

from gradlens.bench_attribution import table
from gradlens.bench_control import ARMS
from gradlens.control_summary import summary

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results"
FILES = ("README.md", "docs/attribution.md", "docs/performance.md", "docs/control.md")
PLOT = ROOT / "docs" / "images" / "scaling.svg"
TRUTHS = {"drift_direction": "along directions", "drift": "of activations"}
BEGIN, END = "<!-- table: {} -->", "<!-- end -->"
Row = dict[str, Any]


def read(name: str, keys: Sequence[str]) -> list[Row]:
    """Rows of a results file, of equal ones (in `keys`) the newest."""
    lines = (RESULTS / f"{name}.jsonl").read_text(encoding="utf-8").splitlines()
    return list({tuple(str(row[key]) for key in keys): row for row in map(json.loads, lines)}.values())


def grid(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table."""
    return "\n".join(["| " + " | ".join(heads) + " |", "|" + " --- |" * len(heads), *("| " + " | ".join(cells) + " |" for cells in rows)])


def attribution() -> str:
    """One row per estimator, one column per hookpoint, truth and window: Spearman, and the top-20 precision of the longest window."""
    rows = [row for row in read("attribution", ("config", "seed", "hookpoint", "estimator", "truth", "window")) if row["config"] == "demo"]
    merged, windows = table(rows), sorted({row["window"] for row in rows})
    hooks = sorted({entry["hookpoint"] for entry in merged})
    cells = {(e["hookpoint"], e["truth"], e["window"], e["estimator"]): e for e in merged}
    longest = max(windows)

    def best(name: str) -> float:
        return -sum(
            cells[hook, truth, longest, name]["spearman"] for hook in hooks for truth in TRUTHS if (hook, truth, longest, name) in cells
        )

    lines = []
    for name in sorted({entry["estimator"] for entry in merged}, key=best):
        line, cost = [f"`{name}`"], None
        for hook in hooks:
            for truth in TRUTHS:
                found = [cells.get((hook, truth, window, name)) for window in windows]
                text = " / ".join("-" if entry is None else f"{entry['spearman']:.2f}" for entry in found)
                line.append(text + ("" if found[-1] is None else f" ({found[-1]['precision']:.0%})"))
                cost = found[-1]["cost"] if found[-1] else cost
        lines.append([*line, "-" if cost is None else f"{cost:.1%}"])
    return grid(["estimator", *(f"{TRUTHS[truth]}, {hook}" for hook in hooks for truth in TRUTHS), "cost"], lines)


def concepts() -> str:
    """AUC of the features of known concepts after ten steps, by estimator, hookpoint and concept: mean and range over seeds. Each feature
    counted once, and (after the stroke) as often as it fires."""
    rows = [row for row in read("attribution", ("config", "seed", "hookpoint", "estimator", "truth", "window")) if row["config"] == "demo"]
    found: dict[str, dict[tuple[str, str], list[float]]] = {}
    firing: dict[tuple[str, str, str], list[float]] = {}
    for row in rows:
        own = "drift_direction" if row["estimator"].endswith("_direction") else "drift"
        if row["window"] == 1 and row["truth"] == own:
            for concept, value in row["concept_auc"].items():
                if value is not None:
                    found.setdefault(row["estimator"], {}).setdefault((concept, row["hookpoint"]), []).append(value)
                    firing.setdefault((row["estimator"], concept, row["hookpoint"]), []).extend(
                        [row["concept_auc_firing"][concept]] if "concept_auc_firing" in row else []
                    )
    columns = sorted({column for values in found.values() for column in values}, key=lambda column: (column[1], column[0]))
    order = sorted(found, key=lambda name: -np.mean([np.mean(values) for values in found[name].values()]))
    return grid(
        ["estimator", *(f"{concept}, {hook}" for concept, hook in columns)],
        [
            [
                f"`{name}`",
                *(f"{_range(found[name].get(column, []))} / {_range(firing.get((name, *column), []))}" for column in columns),
            ]
            for name in order
        ],
    )


def needle() -> str:
    """AUC of every ranking of rows, by concept."""
    rows = read("needle", ("concept", "seed"))
    kinds = list(rows[0]["auc"]["together"])
    names = list(dict.fromkeys(row["concept"] for row in rows))
    values = {name: {kind: [row["auc"]["together"][kind] for row in rows if row["concept"] == name] for kind in kinds} for name in names}
    lines = [[name, *(_range(values[name][kind], 3) for kind in kinds)] for name in names]
    return grid(["concept", *(f"`{kind}`" for kind in kinds)], lines)


def unnamed() -> str:
    """What a run said it had learned, by concept; and the controls."""
    lines = []
    for row in read("unnamed", ("concept", "seed")):
        best = (row["found"] or 1) - 1
        words = ", ".join(f"`{word}`".replace("|", "\\|") for word in row["clusters"][best]["words"][:6]) if row["clusters"] else "-"
        told = "control" if row["concept"] in CONTROLS else f"{row['found']}. ({row['auc'][best]:.2f})" if row["found"] else "no"
        own = row["clusters"][best]["own"] if row["clusters"] else {}
        said = f"{own['before']} -> {own['now']} of {own['of']}" if own else "-"
        learned = ", ".join(f"{count} of {row['live'][hook]}" for hook, count in row["learned"].items())
        lines.append([row["concept"], told, words, said, learned])
    return grid(["concept", "cluster (AUC)", "its words", "in own answers", "features learned, by hookpoint"], lines)


def overhead() -> str:
    """Steps of the demo with and without gradlens."""
    return _arms([row for row in read("overhead", ("job", "arm")) if row["job"] == "demo"], "median ratio to the bare step", "median_ratio")


def shapes() -> str:
    """The same for blocks in the shape of other models, as a share of the whole model's step."""
    rows = [row for row in read("overhead", ("job", "arm")) if row["job"] != "demo" and row["arm"] != "bare"]
    return _arms(rows, "whole model", "whole_model_ratio")


def _arms(rows: Sequence[Row], title: str, ratio: str) -> str:
    lines = []
    for row in rows:
        shown = f"{row[ratio]:.3f}"
        if ratio == "median_ratio":
            shown += f" ({row['median_interval'][0]:.3f} to {row['median_interval'][1]:.3f})"
        times = [f"{row[key] * 1e3:.1f} ms" if row[key] else "-" for key in ("reading_seconds", "floor_seconds")]
        memory = f"{row['reading_peak_bytes'] / 1e6:.1f} MB"
        job = [] if row["job"] == "demo" else [row["job"]]
        lines.append([*job, row["arm"], f"{row['seconds']:.2f} s", shown, *([] if job else [f"{row['total_ratio']:.3f}"]), *times, memory])
    job, sums = ([], ["ratio of the sums"]) if all(row["job"] == "demo" for row in rows) else (["shape"], [])
    return grid([*job, "arm", "median step", title, *sums, "readings", "floor", "peak memory"], lines)


def scaling() -> str:
    """Slopes of time and memory over sizes, and the largest sizes."""
    rows = read("scaling", ("sweep", "tokens", "features", "hookpoints", "width"))
    lines = []
    for sweep in ("tokens", "features", "hookpoints"):
        mine = sorted((row for row in rows if row["sweep"] == sweep), key=lambda row: row[sweep])
        first, last = mine[0], mine[-1]
        naive = [row for row in mine if "naive_seconds" in row]
        beside = ", ".join(f"{row['naive_seconds'] / row['same_seconds']:.1f} at {row[sweep]:,}" for row in (naive[0], naive[-1]))
        lines.append(
            [
                f"{sweep}, {first[sweep]:,} to {last[sweep]:,}", f"{slope(mine, sweep, 'seconds'):.2f}",
                f"{first['seconds'] * 1e3:.0f} to {last['seconds'] * 1e3:.0f} ms",
                f"{first['peak_bytes'] / 1e6:.0f} to {last['peak_bytes'] / 1e6:.0f} MB", beside,
            ]
        )  # fmt: skip
    return grid(
        [
            "sweep",
            "slope of time (1: linear)",
            "time of a step's readings",
            "peak memory",
            "naive hook against the same three estimators: times as long",
        ],
        lines,
    )


def control() -> str:
    """One row per pair, shape and arm: means over seeds."""
    rows = read("control", ("pair", "shape", "arm", "seed", "steps", "model"))
    lines = []
    for pair, shape in sorted({(row["pair"], row["shape"]) for row in rows}):
        for entry in summary([row for row in rows if (row["pair"], row["shape"]) == (pair, shape)], ARMS):
            share = [None if entry[key] is None else f"{entry[key]:.0%}" for key in ("rate", "gain", "right")]
            figures = [f"{entry['wanted']:.3f}", f"{entry['plain']:.3f}", f"{entry['touched']:.0%}", f"{entry['step_seconds']:.1f} s"]
            lines.append([f"{pair}, {shape}", entry["arm"], str(entry["seeds"]), *(part or "-" for part in share), *figures])
    return grid(["pair", "arm", "seeds", "unwanted", "gain", "right", "wanted loss", "plain loss", "touched", "step"], lines)


def _range(values: Sequence[float], digits: int = 2) -> str:
    if not values:
        return "-"
    mean = f"{np.mean(values):.{digits}f}"
    return mean if len(values) == 1 else f"{mean} ({min(values):.{digits}f} to {max(values):.{digits}f})"


TABLES: dict[str, Callable[[], str]] = {
    "attribution": attribution, "concepts": concepts, "needle": needle, "unnamed": unnamed, "overhead": overhead, "shapes": shapes,
    "scaling": scaling, "control": control,
}  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true")
    arguments = parser.parse_args()
    stale = []
    for name in FILES:
        path = ROOT / name
        old = new = path.read_text(encoding="utf-8")
        for title, make in TABLES.items():
            mark = BEGIN.format(title)
            if mark in new:
                start = new.index(mark)
                new = new[:start] + f"{mark}\n{make()}\n{END}" + new[new.index(END, start) + len(END) :]
        if new != old:
            stale.append(name)
            if not arguments.check:
                path.write_text(new, encoding="utf-8")
    drawn = plots.scaling(read("scaling", ("sweep", "tokens", "features", "hookpoints", "width")))
    if not PLOT.is_file() or PLOT.read_text(encoding="utf-8") != drawn:
        stale.append(PLOT.name)
        if not arguments.check:
            PLOT.write_text(drawn, encoding="utf-8")
    print(f"{'out of date' if arguments.check else 'written'}: {', '.join(stale) or 'none'}")
    sys.exit(bool(stale) and arguments.check)


if __name__ == "__main__":
    main()

"""Writes the tables of `docs/` and the README from `benchmarks/results/*.jsonl`, between the marks in them.

python benchmarks/tables.py          # rewrites the files
python benchmarks/tables.py --check  # exits 1 where a file is not up to date
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import plot_control
import plots
from scaling import slope
from unnamed import CONTROLS

from gradlens.bench.amplify import summary as amplified
from gradlens.bench.attribution import table
from gradlens.bench.control import ARMS
from gradlens.bench.control_summary import FAMILIES, MODES, summary, tuned

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results"
FILES = ("README.md", "docs/attribution.md", "docs/alarms.md", "docs/performance.md", "docs/control.md", "docs/control-figures.md")
IMAGES = ROOT / "docs" / "images"
TRUTHS = {"drift_direction": "along directions", "drift": "of activations"}
BEGIN, END = "<!-- table: {} -->", "<!-- end -->"
RUN = ("pair", "shape", "arm", "seed", "steps", "model")  # what makes a row of `control.jsonl` the same run as another
OLDER = "†"  # answers of at most 32 tokens, and `right` by the last group of digits
Row = dict[str, Any]


def read(name: str, keys: Sequence[str]) -> list[Row]:
    """Rows of a results file, of equal ones (in `keys`) the newest."""
    lines = (RESULTS / f"{name}.jsonl").read_text(encoding="utf-8").splitlines()
    return list({tuple(str(row[key]) for key in keys): row for row in map(json.loads, lines)}.values())


def grid(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table."""
    return "\n".join(["| " + " | ".join(heads) + " |", "|" + " --- |" * len(heads), *("| " + " | ".join(cells) + " |" for cells in rows)])


def attribution(short: bool = False) -> str:
    """One row per estimator, one column per hookpoint, truth and window: Spearman, and the top-20 precision of the longest window.
    `short`: of the longest window alone."""
    rows = [row for row in read("attribution", ("config", "seed", "hookpoint", "estimator", "truth", "window")) if row["config"] == "demo"]
    merged, windows = table(rows), sorted({row["window"] for row in rows})
    hooks = sorted({entry["hookpoint"] for entry in merged})
    cells = {(e["hookpoint"], e["truth"], e["window"], e["estimator"]): e for e in merged}
    longest = max(windows)
    shown = [longest] if short else windows

    def best(name: str) -> float:
        return -sum(
            cells[hook, truth, longest, name]["spearman"] for hook in hooks for truth in TRUTHS if (hook, truth, longest, name) in cells
        )

    lines = []
    for name in sorted({entry["estimator"] for entry in merged}, key=best):
        line, cost = [f"`{name}`"], None
        for hook in hooks:
            for truth in TRUTHS:
                found = [cells.get((hook, truth, window, name)) for window in shown]
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


def telling() -> str:
    """How rows and tokens of pairs are told."""
    lines = []
    for row in read("telling", ("pair",)):
        rows, tokens = row.get("rows"), row.get("tokens")
        told = ["-"] * 3 if rows is None else [f"{rows['auc']:.3f}", f"{rows['unwanted']:.0%}", f"{rows['wanted']:.0%}"]
        taken = ["-"] * 4 if tokens is None else [f"{tokens[key]:.0%}" for key in ("found", "others", "plain", "same")]
        lines.append([row["pair"], *told, *taken])
    heads = ["rows (AUC)", "unwanted rows left out", "wanted ones too", "its tokens found", "others of these rows", "of the plain rows",
             "rewritten as the plain row"]  # fmt: skip
    return grid(["pair", *heads], lines)


def examples() -> str:
    """Entangled rows that are rewritten as the plain row, by what the concept file brings; after the stroke rows told in a mix: unwanted
    ones left out less wanted ones."""
    found = {(row["pair"], "given"): row for row in read("telling", ("pair",))}
    found |= {(row["pair"], row["examples"]): row for row in read("telling_examples", ("pair", "examples"))}
    kinds = list(dict.fromkeys(kind for _, kind in found))
    pairs = [pair for pair in dict.fromkeys(pair for pair, _ in found) if all((pair, kind) in found for kind in kinds)]

    def cell(row: Row) -> str:
        rows = row.get("rows")
        return f"{row['tokens']['same']:.0%} / " + ("-" if rows is None else f"{rows['unwanted'] - rows['wanted']:.0%}")

    return grid(["pair", *kinds], [[pair, *(cell(found[pair, kind]) for kind in kinds)] for pair in pairs])


def release() -> str:
    """Unwanted answers before and after further steps without the rule, by what these train on; with a rule and in the unfiltered run."""
    rows = [row for row in [*read("release", (*RUN, "released")), *read("control", RUN)] if "released" in row]
    rows = [row | {"on": row["released"]["data"]} for row in rows]
    rows = list({tuple(row[key] for key in ("on", *RUN)): row for row in rows}.values())
    lines = []
    for pair, shape, on in sorted({(row["pair"], row["shape"], row["on"]) for row in rows}):
        for entry in summary([row for row in rows if (row["pair"], row["shape"], row["on"]) == (pair, shape, on)], ARMS):
            later = entry["released"]
            cells = [_share(entry["rate"]), _share(later["rate"], later["rate_interval"]), _share(later["stands"])]
            lines.append([f"{pair}, {shape}", on.removeprefix("demo:"), entry["arm"], str(entry["seeds"]), *cells])
    return grid(["pair", "100 steps on", "arm", "seeds", "unwanted", "after release", "stands"], lines)


def needle(name: str = "needle") -> str:
    """AUC of every ranking of rows, by concept."""
    rows = read(name, ("concept", "seed"))
    kinds = list(dict.fromkeys(kind for row in rows for kind in row["auc"]["together"]))
    names = list(dict.fromkeys(row["concept"] for row in rows))
    found = {each: [row["auc"]["together"] for row in rows if row["concept"] == each] for each in names}
    lines = [[each, *(_range([aucs[kind] for aucs in found[each] if kind in aucs], 3) for kind in kinds)] for each in names]
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
        less = ", ".join(f"`{word}`".replace("|", "\\|") for word in (row.get("less") or {}).get("words", [])[:6]) or "-"
        lines.append([row["concept"], told, words, said, less, learned])
    return grid(["concept", "cluster (AUC)", "its words", "in own answers", "says less", "features learned, by hookpoint"], lines)


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


def _control_panels() -> list[tuple[str, str, list[Row]]]:
    """`(pair, shape, summary)` of everything in `control.jsonl`."""
    rows = read("control", RUN)
    parts = sorted({(row["pair"], row["shape"]) for row in rows})
    found = []
    for part in parts:
        mine = [row for row in rows if (row["pair"], row["shape"]) == part]
        older = {row["arm"] for row in mine if "fingerprint" not in row}
        found.append((*part, [entry | {"older": OLDER if entry["arm"] in older else ""} for entry in summary(mine, ARMS)]))
    return found


def control() -> str:
    """One row per pair, shape and arm: means over seeds, with intervals; losses with what they lie above the oracle's."""
    lines = []
    for pair, shape, entries in _control_panels():
        for entry in entries:
            lines.append(
                [
                    f"{pair}, {shape}", entry["arm"] + entry["older"], str(entry["seeds"]), _share(entry["rate"], entry["rate_interval"]),
                    _share(entry["sampled"], entry["sampled_interval"]), _share(entry["gain"], entry["gain_interval"]),
                    _share(entry["right"]), _over(entry["wanted"], entry["wanted_over"]), _over(entry["plain"], entry["plain_over"]),
                    _share(entry["touched"]), f"{entry['step_seconds']:.1f} s",
                ]
            )  # fmt: skip
    heads = ["pair", "arm", "seeds", "unwanted", "drawn", "gain", "right", "wanted loss", "plain loss", "touched", "step"]
    return grid(heads, lines)


def displaced() -> str:
    """What rose instead, arm by arm, where it was measured."""
    lines = []
    for pair, shape, entries in _control_panels():
        for entry in entries:
            found = entry["displaced"]
            if found:
                shares = [_share(found[kind]) for kind in ("own", "cosine", "coactive", "reads")]
                auc = "-" if found["auc"] is None else f"{found['auc']:.2f}"
                lines.append([f"{pair}, {shape}", entry["arm"], *shares, auc, "-" if found["fvu"] is None else f"{found['fvu']:+.3f}"])
    heads = ["pair", "arm", "its features", "nearest", "same tokens", "answers read", "texts told (AUC)", "FVU, plain text"]
    return grid(heads, lines) if lines else "(not measured yet)"


def control_best(short: bool = False) -> str:
    """One row per pair and shape: the mode nearest to the goal, as many random features in its place, the best of each tuned baseline.
    `short`: the pairs with three seeds or more, and every one whose best mode keeps less than three quarters of the gain."""
    lines = []
    for pair, shape, entries in _control_panels():
        by_arm, best = {entry["arm"]: entry for entry in entries}, tuned(entries, MODES | FAMILIES)
        if "modes" in best:
            mode = by_arm[best["modes"]]
            if short and mode["seeds"] < 3 and mode["gain"] is not None and mode["gain"] >= 0.75:
                continue
            twin = mode["arm"]
            if twin == "auto" and "auto-random" not in by_arm:  # what it settles on
                twin = "route" if shape == "mix" else "rewrite"
            others = [by_arm.get(f"{twin}-random"), *(by_arm.get(best.get(family)) for family in FAMILIES)]
            lines.append([f"{pair}, {shape}", str(mode["seeds"]), _both(by_arm.get("none")), _both(mode), *map(_both, others)])
    return grid(["pair", "seeds", "no rule", "best mode", "random features", *FAMILIES], lines)


def _both(entry: Row | None) -> str:
    """Unwanted answers / gain, and of which arm."""
    return "-" if entry is None else f"{_share(entry['rate'])} / {_share(entry['gain'])} ({entry['arm']}){entry['older']}"


def _share(value: float | None, interval: Sequence[float] | None = None) -> str:
    if value is None:
        return "-"
    return f"{value:.0%}" + (f" ({interval[0]:.0%} to {interval[1]:.0%})" if interval else "")


def _over(loss: float, over: float | None) -> str:
    return f"{loss:.3f}" + ("" if over is None else f" ({over:+.0%})")


def amplify() -> str:
    """One row per arm of the demo's mix: steps to the loss that the run without rules ends with."""
    rows = read("amplify", ("config", "weights", "steps", "concept", "arm", "seed"))
    lines = []
    for entry in amplified([row for row in rows if row["config"] == "demo"]):
        low, high = entry["saved_range"] or (0, 0)
        saved = "-" if entry["saved"] is None else f"{entry['saved']:.0%} ({low:.0%} to {high:.0%})"
        health = "-" if entry["health"] is None else f"{entry['health']:+.3f}"
        reached = f"{entry['reached']} of {entry['seeds']}"
        lines.append([entry["arm"], reached, saved, health, f"{entry['wanted']:.3f}", f"{entry['plain']:.3f}", f"{entry['touched']:.0%}"])
    return grid(["arm", "reached it", "steps saved", "plain loss there", "loss at the end", "plain loss at the end", "touched"], lines)


def alarms() -> str:
    """Of each pair the step of the alarm and that at which answers tell, by seed; and the control without the concept."""
    rows = read("alarms", ("pair", "control", "seed", "steps"))
    lines = []
    for pair in dict.fromkeys(row["pair"] for row in rows):
        shown, alone = ([row for row in rows if (row["pair"], row["control"]) == (pair, control)] for control in (False, True))
        steps = [", ".join("-" if row[key] is None else str(row[key]) for row in shown) or "-" for key in ("alarm", "answers")]
        false = ", ".join("none" if row["alarm"] is None else f"step {row['alarm']}" for row in alone) or "-"
        told = ", ".join(str(min(one["step"] for one in row["unannounced"])) if row["unannounced"] else "-" for row in shown) or "-"
        lines.append([pair, *steps, told, false])
    return grid(["pair", "alarm at step", "answers tell at step", "something unannounced at step", "alarms without the concept"], lines)


def _range(values: Sequence[float], digits: int = 2) -> str:
    if not values:
        return "-"
    mean = f"{np.mean(values):.{digits}f}"
    return mean if len(values) == 1 else f"{mean} ({min(values):.{digits}f} to {max(values):.{digits}f})"


TABLES: dict[str, Callable[[], str]] = {
    "attribution": attribution, "concepts": concepts, "needle": needle, "needle_blind": partial(needle, "needle_blind"),
    "unnamed": unnamed, "overhead": overhead, "shapes": shapes, "scaling": scaling, "control": control, "amplify": amplify,
    "alarms": alarms, "displaced": displaced, "control_best": control_best, "control_short": partial(control_best, short=True),
    "attribution_short": partial(attribution, short=True), "telling": telling, "examples": examples, "release": release,
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
    pictures = {
        "scaling.svg": plots.scaling(read("scaling", ("sweep", "tokens", "features", "hookpoints", "width"))),
        "control.svg": plot_control.control(_control_panels()),
    }
    for name, drawn in pictures.items():
        if not (IMAGES / name).is_file() or (IMAGES / name).read_text(encoding="utf-8") != drawn:
            stale.append(name)
            if not arguments.check:
                (IMAGES / name).write_text(drawn, encoding="utf-8")
    print(f"{'out of date' if arguments.check else 'written'}: {', '.join(stale) or 'none'}")
    sys.exit(bool(stale) and arguments.check)


if __name__ == "__main__":
    main()

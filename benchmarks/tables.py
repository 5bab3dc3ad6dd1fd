"""Writes the tables of `docs/attribution.md` and the README from `benchmarks/results/attribution.jsonl`, between the marks in them.

python benchmarks/tables.py          # rewrites the files
python benchmarks/tables.py --check  # exits 1 where a file is not up to date
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from gradlens.bench_attribution import table

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results" / "attribution.jsonl"
FILES = ("README.md", "docs/attribution.md")
TRUTHS = {"drift_direction": "along directions", "drift": "of activations"}
BEGIN, END = "<!-- table: {} -->", "<!-- end -->"


def markdown(merged: list[dict], windows: list[int]) -> str:
    """One row per estimator, one column per hookpoint, truth and window: Spearman, and the top-20 precision of the longest window."""
    hooks = sorted({entry["hookpoint"] for entry in merged})
    cells = {(e["hookpoint"], e["truth"], e["window"], e["estimator"]): e for e in merged}
    heads = [f"{TRUTHS[truth]}, {hook}" for hook in hooks for truth in TRUTHS]
    lines = ["| estimator | " + " | ".join(heads) + " |", "| --- |" + " --- |" * len(heads)]
    longest = max(windows)

    def best(name: str) -> float:
        return -sum(
            cells[hook, truth, longest, name]["spearman"] for hook in hooks for truth in TRUTHS if (hook, truth, longest, name) in cells
        )

    for name in sorted({entry["estimator"] for entry in merged}, key=best):
        row = []
        for hook in hooks:
            for truth in TRUTHS:
                found = [cells.get((hook, truth, window, name)) for window in windows]
                text = " / ".join("-" if entry is None else f"{entry['spearman']:.2f}" for entry in found)
                row.append(text + ("" if found[-1] is None else f" ({found[-1]['precision']:.0%})"))
        lines.append(f"| `{name}` | " + " | ".join(row) + " |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true")
    arguments = parser.parse_args()
    rows = [json.loads(line) for line in RESULTS.read_text(encoding="utf-8").splitlines()]
    newest = {(row["config"], row["seed"], row["hookpoint"], row["estimator"], row["truth"], row["window"]): row for row in rows}
    demo = [row for row in newest.values() if row["config"] == "demo"]
    windows = sorted({row["window"] for row in demo})
    text = f"{BEGIN.format('attribution')}\n{markdown(table(demo), windows)}\n{END}"
    stale = []
    for name in FILES:
        path = ROOT / name
        old = path.read_text(encoding="utf-8")
        if BEGIN.format("attribution") not in old:
            continue
        start = old.index(BEGIN.format("attribution"))
        new = old[:start] + text + old[old.index(END, start) + len(END) :]
        if new != old:
            stale.append(name)
            if not arguments.check:
                path.write_text(new, encoding="utf-8")
    print(f"{'out of date' if arguments.check else 'written'}: {', '.join(stale) or 'none'}")
    sys.exit(bool(stale) and arguments.check)


if __name__ == "__main__":
    main()

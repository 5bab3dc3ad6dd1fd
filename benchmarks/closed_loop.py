"""The closed loop on a real model: a concept's drift is capped at a share of what it reaches when nothing holds it.

    python benchmarks/closed_loop.py --steps 24 --cap 0.333

Runs the demo's config without a rule, with the concept routed away altogether (the least that a gain can do), and with a target; writes the
curves and whether the target was held to benchmarks/results/closed_loop.jsonl. One process, no Ray.
"""

from __future__ import annotations

import argparse
import platform
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from gradlens.config import load_config
from gradlens.files import append_line
from gradlens.recording.recorder import MemoryRecorder
from gradlens.recording.runfolder import versions
from gradlens.training.rank import Rank, Shared
from gradlens.training.train import train_rank

CONFIG = Path(__file__).parents[1] / "gradlens" / "assets" / "quickstart.yaml"
RESULTS = Path(__file__).parent / "results" / "closed_loop.jsonl"


def run(folder: Path, rules: list[dict[str, Any]], changes: list[str], shared: Shared) -> MemoryRecorder:
    """One arm: the demo's config, the probe set read after every step, nothing else that takes time."""
    settings = [
        "evaluate={}",
        "observe.drift_every=1",
        "observe.own_prompts=0",
        "observe.update_every=0",
        "train.save_model=false",
        *changes,
    ]
    config = load_config(CONFIG, [*settings, "rules=[]"]).model_copy(update={"rules": rules})
    recorder = MemoryRecorder()
    folder.mkdir(parents=True)
    train_rank(Rank(config, folder, recorder, shared=shared))
    return recorder


def curve(recorder: MemoryRecorder, key: str) -> list[float]:
    return [record["scalars"][key] for record in recorder.records if key in record["scalars"]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=24)
    parser.add_argument("--concept", default="pirate")
    parser.add_argument("--hookpoint", default="layers.27")
    parser.add_argument("--measure", default="drift")
    parser.add_argument("--cap", type=float, default=1 / 3, help="the target, as a share of the largest value without a rule")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="change a key of the demo's config")
    parser.add_argument("--target", action="append", default=[], metavar="KEY=VALUE", help="further fields of the target")
    parser.add_argument("--results", type=Path, default=RESULTS)
    options = parser.parse_args()
    key = f"concept/{options.concept}/{options.hookpoint}/{options.measure}"
    changes, shared = [f"train.steps={options.steps}", *options.set], Shared()
    began, arms = time.time(), {}
    with tempfile.TemporaryDirectory() as scratch:
        base = {"concept": options.concept, "mode": "route", "hookpoints": [options.hookpoint], "name": "loop"}
        arms["none"] = run(Path(scratch) / "none", [], changes, shared)
        arms["routed away"] = run(Path(scratch) / "away", [{**base, "gain": 0.0}], changes, shared)
        wanted = options.cap * max(curve(arms["none"], key))
        further = {name: float(value) for name, _, value in (item.partition("=") for item in options.target)}
        target = {"kind": "at_most", "value": wanted, "measure": options.measure, "hookpoint": options.hookpoint, **further}
        arms["target"] = run(Path(scratch) / "target", [{**base, "target": target}], changes, shared)
    measured = curve(arms["target"], "rule/loop/measured")
    within = [value <= 1.1 * wanted for value in measured]
    settled = next((step for step in range(len(within)) if all(within[step:])), None)
    result = {
        "steps": options.steps, "key": key, "target": target, "settings": options.set,
        "curves": {name: [round(value, 4) for value in curve(recorder, key)] for name, recorder in arms.items()},
        "gain": [round(value, 4) for value in curve(arms["target"], "rule/loop/gain")],
        "loss": {name: [round(value, 4) for value in curve(recorder, "train/loss")] for name, recorder in arms.items()},
        "within_10_percent_from_step": None if settled is None else settled + 1,
        "events": [event for event in arms["target"].events if event["kind"] in ("limit", "target", "budget", "norm_capped")],
        "seconds": round(time.time() - began), "machine": platform.machine(), "threads": torch.get_num_threads(), "versions": versions(),
    }  # fmt: skip
    append_line(options.results, result)
    for name, values in result["curves"].items():
        print(f"{name:>12}: {' '.join(f'{value:.2f}' for value in values)}")
    print(f"{'gain':>12}: {' '.join(f'{value:.2f}' for value in result['gain'])}")
    for event in result["events"]:
        print(event["text"])
    print(f"target {wanted:.3g}; within 10% from step {result['within_10_percent_from_step']} of {options.steps}")


if __name__ == "__main__":
    main()

"""What do readings cost as tokens, features and hookpoints grow? Time and memory of one step's readings at hookpoints, all estimators.

Random dictionaries (TopK 32) of the demo model's width on random activations and gradients: only sizes matter here. `naive` is what one
would write first for push, attribution and energy: dense activations and a dense product of gradients and directions; `same` are these
three by gradlens, without the others and without rows. The slope is that of log(seconds) over log(size), by least squares: 1 is linear.

    python benchmarks/scaling.py                                 tokens, features up to a million, hookpoints
    python benchmarks/scaling.py --features 16384 --width 2304   other sizes
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from gradlens.bench.overhead import ESTIMATORS, measured_peaks, work
from gradlens.bench.peak_memory import PeakMemory
from gradlens.config import ObserveSettings
from gradlens.dictionaries.dictionary import Dictionary
from gradlens.readings.projection import Projection, Tokens
from gradlens.recording.runfolder import versions

RESULTS = Path(__file__).parent / "results" / "scaling.jsonl"
NAIVE_BYTES = 2**31  # [T, F] products beyond this are not tried
ROWS = 8


def dictionary(width: int, features: int, seed: int) -> Dictionary:
    """Random, in half precision where it is large, as such dictionaries are kept."""
    generator = torch.Generator().manual_seed(seed)
    dtype = torch.float16 if features * width * 8 > 2 * 2**30 else torch.float32
    W_dec = torch.empty(features, width, dtype=dtype)
    for rows in W_dec.split(2**14):
        rows.copy_(torch.nn.functional.normalize(torch.randn(len(rows), width, generator=generator), dim=-1))
    zeros = lambda size: torch.zeros(size, dtype=dtype)  # noqa: E731
    return Dictionary(W_dec.T.contiguous(), zeros(features), W_dec, zeros(width), activation="topk", k=32)


def batch(width: int, tokens: int, seed: int) -> Tokens:
    generator = torch.Generator().manual_seed(seed)
    h, g = torch.randn(2, tokens, width, generator=generator)
    row, position = torch.arange(tokens) * ROWS // tokens, torch.arange(tokens)
    counted = torch.ones(tokens, dtype=torch.bool)
    return Tokens(h, g, counted, row, position, ROWS, tuple(range(ROWS)), torch.rand(tokens, generator=generator))


def timed(run: Callable[[], Any], seconds: float) -> list[float]:
    """Seconds of every repetition, at least three, as many as fit; the first, unmeasured one warms up."""
    run()
    found: list[float] = []
    while len(found) < 3 or (sum(found) < seconds and len(found) < 50):
        began = time.perf_counter()
        run()
        found.append(time.perf_counter() - began)
    return found


def measure(dictionaries: dict[str, Dictionary], tokens: Tokens, seconds: float) -> dict[str, Any]:
    """Median seconds and peak bytes of one step's readings, and of the naive form where it fits."""
    concepts = {("some", name): [0, 1, 2] for name in dictionaries}
    every = Projection(dictionaries, concepts, ObserveSettings(estimators=list(ESTIMATORS)))
    three = Projection(dictionaries, {}, ObserveSettings(estimators=["push", "attribution", "energy"]))

    def step(projection: Projection, given: Tokens) -> None:
        for name in dictionaries:
            projection.add(name, given)
        projection.take(1)

    def naive() -> None:
        for part in dictionaries.values():
            acts_TF, dots_TF = part.encode(tokens.h_TD), tokens.g_TD @ part.W_dec.to(tokens.g_TD.dtype).T
            (-(acts_TF * dots_TF).sum(0) - dots_TF.sum(0) + dots_TF.square().sum(0)).sum()

    times = timed(lambda: step(every, tokens), seconds)
    with PeakMemory() as memory:
        step(every, tokens)
    entry: dict[str, Any] = {"seconds": float(np.median(times)), "peak_bytes": memory.peak}
    entry["same_seconds"] = float(np.median(timed(lambda: step(three, replace(tokens, row_ids=None)), seconds)))
    F = sum(part.d_sae for part in dictionaries.values())
    if len(tokens.g_TD) * F * 4 < NAIVE_BYTES / 3:
        with PeakMemory() as memory:
            naive()
        entry |= {"naive_seconds": float(np.median(timed(naive, seconds))), "naive_peak_bytes": memory.peak}
    counts = [work(part, len(tokens.g_TD), ESTIMATORS) for part in dictionaries.values()]
    return entry | {"flops": sum(flops for flops, _ in counts), "bytes": sum(moved for _, moved in counts)}


def slope(rows: list[dict[str, Any]], key: str, value: str) -> float:
    return float(np.polyfit(np.log([row[key] for row in rows]), np.log([row[value] for row in rows]), 1)[0])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    numbers = lambda text: [int(part) for part in text.split(",")]  # noqa: E731
    parser.add_argument("--tokens", type=numbers, default=[64, 128, 256, 512, 1024, 2048], help="at the middle number of features")
    parser.add_argument(
        "--features", type=numbers, default=[3072, 8192, 32_768, 131_072, 524_288, 1_048_576], help="at the middle number of tokens"
    )
    parser.add_argument("--hookpoints", type=numbers, default=[1, 2, 4, 8], help="each with a dictionary of the smallest size")
    parser.add_argument("--width", type=int, default=576)
    parser.add_argument("--seconds", type=float, default=3.0, help="spent on each figure, about")
    parser.add_argument("--out", type=Path, default=RESULTS)
    given = parser.parse_args()
    middle = given.features[min(1, len(given.features) - 1)], given.tokens[min(2, len(given.tokens) - 1)]
    cases = [("tokens", T, middle[0], 1) for T in given.tokens]
    cases += [("hookpoints", middle[1], given.features[0], H) for H in given.hookpoints]
    cases += [("features", middle[1], F, 1) for F in given.features]
    about = {"time": time.strftime("%Y-%m-%d"), "versions": versions(), "threads": torch.get_num_threads()}
    about |= measured_peaks(torch.device("cpu"))
    rows: list[dict[str, Any]] = []
    for sweep, T, F, H in cases:
        dictionaries = {f"layers.{i}": dictionary(given.width, F, i) for i in range(H)}
        row = {"sweep": sweep, "tokens": T, "features": F, "hookpoints": H, "width": given.width}
        row |= measure(dictionaries, batch(given.width, T, 0), given.seconds)
        rows.append(row | about)
        beside = f", the same as naive {row['same_seconds'] * 1e3:.0f} ms"
        beside += (
            f", naive {row['naive_seconds'] * 1e3:.0f} ms, {row['naive_peak_bytes'] / 1e6:.0f} MB"
            if "naive_seconds" in row
            else ", naive does not fit"
        )
        floor = max(row["flops"] / about["peak_flops"], row["bytes"] / about["peak_bandwidth"])
        print(
            f"{T} tokens x {F} features x {H} hookpoints: {row['seconds'] * 1e3:.0f} ms (floor {floor * 1e3:.0f}), "
            f"{row['peak_bytes'] / 1e6:.0f} MB{beside}", flush=True,
        )  # fmt: skip
    for sweep in ("tokens", "features", "hookpoints"):
        mine = [row for row in rows if row["sweep"] == sweep]
        if len(mine) > 1:
            print(f"slope over {sweep}: {slope(mine, sweep, 'seconds'):.2f}")
    given.out.parent.mkdir(parents=True, exist_ok=True)
    with given.out.open("a", encoding="utf-8") as lines:
        lines.writelines(json.dumps(row) + "\n" for row in rows)


if __name__ == "__main__":
    main()

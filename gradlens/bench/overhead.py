"""What does watching cost? Training steps with and without gradlens, in paired order in one process.

Every arm has a model of its own (frozen weights are shared) and sees the same batches; the order of the arms rotates from step to step, so
that whatever else the machine does falls on all alike. A step is forward, backward, clipping and the optimizer with everything that
hangs on it. Two ratios to the bare step are given: the median over steps, which is what a step without readings of the probe set costs, and
the ratio of the sums, which has those in it.

What the readings at the hookpoints take is also compared with the floor that arithmetic sets: the larger of their operations at the rate of
a matrix product, and their bytes at the rate of a copy, both rates measured in the same process.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, ExitStack, nullcontext
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from gradlens.bench.bergson import Collecting
from gradlens.bench.jobs import Job, Micro, Progress
from gradlens.bench.peak_memory import PeakMemory
from gradlens.control.row_teller import rows_of
from gradlens.control.rules import Policy
from gradlens.dictionaries.dictionary import Dictionary
from gradlens.dictionaries.products import linear
from gradlens.lens import Lens
from gradlens.model.capture import counted_tokens
from gradlens.model.hookpoints import find_hookpoint
from gradlens.readings.attribution import GRAM
from gradlens.readings.projection import EXPLAINED_TOKENS
from gradlens.recording.recorder import MemoryRecorder
from gradlens.training.train import LossFunction

NOTHING = {"estimators": [], "drift_every": 0, "update_every": 0, "own_prompts": 0}
ESTIMATORS = ("push", "taught", "attribution", "energy", "unexplained")
NAIVE = ("push", "attribution", "energy")  # what the naive hook computes
# arm -> changes of `observe`; `default`: the job's own settings
ARMS: dict[str, dict[str, Any]] = {
    "hooks": NOTHING,
    **{name: NOTHING | {"estimators": [name]} for name in ESTIMATORS},
    "estimators": NOTHING | {"estimators": list(ESTIMATORS)},
    "default": {},
    "rules": NOTHING,
}
ALL_ARMS = ("bare", "control", *ARMS, "naive", "bergson")
RESAMPLES = 1000
WARM = 2  # steps on a GPU that are not counted: kernels are compiled and tiles chosen in them, which takes longer than all others together


class Meter:
    """Seconds, and when asked the peak memory, of what runs at the hookpoints. On a GPU by events on its stream: nobody waits for it."""

    def __init__(self, device: torch.device) -> None:
        self.device, self.weigh, self.peak_bytes = device, False, 0
        self._seconds = 0.0
        self._events: list[tuple[torch.cuda.Event, torch.cuda.Event]] = []

    def take(self) -> float:
        """Seconds since the last call, once the device has done its work."""
        seconds = self._seconds + sum(began.elapsed_time(ended) for began, ended in self._events) / 1000
        self._seconds, self._events = 0.0, []
        return seconds

    def __call__(self, work: Callable[..., Any], *args: Any) -> Any:
        if not self.weigh and self.device.type == "cuda":
            began, ended = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
            began.record()
            done = work(*args)
            ended.record()
            self._events.append((began, ended))
            return done
        if not self.weigh:
            start = time.perf_counter()
            done = work(*args)
            self._seconds += time.perf_counter() - start
            return done
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats()
            before = torch.cuda.memory_allocated()
            done = work(*args)
            torch.cuda.synchronize()
            self.peak_bytes = max(self.peak_bytes, torch.cuda.max_memory_allocated() - before)
            return done
        with PeakMemory() as memory:
            done = work(*args)
        self.peak_bytes = max(self.peak_bytes, memory.peak)
        return done


def bench(job: Job, arms: Sequence[str], steps: int, device: torch.device, progress: Progress) -> list[dict[str, Any]]:
    """One entry per arm: `arm, steps, seconds` (median step), `median_ratio` with a 95% interval, `total_ratio` with one over blocks of
    steps, `whole_model_ratio` (see `Job.scale`), `same_losses` as the bare arm or not; of the readings at the hookpoints
    `reading_seconds` (median step), `reading_peak_bytes`, `floor_seconds`, `flops`, `bytes`. The last step is not timed but weighed.
    `control`: bare once more, so that it shows what two copies of the same thing differ by. `naive`: a hook with dense [T, F] products.
    `rules`: the job's, nothing read. `bergson`: another library's gradient collection, see `gradlens.bench.bergson`; its peak memory is
    that of one hook at a time, without what it keeps until the step's end."""
    with ExitStack() as stack:
        take: dict[str, Callable[..., float]] = {}
        warm = WARM if device.type == "cuda" else 0
        meters = {arm: Meter(device) for arm in arms}
        lenses: dict[str, Lens] = {}
        watched: dict[str, Lens | Collecting] = {}  # what is told which rows come
        for arm in arms:
            progress(f"preparing {arm}")
            mine = _copy(job.model)
            optimizer = torch.optim.AdamW([p for p in mine.parameters() if p.requires_grad], lr=job.lr)
            watching: AbstractContextManager = nullcontext()
            if arm == "naive":
                watching = _naive(mine, job.dictionaries, meters[arm])
            elif arm == "bergson":
                rows = sum(len(row_ids) for _, row_ids in job.batch(0)[0])
                watching = watched[arm] = Collecting(mine, optimizer, rows * (warm + steps + 1), meters[arm])
            elif arm not in ("bare", "control"):
                watching = watched[arm] = lenses[arm] = Lens(
                    mine, optimizer, job.dictionaries, policy=Policy(version=1, rules=tuple(job.rules)) if arm == "rules" else None,
                    recorder=MemoryRecorder(), observe=job.observe.model_copy(update=ARMS[arm]), **job.lens,
                )  # fmt: skip
            stack.enter_context(watching)
            if arm in lenses:
                lens, projector = lenses[arm], lenses[arm].projector
                projector.add, projector.finish = (partial(meters[arm], part) for part in (projector.add, projector.finish))
                lens.hooks.encode = partial(meters[arm], lens.hooks.encode)  # what a route rule needs to know before the backward pass
                lens.hooks._note_losses = partial(meters[arm], lens.hooks._note_losses)  # what `taught` needs to know
            take[arm] = partial(_step, mine, optimizer, LossFunction(mine), job.max_grad_norm, watched.get(arm), device)
        seconds: dict[str, list[float]] = {arm: [] for arm in arms}
        readings: dict[str, list[float]] = {arm: [] for arm in arms}
        losses: dict[str, list[float]] = {arm: [] for arm in arms}
        tokens = 0
        for step in range(-warm, steps + 1):
            micro, counted = job.batch(max(step, 0))
            tokens = max(tokens, counted)
            turn = step % len(arms)
            for arm in (*arms[turn:], *arms[:turn]):
                meters[arm].weigh = step == steps
                began = time.perf_counter()
                loss = take[arm](micro, counted)
                took, reading = time.perf_counter() - began, meters[arm].take()
                if 0 <= step < steps:
                    seconds[arm].append(took)
                    readings[arm].append(reading)
                    losses[arm].append(loss)
            progress("measuring", done=min(max(step + 1, 0), steps), total=steps)
        entries = [_entry(arm, seconds, losses, job) for arm in arms]
    dtype = next(job.model.parameters()).dtype
    peaks = measured_peaks(device, dtype)
    for entry in entries:
        arm = entry["arm"]
        entry |= {"job": job.name, "tokens": tokens, "dtype": str(dtype).removeprefix("torch.")}
        entry |= {"reading_seconds": float(np.median(readings[arm]))}
        entry |= {"reading_peak_bytes": int(meters[arm].peak_bytes), **peaks}
        wanted = NAIVE if arm == "naive" else lenses[arm].observe.estimators if arm in lenses else []
        dictionaries = lenses[arm].dictionaries if arm in lenses else job.dictionaries
        flops, moved = (sum(part) for part in zip(*(work(d, tokens, wanted) for d in dictionaries.values()), strict=True))
        floor = max(flops / peaks["peak_flops"], moved / peaks["peak_bandwidth"])
        entry |= {"flops": flops, "bytes": moved, "floor_seconds": floor}
    return entries


def work(dictionary: Dictionary, T: int, estimators: Sequence[str]) -> tuple[float, float]:
    """`(operations, bytes)` that the estimators need at least at one hookpoint: every matrix and every token's vector read once."""
    D, F, size = dictionary.d_in, dictionary.d_sae, dictionary.W_dec.element_size()
    K = dictionary.k or dictionary.metadata.get("l0", 64)
    matrix, flops, moved = D * F * size, 0.0, 0.0
    if set(estimators) - {"push", "energy"}:  # active pairs, which these share
        flops, moved = flops + 2.0 * T * D * F, moved + matrix + T * D * size
    if "push" in estimators:
        flops, moved = flops + 2.0 * D * F, moved + matrix
    if "attribution" in estimators:
        flops, moved = flops + 2.0 * T * K * D, moved + min(T * K, F) * D * size
    if "energy" in estimators:
        flops, moved = flops + min(2.0 * D * D * (T + F), 2.0 * T * D * F), moved + matrix
    if "unexplained" in estimators:  # products of rows are looked up, or formed for a few tokens
        flops += min(T, EXPLAINED_TOKENS) * K * K * (1.0 if F * F <= GRAM else 2.0 * D)
    return flops, moved + (T * D * size if estimators else 0)


def measured_peaks(device: torch.device, dtype: torch.dtype = torch.float32) -> dict[str, float]:
    """`peak_flops` of a matrix product and `peak_bandwidth` (bytes read and written) of a copy, best of five, here and now; of products
    the faster of PyTorch's and ours."""
    size = 8192 if device.type == "cuda" else 2048
    a = torch.randn(size, size, device=device, dtype=dtype)
    b = torch.empty(2**26, device=device)
    c = torch.empty_like(b)

    def best(run: Callable[[], Any]) -> float:
        return min(_on_its_own_clock(run) if device.type == "cuda" else _by_the_hosts(run) for _ in range(5))

    product = min(best(lambda: a @ a), best(lambda: linear(a, a)))
    return {"peak_flops": 2 * size**3 / product, "peak_bandwidth": 2 * b.numel() * 4 / best(lambda: c.copy_(b))}


def _by_the_hosts(run: Callable[[], Any]) -> float:
    began = time.perf_counter()
    run()
    return time.perf_counter() - began


def _on_its_own_clock(run: Callable[[], Any], times: int = 10) -> float:
    """Seconds of one of several runs on a GPU: starting one and waiting for it would take an eighth as long as a copy does."""
    began, ended = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    began.record()
    for _ in range(times):
        run()
    ended.record()
    torch.cuda.synchronize()
    return began.elapsed_time(ended) / 1000 / times


def _step(
    model: nn.Module, optimizer: torch.optim.Optimizer, loss_of: Any, norm: float | None, watched: Lens | Collecting | None,
    device: torch.device, micro: Micro, counted: int,
) -> float:  # fmt: skip
    """One optimizer step; its loss."""
    total = 0.0
    if isinstance(watched, Lens) and watched.control.leaves_rows_out():
        micro, counted = _without_left_out(watched, micro)
    for batch, rows in micro:
        if watched is not None:
            watched.set_rows(rows)
        loss = loss_of(batch) / counted
        loss.backward()
        total += loss.detach()
    nn.utils.clip_grad_norm_([p for p in model.parameters() if p.requires_grad], norm or float("inf"))
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    if device.type == "cuda":
        torch.cuda.synchronize()
    return float(total)


def _without_left_out(lens: Lens, micro: Micro) -> tuple[Micro, int]:
    """The rows that `gradlens run` would give to the model, one at least; and how many of their tokens count."""
    parts, counted = [], 0
    for batch, rows in micro:
        keep_BS = counted_tokens(batch["input_ids"], batch["attention_mask"], batch["labels"])
        left = [
            index for index, out in enumerate(lens.hooks.left_out(rows_of(batch["input_ids"], batch["attention_mask"], keep_BS))) if not out
        ]
        if left:
            parts.append(({key: value[left] for key, value in batch.items()}, [rows[index] for index in left]))
            counted += int(keep_BS[left].sum())
    first, rows = micro[0]
    return (parts or [({key: value[:1] for key, value in first.items()}, rows[:1])]), max(counted, 1)


def _copy(model: nn.Module) -> nn.Module:
    """A model with parameters of its own where they are trained; what is frozen is shared."""
    return copy.deepcopy(model, {id(parameter): parameter for parameter in model.parameters() if not parameter.requires_grad})


def _naive(model: nn.Module, dictionaries: dict[str, Dictionary], meter: Meter) -> ExitStack:
    """What one would write first: per hookpoint the dense activations and the dense product of gradients and directions."""
    stack, totals = ExitStack(), {name: 0.0 for name in dictionaries}
    dtype = next(model.parameters()).dtype
    dictionaries = {name: dictionary.to(dtype=dtype) for name, dictionary in dictionaries.items()}

    def watch(name: str, h: Tensor) -> None:
        dictionary = dictionaries[name]
        if not h.requires_grad:
            return
        kept = h.detach()

        def dense(g: Tensor) -> None:
            acts_TF = dictionary.encode(kept.flatten(0, 1))
            dots_TF = g.flatten(0, 1) @ dictionary.W_dec.T
            totals[name] += -(acts_TF * dots_TF).sum(0) - dots_TF.sum(0) + dots_TF.square().sum(0)

        h.register_hook(partial(meter, dense))

    for name in dictionaries:
        stack.callback(find_hookpoint(model, name).watch(partial(watch, name)).remove)
    return stack


def _entry(arm: str, seconds: dict[str, list[float]], losses: dict[str, list[float]], job: Job) -> dict[str, Any]:
    bare, mine = np.array(seconds["bare"]), np.array(seconds[arm])
    rng = np.random.default_rng(0)
    ratios = mine / bare
    picks = rng.integers(0, len(bare), (RESAMPLES, len(bare)))
    # readings of the probe set come every so many steps: whole periods are summed and drawn, so that each has its share of them
    period = min(max(job.observe.drift_every, 1), len(bare))
    blocks = np.array([[m.sum(), b.sum()] for m, b in zip(_blocks(mine, period), _blocks(bare, period), strict=True)])
    whole = blocks.sum(0)
    drawn = blocks[rng.integers(0, len(blocks), (RESAMPLES, len(blocks)))].sum(1)
    return {
        "arm": arm,
        "steps": len(mine),
        "seconds": float(np.median(mine)),
        "median_ratio": float(np.median(ratios)),
        "median_interval": np.percentile(np.median(ratios[picks], axis=1), (2.5, 97.5)).tolist(),
        "total_ratio": float(whole[0] / whole[1]),
        "total_interval": np.percentile(drawn[:, 0] / drawn[:, 1], (2.5, 97.5)).tolist(),
        "whole_model_ratio": float(1 + np.median((mine - bare) / (bare * job.scale))),
        "same_losses": losses[arm] == losses["bare"],
    }


def _blocks(values: np.ndarray, size: int) -> list[np.ndarray]:
    return [values[first : first + size] for first in range(0, len(values) - size + 1, size)]

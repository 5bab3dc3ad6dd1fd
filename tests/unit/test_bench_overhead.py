"""The meter of `bench overhead`: on a GPU it times by events, with stand-ins for them here."""

from types import SimpleNamespace

import pytest
import torch
from conftest import tiny_batch, tiny_dictionary, tiny_model

from gradlens.bench import overhead as bench_overhead
from gradlens.bench.jobs import Job
from gradlens.bench.overhead import Meter, _entry, bench, measured_peaks
from gradlens.config import ObserveSettings


def test_on_a_gpu_readings_are_timed_without_waiting_for_them(monkeypatch):
    recorded = []

    class Event:
        def __init__(self, enable_timing):
            assert enable_timing

        def record(self):
            recorded.append(self)

        def elapsed_time(self, other):
            return 100.0 * (recorded.index(other) - recorded.index(self))  # milliseconds

    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: pytest.fail("waited for the device"))
    meter = Meter(torch.device("cuda"))
    assert [meter(lambda x: x + 1, 1), meter(lambda: 5)] == [2, 5] and len(recorded) == 4
    assert meter.take() == pytest.approx(0.2) and meter.take() == 0


def test_on_a_cpu_it_counts_seconds_from_call_to_call():
    meter = Meter(torch.device("cpu"))
    meter(lambda: sum(range(100_000)))
    assert meter.take() > 0 and meter.take() == 0
    meter.weigh = True
    meter(lambda: torch.ones(2**22))
    assert meter.take() == 0 and meter.peak_bytes >= 2**24


class Clock:
    """The events of a GPU that takes a millisecond for each run, and of a host that takes a second to hear of it."""

    now = 0

    def __init__(self, enable_timing: bool) -> None:
        pass

    def record(self) -> None:
        self.at = Clock.now

    def elapsed_time(self, other: "Clock") -> float:
        return float(other.at - self.at)


def test_a_gpu_is_timed_by_itself_over_several_runs(monkeypatch):
    def run() -> None:
        Clock.now += 1

    monkeypatch.setattr(torch.cuda, "Event", Clock)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    assert bench_overhead._on_its_own_clock(run) == pytest.approx(1e-3)
    assert measured_peaks(torch.device("cpu"))["peak_flops"] > 0


def test_what_compiles_and_tunes_is_not_counted(monkeypatch):
    """The first steps on a GPU, which takes no part in this but by its name."""
    asked, given = [], tiny_batch(0)

    def batch(step: int):
        asked.append(step)
        return [(given, [0, 1, 2])], 12

    class Device:
        type = "cuda"

    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    monkeypatch.setattr(bench_overhead, "Meter", lambda device: Meter(torch.device("cpu")))
    monkeypatch.setattr(bench_overhead, "measured_peaks", lambda device, dtype: {"peak_flops": 1.0, "peak_bandwidth": 1.0})
    job = Job("tiny", tiny_model().train(), {"layers.1": tiny_dictionary()}, batch, ObserveSettings(self_test=False))
    rows = bench(job, ["bare", "push"], 3, Device(), lambda *args, **fields: None)
    assert asked == [0, 0, 0, 1, 2, 3] and [row["steps"] for row in rows] == [3, 3]


def test_the_ratio_of_the_sums_is_of_whole_periods_like_its_interval():
    job = SimpleNamespace(observe=SimpleNamespace(drift_every=8), scale=1.0)
    bare = [1.0] * 20
    mine = [2.0 if step % 8 == 7 else 1.0 for step in range(20)]  # four steps of a third period without its reading
    found = _entry("default", {"bare": bare, "default": mine}, {"bare": [0.0] * 20, "default": [0.0] * 20}, job)
    assert found["median_ratio"] == 1 and found["total_ratio"] == pytest.approx(18 / 16)
    low, high = found["total_interval"]
    assert low - 1e-12 <= found["total_ratio"] <= high + 1e-12

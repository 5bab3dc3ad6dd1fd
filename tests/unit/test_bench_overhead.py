"""The meter of `bench overhead`: on a GPU it times by events, with stand-ins for them here."""

import pytest
import torch

from gradlens.bench_overhead import Meter


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

"""The recorder's thread: nothing it does, or fails to do, reaches training; what it could not keep is told."""

import threading

import numpy as np
import pytest

from gradlens.recording.recorder import MemoryRecorder, NullRecorder, ThreadRecorder
from gradlens.recording.store import RunReader, RunWriter


class ListSink:
    def __init__(self):
        self.records, self.events, self.closed, self.report = [], [], None, None

    def start(self, report):
        self.report = report

    def record(self, record):
        self.records.append(record)

    def event(self, event):
        self.events.append(event)

    def close(self, timeout):
        self.closed = timeout
        self.report("said_goodbye", url="none")


class BlockedWriter(RunWriter):
    """Does not get on until `free` is set; `busy` says that the recorder's thread waits in it."""

    def __init__(self, path):
        super().__init__(path)
        self.busy, self.free = threading.Event(), threading.Event()

    def record(self, record):
        self.busy.set()
        assert self.free.wait(20)
        super().record(record)


def scalar(step):
    return {"step": step, "scalars": {"train/loss": float(step)}}


def test_records_and_events_arrive_in_order_in_the_run_folder_and_in_sinks(tmp_path):
    sink = ListSink()
    recorder = ThreadRecorder(RunWriter(tmp_path / "run", seal_every=7), [sink])
    for step in range(1, 21):
        recorder.record(scalar(step))
        recorder.event("tick", step=step, value=np.float32(0.5))
    assert recorder.close(timeout=20)
    reader = RunReader(tmp_path / "run")
    assert reader.curve("train/loss")[1].tolist() == list(range(1, 21))
    assert [(event["kind"], event.get("step"), event.get("value")) for event in reader.events[:-1]] == [
        ("tick", step, 0.5) for step in range(1, 21)
    ]
    assert reader.events[-1]["kind"] == "said_goodbye"  # what a sink says while it is closed is not lost
    assert [record["step"] for record in sink.records] == list(range(1, 21))
    assert [(event["kind"], event["step"], event["value"]) for event in sink.events] == [("tick", step, 0.5) for step in range(1, 21)]
    assert 0 < sink.closed <= 20
    assert all(row["state"] in ("sealed", "whole") for row in reader.verify())
    assert recorder.gaps == [] and recorder.close()  # closing twice is fine


def test_a_stalled_writer_costs_records_which_a_gap_event_tells_and_never_stalls_the_caller(tmp_path):
    writer = BlockedWriter(tmp_path / "run")
    recorder = ThreadRecorder(writer, capacity=5)
    recorder.record(scalar(1))
    assert writer.busy.wait(20)  # step 1 is with the writer, which is stuck; 5 more may wait
    for step in range(2, 10):
        recorder.record(scalar(step))  # would deadlock this test if it waited
    assert recorder.gaps == []
    writer.free.set()
    assert recorder.close(timeout=20)
    reader = RunReader(tmp_path / "run")
    assert reader.curve("train/loss")[0].tolist() == [1, 2, 3, 4, 5, 6]
    gaps = [event for event in reader.events if event["kind"] == "gap"]
    assert [(gap["from_step"], gap["to_step"], gap["count"]) for gap in gaps] == [(7, 9, 3)]
    assert recorder.gaps == [{"from_step": 7, "to_step": 9, "count": 3}]


def test_a_gap_ends_when_records_get_through_again(tmp_path):
    writer = BlockedWriter(tmp_path / "run")
    recorder = ThreadRecorder(writer, capacity=1)
    recorder.record(scalar(1))
    assert writer.busy.wait(20)
    recorder.record(scalar(2))
    recorder.record(scalar(3))  # dropped
    writer.free.set()
    step = 4
    while not recorder.gaps:  # until one gets through; those that do not belong to the same gap
        recorder.record(scalar(step))
        step += 1
    assert recorder.close(timeout=20)
    reader = RunReader(tmp_path / "run")
    gap = next(event for event in reader.events if event["kind"] == "gap")
    assert gap["from_step"] == 3 and gap["to_step"] == step - 2 and gap["count"] == step - 4
    assert reader.curve("train/loss")[0].tolist() == [1, 2, step - 1]


def test_a_bad_record_is_told_once_and_the_next_ones_are_kept(tmp_path):
    recorder = ThreadRecorder(RunWriter(tmp_path / "run"))
    recorder.record(scalar(1))
    for step in (2, 3, 4):
        recorder.record({"step": step, "features": {"layers.1": {"feature": np.arange(3), "push": np.zeros(2)}}})
    recorder.record({"no": "step"})
    recorder.record(scalar(5))
    assert recorder.close(timeout=20)
    reader = RunReader(tmp_path / "run")
    assert reader.curve("train/loss")[0].tolist() == [1, 5]
    first, further = [event for event in reader.events if event["kind"] == "recorder_error"]
    assert "layers.1.push has 2 rows, expected 3" in first["error"]
    assert further["count"] == 4


def test_what_a_sink_says_of_itself_does_not_come_back_to_it(tmp_path):
    class Echo(ListSink):
        def event(self, event):
            super().event(event)
            self.report("echo", of=event["kind"])

    sink, other = Echo(), ListSink()
    recorder = ThreadRecorder(RunWriter(tmp_path / "run"), [sink, other])
    recorder.event("alarm", step=1)
    assert recorder.close(timeout=20)
    assert [event["kind"] for event in sink.events] == [event["kind"] for event in other.events] == ["alarm"]
    kinds = [event["kind"] for event in RunReader(tmp_path / "run").events]
    assert kinds == ["alarm", "echo", "said_goodbye", "said_goodbye"]


@pytest.mark.parametrize("where", ["start", "record", "event", "close"])
def test_a_sink_that_fails_is_let_go_and_the_run_folder_is_whole(tmp_path, where):
    class Failing(ListSink):
        calls = 0

    def fail(self, *_):
        self.calls += 1
        raise RuntimeError("no server")

    setattr(Failing, where, fail)
    failing, healthy = Failing(), ListSink()
    recorder = ThreadRecorder(RunWriter(tmp_path / "run"), [failing, healthy])
    for step in range(1, 6):
        recorder.record(scalar(step))
        recorder.event("alarm", step=step)
    assert recorder.close(timeout=20)
    reader = RunReader(tmp_path / "run")
    assert reader.curve("train/loss")[0].tolist() == [1, 2, 3, 4, 5]
    assert [event["step"] for event in reader.events if event["kind"] == "alarm"] == [1, 2, 3, 4, 5]
    assert len(healthy.records) == len(healthy.events) == 5 and healthy.closed is not None
    errors = [event for event in reader.events if event["kind"] == "recorder_error"]
    assert [(event["part"], event["error"]) for event in errors] == [("Failing", "RuntimeError: no server")]
    assert failing.calls == 1


def test_close_comes_back_in_time_from_a_writer_that_hangs(tmp_path):
    writer = BlockedWriter(tmp_path / "run")
    recorder = ThreadRecorder(writer)
    recorder.record(scalar(1))
    assert recorder.close(timeout=0.1) is False
    writer.free.set()
    assert recorder.close(timeout=20) is True
    assert RunReader(tmp_path / "run").curve("train/loss")[0].tolist() == [1]


def test_memory_and_null_recorders():
    memory, null = MemoryRecorder(), NullRecorder()
    for recorder in (memory, null):
        recorder.record(scalar(1))
        recorder.event("alarm", step=1)
    assert memory.records == [scalar(1)] and memory.events == [{"kind": "alarm", "step": 1}]

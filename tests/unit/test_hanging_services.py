"""Services that hang: they neither answer nor die, as behind a file system that has stopped."""

import threading
import time

import pytest
from gradlens_services import controller as control
from gradlens_services.controller import ControllerService, PolicyClient, first_state
from gradlens_services.recorder import Lost, RecorderClient, RecorderService

from gradlens.recording.recorder import MemoryRecorder
from gradlens.recording.store import RunReader, RunWriter


def record(step):
    return {"step": step, "scalars": {"train/loss": 1 / step}}


@pytest.fixture
def folder(tmp_path):
    RunWriter(tmp_path / "run", {"data": {"train": ["a.jsonl"]}}).close()
    return tmp_path / "run"


def stored(folder):
    return list(RunReader(folder).curve("train/loss")[0])


def hanging(folder):
    """The way to a recorder that hangs from its second call on; what ends it; and whether that happened."""
    service, ended, calls = RecorderService({folder.name: str(folder)}), threading.Event(), []

    def send(run_id, session, messages, status):
        calls.append(messages)
        if len(calls) > 1:
            ended.wait(20)
            raise Lost(final=ended.is_set())
        return service.write(run_id, session, messages[:1], status)

    def end():
        for writer in service._writers.values():
            writer._lock.close()  # what the end of a process does
        ended.set()

    return send, end, ended


def test_a_recorder_that_hangs_is_ended_and_replaced_at_the_end(folder):
    send, end, _ = hanging(folder)
    client = RecorderClient(send, folder, retry_seconds=0.01, end=end)
    for step in range(1, 6):
        client.record(record(step))
    assert client.close(0.5)
    assert stored(folder) == [1, 2, 3, 4, 5]


def test_what_is_lost_with_a_recorder_that_hangs_is_told(folder):
    send, end, ended = hanging(folder)
    client = RecorderClient(send, folder, retry_seconds=0.01)  # nothing that could end it
    for step in range(1, 6):
        client.record(record(step))
    assert not client.close(0.3)
    (gap,) = [event for event in RunReader(folder).events if event["kind"] == "gap"]
    assert (gap["service"], gap["from_step"], gap["to_step"], gap["count"]) == ("recorder", 1, 5, 5)
    ended.set()


def test_a_recorder_that_is_slow_at_the_end_is_waited_for_as_long_as_it_writes(folder):
    service = RecorderService({folder.name: str(folder)})

    def send(run_id, session, messages, status):
        time.sleep(0.15)
        return service.write(run_id, session, messages[:1], status)

    client = RecorderClient(send, folder, retry_seconds=0.01, end=lambda: pytest.fail("it was ended"))
    for step in range(1, 6):
        client.record(record(step))
    assert client.close(0.4)
    assert stored(folder) == [1, 2, 3, 4, 5]


def test_a_controller_that_hangs_is_noted(tmp_path, monkeypatch):
    first_state(tmp_path, [], resume=False)
    recorder, given = MemoryRecorder(), []
    client = PolicyClient(lambda version: lambda: given.pop() if given else None, recorder, 0)
    client.poll(0), client.poll(1)
    assert recorder.events == []  # it may answer yet
    monkeypatch.setattr(control, "SILENT_SECONDS", 0.0)
    client.poll(2), client.poll(3)
    assert [event["kind"] for event in recorder.events] == ["service_lost"]
    given.append(ControllerService({"run": str(tmp_path)}).get("run", 0))
    client.poll(4)
    assert [event["kind"] for event in recorder.events] == ["service_lost", "service_back", "gap"]

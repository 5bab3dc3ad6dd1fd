"""Recorders: where a lens puts its records. None of them can stall or crash training.

`ThreadRecorder` queues records for one background thread that writes the run folder and feeds sinks; when the queue is full the
record is dropped and a `gap` event says which steps are missing. `MemoryRecorder` keeps them in lists, `NullRecorder` nowhere.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, Protocol

from gradlens.recording.store import RunWriter


class Recorder(Protocol):
    """What the lens calls. Neither method blocks or raises."""

    def record(self, record: dict[str, Any]) -> None: ...

    def event(self, kind: str, **fields: Any) -> None: ...


class Sink(Protocol):
    """A view beside the run folder (W&B). `record` and `event` return at once; what goes wrong is told to `report(kind, **fields)`,
    whose events do not come back through `event`."""

    def start(self, report: Callable[..., None]) -> None: ...

    def record(self, record: dict[str, Any]) -> None: ...

    def event(self, event: dict[str, Any]) -> None: ...

    def close(self, timeout: float) -> None: ...


class NullRecorder:
    """Keeps nothing."""

    def record(self, record: dict[str, Any]) -> None:
        pass

    def event(self, kind: str, **fields: Any) -> None:
        pass


class MemoryRecorder:
    """Keeps everything in `records` and `events` (dicts with `kind`)."""

    def __init__(self) -> None:
        self.records: list[dict[str, Any]] = []
        self.events: list[dict[str, Any]] = []

    def record(self, record: dict[str, Any]) -> None:
        self.records.append(record)

    def event(self, kind: str, **fields: Any) -> None:
        self.events.append({"kind": kind, **fields})


GRACE = 5.0  # seconds after the deadline, which sinks have as well and must come back from, on a machine that is busy


class ThreadRecorder:
    """A bounded queue and one background thread that owns the writer. `capacity` is the number of records that may wait.

    `gaps` lists what was dropped: `{"from_step", "to_step", "count"}`, as in the `gap` events.
    """

    def __init__(self, writer: RunWriter, sinks: Sequence[Sink] = (), capacity: int = 1000):
        self.writer, self.sinks, self.capacity = writer, list(sinks), capacity
        self.gaps: list[dict[str, int]] = []
        self._queue: deque[tuple[str, Any]] = deque()
        self._records_waiting = 0
        self._gap: dict[str, int] | None = None  # being dropped now; queued as an event once a record gets through
        self._changed = threading.Condition()
        self._closing = False
        self._failures: dict[str, int] = {}
        self._thread = threading.Thread(target=self._work, name="gradlens-recorder", daemon=True)
        self._thread.start()

    def record(self, record: dict[str, Any]) -> None:
        """Queue a record; drop it if `capacity` records wait already or the recorder is closed."""
        step = record.get("step", 0)
        with self._changed:
            if self._records_waiting >= self.capacity or self._closing:
                self._gap = self._gap or {"from_step": step, "to_step": step, "count": 0}
                self._gap = {**self._gap, "to_step": step, "count": self._gap["count"] + 1}
                return
            self._end_gap()
            self._queue.append(("record", record))
            self._records_waiting += 1
            self._changed.notify()

    def event(self, kind: str, **fields: Any) -> None:
        """Queue an event, with the time of the call. Events are few; beyond ten times the capacity they are dropped too."""
        with self._changed:
            if len(self._queue) < 11 * self.capacity and not self._closing:
                self._queue.append(("event", (kind, {"time": time.time(), **fields})))
                self._changed.notify()

    def close(self, timeout: float = 60.0) -> bool:
        """Write what waits, seal the run folder, end the sinks (W&B uploads), within `timeout` seconds. True if all was written.

        May be called twice. If it returns False the thread still holds the writer and goes on in the background.
        """
        with self._changed:
            if not self._closing:
                self._end_gap()
                self._queue.append(("close", time.monotonic() + timeout))
                self._closing = True
                self._changed.notify()
        self._thread.join(timeout + GRACE)
        return not self._thread.is_alive()

    def __enter__(self) -> ThreadRecorder:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def _end_gap(self) -> None:
        if self._gap:
            self.gaps.append(self._gap)
            self._queue.append(
                ("event", ("gap", {"time": time.time(), "step": self._gap["to_step"], "reason": "recorder overloaded", **self._gap}))
            )
            self._gap = None

    def _work(self) -> None:
        for sink in list(self.sinks):
            self._guard(sink, sink.start, self._report)
        deadline = None
        while deadline is None:
            with self._changed:
                self._changed.wait_for(lambda: self._queue)
                what, item = self._queue.popleft()
                self._records_waiting -= what == "record"
            if what in ("event", "report"):
                self._guard(self.writer, self.writer.event, item[0], **item[1])
                for sink in list(self.sinks) if what == "event" else []:
                    self._guard(sink, sink.event, {"kind": item[0], **item[1]})
            elif what == "record":
                self._guard(self.writer, self.writer.record, item)
                for sink in list(self.sinks):
                    self._guard(sink, sink.record, item)
            else:
                deadline = item
        self._guard(self.writer, self.writer.seal)  # so that sinks can take the sealed statistics along
        for sink in list(self.sinks):
            self._guard(sink, sink.close, max(0.0, deadline - time.monotonic()))
        for kind, fields in [item for what, item in list(self._queue) if what == "report"]:  # what the sinks had to say in the end
            self._guard(self.writer, self.writer.event, kind, **fields)
        for name, count in self._failures.items():
            if count > 1:
                self.writer.event("recorder_error", part=name, count=count, error="further errors, after the first one above")
        self.writer.close()

    def _report(self, kind: str, **fields: Any) -> None:
        """Events of sinks; they may come from any thread, also while the recorder is closing."""
        with self._changed:
            self._queue.append(("report", (kind, {"time": time.time(), **fields})))
            self._changed.notify()

    def _guard(self, part: Any, call: Callable[..., None], *args: Any, **kwargs: Any) -> None:
        """Nothing that goes wrong here may reach training: the first error of a part becomes an event; a failing sink is let go."""
        try:
            call(*args, **kwargs)
        except Exception as error:
            name = type(part).__name__
            self._failures[name] = self._failures.get(name, 0) + 1
            if self._failures[name] == 1:
                self.writer.event("recorder_error", part=name, error=f"{type(error).__name__}: {error}")
            if part in self.sinks:
                self.sinks.remove(part)

"""The recorder: a named actor that owns the run folders of a job, and its client on rank 0.

The client numbers what it is given, keeps it until the recorder has written it, and sends it again after the recorder was away;
the recorder drops what it has already. So a restart of the recorder loses nothing unless more than `capacity` messages were
waiting, and what was lost then is told by a `gap` event. Training only ever appends to a queue.
"""

from __future__ import annotations

import contextlib
import threading
import time
import uuid
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Any

from gradlens.config import RunConfig
from gradlens.errors import ConfigError, RunError
from gradlens.files import append_line
from gradlens.recording import sinks
from gradlens.recording.recorder import Sink
from gradlens.recording.segments import SCHEMAS
from gradlens.recording.store import RunReader, RunWriter

Message = tuple[int, str, Any]  # number, "open" | "record" | "event" | "close", content
BATCH = 64  # messages sent in one call
_NONE = (2**62, -1)  # first and last of no steps


class RecorderService:
    """What runs in the actor. `runs`: run id -> run folder, which must exist; a run is opened by its client's first message."""

    def __init__(self, runs: dict[str, str], make_sinks: Callable[[RunConfig, Path], list[Sink]] | None = None) -> None:
        self._folders = {run_id: Path(folder) for run_id, folder in runs.items()}
        self._make_sinks = make_sinks or sinks_of
        self._writers: dict[str, RunWriter] = {}
        self._sinks: dict[str, list[Sink]] = {}
        self._last: dict[str, int] = {}  # client session -> number of the last message written
        self._known: dict[str, _Known] = {}  # runs found half-written: what their folders already hold
        self._status: dict[str, dict[str, Any]] = {}
        self._lock = threading.Lock()  # sinks report from threads of their own

    def write(self, run_id: str, session: str, messages: list[Message], status: dict[str, Any] | None = None) -> int:
        """Write messages that have not been written yet; returns the number of the last one. On disk when this returns."""
        if status:
            self._status[run_id] = status
        last = self._last.get(session, -1)
        for number, what, content in messages:
            if number <= last:
                continue
            if what != "open" and run_id not in self._writers:
                self._reopen(run_id)
            try:
                getattr(self, f"_{what}")(run_id, content)
            except (KeyError, TypeError, ValueError) as error:  # one malformed message must not hold up the others
                self._note(run_id, {"kind": "recorder_error", "part": what, "error": f"{type(error).__name__}: {error}"})
            last = self._last[session] = number
        return last

    def status(self) -> dict[str, dict[str, Any]]:
        """What each run was last heard to be doing: phase, done, total, loss; `unwritten` where that is not even in its events."""
        troubles = {run_id: writer.unreported for run_id, writer in self._writers.items() if writer.unreported}
        return {run_id: {**found, "unwritten": troubles.get(run_id)} for run_id, found in self._status.items()}

    def close(self) -> None:
        """Seal every run that is still open."""
        for run_id in list(self._writers):
            self._close(run_id, None)

    def _open(self, run_id: str, resume_step: int | None) -> None:
        self._close(run_id, None)  # a client that died without closing
        self._known.pop(run_id, None)
        self._start(run_id, RunWriter.open_existing(self._folders[run_id], resume_step, begins_again=resume_step == 0))

    def _reopen(self, run_id: str) -> None:
        """This process is new, the run is not: go on in new segments, and remember what the old ones hold."""
        writer = RunWriter.open_existing(self._folders[run_id])
        self._known[run_id] = _Known(RunReader(self._folders[run_id]))
        self._start(run_id, writer)
        writer.event("service_back", service="recorder")
        span = {"from_step": writer.step, "to_step": writer.step, "count": 0}
        writer.event("gap", service="recorder", reason="recorder restarted; what was waiting is written now", **span)

    def _start(self, run_id: str, writer: RunWriter) -> None:
        self._writers[run_id] = writer
        config = RunConfig.model_validate(RunReader(writer.run_dir).config)
        try:
            self._sinks[run_id] = self._make_sinks(config, writer.run_dir)
        except ConfigError as error:  # what a tracker needs may be installed on another machine only
            self._sinks[run_id] = []
            self._note(run_id, {"kind": "recorder_error", "part": "sinks", "error": str(error)})
        for sink in list(self._sinks[run_id]):
            self._guard(run_id, sink, lambda sink=sink: sink.start(lambda kind, **fields: self._note(run_id, {"kind": kind, **fields})))

    def _record(self, run_id: str, record: dict[str, Any]) -> None:
        known = self._known.get(run_id)
        record = known.unseen(record) if known else record
        if record is None:
            return
        self._writers[run_id].record(record)
        for sink in list(self._sinks[run_id]):
            self._guard(run_id, sink, lambda sink=sink: sink.record(record))

    def _event(self, run_id: str, event: dict[str, Any]) -> None:
        known = self._known.get(run_id)
        if known and (event.get("time"), event["kind"]) in known.events:
            return
        self._note(run_id, event)
        for sink in list(self._sinks.get(run_id, [])):
            self._guard(run_id, sink, lambda sink=sink: sink.event(event))

    def _note(self, run_id: str, event: dict[str, Any]) -> None:
        """One line in the run folder, and no further: what sinks say of themselves."""
        writer = self._writers.get(run_id)
        if writer is not None:
            with self._lock:
                writer.event(**event)

    def _close(self, run_id: str, content: None) -> None:
        writer = self._writers.get(run_id)
        if writer is None:
            return
        writer.seal()
        for sink in self._sinks.pop(run_id, []):
            self._guard(run_id, sink, lambda sink=sink: sink.close(30.0))
        del self._writers[run_id]
        writer.close()

    def _guard(self, run_id: str, sink: Sink, call: Callable[[], None]) -> None:
        """A view that fails is let go of, with an event: the record goes on."""
        try:
            call()
        except Exception as error:
            self._note(run_id, {"kind": "recorder_error", "part": type(sink).__name__, "error": f"{type(error).__name__}: {error}"})
            if sink in self._sinks.get(run_id, []):
                self._sinks[run_id].remove(sink)


class _Known:
    """What a run folder held when its recorder came back: the last step of every table, and the events."""

    def __init__(self, reader: RunReader) -> None:
        self.last = {table: reader.last_step(table) for table in SCHEMAS}
        scalars = reader.scalars()
        steps = zip(scalars["step"].to_pylist(), scalars["key"].to_pylist(), strict=True)
        self.keys = {key for step, key in steps if step == self.last["scalars"]}
        self.events = {(event.get("time"), event.get("kind")) for event in reader.events}

    def unseen(self, record: dict[str, Any]) -> dict[str, Any] | None:
        """The part of a record that is not on disk yet; None where all of it is. A table's rows of one record are written as one, or none;
        of a step there may be several records, with scalars of different names."""
        step = record["step"]
        rest = {table: record[table] for table in SCHEMAS if record.get(table) and step > self.last[table]}
        if step == self.last["scalars"]:
            rest["scalars"] = {key: value for key, value in record.get("scalars", {}).items() if key not in self.keys}
        return {"step": step, **rest} if any(rest.values()) else None


def sinks_of(config: RunConfig, run_dir: Path) -> list[Sink]:
    """The views that a config asks for."""
    return sinks.make_sinks(config.wandb, config.trackers, run_dir, config.model_dump(mode="json"))


class Lost(Exception):
    """The recorder did not answer; `final` says that it never will."""

    def __init__(self, final: bool) -> None:
        super().__init__(final)
        self.final = final


class RecorderClient:
    """A recorder (`gradlens.recording.recorder.Recorder`) that hands everything to a `RecorderService` elsewhere, from a thread of its own.

    `send(run_id, session, messages, status) -> last number` calls the service and raises `Lost` where it is away. When it is gone for
    good, `close` writes what is left into the run folder itself; also when it hangs, after `end` has ended it (its lock is free then).
    """

    def __init__(
        self,
        send: Callable[[str, str, list[Message], dict[str, Any]], int],
        run_dir: Path,
        resume_step: int | None = None,
        capacity: int = 2000,
        retry_seconds: float = 0.5,
        end: Callable[[], None] | None = None,
    ) -> None:
        self.run_dir, self.capacity = run_dir, capacity
        self._send, self._retry, self._end = send, retry_seconds, end
        self._session = uuid.uuid4().hex
        self._number, self._step = 0, resume_step or 0
        self._waiting: deque[Message] = deque([(0, "open", resume_step)])
        self._status: dict[str, Any] = {}
        self._status_sent: dict[str, Any] | None = None
        self._records, self._dropped, self._dropped_steps = 0, 0, _NONE
        self._away_from, self._away_since = None, 0.0
        self._gone = self._closing = self._closed = False
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._work, name="gradlens-recorder-client", daemon=True)
        self._thread.start()

    def record(self, record: dict[str, Any]) -> None:
        """Queue a record. Beyond `capacity` the oldest waiting record is dropped and counted."""
        with self._changed:
            self._step = record["step"]
            self._put("record", record)

    def event(self, kind: str, **fields: Any) -> None:
        """Queue an event, stamped with the time and step of the call."""
        with self._changed:
            self._put("event", {"kind": kind, "time": time.time(), "step": self._step, **fields})

    def phase(self, name: str, **fields: Any) -> None:
        """What the run is doing now, for whoever watches it; only the latest is sent, nothing is stored."""
        with self._changed:
            self._status = {"phase": name, **fields}
            self._changed.notify()

    def close(self, timeout: float = 60.0) -> bool:
        """Wait until everything is written; True if it is. A recorder that is gone for good, or that writes nothing for `timeout` seconds,
        is replaced by this process. What is lost nevertheless is told by a `gap` event."""
        with self._changed:
            self._closing = True
            self._changed.notify_all()
            first = self._waiting[0][0] if self._waiting else None
            while not self._changed.wait_for(lambda: self._closed or self._gone, timeout):
                before, first = first, self._waiting[0][0] if self._waiting else None
                if first == before:
                    break  # nothing was written meanwhile; one that is slow is waited for
            # where only the word of the end is not answered yet, everything is written: views may take long to end
            hangs = not (self._closed or self._gone) and any(what in ("record", "event") for _, what, _ in self._waiting)
        if hangs and self._end is not None:
            self._end()
            with self._changed:
                self._changed.wait_for(lambda: self._gone or self._closed, timeout)
        if not self._gone:
            if hangs and not self._closed:
                self._tell_lost()
            return self._closed
        return self._write_here(10.0 if hangs else 0.0) or self._tell_lost()

    def _put(self, what: str, content: Any) -> None:
        self._number += 1
        self._waiting.append((self._number, what, content))
        self._records += what == "record"
        if self._records > self.capacity:
            index = next(index for index, message in enumerate(self._waiting) if message[1] == "record")
            lost = self._waiting[index][2]["step"]
            del self._waiting[index]
            self._records -= 1
            self._dropped, self._dropped_steps = self._dropped + 1, (min(lost, self._dropped_steps[0]), max(lost, self._dropped_steps[1]))
        self._changed.notify()

    def _work(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._waiting or self._closing or self._status != self._status_sent)
                if self._closing and not self._waiting:
                    self._put("close", None)  # after everything else: what comes later would open the run again
                messages, status = list(self._waiting)[:BATCH], self._status
            try:
                last = self._send(self.run_dir.name, self._session, messages, status)
            except Lost as lost:
                if not self._lost(lost):
                    return
                continue
            with self._changed:
                self._status_sent = status
                while self._waiting and self._waiting[0][0] <= last:
                    self._records -= self._waiting.popleft()[1] == "record"
                if messages:
                    self._back()
                self._closed = bool(messages) and messages[-1][1] == "close" and not self._waiting
                self._changed.notify_all()
                if self._closed:
                    return

    def _lost(self, lost: Lost) -> bool:
        """Note the outage and wait a moment; False where there is nobody to wait for."""
        with self._changed:
            if self._away_from is None:
                self._away_from, self._away_since = self._step, time.time()
            if lost.final:
                self._gone = True
                self._changed.notify_all()
                return False
            self._changed.wait_for(lambda: self._closing, self._retry)
        if self._closing:
            time.sleep(self._retry)
        return True

    def _back(self) -> None:
        """Tell of an outage that is over, and of records that did not fit in memory meanwhile."""
        if self._away_from is not None:
            self._put("event", {"kind": "service_lost", "time": self._away_since, "step": self._away_from, "service": "recorder"})
        if self._dropped:
            gap = {"service": "recorder", "from_step": self._dropped_steps[0], "to_step": self._dropped_steps[1], "count": self._dropped}
            reason = "recorder away or slow for too long; the oldest waiting records were dropped"
            self._put("event", {"kind": "gap", "time": time.time(), "step": self._step, "reason": reason, **gap})
        self._away_from, self._dropped, self._dropped_steps = None, 0, _NONE

    def _tell_lost(self) -> bool:
        """Say in the run folder what of it is lost; False, as `close` then returns."""
        with self._changed:
            steps = [content["step"] for _, what, content in self._waiting if what == "record"]
            gap = {"from_step": min(steps, default=self._step), "to_step": max(steps, default=self._step), "count": len(steps)}
        reason = "the recorder did not answer at the end of the run; what was waiting is lost"
        line = {"time": time.time(), "step": self._step, "kind": "gap", "service": "recorder", "reason": reason, **gap}
        with contextlib.suppress(OSError):
            append_line(self.run_dir / "events.jsonl", line)
        return False

    def _write_here(self, patience: float = 0.0) -> bool:
        """Write what waits with a recorder in this process: the actor is dead, so its lock on the folder is free, or within `patience`
        seconds will be."""
        with self._changed:
            self._back()
        service = RecorderService({self.run_dir.name: str(self.run_dir)})
        messages = [(what, content) for _, what, content in self._waiting if what != "close"] + [("close", None)]
        numbered = [(number, what, content) for number, (what, content) in enumerate(messages)]
        until = time.monotonic() + patience
        while True:
            try:
                service.write(self.run_dir.name, self._session, numbered)
            except RunError:
                if time.monotonic() > until:
                    return False  # somebody else writes this folder after all
                time.sleep(self._retry)
                continue
            self._waiting.clear()
            return True


def actor_sender(actor: Any, timeout: float = 30.0) -> Callable[[str, str, list[Message], dict[str, Any]], int]:
    """`send` for a client, through Ray."""
    import ray
    from ray.exceptions import ActorDiedError, RayError

    def send(run_id: str, session: str, messages: list[Message], status: dict[str, Any]) -> int:
        try:
            return ray.get(actor.write.remote(run_id, session, messages, status), timeout=timeout)
        except ActorDiedError:
            raise Lost(final=True) from None
        except RayError:  # away, too slow, or failing (no space left, say): it is asked again
            raise Lost(final=False) from None

    return send

"""W&B as a view of a run, beside the run folder. It never blocks or crashes training, whatever its server does.

`WandbSink.record` puts a thinned row into a bounded queue; a thread of the sink feeds it to a child process (`wandb_worker.py`) that holds
the W&B run. A child that fails, hangs or dies is ended and replaced by an offline one, which gets the rows that were not acknowledged.
Where the host program already has a `wandb.run`, rows go into that one instead, on the host's step axis.
"""

from __future__ import annotations

import json
import math
import os
import queue
import select
import signal
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from gradlens.config import WandbSettings
from gradlens.files import jsonable
from gradlens.recording.curve_keys import MAX_KEYS, KeyBudget, headed
from gradlens.recording.wandb_worker import PREFIX, WandbLogger

INCREMENTS = 100  # W&B shows the last 100 increments of a table
TABLE_ROWS = 100  # of one increment, over all hookpoints: 10,000 in all is W&B's limit
STALL_SECONDS = 60.0  # a child that takes no row for so long is hanging
# summary.json is not among them: it is made when all is written, and of a run that goes on there is an old one
ARTIFACT = ("config.yaml", "versions.json", "events.jsonl", "evaluation.json", "labels.json", "concepts.yaml")


def make_sinks(wandb: WandbSettings, trackers: Sequence[str], run_dir: str | Path, config: Any) -> list[Any]:
    """The views that are asked for. Raises `ConfigError` for a tracker that is not known or not installed."""
    from gradlens.recording.trackers import TrackerSink

    sinks: list[Any] = [] if wandb.mode == "off" else [WandbSink(wandb, run_dir, config, Path(run_dir).name)]
    return sinks + [TrackerSink(name, run_dir, wandb.project) for name in dict.fromkeys(trackers)]


class WandbFailure(Exception):
    """The W&B run cannot be fed any more."""


class WandbSink:
    """A `recorder.Sink`. Nothing starts before the first record with something to show.

    Events it reports: `wandb` (where the run is), `wandb_offline` (fell back, why), `wandb_keys_dropped`, `wandb_lost` (rows), and
    `wandb_unfinished` (not all was uploaded in time; says how to do it later).
    """

    def __init__(
        self,
        settings: WandbSettings,
        run_dir: str | Path,
        config: Any = None,
        run_id: str | None = None,
        *,
        init_timeout: float = 30.0,
        capacity: int = 1000,
    ):
        self.settings, self.run_dir, self.config = settings, Path(run_dir), jsonable(config or {})
        self.run_id = run_id or self.run_dir.resolve().name
        self.init_timeout, self.capacity = init_timeout, capacity
        self._rows: deque[dict[str, Any]] = deque()
        self._changed = threading.Condition()
        self._deadline: float | None = None  # set by close: what remains must be done by then
        self._lost, self._step = 0, 0
        self._keys = KeyBudget()
        steps = ((self.config.get("train") or {}).get("steps")) if isinstance(self.config, dict) else None
        self._table_every = max(1, math.ceil((steps or 50 * INCREMENTS) / INCREMENTS))
        self._thread: threading.Thread | None = None
        self._report: Callable[..., None] = lambda kind, **fields: None

    def start(self, report: Callable[..., None]) -> None:
        self._report = report
        if self.settings.mode != "off":
            self._thread = threading.Thread(target=self._work, name="gradlens-wandb", daemon=True)
            self._thread.start()

    def record(self, record: dict[str, Any]) -> None:
        """Queue the scalars, and now and then the top features, of a record. Returns at once; a full queue drops the row."""
        if self._thread is None:
            return
        step = int(record["step"])
        values = {headed(key): value for key, value in self._keys.select(record.get("scalars") or {}).items()}
        messages = [{"op": "log", "step": step, "values": values}] if values else []
        if record.get("features") and step % self._table_every == 0:
            messages.append({"op": "table", "step": step, "rows": top_rows(step, record["features"])})
        self._put(messages, step, self.capacity)

    def event(self, event: dict[str, Any]) -> None:
        """Queue an alarm as an alert, and what was learned as a table; other events are not shown. Returns at once.

        They have room of their own in the queue and count against no budget of keys or rows.
        """
        make = {"alarm": alert_of, "learned": in_words_of}.get(event.get("kind", ""))
        if self._thread is not None and make is not None:
            step = int(event.get("step") or self._step)
            self._put([{**make(event), "step": step}], step, 2 * self.capacity)

    def _put(self, messages: list[dict[str, Any]], step: int, capacity: int) -> None:
        with self._changed:
            self._step = max(self._step, step)
            for message in messages:
                if len(self._rows) >= capacity:
                    self._lost += 1
                else:
                    self._rows.append(message)
            self._changed.notify()

    def close(self, timeout: float) -> None:
        """Send what waits, the final table and the run folder's files, within `timeout` seconds; then let go."""
        if self._thread is None:
            return
        with self._changed:
            self._deadline = time.monotonic() + timeout
            self._changed.notify()
        self._thread.join(timeout + 1.0)
        if self._keys.dropped:
            dropped = sorted(self._keys.dropped)
            self._report("wandb_keys_dropped", count=len(dropped), limit=MAX_KEYS, keys=dropped[:20])
        lost = self._lost + len(self._rows)
        if lost:
            self._report("wandb_lost", rows=lost, reason="W&B was too slow or gone; the run folder has them")
        if self._thread.is_alive():  # the host's own run hangs; its thread is a daemon and ends with the program
            self._report("wandb_unfinished", reason=f"W&B did not answer within {timeout:.0f} s")
        self._thread = None

    # -- the sink's own thread ------------------------------------------------------------------------------------------------

    def _work(self) -> None:
        target: _Child | _HostRun | None = None
        pending: deque[dict[str, Any]] = deque()  # taken from the queue, not acknowledged yet
        try:
            while True:
                with self._changed:
                    self._changed.wait_for(lambda: self._rows or self._deadline is not None)
                    message = self._rows.popleft() if self._rows else None
                if message is None:
                    break
                target = target or self._open()
                pending.append(message)
                target = self._send(target, message, pending)
            if target is not None:
                self._finish(target, pending)
        except Exception as error:  # no process, no disk, no W&B: the run folder has everything, and training must not notice
            self._lost += len(pending)
            self._gave_up(str(error) if isinstance(error, WandbFailure) else f"{type(error).__name__}: {error}")
            if target is not None:
                target.end()

    def _gave_up(self, reason: str) -> None:
        self._report("wandb_unfinished", reason=reason)
        with self._changed:  # nobody takes rows any more: count those to come as lost
            self._lost += len(self._rows)
            self._rows.clear()
            self.capacity = 0

    def _open(self) -> _Child | _HostRun:
        """The host's run if it has one, else a run of our own: online if that works, else offline. Raises `WandbFailure`."""
        wandb = sys.modules.get("wandb")
        if wandb is not None and getattr(wandb, "run", None) is not None:
            host = _HostRun(wandb.run, self.config, self.settings.step_key)
            self._report("wandb", mode="joined", url=wandb.run.url, step_key=host.logger.step_key)
            return host
        if self.settings.mode == "online":
            try:
                return self._open_child("online", self.run_id)
            except WandbFailure as error:
                self._report("wandb_offline", reason=str(error))
        return self._open_child("offline", self.run_id)

    def _open_child(self, mode: str, run_id: str) -> _Child:
        child = _Child(self.run_dir, self._left)
        settings = {
            "project": self.settings.project, "entity": self.settings.entity, "id": run_id, "name": self.run_id,
            "dir": str(self.run_dir.resolve()), "config": self.config,
        }  # fmt: skip
        if mode == "online":
            settings["resume"] = "allow"  # after a restart of the recorder: go on with this run, do not begin it anew
        try:
            ready = child.init(mode, self.init_timeout, settings)
        except WandbFailure:
            child.end()
            raise
        self._report("wandb", mode=mode, url=ready["url"], dir=ready["dir"])
        return child

    def _send(self, target: _Child | _HostRun, message: dict[str, Any], pending: deque) -> _Child | _HostRun:
        """Send a row; if that fails, go on offline with all that was not acknowledged. Raises `WandbFailure` if that fails too."""
        try:
            target.send(message)
            for _ in range(target.acknowledged()):
                pending.popleft()
            return target
        except WandbFailure as error:
            return self._go_on_offline(target, pending, error)

    def _go_on_offline(self, target: _Child | _HostRun, pending: deque, why: WandbFailure) -> _Child:
        """A run of our own with all that was not acknowledged. Raises `WandbFailure` if that fails too."""
        self._report("wandb_offline", reason=str(why))
        target.end()
        child = self._open_child("offline", f"{self.run_id}-offline")
        for waiting in pending:
            child.send(waiting)
        return child

    def _finish(self, target: _Child | _HostRun, pending: deque) -> None:
        files = {name: str((self.run_dir / name).resolve()) for name in ARTIFACT if (self.run_dir / name).is_file()}
        for path in sorted((self.run_dir / "statistics").glob("*")):
            if path.suffix in (".parquet", ".json"):
                files[f"statistics/{path.name}"] = str(path.resolve())
        message = {"op": "finish", "step": self._step, "name": f"gradlens-{self.run_id}"[:128], "files": files}
        pending.append(message)
        target = self._send(target, message, pending)
        try:
            try:
                target.finished()
            except WandbFailure as error:
                for _ in range(target.acknowledged()):
                    pending.popleft()
                if len(pending) == 1 or self._left() < 0:
                    raise
                # it died with rows that it had been sent and had not taken
                target = self._go_on_offline(target, pending, error)
                target.finished()
        except WandbFailure as error:
            target.end()
            later = f"upload it later with: wandb sync {target.folder}" if target.folder else "the run folder has everything"
            self._report("wandb_unfinished", reason=f"{error}; {later}")

    def _left(self) -> float:
        """Seconds until `close` wants to return."""
        return math.inf if self._deadline is None else self._deadline - time.monotonic()


class _HostRun:
    """The `wandb.run` that the host program has begun, and will finish."""

    folder = None

    def __init__(self, run: Any, config: dict[str, Any], step_key: str | None = None):
        try:
            self.logger = WandbLogger(run, step_key or host_step_key(run))
            run.config.update({"gradlens": config}, allow_val_change=True)
        except Exception as error:  # W&B raises many kinds
            raise WandbFailure(f"the host's W&B run: {type(error).__name__}: {error}") from error
        self._sent = 0

    def send(self, message: dict[str, Any]) -> None:
        operation, arguments = message["op"], {key: value for key, value in message.items() if key != "op"}
        try:
            getattr(self.logger, operation)(**arguments)
        except Exception as error:  # W&B raises many kinds; the run folder has the row
            raise WandbFailure(f"the host's W&B run: {type(error).__name__}: {error}") from error
        self._sent += 1

    def acknowledged(self) -> int:
        sent, self._sent = self._sent, 0
        return sent

    def finished(self) -> None:
        """Nothing to wait for: the host finishes its run."""

    def end(self) -> None:
        """The host's run is not ours to end."""


class _Child:
    """The process that holds our own W&B run. Every wait is bounded, also by `left()`, the seconds that `WandbSink.close` has left;
    `end` kills it together with W&B's service."""

    def __init__(self, run_dir: Path, left: Callable[[], float]):
        self._left = left
        command = [sys.executable, "-P", str(Path(__file__).with_name("wandb_worker.py"))]
        (run_dir / "wandb").mkdir(parents=True, exist_ok=True)
        with open(run_dir / "wandb" / "worker.log", "ab") as log:
            # A session of its own: ctrl-c is for training, which then closes us in order.
            self._process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, start_new_session=True, bufsize=0
            )
        os.set_blocking(self._process.stdin.fileno(), False)
        self.folder: str | None = None
        self._answers: queue.SimpleQueue[dict[str, Any]] = queue.SimpleQueue()
        self._taken = 0  # rows acknowledged while something else was waited for
        threading.Thread(target=self._listen, name="gradlens-wandb-answers", daemon=True).start()

    def _listen(self) -> None:
        for line in self._process.stdout:
            self._answers.put(json.loads(line))
        self._process.wait()
        self._answers.put({"failed": f"the W&B process ended (exit code {self._process.returncode})"})

    def init(self, mode: str, timeout: float, settings: dict[str, Any]) -> dict[str, Any]:
        """Begin the run. Raises `WandbFailure` if it takes longer than `timeout` and the time that importing W&B may take."""
        self.send({"op": "init", "mode": mode, "timeout": timeout, "settings": settings})
        ready = self._wait_for("ready", timeout + 30.0, f"W&B {mode} did not start")["ready"]
        self.folder = ready["dir"]
        return ready

    def send(self, message: dict[str, Any]) -> None:
        data = memoryview(json.dumps(message).encode() + b"\n")
        descriptor, started = self._process.stdin.fileno(), time.monotonic()
        while data:
            if select.select([], [descriptor], [], 0.5)[1]:
                try:
                    data = data[os.write(descriptor, data) :]
                except BrokenPipeError:
                    raise WandbFailure(self._why_ended()) from None
            elif time.monotonic() - started > STALL_SECONDS or self._left() < 0:
                raise WandbFailure("W&B takes no more rows")

    def acknowledged(self) -> int:
        """How many more rows W&B has taken. Raises `WandbFailure` if the process said that it failed."""
        while not self._answers.empty():
            answer = self._answers.get()
            if "failed" in answer:
                raise WandbFailure(answer["failed"])
            self._taken += "ack" in answer
        taken, self._taken = self._taken, 0
        return taken

    def finished(self) -> None:
        """Wait until everything is written and uploaded. Raises `WandbFailure` if that takes longer than is left."""
        self._wait_for("finished", math.inf, "W&B did not finish")

    def end(self) -> None:
        try:
            os.killpg(self._process.pid, signal.SIGKILL)  # its own session, so its own group: W&B's service is in it
        except ProcessLookupError:
            pass  # ended already
        self._process.wait()

    def _wait_for(self, what: str, timeout: float, otherwise: str) -> dict[str, Any]:
        started = time.monotonic()
        while True:
            try:
                answer = self._answers.get(timeout=0.2)
            except queue.Empty:
                waited = time.monotonic() - started
                if waited > timeout or self._left() < 0:
                    raise WandbFailure(f"{otherwise} within {waited:.0f} s") from None
                continue
            if "failed" in answer:
                raise WandbFailure(answer["failed"])
            if what in answer:
                return answer
            self._taken += "ack" in answer

    def _why_ended(self) -> str:
        try:
            self._wait_for("an end", 5.0, "W&B closed its input and did not end")
        except WandbFailure as error:
            return str(error)
        raise AssertionError("unreachable")


def alert_of(alarm: dict[str, Any]) -> dict[str, Any]:
    """An alarm as a message to `WandbLogger.alert`; W&B wants titles under 64 characters."""
    about = {"concept": f"{alarm.get('name')} is being learned", "displaced": f"{alarm.get('name')} may have moved elsewhere"}
    named = f"gradlens: {about.get(alarm.get('about'), 'something not announced')}"
    title = named if len(named) < 64 else named[:62] + "…"
    return {"op": "alert", "title": title, "text": f"step {alarm.get('step')}: {alarm.get('text')}"}


def in_words_of(event: dict[str, Any]) -> dict[str, Any]:
    """What was learned as a message to `WandbLogger.in_words`: a row per cluster, one of what is said less; see `wandb_worker.IN_WORDS`."""
    rows = []
    for entry in event.get("clusters") or []:
        own = entry.get("own") or {}
        said = own.get("said") or {}
        figures = [event.get("step"), entry["share"], ", ".join(entry["words"]), *entry["probability"], entry["passage"]]
        rows.append([*figures, own.get("before"), own.get("now"), own.get("of"), said.get("before"), said.get("now")])
    less = event.get("less") or {}
    if less:
        words = f"said less: {', '.join(less['words'])}"
        rows.append([event.get("step"), None, words, less["before"], less["now"], "", *[None] * 5])
    return {"op": "in_words", "rows": jsonable(rows)}


def top_rows(step: int, features: dict[str, dict[str, Any]]) -> list[list[Any]]:
    """Rows `[step, hookpoint, feature, push, attribution]` of the largest |attribution| (or |push|) of each hookpoint."""
    rows = []
    limit = max(1, min(10, TABLE_ROWS // max(1, len(features))))
    for hookpoint, part in features.items():
        columns = {name: np.asarray(part[name], float) for name in ("attribution", "push") if name in part}
        size = np.nan_to_num(np.abs(next(iter(columns.values()), np.zeros(len(part["feature"])))), posinf=0.0)
        for i in np.argsort(-size, kind="stable")[:limit]:
            figures = [jsonable(columns[name][i]) if name in columns else None for name in ("push", "attribution")]
            rows.append([step, hookpoint, int(part["feature"][i]), *figures])
    return rows


def host_step_key(run: Any) -> str:
    """The axis the host program logs on, where that can be told: transformers' and Lightning's callbacks define one."""
    summary, config = dict(run.summary), dict(run.config)
    for key, mark in (("train/global_step", "per_device_train_batch_size"), ("trainer/global_step", None)):
        if key in summary or mark in config:
            return key
    return f"{PREFIX}step"

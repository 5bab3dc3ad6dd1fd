"""Curves in TensorBoard, MLflow, Trackio, Aim, Comet or SwanLab, through accelerate's trackers, beside the run folder.

The keys are W&B's, with the same limit, and so is the contract: a thread of its own talks to the tracker, which may block or fail without
training noticing. Values of one step go out together when the next step begins: some trackers take a step once only.
"""

from __future__ import annotations

import difflib
import logging
import math
import re
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from gradlens.errors import ConfigError
from gradlens.recording.curve_keys import KeyBudget, headed

log = logging.getLogger(__name__)
# name -> distribution that must be installed
TRACKERS = {
    "tensorboard": "tensorboard", "mlflow": "mlflow", "trackio": "trackio", "aim": "aim", "comet_ml": "comet_ml", "swanlab": "swanlab",
}  # fmt: skip


def check_trackers(names: Iterable[str]) -> None:
    """Raise `ConfigError` with one line for a tracker that is not known or not installed."""
    for name in names:
        if name == "wandb":
            raise ConfigError("trackers: W&B has keys of its own; set wandb (wandb.mode in a config, wandb= of watch)")
        if name not in TRACKERS:
            near = difflib.get_close_matches(name, TRACKERS, n=1)
            raise ConfigError(
                f"trackers: unknown tracker {name!r}; {f'did you mean {near[0]}?' if near else 'known: ' + ', '.join(TRACKERS)}"
            )
        from accelerate.tracking import get_available_trackers

        if name not in [str(tracker) for tracker in get_available_trackers()]:
            raise ConfigError(f"trackers: {name} is not installed; pip install {TRACKERS[name]}, or leave it out")


class TrackerSink:
    """A `recorder.Sink` that feeds one tracker.

    Events it reports: `tracker` (it has begun), `tracker_failed` (why it ends, or how many rows it lost).
    """

    def __init__(self, name: str, run_dir: str | Path, project: str = "gradlens", *, capacity: int = 1000) -> None:
        """Make it in the thread that trains: the host program's own run is looked for there. Raises `ConfigError`, see `check_trackers`."""
        check_trackers([name])
        self.name, self.run_dir, self.project, self.capacity = name, Path(run_dir).resolve(), project, capacity
        self._host_run = host_run(name)
        self._keys = KeyBudget()
        self._rows: deque[tuple[int, dict[str, float]]] = deque()
        self._changed = threading.Condition()
        self._closing, self._failed, self._lost = False, False, 0
        self._thread: threading.Thread | None = None
        self._report: Callable[..., None] = lambda kind, **fields: None

    def start(self, report: Callable[..., None]) -> None:
        self._report = report
        self._thread = threading.Thread(target=self._work, name=f"gradlens-{self.name}", daemon=True)
        self._thread.start()

    def record(self, record: dict[str, Any]) -> None:
        """Queue the scalars of a record. Returns at once; a full queue drops the row."""
        selected = self._keys.select(record.get("scalars") or {})
        values = {tracked(key): value for key, value in selected.items() if math.isfinite(value)}
        if not values:
            return
        with self._changed:
            if self._failed or len(self._rows) >= self.capacity:
                self._lost += 1
                return
            self._rows.append((int(record["step"]), values))
            self._changed.notify()

    def event(self, event: dict[str, Any]) -> None:
        """Trackers show curves only."""

    def close(self, timeout: float) -> None:
        """Send what waits within `timeout` seconds, then let go."""
        if self._thread is None:
            return
        with self._changed:
            self._closing = True
            self._changed.notify()
        deadline = time.monotonic() + timeout
        self._thread.join(max(0.0, deadline - time.monotonic()))
        lost = self._lost + len(self._rows)
        if self._thread.is_alive():  # a daemon: it ends with the program
            self._report("tracker_failed", tracker=self.name, rows=lost, reason=f"it did not finish within {timeout:.0f} s")
        elif lost and not self._failed:
            self._report("tracker_failed", tracker=self.name, rows=lost, reason="it was too slow; the run folder has them")
        self._thread = None

    # -- the sink's own thread ------------------------------------------------------------------------------------------------

    def _work(self) -> None:
        try:
            tracker = make_tracker(self.name, self.run_dir, self.project, self._host_run)
            self._report("tracker", tracker=self.name, mode="own" if self._host_run is None else "joined")
            step, values = 0, {}
            while True:
                with self._changed:
                    self._changed.wait_for(lambda: self._rows or self._closing)
                    row = self._rows.popleft() if self._rows else None
                if values and (row is None or row[0] != step):
                    tracker.log(values, step=step)
                    values = {}
                if row is None:
                    break
                step, values = row[0], {**values, **row[1]}
            if self._host_run is None:
                tracker.finish()
        except BaseException as error:  # whatever it is, SystemExit too: the run folder has everything, and training must not notice
            with self._changed:
                self._failed = True
                self._rows.clear()
            reason = f"{type(error).__name__}: {' '.join(str(error).split())[:300]}; the run folder has everything"
            log.warning("%s: %s", self.name, reason)  # someone who watches its page alone would wait in vain
            self._report("tracker_failed", tracker=self.name, reason=reason)


def tracked(key: str) -> str:
    """The key as W&B shows it, with letters that MLflow and SwanLab refuse replaced."""
    return re.sub(r"[^\w\-./: ]", "_", headed(key))


def make_tracker(name: str, run_dir: Path, project: str, host_run: Any = None) -> Any:
    """accelerate's tracker, begun, or with the host's run. Where its files are ours to place: in the run folder, but for Aim, which
    compares the runs of one repository: beside it."""
    from accelerate import tracking
    from accelerate.state import PartialState

    if (
        not PartialState._shared_state
    ):  # a program without accelerate; beginning its state here would fix the device for whoever comes later
        tracking.logger = _Logger(logging.getLogger("accelerate.tracking"), {})
    kind, run = tracking.LOGGER_TYPE_TO_CLASS[name], run_dir.name
    if name == "tensorboard":
        tracker = kind(run, logging_dir=run_dir / "tensorboard")
    elif name == "mlflow":
        tracker = kind(project, run_name=run, run_id=host_run, nested_run=bool(host_run))
    elif name == "aim":
        tracker = kind(run, logging_dir=run_dir.parent, experiment=project)
    elif name == "trackio":
        tracker = kind(project, name=run)
    elif name == "swanlab":
        tracker = kind(project, experiment_name=run, logdir=str(run_dir / "swanlab"))
        tracker.run = host_run
    else:
        tracker = kind(project)
        tracker.writer = host_run
    tracker.main_process_only = False  # we are the main process; asking accelerate would begin its own state in this program
    if host_run is None or name == "mlflow":  # MLflow joins by id; SwanLab would refuse to begin a second run
        tracker.start()
        if name == "comet_ml":
            tracker.writer.set_name(run)
    return tracker


class _Logger(logging.LoggerAdapter):
    """In the place of accelerate's logger, which refuses to work without accelerate's state."""

    def warning_once(self, *args: Any, **kwargs: Any) -> None:
        self.warning(*args, **kwargs)


def host_run(name: str) -> Any:
    """The run that the host program has begun in this tracker, if it can be joined; of MLflow its id."""
    module = sys.modules.get(name)
    if module is None:
        return None
    if name == "mlflow":
        active = module.active_run()
        return active.info.run_id if active else None
    if name == "swanlab":
        has_run = getattr(module, "has_run", None)  # before 0.10: get_run alone, and None from it
        return module.get_run() if has_run is None or has_run() else None
    if name == "comet_ml":
        running = module.get_running_experiment()
        return running if running is not None and not running.ended else None  # Comet goes on naming one that has ended
    return None

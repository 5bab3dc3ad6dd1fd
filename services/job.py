"""A job: puts Ray, the actors and the ranks together, watches over them, and brings every run to a summary.

`run_job` carries out one run, `run_arms` several with the same ranks. Ctrl-c (or SIGTERM) asks the ranks to finish their step and
save; a second one ends everything at once. Either way the run folder is readable and can be resumed.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import shutil
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from gradlens_services.cluster import NAMESPACE, ray_session
from gradlens_services.controller import ControllerService, first_state
from gradlens_services.lens import LensService
from gradlens_services.recorder import RecorderService
from gradlens_services.trainer import OUTCOME, Plan, carry_out, read_outcome, written

from gradlens import errors
from gradlens.config import RunConfig, read_yaml
from gradlens.control.rules import load_rules
from gradlens.errors import ConfigError, InputError, RunError
from gradlens.files import jsonable, write_atomic
from gradlens.recording.lookup import called, find_run
from gradlens.recording.runfolder import JOB, give_lock, is_running, take_lock
from gradlens.recording.segments import read_manifest
from gradlens.recording.store import RunReader, RunWriter
from gradlens.report.summary import build_summary
from gradlens.training.preflight import check

# told `{"run", "phase", ...}` about twice a second; an alarm and a warning are phases of their own
Progress = Callable[[dict[str, Any]], None]
POLL_SECONDS = 0.4
ROOM_SECONDS = 20.0  # ranks that have not begun after this are looked after: is there room for them?
UNWRITTEN_SECONDS = 3.0  # after which it is said that nothing is recorded
STOP_SECONDS = 10.0  # in which the controller says that it has heard of ctrl-c


@dataclass
class _Run:
    config: RunConfig
    folder: Path
    resume: bool = False
    before: dict[Path, tuple[bytes, os.stat_result]] = field(default_factory=dict)  # files of a run that is resumed, as they were
    lock: Any = None  # of the job on the run folder: before the recorder is up nobody else may begin with it

    def put_back(self) -> None:
        """What is refused changes nothing: the run's config and its outcome are again those of its first part."""
        for path, (content, stat) in self.before.items():
            path.write_bytes(content)
            os.utime(path, (stat.st_atime, stat.st_mtime))


def run_job(config: RunConfig, resume: str | Path | None = None, progress: Progress | None = None) -> dict[str, Any]:
    """Carry out one run and return its summary (`status`: `done` or `interrupted`). `resume`: a run folder or id to go on with.

    Raises `ConfigError` and `InputError` for what does not fit together before Ray starts, `RunError` for a run that failed.
    """
    _check([config], progress)
    run = _resumed(config, resume) if resume else _new(config)
    try:
        return _carry_out([run], progress)[0]
    except (ConfigError, InputError):
        run.put_back()
        raise
    finally:
        give_lock(run.lock)


def run_arms(configs: Sequence[RunConfig], progress: Progress | None = None) -> list[dict[str, Any]]:
    """Carry out several runs of the same model and data, one after another, on the same ranks; concepts and the evaluation of the base
    model are those of the first. Returns the summaries of the runs that were begun."""
    _check(configs, progress)
    runs = [_new(config) for config in configs]
    try:
        return _carry_out(runs, progress)
    finally:
        for run in runs:
            give_lock(run.lock)


def _check(configs: Sequence[RunConfig], progress: Progress | None) -> None:
    if progress:
        progress({"run": configs[0].name, "phase": "checking config and data"})
    told: set[str] = set()  # arms have their data in common
    for config in configs:
        for warning in check(config):
            if progress and warning not in told:
                progress({"run": config.name, "phase": "warning", "text": warning})
            told.add(warning)


def _new(config: RunConfig) -> _Run:
    writer = RunWriter.create(config.runs_dir, config.name, config)
    writer.close()
    folder = Path(writer.run_dir).resolve()
    return _Run(config, folder, lock=take_lock(folder, JOB))


def _resumed(config: RunConfig, query: str | Path) -> _Run:
    folder = find_run(config.runs_dir, query).resolve()
    if is_running(folder):
        raise ConfigError(f"{folder.name} is still running; wait for it to end, or stop it with ctrl-c where it was started")
    lock = take_lock(folder, JOB)  # raises `RunError` where another command was faster
    read_manifest(folder / "statistics")  # where it is damaged nothing could be recorded
    path = folder / "config.yaml"
    if path.is_file() and load_rules(read_yaml(path).get("rules") or []) != load_rules(list(config.rules)):
        raise ConfigError(
            f"{folder.name} goes on with the rules that were in force; change them first: `gradlens rules set {called(folder)} FILE` "
            "(or undo, off)"
        )
    kept = [file for file in (path, folder / "summary.json", folder / OUTCOME) if file.is_file()]
    before = {file: (file.read_bytes(), file.stat()) for file in kept}
    (folder / OUTCOME).unlink(missing_ok=True)
    begun = path.stat()
    write_atomic(path, yaml.safe_dump(jsonable(config), sort_keys=False, allow_unicode=True))  # more steps than before, say
    os.utime(path, (begun.st_atime, begun.st_mtime))  # its time is when the run began
    return _Run(config, folder, True, before, lock)


def _carry_out(runs: list[_Run], progress: Progress | None) -> list[dict[str, Any]]:
    tell = progress or (lambda event: None)
    plan = Plan(
        runs[0].folder.name, NAMESPACE, tuple((run.folder.name, str(run.folder), run.config.model_dump(mode="json")) for run in runs)
    )
    for run in runs:
        first_state(run.folder, load_rules(list(run.config.rules)), run.resume)
    config = runs[0].config
    tell({"run": plan.name, "phase": "starting Ray"})
    failure: BaseException | None = None
    with _interrupts() as asked, ray_session(config.ray, config.train.num_workers, runs[0].folder / "ray.log"):
        asked.listen()  # Ray's core has put a handler of its own in the place of ours, which ends the process
        try:
            failure = _train(plan, runs, asked, tell)
            if failure is None and read_outcome(runs[0].folder) is None:
                failure = RunError(f"how it ended could not be written to {runs[0].folder}: is there room, and may it be written?")
        except KeyboardInterrupt:
            failure = None  # the second ctrl-c: what there is, is kept
    return _summaries(runs, failure)


def _train(plan: Plan, runs: list[_Run], asked: _Asked, tell: Progress) -> BaseException | None:
    """Start the actors and the ranks, and watch them to their end. Returns what Ray says went wrong, if anything did."""
    import ray
    from ray.exceptions import RayError

    folders = {run.folder.name: str(run.folder) for run in runs}
    arms = {run.folder.name: run.config.arm for run in runs}
    options = {"namespace": plan.namespace, "num_cpus": 0, "max_restarts": -1}
    controller = ray.remote(ControllerService).options(name=f"controller:{plan.name}", **options).remote(folders)
    recorder = ray.remote(RecorderService).options(name=f"recorder:{plan.name}", **options).remote(folders)
    lenses = [
        ray.remote(LensService).options(name=f"lens:{index}:{plan.name}", **options).remote()
        for index in range(min(runs[0].config.ray.lens_actors, len(runs[0].config.dictionaries)))
    ]
    box: list[BaseException | None] = [None]
    tell({"run": plan.name, "arm": runs[0].config.arm, "phase": "starting ranks"})
    ranks = threading.Thread(target=_fit, args=(plan, runs[0], box), name="gradlens-ranks", daemon=True)
    ranks.start()
    told = 0
    alarms = Alarms([run.folder for run in runs])
    unwritten: dict[str, float] = {}  # runs whose folder takes nothing: since when; inf: it is told of
    resumes = {run.folder.name for run in runs if run.resume}  # of which `resumed` is not told yet: not the end of a rank

    def tell_alarms() -> None:
        for run_id, event in alarms.new():
            if event["kind"] == "resumed" and run_id in resumes:
                resumes.remove(run_id)
            elif event["kind"] == "alarm":
                tell({"run": run_id, "arm": arms[run_id], "phase": "alarm", "step": event.get("step"), "text": event.get("text")})
            else:
                warn(run_id, event)

    def warn(run_id: str, event: dict[str, Any]) -> None:
        if event["kind"] == "storage_error":
            unwritten[run_id] = math.inf
        tell({"run": run_id, "arm": arms[run_id], "phase": "warning", "text": trouble_in_words(event)})

    def tell_unwritten(run_id: str, event: dict[str, Any] | None) -> None:
        """What the run folder does not take, not even as an event: once it has been so for a while."""
        if not event:
            unwritten.pop(run_id, None)
        elif time.monotonic() - unwritten.setdefault(run_id, time.monotonic()) > UNWRITTEN_SECONDS:
            warn(run_id, {"kind": "storage_error", **event})

    question = recorder.status.remote()
    started, heard, no_room = time.monotonic(), False, ""
    stop: Any = None  # what the controller answers to ctrl-c, and since when it is asked
    while ranks.is_alive():
        ranks.join(POLL_SECONDS)
        if not heard and not no_room and time.monotonic() - started > ROOM_SECONDS and (no_room := lacking_room(runs[0].config)):
            tell({"run": plan.name, "arm": runs[0].config.arm, "phase": "warning", "text": no_room})
        if asked.count > told:
            told = asked.count
            tell({"run": plan.name, "phase": "stopping"})
            stop = controller.stop.remote(), time.monotonic()
        if asked.count > 1 or (asked.count and no_room and not heard):  # no rank is there to end its step
            raise KeyboardInterrupt
        if stop is not None and ray.wait([stop[0]], timeout=0)[0]:
            stop = None
        elif stop is not None and time.monotonic() - stop[1] > STOP_SECONDS:
            text = "the controller does not answer, so the ranks do not hear of it; ctrl-c again ends the run as its last checkpoint has it"
            tell({"run": plan.name, "arm": runs[0].config.arm, "phase": "warning", "text": text})
            stop = None
        ready, _ = ray.wait([question], timeout=0)
        if ready:
            with contextlib.suppress(RayError):  # a recorder that is away costs a reading, nothing else
                status = ray.get(question)
                if status:
                    heard = True
                    run_id = list(status)[-1]
                    tell_unwritten(run_id, status[run_id].pop("unwritten", None))
                    tell({"run": run_id, "arm": arms[run_id], **status[run_id]})
            question = recorder.status.remote()
        tell_alarms()
    with contextlib.suppress(RayError):
        ray.get(recorder.close.remote(), timeout=60)  # runs whose rank 0 died with them open
    tell_alarms()
    for actor in (controller, recorder, *lenses):
        ray.kill(actor)
    shutil.rmtree(runs[0].folder / ".ray", ignore_errors=True)  # Ray Train's own storage: nothing is kept in it
    return box[0]


def on_gpus(config: RunConfig) -> bool:
    """Whether a rank takes a GPU of the cluster, and not a CPU."""
    import ray

    train = config.train
    return train.device == "cuda" or (train.device == "auto" and ray.cluster_resources().get("GPU", 0) >= train.num_workers)


def lacking_room(config: RunConfig) -> str:
    """Why ranks do not begin: the cluster has too little for them, or others hold it; empty where it has enough."""
    import ray
    from ray.util import placement_group_table

    needed, kind = config.train.num_workers, "GPU" if on_gpus(config) else "CPU"
    there, free = (found.get(kind, 0) for found in (ray.cluster_resources(), ray.available_resources()))
    head = f"no room for the ranks: train.num_workers is {needed}, one {kind} each, and of this Ray cluster's {there:g} {free:g} are free"
    waits = any(group["state"] == "PENDING" for group in placement_group_table().values())  # maybe somebody else's, who asks for more
    if there < needed or (waits and free < needed):
        return f"{head}; the run waits until there are enough; ctrl-c ends it"
    return ""


TOLD = ("alarm", "storage_error", "rows_left_out", "resumed")  # on screen while a run goes on


def trouble_in_words(event: dict[str, Any]) -> str:
    """What is not saved, not trained on or begun again: a person can only mend it while the run goes on."""
    if event["kind"] == "resumed":
        where = f"from its checkpoint of step {event['step']}" if event.get("step") else "from its beginning: there is no checkpoint yet"
        return f"a rank died or failed, so the run goes on {where}"
    if event["kind"] == "rows_left_out":
        return str(event.get("text"))
    what = f"{event['rows']} rows of its record" if event.get("rows") else event.get("file") or "a file"
    return f"step {event.get('step', event.get('to_step'))}: {what} could not be written: {event.get('error')}; training goes on without"


class Alarms:
    """Events of `TOLD` kinds that are written to the run folders from now on; those of an earlier part of a resumed run are not told
    again."""

    def __init__(self, folders: Sequence[Path]) -> None:
        self._files = {folder.name: folder / "events.jsonl" for folder in folders}
        self._read = {run_id: path.stat().st_size if path.is_file() else 0 for run_id, path in self._files.items()}

    def new(self) -> list[tuple[str, dict[str, Any]]]:
        """`(run id, event)` of the alarms since the last call. Never raises: a file that cannot be read costs a line on a screen."""
        found = []
        for run_id, path in self._files.items():
            with contextlib.suppress(OSError), open(path, "rb") as file:
                if os.fstat(file.fileno()).st_size < self._read[run_id]:
                    self._read[run_id] = 0  # another file: the run folder was removed
                file.seek(self._read[run_id])
                data = file.read()
                whole = data.rfind(b"\n") + 1  # a last line without its end is still being written
                self._read[run_id] += whole
                for line in data[:whole].splitlines():
                    with contextlib.suppress(ValueError):
                        event = json.loads(line)
                        if isinstance(event, dict) and event.get("kind") in TOLD:
                            found.append((run_id, event))
        return found


def _fit(plan: Plan, run: _Run, box: list[BaseException | None]) -> None:
    """Ray Train, in a thread: on the main thread it would take ctrl-c for itself."""
    import ray
    import ray.train
    from gradlens_services.loopback import WAIT, OnlyHere
    from ray.train.torch import TorchConfig, TorchTrainer

    train, settings = run.config.train, run.config.ray
    trainer = TorchTrainer(
        carry_out,
        train_loop_config={"plan": plan},
        torch_config=OnlyHere() if settings.address is None else TorchConfig(timeout_s=int(WAIT.total_seconds())),
        scaling_config=ray.train.ScalingConfig(num_workers=train.num_workers, use_gpu=on_gpus(run.config)),
        run_config=ray.train.RunConfig(
            name=".ray", storage_path=str(run.folder), failure_config=ray.train.FailureConfig(max_failures=settings.max_failures)
        ),
    )
    try:
        trainer.fit()
    except BaseException as error:  # a thread has nobody to raise to
        box[0] = error


def _summaries(runs: list[_Run], failure: BaseException | None) -> list[dict[str, Any]]:
    """Write and return the summary of every run that was begun, remove the others; raise what ended a run that failed."""
    summaries, wrong = [], None
    for run in runs:
        if not (run.folder / "config.yaml").is_file():
            model = run.folder / "model"
            left = f"what is left of it is the model in {model}" if model.is_dir() else "nothing of it is left"
            wrong = wrong or RunError(f"{run.folder} was removed while the run went on; {left}")
            continue
        outcome = read_outcome(run.folder)
        reader = RunReader(run.folder)
        if outcome is None and run is not runs[0] and not reader.keys():  # an arm that was never begun: it would be `last`
            shutil.rmtree(run.folder, ignore_errors=True)
            continue
        status = outcome["status"] if outcome else "failed" if failure else "interrupted"
        summary = build_summary(reader, status) | {"arm": run.config.arm, "name": run.config.name}
        written(run.folder / "summary.json", summary)
        summaries.append(summary)
        if outcome and outcome["status"] == "failed" and wrong is None:
            wrong = _error_of(outcome, run.folder)
    if wrong is None and failure is not None:
        hint = f"resume with `gradlens run --resume {called(runs[0].folder)}`"
        if written(runs[0].folder / "error.txt", str(failure) + "\n"):
            hint += f"; details in {runs[0].folder / 'error.txt'}"
        wrong = RunError(f"the ranks could not go on ({_in_one_line(failure)}); {hint}")
    if wrong is not None:
        raise wrong
    return summaries


def _in_one_line(failure: BaseException) -> str:
    """What ended the ranks: those that died, of whose end the others only tell in the words of their network; else its last line."""
    failures = getattr(failure, "worker_failures", {})
    died = [str(rank) for rank, error in sorted(failures.items()) if type(error).__name__.startswith("WorkerHealthCheck")]
    if died:
        ranks = f"rank {died[0]}" if len(died) == 1 else f"ranks {', '.join(died)}"
        return f"{ranks} died, killed perhaps or out of memory, after ray.max_failures had been used up"
    lines = [line.strip() for line in str(failure).splitlines() if line.strip()]
    return lines[-1] if lines else type(failure).__name__


def _error_of(outcome: dict[str, Any], folder: Path) -> errors.GradlensError:
    """The error that ended a rank, as it was raised there."""
    if outcome.get("trace"):
        written(folder / "error.txt", outcome["trace"])
        return RunError(f"{outcome['error']} (in a rank; traceback in {folder / 'error.txt'})")
    return getattr(errors, outcome["kind"], RunError)(outcome["error"])


@dataclass
class _Asked:
    count: int = 0
    listen: Callable[[], None] = lambda: None


@contextlib.contextmanager
def _interrupts() -> Iterator[_Asked]:
    """Counts SIGINT and SIGTERM instead of raising, on the main thread; elsewhere signals are not ours to take."""
    asked = _Asked()
    if threading.current_thread() is not threading.main_thread():
        yield asked
        return

    def count(number: int, frame: Any) -> None:
        asked.count += 1

    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)  # a closed terminal asks as well; `nohup` ignores it, and so it stays
    numbers = tuple(number for number in numbers if number == signal.SIGINT or signal.getsignal(number) is not signal.SIG_IGN)
    before = {number: signal.signal(number, count) for number in numbers}
    asked.listen = lambda: [signal.signal(number, count) for number in before] and None
    try:
        yield asked
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)

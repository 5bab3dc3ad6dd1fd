"""What one Ray Train worker does: it is a rank, and carries out the runs of a job one after another.

All state is in the run folders, so a group of ranks that Ray starts again after a death goes on where the last checkpoint is.
How a run ended stands in its `outcome.json`; a run that has one is not touched again.
"""

from __future__ import annotations

import errno
import json
import logging
import os
import traceback
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from gradlens_services import controller as control
from gradlens_services import recorder as recording
from gradlens_services.lens import RemoteProjection, deal

from gradlens.config import RunConfig
from gradlens.control.rules import Policy, load_rules
from gradlens.errors import GradlensError, RunError
from gradlens.files import read_lines, write_atomic, write_json
from gradlens.model.hookpoints import canonical
from gradlens.readings.projection import Members, RowDetectors
from gradlens.recording.recorder import NullRecorder
from gradlens.training.checkpoint import last_checkpoint
from gradlens.training.rank import FixedPolicies, Rank, Shared
from gradlens.training.train import read_evaluation, train_rank
from gradlens.world import World, current_world

OUTCOME = "outcome.json"

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Plan:
    """A job: runs that the same ranks carry out, one after another."""

    name: str  # of the job; its actors are `controller:NAME` and `recorder:NAME`
    namespace: str
    runs: tuple[tuple[str, str, dict[str, Any]], ...]  # run id, run folder, config


def read_outcome(run_dir: Path) -> dict[str, Any] | None:
    """`{"status", "kind", "error", "trace"}` of a run that has ended, else None."""
    path = run_dir / OUTCOME
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None


def carry_out(settings: dict[str, Plan]) -> None:
    """The function that Ray Train runs on every rank; `settings` holds the `plan`."""
    from gradlens_services.loopback import loopback_group

    with loopback_group():
        _carry_out(settings["plan"])


def _carry_out(plan: Plan) -> None:
    import ray.train.torch

    device = ray.train.torch.get_device()
    world = current_world()
    shared = Shared()
    local = ray.train.get_context().get_local_world_size()
    for run_id, folder, values in plan.runs:
        run_dir, config = Path(folder), RunConfig.model_validate(values)
        torch.set_num_threads(config.train.threads or max(1, len(os.sched_getaffinity(0)) // local))
        outcome = world.broadcast(read_outcome(run_dir) if world.rank == 0 else None)
        if outcome is None:
            outcome = _run(plan, run_id, run_dir, config, world, device, shared)
        else:
            _recall(run_dir, shared)
        if outcome["status"] != "done":
            return


def _run(plan: Plan, run_id: str, run_dir: Path, config: RunConfig, world: World, device: torch.device, shared: Shared) -> dict[str, Any]:
    recorder, policies, phase = NullRecorder(), FixedPolicies(), lambda name, **fields: None
    policy = None
    if world.rank == 0:
        state = control.read_state(run_dir)
        policy = Policy(version=state["version"], rules=tuple(load_rules(list(state["rules"]))))
        resume_step = _resume_step(run_dir)
        recorder = recording.RecorderClient(_sender(plan), run_dir, resume_step, end=lambda: _end(f"recorder:{plan.name}", plan.namespace))
        if resume_step is None:
            recorder.event("started")
        policies = control.PolicyClient(_asker(plan, run_id), recorder, policy.version, _settler(plan, run_id))
        phase = recorder.phase
    rank = Rank(config, run_dir, recorder, policies, world, device, shared, phase, initial_policy=policy)
    remote: list[RemoteProjection] = []
    if config.ray.lens_actors and config.dictionaries:
        rank.projector = lambda members, _, tells: remote.append(_projection(plan, config, members, tells, world, recorder)) or remote[-1]
    try:
        outcome = {"status": train_rank(rank)}
    except BaseException as error:
        outcome = _failure(error, config, final=world.size == 1)
        if outcome is not None:
            written(run_dir / OUTCOME, outcome)
        _close(*remote, policies, recorder)
        if outcome is None or world.size > 1:
            raise  # Ray ends the other ranks, and starts them all again
        return outcome
    _close(*remote, policies, recorder)
    if world.rank == 0:
        written(run_dir / OUTCOME, outcome)
    world.broadcast(None)
    return outcome


def written(path: Path, data: dict[str, Any] | str) -> bool:
    """Write what a run leaves behind, as JSON or as it is; where there is no room for it (False), all else goes on."""
    try:
        write_atomic(path, data) if isinstance(data, str) else write_json(path, data)
    except OSError as error:
        log.warning("%s could not be written: %s", path, error)
        return False
    return True


def _failure(error: BaseException, config: RunConfig, final: bool) -> dict[str, Any] | None:
    """What is wrong, if another attempt would only meet it again; None for what may come of another rank's death."""
    if isinstance(error, torch.OutOfMemoryError):
        size = config.train.micro_batch_size or config.train.batch_size
        advice = f"lower train.micro_batch_size (now {size}) or data.max_length (now {config.data.max_length})"
        error = RunError(f"out of memory on the device; {advice}, or set model.gradient_checkpointing: true")
    if isinstance(error, OSError) and error.errno == errno.ENOSPC:
        error = RunError(f"{error.filename or 'a file of this run'}: {error.strerror}; make room, and resume the run")
    if isinstance(error, GradlensError):
        return {"status": "failed", "kind": type(error).__name__, "error": str(error)}
    if not final:
        return None
    return {"status": "failed", "kind": "", "error": f"{type(error).__name__}: {error}", "trace": traceback.format_exc()}


def _close(*services: Any) -> None:
    for service in services:
        if hasattr(service, "close"):
            service.close()


def _recall(run_dir: Path, shared: Shared) -> None:
    """What a finished run of this job leaves to the next ones."""
    from gradlens.concepts.fitting import load_concepts

    if shared.concepts is None and (run_dir / "concepts.yaml").is_file():
        shared.concepts = load_concepts([run_dir / "concepts.yaml"])
    if shared.before is None:
        shared.before = read_evaluation(run_dir).get("before")


def _resume_step(run_dir: Path) -> int | None:
    """The step to which records are kept: the last checkpoint's; 0 for a run that has none but has begun; None for a new one."""
    checkpoint = last_checkpoint(run_dir)
    if checkpoint is not None:
        return checkpoint[0]
    begun = any((run_dir / "statistics").iterdir()) or any(event.get("kind") == "started" for event in read_lines(run_dir / "events.jsonl"))
    return 0 if begun else None


def _sender(plan: Plan) -> Any:
    actor = _actor(f"recorder:{plan.name}", plan.namespace)
    if actor is not None:
        return recording.actor_sender(actor)

    def send(*_: Any) -> int:
        raise recording.Lost(final=True)

    return send


def _projection(
    plan: Plan, config: RunConfig, members: Members, row_detectors: RowDetectors | None, world: World, recorder: Any
) -> RemoteProjection:
    """The lens actors of the job, with their hookpoints. Raises `RunError` where one is not there."""
    sources = {canonical(hook): source for hook, source in config.dictionaries.items()}
    parts = deal(list(sources), config.ray.lens_actors)
    actors = [_actor(f"lens:{index}:{plan.name}", plan.namespace) for index in range(len(parts))]
    if None in actors:
        raise RunError(f"lens actor {actors.index(None)} is gone for good; go on without: --set ray.lens_actors=0")
    dealt = list(zip(actors, parts, strict=True))
    return RemoteProjection(dealt, sources, members, config.observe, world, recorder.event, row_detectors)


def _asker(plan: Plan, run_id: str) -> Any:
    actor = _actor(f"controller:{plan.name}", plan.namespace)
    if actor is not None:
        return control.actor_asker(actor, run_id)

    def ask(_: int) -> Any:
        raise control.Lost(final=True)

    return ask


def _settler(plan: Plan, run_id: str) -> Any:
    actor = _actor(f"controller:{plan.name}", plan.namespace)
    return lambda version, rules, by: actor and actor.settle.remote(run_id, version, rules, by)


def _end(name: str, namespace: str) -> None:
    """End an actor for good, one that hangs as well."""
    import ray

    actor = _actor(name, namespace)
    if actor is not None:
        ray.kill(actor)


def _actor(name: str, namespace: str) -> Any:
    import ray

    try:
        return ray.get_actor(name, namespace=namespace)
    except ValueError:
        return None  # dead for good: the run goes on without it

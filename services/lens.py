"""Lens actors: the projection of gradients on dictionaries, away from the ranks; hookpoints are dealt out among the actors.

After each observed step a rank sends its counted tokens and goes on. The readings come back to a thread of rank 0, which puts them into
the step's record, in the order of the steps. At most `STEPS_AHEAD` steps wait for an actor: beyond that a rank sends nothing until the
actor has caught up. Steps without readings are told of by a `gap` event. An actor that dies comes back with the totals as last heard (at a
reading of the probe set, a checkpoint), and the event says which steps they lack; one that hangs is waited for once, and from then on
records go out without it until it answers again.
"""

from __future__ import annotations

import contextlib
import threading
import time
import uuid
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from gradlens.config import ObserveSettings
from gradlens.errors import RunError
from gradlens.readings.projection import Members, Projection, Record, RowDetectors, Tokens
from gradlens.world import World

STEPS_AHEAD = 8
POLL_SECONDS = 0.02
ANSWER_SECONDS = 30.0  # a step whose readings take longer is recorded without them
NOT_READY: Record = {"ready": False}
Batches = list[tuple[str, Tokens]]  # hookpoint, tokens of a micro-batch


@dataclass(frozen=True)
class Task:
    """What an actor works on: one run, from its start or from a checkpoint on."""

    session: str
    sources: dict[str, str]  # hookpoint -> dictionary
    members: Members
    observe: ObserveSettings
    ranks: int
    row_detectors: RowDetectors | None = None


class LensService:
    """What runs in an actor."""

    def __init__(self) -> None:
        torch.set_num_threads(1)  # the ranks have the cores
        self._task: Task | None = None

    def begin(self, task: Task, totals: dict[str, dict[str, Tensor]] | None = None) -> bool:
        """Work on this from now on, and go on with `totals`; nothing happens (False) where it is worked on already. Every rank says it."""
        if self._task is not None and self._task.session == task.session:
            return False
        from gradlens.dictionaries.formats import load_dictionary

        dictionaries = {name: load_dictionary(source) for name, source in task.sources.items()}
        self._projection = Projection(dictionaries, task.members, task.observe, task.row_detectors)
        self._sent: dict[int, dict[int, Batches | None]] = {}  # step -> rank that is through with it -> what it saw
        self._results: dict[int, Record | None] = {}
        self._newest = -1  # last step that is complete
        self._projection.set_totals(totals or {})
        self._task = task
        return True

    def observe(self, session: str, step: int, rank: int, batches: Batches | None) -> None:
        """What a rank saw in a step; None: it left the step out. After the last rank the readings are there."""
        if self._task is None or self._task.session != session:
            return  # this process is new and has not been told yet; the step is lost
        sent = self._sent.setdefault(step, {})
        sent[rank] = batches
        if len(sent) < self._task.ranks:
            return
        in_order = [sent[rank] for rank in sorted(sent)]  # not as they arrived: sums of floats depend on the order
        self._results[step] = None if None in in_order else self._read([b for part in in_order for b in part])
        self._newest = step
        self._sent = {later: parts for later, parts in self._sent.items() if later > step}

    def result(self, session: str, step: int, dense: bool) -> Record | None:
        """The part of the step's record that is ours; `NOT_READY` until every rank is through; None where it was left out or lost.

        `dense`: with the totals up to this step, or a little later where the actor is ahead.
        """
        if self._task is None or self._task.session != session:
            return None
        for earlier in [other for other in self._results if other < step]:  # whoever asked for them has given up
            del self._results[earlier]
        if step not in self._results:
            return NOT_READY if step > self._newest else None
        part = self._results.pop(step)
        return part if part is None or not dense else {**part, "totals": self.totals()}

    def totals(self) -> dict[str, dict[str, Tensor]]:
        return self._projection.totals()

    def set_totals(self, totals: dict[str, dict[str, Tensor]]) -> None:
        self._projection.set_totals(totals)

    def _read(self, batches: Batches) -> Record:
        for hookpoint, tokens in batches:
            self._projection.add(hookpoint, tokens)
        return self._projection.take(self._task.ranks)


@dataclass
class _Waiting:
    record: Record
    emit: Callable[[Record], None]
    step: int | None  # as the actors count; None: a record without readings


class RemoteProjection:
    """A `gradlens.readings.projection.Projector` for one rank, whose work is done by lens actors.

    `actors`: each with its hookpoints. What a step has captured is held until the optimizer has stepped: no hook waits for a copy.
    """

    def __init__(
        self, actors: list[tuple[Any, list[str]]], sources: dict[str, str], members: Members, observe: ObserveSettings, world: World,
        event: Callable[..., None], row_detectors: RowDetectors | None = None,
    ) -> None:  # fmt: skip
        session = world.broadcast(uuid.uuid4().hex)
        self._tasks = [
            (actor, Task(session, {n: sources[n] for n in names}, members, observe, world.size, row_detectors)) for actor, names in actors
        ]
        self._event = event
        self._step = 0  # observed steps so far: the same on every rank
        self._captured: Batches = []
        self._unanswered: list[Any] = []
        self._waiting: deque[_Waiting] = deque()
        self._gap: tuple[int, int, int] | None = None  # first step, last step, count
        self._silent: dict[int, Any] = {}  # actors (by place) that did not answer in time -> a question put to them then
        self._changed = threading.Condition()
        self._thread: threading.Thread | None = None
        self._deadline: float | None = None  # from when on nobody waits for an actor any more
        # As last heard, and at which step: an actor that died goes on with them.
        self._totals: dict[str, tuple[int, dict[str, Tensor]]] = {}
        self._handed_on = 0  # step of the last record that went out
        self._before: int | None = None  # the step before the first of them: of the totals of a checkpoint
        # Answers of actors that were told to begin again (had they died?), and the step of their totals.
        self._begun: list[tuple[Any, int]] = []
        self._begin()

    def _begin(self) -> None:
        """Tell the actors what to work on. Raises `RunError` where one cannot; one that is slow or away is told of by a gap later."""
        import ray
        from ray.exceptions import RayError, RayTaskError

        told = [(actor.begin.remote(task), task) for actor, task in self._tasks]
        deadline = time.monotonic() + ANSWER_SECONDS
        for reference, task in told:
            try:
                ray.get(reference, timeout=max(0.0, deadline - time.monotonic()))
            except RayTaskError as error:
                hooks = ", ".join(task.sources)
                raise RunError(f"the lens actor for {hooks}: {error.cause}; go on without: --set ray.lens_actors=0") from None
            except RayError:
                continue

    def add(self, hookpoint: str, tokens: Tokens, pairs: tuple[Tensor, Tensor] | None = None) -> None:
        self._captured.append((hookpoint, replace(tokens, h_TD=tokens.h_TD.detach(), g_TD=tokens.g_TD.detach())))

    def finish(self, record: Record, world: World, emit: Callable[[Record], None]) -> None:
        import ray

        captured, self._captured = self._captured, []
        if self._unanswered:
            self._unanswered = ray.wait(self._unanswered, num_returns=len(self._unanswered), timeout=0)[1]
        behind = len(self._unanswered) >= STEPS_AHEAD * len(self._tasks)
        for actor, task in self._tasks:
            part = None if behind else [(name, _on_cpu(tokens)) for name, tokens in captured if name in task.sources]
            self._unanswered.append(actor.observe.remote(task.session, self._step, world.rank, part))
        if world.rank == 0:
            self._put(_Waiting(record, emit, self._step))
        self._step += 1

    def drop(self) -> None:
        self._captured = []

    def skip(self, record: Record, emit: Callable[[Record], None]) -> None:
        self._put(_Waiting(record, emit, None))

    def settle(self) -> None:
        """Nothing to do: the thread hands everything on, and `close` waits for it."""

    def totals(self) -> dict[str, dict[str, Tensor]]:
        """Waits until the steps so far are through (for a checkpoint); as last heard from an actor that does not answer."""
        self.flush()
        found = self._ask_totals(self._handed_on)
        return {name: part or self._totals.get(name, (0, part))[1] for name, part in found.items()}

    def _ask_totals(self, step: int) -> dict[str, dict[str, Tensor]]:
        import ray
        from ray.exceptions import GetTimeoutError, RayError

        found: dict[str, dict[str, Tensor]] = {name: {} for _, task in self._tasks for name in task.sources}
        for index, (actor, _) in enumerate(self._tasks):
            if self._is_silent(index):
                continue
            try:
                end = time.monotonic() + ANSWER_SECONDS
                found |= ray.get(actor.totals.remote(), timeout=max(0.0, min(end, self._deadline or end) - time.monotonic()))
            except GetTimeoutError:
                self._falls_silent(index)
            except RayError:
                continue  # its steps are told of by a gap
        self._heard(found, step)
        return found

    def _heard(self, totals: dict[str, dict[str, Tensor]], step: int) -> None:
        self._totals |= {name: (step, part) for name, part in totals.items() if part}

    def _begin_again(self, index: int) -> Any:
        """Where an actor has died and come back, it must be told what to do, and gets the totals that it had."""
        actor, task = self._tasks[index]
        known = {name: self._totals[name] for name in task.sources if name in self._totals}
        answer = actor.begin.remote(task, {name: part for name, (_, part) in known.items()})
        self._begun.append((answer, min((step for step, _ in known.values()), default=0)))
        return answer

    def set_totals(self, totals: dict[str, dict[str, Tensor]]) -> None:
        self._heard(totals, 0)
        for actor, task in self._tasks:
            actor.set_totals.remote({name: totals[name] for name in task.sources if totals.get(name)})

    def flush(self, timeout: float = ANSWER_SECONDS) -> None:
        """Wait until every record has been handed on."""
        with self._changed:
            self._changed.wait_for(lambda: not self._waiting, timeout)

    def close(self) -> None:
        """Hand every record on: with its readings if they come soon, else without."""
        self._deadline = time.monotonic() + ANSWER_SECONDS
        self.flush(ANSWER_SECONDS + 10)  # beyond the deadline records go on without asking
        self._tell_gap()

    def _put(self, waiting: _Waiting) -> None:
        self._before = waiting.record["step"] - 1 if self._before is None else self._before
        with self._changed:
            self._waiting.append(waiting)
            self._changed.notify_all()
            if self._thread is None:
                self._thread = threading.Thread(target=self._work, name="gradlens-lens", daemon=True)
                self._thread.start()

    def _work(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._waiting)
                waiting = self._waiting[0]
            if waiting.step is not None:
                dense = bool(waiting.record.get("dense"))
                self._merge(waiting.record, [self._answer(index, waiting.step, dense) for index in range(len(self._tasks))])
            elif waiting.record.get("dense"):  # the last one of a run
                _add_totals(waiting.record, self._ask_totals(waiting.record["step"]))
            waiting.emit(waiting.record)
            self._handed_on = waiting.record["step"]
            with self._changed:
                self._waiting.popleft()
                waiting = None  # of an arm's last record: this thread outlives the arm, and holds neither its lens nor its model
                self._changed.notify_all()

    def _answer(self, index: int, step: int, dense: bool) -> Record | None:
        import ray
        from ray.exceptions import GetTimeoutError, RayError

        actor, task = self._tasks[index]
        if self._is_silent(index):
            return None
        end = time.monotonic() + ANSWER_SECONDS
        while (left := min(end, self._deadline or end) - time.monotonic()) > 0:
            try:
                part = ray.get(actor.result.remote(task.session, step, dense), timeout=left)
            except GetTimeoutError:
                self._falls_silent(index)
                return None
            except RayError:  # it died
                part = None
            if part is None:
                self._begin_again(index)
            if part != NOT_READY:
                return part
            time.sleep(POLL_SECONDS)
        return None

    def _falls_silent(self, index: int) -> None:
        """Nobody waits for this actor any more, or every record would wait as long, and be lost in the end."""
        _, task = self._tasks[index]
        self._silent[index] = self._begin_again(index)
        if self._deadline is None or time.monotonic() < self._deadline:  # at the end of a run it may not have had its time
            reason = "no answer: steps have no readings until it answers again"
            self._event("service_lost", service="lens", hookpoints=list(task.sources), reason=reason)

    def _is_silent(self, index: int) -> bool:
        import ray

        asked = self._silent.get(index)
        if asked is not None and ray.wait([asked], timeout=0)[0]:  # it answers again, or has come back
            self._silent.pop(index, None)
            self._event("service_back", service="lens", hookpoints=list(self._tasks[index][1].sources))
            return False
        return asked is not None

    def _merge(self, record: Record, parts: list[Record | None]) -> None:
        step = record["step"]
        if None in parts:
            first, _, count = self._gap or (step, step, 0)
            self._gap = (first, step, count + 1)
        else:
            self._tell_gap()
        record |= {"features": {}, "examples": [], "lessons": []}
        for part in parts:
            if part is not None:
                record["scalars"] |= part["scalars"]
                record["features"] |= part["features"]
                record["examples"] += part["examples"]
                record["lessons"] += part["lessons"]
                _add_totals(record, part.get("totals", {}))
                self._heard(part.get("totals", {}), step)

    def _tell_gap(self) -> None:
        if self._gap is not None:
            first, last, count = self._gap
            reason = "a lens actor was away or too slow: these steps have no readings"
            lacking = self._died_after()
            if lacking is not None and lacking + 1 < first:
                steps = f"step {first - 1}" if lacking + 2 == first else f"steps {lacking + 1} to {first - 1}"
                reason += f"; it died, so what is summed over the run lacks {steps} as well"
            self._event("gap", step=last, service="lens", reason=reason, from_step=first, to_step=last, count=count)
            self._gap = None

    def _died_after(self) -> int | None:
        """The step whose totals an actor goes on with that died since the last call; None where none did."""
        import ray
        from ray.exceptions import RayError

        steps, begun, self._begun = [], self._begun, []
        for answer, step in begun:
            with contextlib.suppress(RayError):
                if ray.wait([answer], timeout=0)[0] and ray.get(answer) is True:
                    steps.append(max(step, self._before or 0))
        return min(steps, default=None)


def _add_totals(record: Record, totals: dict[str, dict[str, Tensor]]) -> None:
    for name, columns in totals.items():
        record["dense"][name] |= {key: total.float().numpy() for key, total in columns.items()}


def _on_cpu(tokens: Tokens) -> Tokens:
    return tokens.map(Tensor.cpu)


def deal(hookpoints: list[str], actors: int) -> list[list[str]]:
    """Hookpoints of each actor: at most `actors` of them, none without one."""
    return [part for part in (hookpoints[i::actors] for i in range(actors)) if part]

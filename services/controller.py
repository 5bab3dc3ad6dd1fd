"""The controller: a named actor that holds the rules in force and the wish to stop, and its client on rank 0.

Its state is in the run folders (`policy.json`), so a restarted controller knows what the last one knew. While it is away the ranks
keep the last policy; the client notes the outage in `events.jsonl`. The client never waits: it looks once a step whether the last
question has been answered.
"""

from __future__ import annotations

import logging
import time
import uuid
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from gradlens.control import policies
from gradlens.control.policies import dump_rules, read_state
from gradlens.control.rules import Policy, Rule, load_rules
from gradlens.errors import ConfigError

log = logging.getLogger(__name__)


class ControllerService:
    """What runs in the actor. `runs`: run id -> run folder."""

    def __init__(self, runs: dict[str, str]) -> None:
        self._folders = {run_id: Path(folder) for run_id, folder in runs.items()}
        self._state: dict[str, dict[str, Any]] = {}
        self._seen: dict[str, tuple[int, ...]] = {}  # which `policy.json` the state is of
        self._stopping: set[str] = set()  # runs that are to end, also where that cannot be written down
        self._instance = uuid.uuid4().hex  # tells a client that it talks to a restarted controller

    def get(self, run_id: str, known_version: int) -> dict[str, Any]:
        """`{"version", "stop", "rules", "instance"}`; rules are None where the caller knows this version."""
        state = self._now(run_id)
        state = {**state, "stop": state["stop"] or run_id in self._stopping}
        return {**state, "rules": state["rules"] if state["version"] != known_version else None, "instance": self._instance}

    def set_rules(self, run_id: str, rules: Sequence[dict[str, Any]], base_version: int) -> int:
        """Put rules in force in place of those of `base_version`; returns the new version.

        Raises `Conflict` where another version is in force, `ConfigError` for a rule that is not one or names an unknown concept.
        """
        folder = self._folders[run_id]
        return policies.put(folder, dump_rules(policies.check_rules(folder, rules)), "set", base_version)["version"]

    def settle(self, run_id: str, version: int, rules: Sequence[dict[str, Any]], by: policies.By = "auto") -> None:
        """See `policies.settle`."""
        policies.settle(self._folders[run_id], version, rules, by)

    def stop(self, run_id: str | None = None) -> None:
        """Ask a run (default: every run of the job) to end after the step it is in."""
        for name in [run_id] if run_id else list(self._folders):
            self._stopping.add(name)
            try:
                with policies.changing(self._folders[name]) as state:
                    state["stop"] = True
            except OSError as error:  # no room: this process knows of it, and one in its place would not
                log.warning("that %s is to stop could not be written down: %s", name, error)

    def _now(self, run_id: str) -> dict[str, Any]:
        """The state; read again where somebody has changed it (`gradlens rules set | undo | off`), kept where the file is gone."""
        seen = policies.signature(self._folders[run_id])
        if run_id not in self._state or (seen and seen != self._seen[run_id]):
            self._state[run_id], self._seen[run_id] = read_state(self._folders[run_id]), seen
        return self._state[run_id]


def first_state(folder: Path, rules: Sequence[Rule], resume: bool) -> Policy:
    """Write the state a run starts from: the rules of its config, or on resuming those that were in force. Returns the policy."""
    if not resume or not (folder / "policy.json").is_file():
        policies.begin(folder, dump_rules(rules))
    with policies.changing(folder) as state:
        state["stop"] = False
    return Policy(version=state["version"], rules=tuple(load_rules(list(state["rules"]))))


Answer = Callable[[], dict[str, Any] | None]  # None: not yet; raises `Lost`
SILENT_SECONDS = 30.0  # a controller that has not answered for so long hangs


class Lost(Exception):
    """The controller did not answer; `final` says that it never will."""

    def __init__(self, final: bool) -> None:
        super().__init__(final)
        self.final = final


class PolicyClient:
    """`gradlens.training.rank.Policies` for rank 0. `ask(known_version) -> Answer` puts a question, `settle(version, rules, by)` says what
    a version has come to; both return at once."""

    def __init__(
        self,
        ask: Callable[[int], Answer],
        recorder: Any,
        version: int,
        settle: Callable[[int, list[dict[str, Any]], policies.By], None] = lambda version, rules, by: None,
    ) -> None:
        self._ask, self._settle, self._recorder, self._version = ask, settle, recorder, version
        self._answer: Answer | None = None
        self._step, self._away_from, self._gone = 0, None, False
        self._instance, self._heard = None, 0  # of the last answer: whose, and at which step
        self._asked = 0.0  # when the question was put that is not answered yet

    def poll(self, step: int = 0) -> tuple[Policy | None, bool]:
        """A newer policy, if one has arrived since the last call, and whether to stop."""
        self._step = step
        if self._gone:
            return None, False
        try:
            answer = self._answer() if self._answer else None
            if self._answer is not None and answer is None:
                if time.monotonic() - self._asked > SILENT_SECONDS:
                    self._away()
                return None, False  # asked, and not answered yet
            newer, stop = self._heed(answer) if answer else (None, False)
            self._answer, self._asked = self._ask(self._version), time.monotonic()
        except Lost as lost:
            self._lost(lost)
            return None, False
        return newer, stop

    def _heed(self, answer: dict[str, Any]) -> tuple[Policy | None, bool]:
        if self._instance not in (None, answer["instance"]) and self._away_from is None:
            self._away_from = self._heard  # it died and came back between two questions
        if self._away_from is not None:
            self._back()
        self._instance, self._heard = answer["instance"], self._step
        if answer["rules"] is None or answer["version"] < self._version:  # versions only grow: its file is gone, the last policy stays
            return None, answer["stop"]
        self._version = answer["version"]
        try:
            rules = load_rules(list(answer["rules"]))
        except ConfigError as error:  # written by hand, or by another version: the last policy stays in force
            self._recorder.event("policy_refused", step=self._step, version=self._version, error=str(error))
            return None, answer["stop"]
        return Policy(version=answer["version"], rules=tuple(rules)), answer["stop"]

    def settle(self, policy: Policy, by: policies.By = "auto") -> None:
        """See `gradlens.training.rank.Policies`."""
        self._settle(policy.version, dump_rules(policy.rules), by)

    def close(self) -> None:
        """At the end of a run: an outage that has not ended is noted."""
        if self._away_from is not None:
            self._gap()

    def _lost(self, lost: Lost) -> None:
        self._answer = None
        self._gone = lost.final
        self._away()

    def _away(self) -> None:
        if self._away_from is None:
            self._away_from = self._step
            self._recorder.event("service_lost", step=self._step, service="controller", rules="the last policy stays in force")

    def _back(self) -> None:
        self._recorder.event("service_back", step=self._step, service="controller")
        self._gap()

    def _gap(self) -> None:
        gap = {"from_step": self._away_from, "to_step": self._step, "count": 0, "service": "controller"}
        self._recorder.event("gap", step=self._step, reason="controller away: rules could not be changed", **gap)
        self._away_from = None


def actor_asker(actor: Any, run_id: str) -> Callable[[int], Answer]:
    """`ask` for a client, through Ray: neither the question nor looking for its answer ever waits."""
    import ray
    from ray.exceptions import ActorDiedError, RayError

    def ask(known_version: int) -> Answer:
        reference = actor.get.remote(run_id, known_version)

        def answer() -> dict[str, Any] | None:
            ready, _ = ray.wait([reference], timeout=0)
            if not ready:
                return None
            try:
                return ray.get(reference)
            except RayError as error:
                raise Lost(final=isinstance(error, ActorDiedError)) from None

        return answer

    return ask

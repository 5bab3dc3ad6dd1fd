"""One rank of a run: what it is given, and what the arms of a study share. Data only; `train.py` carries it out."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import torch

from gradlens.concepts.fitting import Concept
from gradlens.config import RunConfig
from gradlens.control.policies import By
from gradlens.control.rules import Policy
from gradlens.lens import Lens
from gradlens.readings.projection import Projector
from gradlens.world import Single, World


class Recorder(Protocol):
    def record(self, record: dict[str, Any]) -> None: ...

    def event(self, kind: str, **fields: Any) -> None: ...


class Policies(Protocol):
    """Where rank 0 learns of new rules. Never blocks, never raises."""

    def poll(self, step: int) -> tuple[Policy | None, bool]:
        """A policy newer than the last one polled, or None; and whether the run is asked to stop."""
        ...

    def settle(self, policy: Policy, by: By = "auto") -> None:
        """What a version of the rules has come to (see `policies.settle`)."""
        ...


class FixedPolicies:
    """No controller: the rules stay as they are."""

    def poll(self, step: int) -> tuple[Policy | None, bool]:
        return None, False

    def settle(self, policy: Policy, by: By = "auto") -> None:
        pass


@dataclass
class Shared:
    """What the arms of a study have in common: computed by the first, used by the others."""

    concepts: list[Concept] | None = None
    before: dict[str, Any] | None = None  # evaluation of the base model
    readings: dict[str, Any] | None = None  # of the probe set and of the model's own words, before training


@dataclass
class Rank:
    """What one rank of a run works with."""

    config: RunConfig
    run_dir: Path
    recorder: Recorder
    policies: Policies = field(default_factory=FixedPolicies)
    world: World = field(default_factory=Single)
    device: torch.device = torch.device("cpu")
    shared: Shared = field(default_factory=Shared)
    phase: Callable[..., None] = lambda name, **fields: None  # told what the run is doing; fields: done, total
    projector: Callable[..., Projector] | None = None  # makes who projects the gradients (see `Lens`); None: this process
    initial_policy: Policy | None = None  # the policy to start from; None: the rules of the config
    watching: Callable[[Lens], None] = lambda lens: None  # told of the lens before the first step, its rules looked up

    @contextmanager
    def counted(self, name: str, total: int | None = None) -> Iterator[Callable[[int], None]]:
        """A phase with a count: yields `advance(n)`."""
        done = 0
        self.phase(name, done=0, total=total)

        def advance(n: int = 1) -> None:
            nonlocal done
            done += n
            self.phase(name, done=done, total=total)

        yield advance

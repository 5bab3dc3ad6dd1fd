"""A run that somebody else's trainer takes up from its own checkpoint: what is known then, and what is not."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext

from torch import nn

from gradlens.control.rules import Rule
from gradlens.errors import ConfigError
from gradlens.model.hookpoints import unwrap
from gradlens.model.start import remember
from gradlens.readings.own import before_training
from gradlens.watching import Watch


def taken_up(model: nn.Module, step: int, rules: Sequence[Rule], make: Callable[[], Watch], training: object = None) -> Watch:
    """What `make` makes, entered, for a training that is at `step`. `training`: something of this training alone, of a trainer that tells
    nobody of an exception. Raises `ConfigError` for rules that cannot go on."""
    resumed = step > 0
    remember(model, resumed)
    with before_training(unwrap(model)) if resumed else nullcontext(True) as at_hand:
        if not at_hand:
            _check(rules)
        lens = make()  # concepts are fitted as at step 0
    if resumed:
        remember(model, resumed)  # not what it begins with here
    lens.of_trainer, lens.resumed = training, resumed
    lens.step = lens.control.step = step
    lens.__enter__()
    if resumed:
        lens.control.governor.since_the_beginning()
        if lens.world.rank == 0:
            since = "the model without its adapter" if at_hand else f"step {step}, not with the model before training"
            reason = (
                f"the trainer's checkpoint holds nothing of gradlens: drift, uptake and own are compared with {since}; sums and what rules "
                f"have come to know begin at step {step}"
            )
            lens.recorder.event("not_read", step=step, reading="earlier steps", reason=reason)
    return lens


def _check(rules: Sequence[Rule]) -> None:
    """Raise `ConfigError` for a rule that measures against the model before training, where only the weights of a checkpoint are known."""
    for rule in rules:
        if rule.target is not None or rule.mode == "constrain":
            what = f"mode {rule.mode}" if rule.target is None else "a target"
            raise ConfigError(
                f"rule {rule.label}: {what} measures against the model before training, and of a trainer that resumes only the weights of "
                "the checkpoint are there: train an adapter (LoRA), or from step 0 without a break, or leave the rule out; "
                "`gradlens run --resume` goes on with it"
            )

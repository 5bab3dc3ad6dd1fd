"""What of a step was not read, or not trained on: scalars that tell of it, in words for events."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from gradlens.errors import ConfigError

# scalar of a record -> the event that tells of it
FLAWS = {
    "not_finite_tokens": ("not_finite", "{count} tokens with an activation, gradient or loss that is not finite: they are left out"),
    "crowded_tokens": ("gap", "{count} tokens with more active features than there is room for: not all of them are read"),
    "silent_rows": ("nothing_left", "rewriting left nothing to learn of {value:.0%} of the rows of a step: its detector takes too much"),
    "dropped_steps": ("gap", "readings came faster than they could leave the device: those of this step are dropped"),
}

LEAST = {"silent_rows": 0.25}  # what is less than this is no flaw


def flaws_in(scalars: Mapping[str, float]) -> Iterator[tuple[str, str, dict[str, str]]]:
    """Of a record's scalars those that tell of a flaw: its name, the kind of event, and the event's `reason` and `where`."""
    for key, value in scalars.items():
        where, _, flaw = key.rpartition("/")
        if flaw in FLAWS and value >= LEAST.get(flaw, 0):
            kind, reason = FLAWS[flaw]
            yield flaw, kind, {"reason": reason.format(count=int(value), value=value), "where": where}


def as_number(value: Any, what: str) -> float:
    """A float. Raises `ConfigError`, which names `what` is none."""
    try:
        return float(value)
    except (TypeError, ValueError):
        raise ConfigError(f"{what} is a {type(value).__name__} ({value!r:.60}), expected a number") from None

"""The closed loop: a rule with a `target` finds its gain from readings of the probe set. Data and one pure function; no torch.

The measure is a change since before training (a drift, mostly), so it is the sum of what all steps did, and a gain acts on its speed. An
optimizer with momentum goes on for some steps whatever the gain is now, so the loop looks at the measure `lead` steps ahead at its present
speed:

    ahead    = measured + lead * speed
    distance = target(step + lead) - ahead
    gain    += ((distance - distance before) + pace * distance) / reach        at most `rate`, within [gain_min, gain_max]

In words: the distance is to shrink by the share `pace` at every reading; where it shrinks faster the gain is turned down, where slower up,
in units of `reach`, the most that `ahead` has moved between two readings so far. The gain itself is the integral, and it is clipped where
it stands: nothing winds up. In equilibrium the distance is zero, whatever gain that takes.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

Kind = Literal["at_most", "at_least", "follow"]
Limit = Literal["", "gain_min", "gain_max", "budget", "rate", "reading"]
BOUNDS = {"at_most": (0.0, 1.0), "at_least": (1.0, 4.0), "follow": (0.0, 4.0)}  # of the gain, unless told otherwise
TOLERANCE = 0.1  # of the target: within it a target is held
TINY = 1e-30


class Target(BaseModel):
    """What a rule holds: a measure of its concept at, below or above a value, by finding the gain itself."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    kind: Kind = Field("at_most", description="at_most: a cap (0: suppress); at_least: a floor; follow: the value, or the curve.")
    value: float | None = Field(None, description="The target, in the measure's own units (see `gradlens runs show` for its size).")
    curve: tuple[tuple[int, float], ...] = Field(
        (), description="Instead of value: points [step, value]; between them linear, before the first and after the last constant."
    )
    measure: Literal["drift", "drift_direction", "uptake", "group_drift", "own"] = Field(
        "drift",
        description="Which reading of the concept: drift (mean activation of its features on the probe set, now minus before training), "
        "drift_direction (the residual along their directions), group_drift (within their span), uptake, own (the model's own words).",
    )
    hookpoint: str | None = Field(None, description="Where it is measured; null: where the rule acts (the last of several).")
    dead_band: float = Field(0.0, ge=0, description="Distance from the target, in the measure's units, within which the gain stays.")
    rate: float = Field(0.5, gt=0, description="Largest change of the gain at one reading.")
    gain_min: float | None = Field(None, description="Smallest gain; null: 0, for at_least 1. Below 0 the concept is unlearned.")
    gain_max: float | None = Field(None, description="Largest gain; null: 4, for at_most 1.")
    begin: float = Field(1.0, description="Gain before the first reading.")
    lead: float = Field(9.0, ge=0, description="Steps by which the measure is extrapolated; AdamW's momentum carries on for about nine.")
    pace: float = Field(0.25, gt=0, lt=1, description="Share of the distance to the target that should go at every reading.")

    @model_validator(mode="after")
    def _fits(self) -> Target:
        if (self.value is None) == (not self.curve):
            raise ValueError("target: give either value or curve")
        if any(first >= second for (first, _), (second, _) in zip(self.curve, self.curve[1:], strict=False)):
            raise ValueError("target: the steps of a curve must rise")
        low, high = self.bounds
        if low > high:
            raise ValueError(f"target: gain_min ({low:g}) is above gain_max ({high:g})")
        if self.kind == "at_most" and high > 1:
            raise ValueError(f"target: at_most does not amplify, so gain_max is at most 1, not {high:g}; use follow")
        if self.kind == "at_least" and low < 1:
            raise ValueError(f"target: at_least does not suppress, so gain_min is at least 1, not {low:g}; use follow")
        if not low <= self.begin <= high:
            raise ValueError(f"target: begin ({self.begin:g}) lies outside gain_min ({low:g}) to gain_max ({high:g})")
        return self

    @property
    def bounds(self) -> tuple[float, float]:
        low, high = BOUNDS[self.kind]
        return (low if self.gain_min is None else self.gain_min), (high if self.gain_max is None else self.gain_max)

    @property
    def words(self) -> str:
        return f"{self.measure} {self.kind.replace('_', ' ')} {'a curve' if self.value is None else f'{self.value:g}'}"

    def at(self, step: float) -> float:
        """The target at a step."""
        if self.value is not None:
            return self.value
        for (first, low), (second, high) in zip(self.curve, self.curve[1:], strict=False):
            if step < second:
                return low + (high - low) * max(0.0, step - first) / (second - first)
        return self.curve[-1][1] if step >= self.curve[0][0] else self.curve[0][1]

    def excess(self, step: int, measured: float) -> float:
        """How far the measure is on the wrong side of the target, 0 on the right one."""
        distance = measured - self.at(step)
        return {"at_most": max(0.0, distance), "at_least": max(0.0, -distance), "follow": abs(distance)}[self.kind]

    def held(self, step: int, measured: float) -> bool:
        """Whether the target is held: the measure is on the right side, or off by no more than a tenth of it (or the dead band)."""
        return self.excess(step, measured) <= max(TOLERANCE * abs(self.at(step)), self.dead_band)


@dataclass(frozen=True)
class LoopState:
    """What a loop remembers: plain numbers, so that a checkpoint holds it exactly."""

    gain: float
    step: int | None = None  # of the last reading; None: none so far
    measured: float = 0.0  # at the last reading
    ahead: float | None = None  # None: after a first reading in mid-run, which does not tell a speed
    speed: float = 0.0  # the fastest that `ahead` has moved so far, per step
    limit: Limit = ""  # what keeps the target from being held

    @classmethod
    def fresh(cls, target: Target, step: int) -> LoopState:
        """At the start of a run every change is 0, and known; a loop that begins later learns where it stands from its first reading."""
        return cls(target.begin, 0, ahead=0.0) if step == 0 else cls(target.begin)

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def decide(
    target: Target, state: LoopState, step: int, measured: float, *, acts: bool = True, room: float = math.inf, short: bool = False
) -> LoopState:
    """The state after a reading: the new gain and what limits it.

    `acts`: False before the rule's start: the loop only watches. `room`: the largest |gain - 1| that the rule's budget leaves; `short`: its
    budget has kept it from touching all that it wanted since the last reading. The limit is named only while the target is missed.
    """
    if not math.isfinite(measured):
        return replace(state, limit="reading")
    if state.step is None or step <= state.step:
        return replace(state, step=step, measured=measured)
    steps = step - state.step
    extrapolated = target.lead * (measured - state.measured) / steps
    ahead, earlier = measured + extrapolated, state.measured + extrapolated if state.ahead is None else state.ahead
    speed = max(state.speed, abs(ahead - earlier) / steps)
    seen = replace(state, step=step, measured=measured, ahead=ahead, speed=speed, limit="")
    if not acts:
        return seen
    distance, before = target.at(step + target.lead) - ahead, target.at(state.step + target.lead) - earlier
    wanted = 0.0
    if abs(distance) > target.dead_band:
        wanted = (distance - before + target.pace * distance) / max(speed * steps, TINY)
    missing = target.at(step) - measured  # of what the measure should be now
    if (target.kind == "at_most" and missing < 0) or (target.kind == "at_least" and missing > 0):
        wanted = min(wanted, 0.0) if missing < 0 else max(wanted, 0.0)  # on the wrong side the hold is not loosened
    change = max(-target.rate, min(target.rate, wanted))
    low, high = target.bounds
    least, most = max(low, min(1.0, high) - room), min(high, max(1.0, low) + room)
    gain = max(least, min(most, state.gain + change))
    limit: Limit = ""
    if not target.held(step, measured):
        if missing < 0 and gain <= least:
            limit = "budget" if short or least > low else "gain_min"
        elif missing > 0 and gain >= most:
            limit = "budget" if short or most < high else "gain_max"
        elif change != wanted and wanted * missing > 0:
            limit = "rate"
    return replace(seen, gain=gain, limit=limit)

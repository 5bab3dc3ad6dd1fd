"""What keeps rules within bounds while a run goes on: targets (`closed_loop`) and budgets. Plain numbers only.

Every rank holds the same state: what touched how much is summed over ranks before it is asked for, and what the probe set says is decided
by rank 0 and heard by all (`decided`). A checkpoint holds the state, so a run that goes on decides what an uninterrupted one would have.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from gradlens.control.closed_loop import LoopState, decide
from gradlens.control.rules import GATES, Rule
from gradlens.errors import ConfigError

LIMITS = {
    "gain_min": "the gain is at its smallest (gain_min)",
    "gain_max": "the gain is at its largest (gain_max)",
    "budget": "the rule's budget leaves no more room",
    "rate": "the gain may not change faster (rate)",
    "reading": "the reading is not finite: the gain stays",
}


class Governor:
    """`tell(kind, **fields)`: where events go; called on every rank, so that who listens is the caller's business."""

    def __init__(self, tell: Callable[..., None] = lambda kind, **fields: None) -> None:
        self.tell = tell
        self.loops: dict[str, LoopState] = {}
        self._measures: dict[str, str] = {}  # label of a rule with a target -> the scalar that it holds
        # label of a rule with a budget -> sum over steps of the share that a gain of 0 would touch, number of steps
        self._spent: dict[str, tuple[float, int]] = {}
        self._short: set[str] = set()  # labels of rules whose budget keeps them from what they would do
        self._since: dict[str, int] = {}  # rule with a ramp -> the step from which it has been in force
        self._rules: dict[str, Rule] = {}
        self._settled: int | None = None

    def set_rules(self, rules: Sequence[tuple[Rule, str]], step: int) -> None:
        """The rules in force from now on, each with the hookpoint it is measured at. What is known of rules that stay is kept.

        Raises `ConfigError` where two rules with a target or a budget have one name: their curves could not be told apart.
        """
        kept = [(rule, place) for rule, place in rules if rule.target is not None or rule.budget is not None]
        labels = [rule.label for rule, _ in rules]
        for rule, _ in kept:
            if labels.count(rule.label) > 1:
                raise ConfigError(f"rule {rule.label}: another one has this name; give a rule with a target or a budget a name of its own")
        ramps = [rule.model_dump_json() for rule, _ in rules if rule.ramp]
        self._since = {rule: self._since.get(rule, step) for rule in ramps}
        measures = {rule.label: f"concept/{rule.concept}/{place}/{rule.target.measure}" for rule, place in kept if rule.target is not None}
        loops = {}
        for rule, _ in kept:
            if rule.target is None:
                continue
            label, (low, high) = rule.label, rule.target.bounds
            known = self.loops.get(label) if self._measures.get(label, measures[label]) == measures[label] else None
            loops[label] = LoopState.fresh(rule.target, step) if known is None else replace(known, gain=max(low, min(high, known.gain)))
        self.loops, self._measures = loops, measures
        self._rules = {rule.label: rule for rule, _ in kept}
        self._spent = {label: found for label, found in self._spent.items() if label in self._rules}
        self._short &= self._rules.keys()

    def since_the_beginning(self) -> None:
        """The rules have been in force from step 0 on: those of a run that is taken up."""
        self._since = dict.fromkeys(self._since, 0)

    # -- gains ----------------------------------------------------------------------------------------------------------------

    def gain(self, rule: Rule, step: int) -> float:
        """The gain of a rule at a step: its own or its loop's, by its schedule, within its budget."""
        if rule.target is None and rule.budget is None:
            return self._scheduled(rule, step)
        gain, room = self._scheduled(rule, step), self._room(rule)
        return 1.0 + max(-room, min(room, gain - 1.0))

    def _scheduled(self, rule: Rule, step: int) -> float:
        """The gain without a budget."""
        loop = self.loops.get(rule.label) if rule.target is not None else None
        return rule.gain_at(step, None if loop is None else loop.gain, self._since.get(rule.model_dump_json(), 0) if rule.ramp else 0)

    def _room(self, rule: Rule) -> float:
        """The largest |gain - 1| that the budget leaves. Before the first step nothing is known: the rule may touch everything."""
        if rule.budget is None or rule.mode in GATES:  # route: single tokens are left alone instead
            return math.inf
        total, steps = self._spent.get(rule.label, (1.0, 1))
        return rule.budget * steps / total if total > 0 else math.inf

    def spend(self, rule: Rule, step: int, touched: float, wanted: float) -> None:
        """After a step: the share that the rule touched, and what it would have without its budget (both as `rule/LABEL/share` counts)."""
        if rule.budget is None:
            return
        gain, label = self.gain(rule, step), rule.label
        if rule.mode in GATES:
            over = wanted > touched
        else:
            by = abs(gain - 1.0)
            whole = touched / by if rule.mode == "rewrite" and by > 0 else touched  # rewrite counts the rows that it takes
            first = label not in self._spent  # the gain was drawn back for want of knowledge, not of room
            total, steps = self._spent.get(label, (0.0, 0))
            self._spent[label] = (total + whole, steps + 1)
            asked = abs(self._scheduled(rule, step) - 1.0)
            over, wanted = asked > by and not first, whole * asked
        if over and label not in self._short:
            self.tell(
                "budget", rule=label, budget=rule.budget, wanted=wanted, gain=gain,
                text=f"rule {label} would touch {wanted:.0%}, its budget is {rule.budget:.0%}: "
                + ("the tokens beyond it are left alone" if rule.mode in GATES else f"its gain is drawn to {gain:.3g}"),
            )  # fmt: skip
        self._short = self._short | {label} if over else self._short - {label}

    # -- targets --------------------------------------------------------------------------------------------------------------

    def read(self, step: int, scalars: Mapping[str, float]) -> dict[str, dict[str, Any]]:
        """What a reading of the probe set after `step` steps decides: label -> the new state of its loop, for `decided`."""
        states = {}
        for label, key in self._measures.items():
            rule = self._rules[label]
            if key in scalars:
                state = decide(
                    rule.target, self.loops[label], step, scalars[key],
                    acts=rule.acts_at(step), room=self._room(rule), short=label in self._short,
                )  # fmt: skip
                states[label] = state.as_dict()
        return states

    def decided(self, states: Mapping[str, Mapping[str, Any]], scalars: dict[str, float]) -> None:
        """Take over new states, those of rank 0; say what limits them, and put target and reading into the step's scalars."""
        for label, values in states.items():
            before, state, target = self.loops[label], LoopState(**values), self._rules[label].target
            self.loops[label] = state
            scalars[f"rule/{label}/target"], scalars[f"rule/{label}/measured"] = target.at(state.step), state.measured
            if state.limit and state.limit != before.limit:
                self.tell("limit", rule=label, limit=state.limit, **self._standing(label))

    def settle(self, step: int) -> None:
        """At the end: say of every target whether it is held, and if not, what kept it from that; once for each step."""
        if step == self._settled:
            return
        self._settled = step
        for label, state in self.loops.items():
            if state.step:
                self.tell("target", rule=label, limit=state.limit, **self._standing(label))
            elif step:
                self.tell("target", rule=label, limit="reading", held=False, text=f"rule {label}: {self._measures[label]} was never read")

    def _standing(self, label: str) -> dict[str, Any]:
        state, target, key = self.loops[label], self._rules[label].target, self._measures[label]
        wanted, held = target.at(state.step), target.held(state.step, state.measured)
        why = f"; {LIMITS[state.limit]}" if state.limit else ""
        text = f"rule {label}: {key} is {state.measured:.3g}, target {target.kind.replace('_', ' ')} {wanted:.3g}: "
        text += f"{'held' if held else 'missed'}{why}"
        return {"measure": key, "measured": state.measured, "target": wanted, "gain": state.gain, "held": held, "text": text}

    # -- state ----------------------------------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        return {
            "loops": {label: {"measure": self._measures[label], **state.as_dict()} for label, state in self.loops.items()},
            "spent": {label: list(found) for label, found in self._spent.items()},
            "short": sorted(self._short),
            "since": self._since,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Before `set_rules`, which keeps what belongs to rules in force."""
        self._measures = {label: values["measure"] for label, values in state["loops"].items()}
        self.loops = {label: LoopState(**{k: v for k, v in values.items() if k != "measure"}) for label, values in state["loops"].items()}
        self._spent = {label: (found[0], found[1]) for label, found in state["spent"].items()}
        self._short, self._since = set(state["short"]), dict(state.get("since", {}))

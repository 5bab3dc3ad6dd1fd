"""Watches, while rules go on, for what rises in place of what they hold down.

Nothing is read for it: the probe set's readings are there anyway. `displacement` has the mathematics, `displaced_runs` compares runs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from gradlens.readings.displacement import Rise, coactive, nearest, others, rise

if TYPE_CHECKING:
    from gradlens.control.control import Control
    from gradlens.readings.learning import Learning

KINDS = {
    "cosine": "the features nearest in direction to its own at {}",
    "coactive": "the features active on the same tokens as its own at {}",
    "elsewhere": "its features at {}, where the rule does not act,",
}
Report = Callable[..., None]


@dataclass(frozen=True)
class Held:
    """What a rule in force holds down."""

    name: str  # the concept, or the rule's label
    features: Mapping[str, Sequence[int]]  # hookpoint -> ids, wherever the concept has some
    acted: frozenset[str]  # hookpoints that the rule acts at


def held_by(control: Control) -> list[Held]:
    """What the rules in force hold down, rules of one concept together; random controls and dry runs hold nothing."""
    found: dict[str, Held] = {}
    for active in control.rules:
        rule = active.rule
        if rule.dry_run or rule.random_control is not None or control.gain(active) >= 1:
            continue
        name = rule.concept or rule.label
        own = control.lookup.concepts.get(rule.concept or "") or {hookpoint: ids.tolist() for hookpoint, ids in active.features.items()}
        acted = frozenset(active.features) | (found[name].acted if name in found else frozenset())
        if own:
            found[name] = Held(name, own, acted)
    return list(found.values())


class Displaced:
    """Neighbours of what is held down, found once on the state before training, and what they do since."""

    def __init__(self, learning: Learning) -> None:
        self.learning = learning
        self._sets: dict[tuple[str, str], dict[str, list[int]]] = {}
        self._alike: dict[tuple[str, str], dict[str, list[list[int]]]] = {}  # neighbours of features that nothing holds down
        self._told: set[str] = set()

    def read(self, step: int, held: Iterable[Held], scalars: dict[str, float], report: Report) -> None:
        """After a reading of the probe set: curves `concept/NAME/HOOKPOINT/{cosine,coactive}` (sum of the neighbours' drift), the event
        `neighbours` at a concept's first reading, and once for each concept an alarm `about: displaced`."""
        if self.learning.known is None or self.learning.start is None or self.learning.last is None:
            return
        for each in held:
            found = {
                (hookpoint, kind): (ids, self._rise(hookpoint, ids, each.features[hookpoint], self._alike[each.name, hookpoint][kind]))
                for hookpoint in each.features
                for kind, ids in self._looked_at(each, hookpoint).items()
            }
            self._announce(step, each, report)
            for (hookpoint, kind), (_, rose) in found.items():
                if kind != "elsewhere":  # that is the concept's own drift, and has a curve
                    scalars[f"concept/{each.name}/{hookpoint}/{kind}"] = rose.change
            if any(alarm["about"] == "displaced" and alarm["name"] == each.name for alarm in self.learning.alarmed):
                continue
            alarming = [
                (hookpoint, kind, ids, rose)
                for (hookpoint, kind), (ids, rose) in found.items()
                if rose.alarming(self._had(hookpoint, each.features[hookpoint]), len(found))
            ]
            if alarming:
                self._alarm(step, each, *max(alarming, key=lambda entry: entry[3].change), len(found), report)

    def _looked_at(self, each: Held, hookpoint: str) -> dict[str, list[int]]:
        """Kind -> features."""
        key = (each.name, hookpoint)
        if key not in self._sets:
            own, dictionary = each.features[hookpoint], self.learning.dictionaries[hookpoint]
            pairs, T = self.learning.known.pairs[hookpoint], len(self.learning.known.row_T)
            self._sets[key] = {"cosine": nearest(dictionary, own), "coactive": coactive(pairs, own, dictionary.d_sae, T)}
            beside = others(self.learning.start[hookpoint].acts, own)
            together = [coactive(pairs, [i], dictionary.d_sae, T) for i in beside]
            self._alike[key] = {
                "cosine": [nearest(dictionary, [i]) for i in beside],
                "coactive": together,
                "elsewhere": [[i, *found][: len(own)] for i, found in zip(beside, together, strict=True)],
            }
        apart = {} if hookpoint in each.acted else {"elsewhere": list(each.features[hookpoint])}
        return {kind: ids for kind, ids in {**self._sets[key], **apart}.items() if ids}

    def _rise(self, hookpoint: str, ids: Sequence[int], own: Sequence[int], alike: Sequence[Sequence[int]]) -> Rise:
        now, then = self.learning.last[hookpoint], self.learning.start[hookpoint]
        return rise(now.rows - then.rows, then.acts, ids, aside=own, alike=alike)

    def _had(self, hookpoint: str, own: Sequence[int]) -> float:
        return self.learning.start[hookpoint].acts[list(own)].sum().item()

    def _announce(self, step: int, each: Held, report: Report) -> None:
        if each.name in self._told:
            return
        self._told.add(each.name)
        sets = {
            hookpoint: {"had": self._had(hookpoint, own), "own": list(own), **self._sets[each.name, hookpoint]}
            for hookpoint, own in each.features.items()
        }
        report("neighbours", step=step, concept=each.name, acted=sorted(each.acted), hookpoints=sets)

    def _alarm(self, step: int, each: Held, hookpoint: str, kind: str, ids: list[int], rose: Rise, tests: int, report: Report) -> None:
        had = self._had(hookpoint, each.features[hookpoint])
        share = f", {rose.change / had:.0%} of what its own features had" if had > 0 else ""
        chance = min(1.0, rose.chance * tests)
        what = KINDS[kind].format(hookpoint)
        text = f"{each.name} is held down by a rule, and {what} rise by {rose.change:.3g}{share} (chance {chance:.2g})"
        alarm = {"about": "displaced", "name": each.name, "hookpoint": hookpoint, "what": kind, "chance": chance, "text": text}
        self.learning.alarmed.append({"step": step, **alarm})
        report("alarm", step=step, features=[[hookpoint, i] for i in ids], **alarm)

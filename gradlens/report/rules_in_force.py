"""Which rules a run has had, at which steps, and how much they touched: from its events, for summaries, comparisons and the report."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from gradlens.report.findings import current


def rules_of(config: Mapping[str, Any], events: Sequence[Mapping[str, Any]], scalars: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Every rule that was ever in force, as it was last, with the mean share it touched; of the config where no policy was put in force.

    `in_force`: spans `(first step, the one after the last)` in steps done before, the last one None where it lasts.
    """
    policies = current(events, "policy")  # without those of steps that were taken back
    ends = [*(event.get("step") for event in policies[1:]), None][: len(policies)]
    applied = [
        {**rule, "in_force": (event.get("step") or 0, end)}
        for event, end in zip(policies, ends, strict=True)
        for rule in event.get("rules") or []
        if isinstance(rule, dict)
    ]
    rules: dict[str, dict[str, Any]] = {}
    for entry in applied or config.get("rules") or []:
        rule = entry if isinstance(entry, dict) else {"name": str(entry)}  # a file of rules, not read yet
        label = rule.get("label") or rule.get("name") or f"{rule.get('mode', 'route')}:{rule.get('concept') or 'features'}"
        share = scalars.get(f"rule/{label}/share", (None, np.zeros(0)))[1]
        share = share[np.isfinite(share)]
        rules[label] = {
            "label": label,
            "in_force": _joined(rules.get(label, {}).get("in_force", []), rule.get("in_force")),
            "concept": rule.get("concept"),
            "mode": rule.get("mode"),
            "gain": None if rule.get("target") else rule.get("gain"),
            "target": rule.get("target"),
            "start": rule.get("start") or 0,
            "end": rule.get("end"),
            "random_control": rule.get("random_control"),
            "share": float(share.mean()) if len(share) else None,
        }
    return list(rules.values())


def _joined(spans: list[tuple[int, int | None]], new: tuple[int, int | None] | None) -> list[tuple[int, int | None]]:
    """Spans with one more, empty ones left out; those that touch are one."""
    if new is None or new[1] == new[0]:
        return spans
    if spans and spans[-1][1] == new[0]:
        return [*spans[:-1], (spans[-1][0], new[1])]
    return [*spans, new]


def rule_text(rule: Mapping[str, Any]) -> str:
    """`route:pirate x 0` and whether its features are random, how much it touched, and when it was in force if not all the time."""
    parts = [rule["label"] if rule["gain"] is None else f"{rule['label']} x {rule['gain']:g}"]
    if rule["random_control"] is not None:
        parts.append("random features")
    if rule["share"] is not None:
        parts.append(f"gated {rule['share']:.0%}")
    spans = rule.get("in_force") or []  # a summary of an older version has none
    if spans and (spans[0][0] > 0 or spans[-1][1] is not None or len(spans) > 1):
        parts.append("in force at steps " + ", ".join(f"{first + 1} to {'the end' if end is None else end}" for first, end in spans))
    return ", ".join(parts)

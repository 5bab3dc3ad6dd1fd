"""What a report shows, gathered from run folders as plain JSON data of bounded size. `page.py` turns it into one HTML file.

Numbers that are not finite travel as the words "NaN", "Infinity", "-Infinity", so that the page can say so instead of leaving a hole.
"""

from __future__ import annotations

import math
import re
from collections import defaultdict
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import yaml

from gradlens.readings.ranking import rank_correlation
from gradlens.report.compare import ARMS, MEASURED, check_text, compare_runs, scalars_by_key
from gradlens.report.displaced_runs import in_words
from gradlens.report.findings import (
    NOISE,
    alarms,
    beyond_chance,
    chance,
    clusters,
    labelled,
    less_in_words,
    marked,
    said_less,
    told_of_answers,
)
from gradlens.report.rules_in_force import rule_text
from gradlens.report.summary import CURVES, feature_labels, learned_counts
from gradlens.report.texts import MAX_EVENTS, answers, clip, event_rows, teaching_rows
from gradlens.report.top import nothing_taught

if TYPE_CHECKING:
    from gradlens.recording.store import RunReader

# Bounds that keep a report under 5 MB, whatever the run's length and width.
MAX_POINTS, MIN_POINTS, POINT_BUDGET = 600, 40, 200_000  # points of a curve; of all curves together
MAX_CONCEPTS = 24
MAX_HOOKPOINTS = 12
MOVER_BUDGET = 4000  # rows of all movers tables together
SPARK_POINTS = 16
MAX_YAML = 20_000
MAX_CLUSTERS, MAX_ALARMS, MAX_WORD = 8, 40, 60  # of each run; characters of a word
GROUP = ("group_share", "group_angle", "group_drift", "group_drift_angle")  # a concept's features as one subspace
ESTIMATES = ("taught", "push", "attribution", "energy")  # sums over the run, to be held against what was measured
ROW_SHARES = {"uptake": 0.5, "drift": 0.3, "push": 0.1, "attribution": 0.1}  # of the rows of a movers table: the largest by each
MOVER_FIGURES = ("uptake", "drift", "drift_direction", "own", "taught", "push", "attribution", "probe_rate")
TRUTHS = ("uptake", "drift", "drift_direction")


def gather(readers: Sequence[RunReader]) -> dict[str, Any]:
    """Everything the page shows. Raises `InputError` without readers, and for statistics that are damaged."""
    comparison = compare_runs(readers)
    concepts = _concepts(readers, comparison["runs"])
    scalars = [scalars_by_key(reader) for reader in readers]
    keys = [_curve_keys(found, concepts) for found in scalars]
    series = [found[: POINT_BUDGET // MIN_POINTS // len(readers)] for found in keys]
    points = int(np.clip(POINT_BUDGET / max(1, sum(map(len, series))), MIN_POINTS, MAX_POINTS))
    axes: dict[tuple[int, ...], int] = {}
    tables = [_hookpoints(reader) for reader in readers]
    rows = max(10, MOVER_BUDGET // max(1, sum(map(len, tables))))
    patterns = {concept["name"]: [re.compile(pattern, re.IGNORECASE) for pattern in concept["patterns"]] for concept in concepts}
    runs, notes = [], []
    for run, reader, found, drawn, every, hookpoints in zip(comparison["runs"], readers, scalars, series, keys, tables, strict=True):
        labels = feature_labels(reader, set(hookpoints))
        notes += [f"{run['run_id']}: no labels were found for the features at {hook}" for hook in hookpoints if not labels.get(hook)]
        events = reader.events
        told = alarms(events, found)
        runs.append(
            {
                **{name: value for name, value in run.items() if name != "rates"},
                "title": _title(run, comparison["runs"]),
                "rule_texts": [rule_text(rule) for rule in run["rules"]],
                "rates": run["rates"],
                "learned_in_words": _in_words(reader, events),
                "said_less": _less(events),
                "learned": learned_counts(found),
                "beyond_chance": beyond_chance(learned_counts(found)),
                "alarms": [
                    {**alarm, "name": clip(alarm["name"] or ""), "text": clip(alarm["text"] or ""), "answers": told_of_answers(alarm)}
                    for alarm in told[:MAX_ALARMS]
                ],
                "curves": {key: _curve(*found[key], axes, points) for key in drawn},
                "health": {hook: _health(found, hook) for hook in hookpoints},
                "movers": {
                    hook: _movers(reader, hook, labels.get(hook, {}), concepts, min(rows, 150), learned_counts(found))
                    for hook in hookpoints
                },
                "examples": teaching_rows(reader, patterns),
                "markers": _markers(run, events),
                "events": _events(events),
                "events_left_out": max(0, len(events) - MAX_EVENTS),
                "config": yaml.safe_dump(reader.config, sort_keys=False, allow_unicode=True)[:MAX_YAML],
                "versions": reader.versions or {},
            }
        )
        hidden = len(reader.hookpoints) - len(hookpoints)
        if hidden > 0:
            notes.append(f"{run['run_id']}: {hidden} more hookpoints are in the run folder and not shown here")
        for count, what in ((len(every) - len(drawn), "curves"), (len(told) - MAX_ALARMS, "alarms")):
            if count > 0:
                notes.append(f"{run['run_id']}: {count} more {what} are in the run folder and not shown here")
    verdicts = [
        {**verdict, "checks": [{**check, "text": check_text(check)} for check in verdict["checks"]]} for verdict in comparison["verdicts"]
    ]
    return encode(
        {
            "runs": runs,
            "axes": [list(axis) for axis in axes],
            "concepts": concepts,
            "verdicts": verdicts,
            "displaced": in_words(comparison["displacement"]),
            "arms": ARMS,
            "baseline": comparison["baseline"],
            "wanted": comparison["wanted"],
            "prompts": answers(readers, comparison["runs"], patterns),
            "notes": list(dict.fromkeys(notes)),
        }
    )


def encode(value: Any) -> Any:
    """JSON data with nine significant digits; what is not finite becomes its word.

    The page shows three: of 1.30501 it would show 1.30 where it were given 1.305, and the terminal 1.31.
    """
    if isinstance(value, dict):
        return {str(key): encode(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [encode(item) for item in value]
    if isinstance(value, (float, np.floating)):
        if math.isnan(value):
            return "NaN"
        return float(f"{value:.9g}") if math.isfinite(value) else ("Infinity" if value > 0 else "-Infinity")
    if value is None or isinstance(value, (bool, int, str)):
        return value
    return value.item() if hasattr(value, "item") else str(value)


def _title(run: dict[str, Any], runs: Sequence[dict[str, Any]]) -> str:
    """What a run is called on the page: its part in the study, else its id."""
    if run["arm"] is None or len(runs) == 1:
        return run["run_id"]
    alike = [other for other in runs if other["arm"] == run["arm"]]
    return ARMS[run["arm"]] if len(alike) == 1 else f"{ARMS[run['arm']]} ({alike.index(run) + 1})"


def _concepts(readers: Sequence[RunReader], runs: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Concepts of all runs: name, description, features and held-out detection per hookpoint, patterns; those that moved most first."""
    found: dict[str, dict[str, Any]] = {}
    for reader in readers:
        path = reader.run_dir / "concepts.yaml"
        data = (yaml.safe_load(path.read_text(encoding="utf-8")) or []) if path.is_file() else []
        for entry in data if isinstance(data, list) else [data]:
            checker = entry.get("checker") or {}
            found.setdefault(
                entry["name"],
                {
                    "name": entry["name"],
                    "description": entry.get("description", ""),
                    "features": entry.get("features") or {},
                    "detection": entry.get("detection") or {},
                    "patterns": checker.get("pattern") or [],
                },
            )
    for run in runs:
        for name in [*run["uptake"], *run["drift"], *(concept for concepts in run["rates"].values() for concept in concepts)]:
            found.setdefault(name, {"name": name, "description": "", "features": {}, "detection": {}, "patterns": []})
    size: dict[tuple[str, str], float] = defaultdict(float)
    for run in runs:
        for measure in MEASURED:
            for name, values in run[measure].items():
                size[name, measure] = max([size[name, measure], *(abs(value) for value in values.values() if value is not None)])
    return sorted(found.values(), key=lambda concept: [-size[concept["name"], measure] for measure in MEASURED])[:MAX_CONCEPTS]


def _in_words(reader: RunReader, events: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The clusters of what was learned: passages in parts, texts cut."""
    found = clusters(events)[:MAX_CLUSTERS]
    labels = feature_labels(reader, {hookpoint for entry in found for hookpoint, _ in entry["features"]})
    shown = []
    for entry in labelled(found, labels):
        own = entry.get("own") or {}
        said = {when: clip(text) for when, text in (own.get("said") or {}).items()}
        shown.append(
            {
                **{key: entry[key] for key in ("step", "share", "count", "probability")},
                "words": [word[:MAX_WORD] for word in entry["words"]],
                "passage": [list(part) for part in marked(clip(entry["passage"]))],
                "labels": [text[:160] for text in entry["labels"]],
                "own": {**own, "said": said} if own else None,
            }
        )
    return shown


def _less(events: Sequence[dict[str, Any]]) -> dict[str, Any] | None:
    """What is said less: words cut, and its shares as text."""
    found = said_less(events)
    return {"words": [word[:MAX_WORD] for word in found["words"]], "text": less_in_words(found)} if found else None


def _events(events: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Events in words; of what was learned and of an alarm the words alone, and an alarm is no trouble of the run's."""
    rows = event_rows([_in_short(event) for event in events])
    for row in rows:
        if row["kind"] in ("learned", "alarm"):
            row.update(text=row["text"].removeprefix("text "), trouble=False)
    return rows


def _in_short(event: dict[str, Any]) -> dict[str, Any]:
    short = {name: event[name] for name in ("time", "step", "kind") if name in event}
    if event.get("kind") == "learned":
        return {**short, "text": "; ".join(f"{chance(c['share'])}: {', '.join(c['words'][:5])}" for c in event.get("clusters") or [])}
    if event.get("kind") == "neighbours":
        return {**short, "concept": event["concept"], "hookpoints": ", ".join(event["hookpoints"])}
    return {**short, "text": event.get("text")} if event.get("kind") == "alarm" else event


def _hookpoints(reader: RunReader) -> list[str]:
    """At most `MAX_HOOKPOINTS`, spread over the depth."""
    names = reader.hookpoints
    chosen = np.unique(np.linspace(0, len(names) - 1, min(len(names), MAX_HOOKPOINTS)).round().astype(int)) if names else []
    return [names[i] for i in chosen]


def _curve_keys(scalars: dict[str, Any], concepts: Sequence[dict[str, Any]]) -> list[str]:
    """What is drawn, the most telling first: where there is no room for all, the last ones are left out."""
    shown, order = {concept["name"] for concept in concepts}, (*CURVES, *GROUP)
    keys = [key for key in ("train/loss", "train/lr", "train/grad_norm") if key in scalars]
    more: list[tuple[int, str]] = []
    for key in scalars:
        parts = key.split("/")
        if parts[0] == "concept" and "/".join(parts[1:-2]) in shown and parts[-1].removesuffix(NOISE) in order:
            more.append((order.index(parts[-1].removesuffix(NOISE)), key))
        elif parts[0] == "own" and parts[-1] == "rate" and "/".join(parts[1:-1]) in shown:
            keys.append(key)
        elif (parts[0] == "rule" and parts[-1] == "share") or parts[-1] in ("unexplained", "fvu"):
            keys.append(key)
    return keys + [key for _, key in sorted(more, key=lambda pair: pair[0])]


def _curve(steps: np.ndarray, values: np.ndarray, axes: dict[tuple[int, ...], int], points: int) -> dict[str, Any]:
    """`{"axis": index of the steps, "y": values, "bin": steps behind a point}`; a bin with a value that is not finite is not finite."""
    size = max(1, math.ceil(len(steps) / points))
    if size > 1:
        edges = np.arange(0, len(steps), size)
        with np.errstate(invalid="ignore"):
            values = np.add.reduceat(values, edges) / np.diff([*edges, len(steps)])
        steps = steps[np.minimum(edges + size, len(steps)) - 1]
    axis = axes.setdefault(tuple(steps.tolist()), len(axes))
    return {"axis": axis, "y": values.tolist(), "bin": size}


def _health(scalars: dict[str, Any], hookpoint: str) -> dict[str, Any]:
    """First and last reading of the dictionary's fit on the live model."""
    found = {}
    for name in ("fvu", "l0", "unexplained"):
        values = scalars.get(f"{hookpoint}/{name}", (None, np.zeros(0)))[1]
        if len(values):
            found[name] = [values[0], values[-1]]
    return found


def _movers(
    reader: RunReader, hookpoint: str, labels: dict[int, str], concepts: Sequence[dict[str, Any]], rows: int, learned: dict[str, int]
) -> dict[str, Any]:
    """The features that were taught most: `{"step", "of": features in all, "rows": [...], "by": "uptake" or "drift", "none", ...}`.

    `none`: what is said where none of them was learned. `learned`: features beyond chance at each hookpoint.

    Rows: by uptake (without one by drift), then by push and attribution; `spark`: `by` at some snapshots.
    """
    table = reader.dense(hookpoint)
    if table.num_rows:
        step = table["step"][0].as_py()
        columns = {
            name: table[name].to_numpy()
            for name in table.column_names
            if name not in ("step", "hookpoint") and table[name].null_count < len(table)
        }
    else:
        # No drift was read yet (a run that was killed early): sums over the recorded top features instead.
        table = reader.features(hookpoint)
        ids, inverse = np.unique(table["feature"].to_numpy(), return_inverse=True)
        step = max(table["step"].to_pylist(), default=0)
        columns = {"feature": ids} | {
            name: np.bincount(inverse, np.nan_to_num(table[name].to_numpy()), len(ids))
            for name in ESTIMATES
            if table[name].null_count < len(table)
        }
    ids = columns["feature"]
    order: dict[int, None] = {}
    members = {concept["name"]: set(concept["features"].get(hookpoint) or []) for concept in concepts}
    by = next((name for name in MEASURED if name in columns), "drift")
    shares = {name: share for name, share in ROW_SHARES.items() if name in columns}
    for name, share in shares.items():
        values = columns[name].astype(float)
        # NaN first: it must be seen. What is said less than in ordinary text was not learned: the sign of uptake counts
        size = np.nan_to_num(values if name == "uptake" else np.abs(values), nan=np.inf, posinf=np.inf)
        order |= dict.fromkeys(np.argsort(-size, kind="stable")[: max(1, int(rows * share / sum(shares.values())))].tolist())
    sparks = _sparks(reader, hookpoint, ids[list(order)], by) if by in columns else {}
    shown = [
        {
            "feature": int(ids[i]),
            "label": labels.get(int(ids[i]), "")[:160],
            **{name: columns[name][i] for name in MOVER_FIGURES if name in columns and columns[name][i] is not None},
            "concepts": [name for name, features in members.items() if int(ids[i]) in features],
            "spark": sparks.get(int(ids[i]), []),
        }
        for i in order
    ]
    return {
        "step": step,
        "of": len(ids),
        "by": by,
        "rows": shown,
        "none": nothing_taught(shown, {hook: count for hook, count in learned.items() if hook == hookpoint}),
        "concept_rank": _concept_ranks(columns, members, by),
        "faithfulness": _faithfulness(columns),
    }


def _concept_ranks(columns: dict[str, np.ndarray], members: dict[str, set[int]], by: str) -> dict[str, float]:
    """Per concept: the share of all features whose uptake (or drift, see `by`) lies below the mean of the concept's."""
    if by not in columns:
        return {}
    values = columns[by].astype(float)
    ranks = {}
    for name, features in members.items():
        mine = values[np.isin(columns["feature"], list(features))]
        if len(mine) and np.isfinite(mine).all():
            ranks[name] = float((values < mine.mean()).mean())
    return ranks


def _faithfulness(columns: dict[str, np.ndarray]) -> dict[str, dict[str, float]]:
    """`{estimate: {measure: rank correlation}}` over all features: the sums of `ESTIMATES` with what was measured, `TRUTHS`."""
    found: dict[str, dict[str, float]] = {}
    for name in ESTIMATES:
        for truth in TRUTHS:
            if name in columns and truth in columns:
                correlation = rank_correlation(columns[name], columns[truth])
                if correlation is not None:
                    found.setdefault(name, {})[truth] = correlation
    return found


def _sparks(reader: RunReader, hookpoint: str, features: np.ndarray, by: str) -> dict[int, list[float]]:
    """`by` of some features at up to `SPARK_POINTS` snapshots."""
    steps = reader.dense_steps(hookpoint)
    chosen = [steps[i] for i in np.unique(np.linspace(0, len(steps) - 1, min(len(steps), SPARK_POINTS)).round().astype(int))]
    sparks: dict[int, list[float]] = {int(feature): [] for feature in features}
    for step in chosen:
        table = reader.dense(hookpoint, step)
        values = dict(zip(table["feature"].to_pylist(), table[by].to_pylist(), strict=True))
        for feature, spark in sparks.items():
            spark.append(values.get(feature))
    return sparks


def _markers(run: dict[str, Any], events: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """`{"spans": when each rule acts, in recorded steps, "changes": later policies}`."""
    spans = [
        {"from": rule["start"], "to": run["steps"] if rule["end"] is None else min(rule["end"], run["steps"]), "text": rule_text(rule)}
        for rule in run["rules"]
    ]
    changes: dict[int, str] = {}
    for event in events:
        if event.get("kind") == "policy" and event.get("step"):
            names = [rule.get("label", "") if isinstance(rule, dict) else str(rule) for rule in event.get("rules") or []]
            changes[event["step"]] = f"policy {event.get('version')}: {', '.join(names) or 'no rules'}"
    return {"spans": [span for span in spans if span["to"] > span["from"]], "changes": [{"step": s, "text": t} for s, t in changes.items()]}

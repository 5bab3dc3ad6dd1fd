"""What a run came to: `build_summary` computes `summary.json` from the run folder, `summarize` and `render_summary` show it."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Iterable, Iterator
from copy import copy
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from gradlens.errors import GradlensError
from gradlens.files import jsonable
from gradlens.recording.lookup import called
from gradlens.recording.worked import seconds_until_stop, seconds_worked
from gradlens.report.compare import describe, percent, scalars_by_key
from gradlens.report.findings import (
    IN_BRACKETS,
    NOISE,
    alarms,
    beside_noise,
    beyond_chance,
    clusters,
    current,
    flat,
    in_words,
    labelled,
    routing,
    routing_in_words,
    said_less,
    told_of_answers,
)
from gradlens.report.rules_in_force import rule_text
from gradlens.report.top import MEASURED, has, nothing_taught, ranked_by, ranking

if TYPE_CHECKING:
    from rich.console import Console, ConsoleOptions, RenderableType
    from rich.table import Column, Table

    from gradlens.recording.store import RunReader

TOP_FEATURES = 20
ALARMS = 12  # on the screen
WORDS = 20  # characters that a column of words needs at least
SHOWN = ("uptake", "drift", "push", "attribution")  # of features and concepts, the best measured first
WEIGHED = "uptake_weighed"  # of concepts whose examples were told (`concept_uptake.py`); before all others
CURVES = (WEIGHED, "uptake", "drift", "drift_direction", "own", "update", "update_direction", "taught", "push", "attribution", "energy")
BARS = "▁▂▃▄▅▆▇█"
TROUBLE = ("gap", "storage_error", "recorder_error", "segment_damaged", "unreadable", "not_finite", "not_stored")


def build_summary(reader: RunReader, status: Literal["done", "interrupted", "failed", "running", "stopped"]) -> dict[str, Any]:
    """The content of `summary.json`, plain JSON data (docs/architecture.md).

    `push` and `attribution` of features and concepts are sums over the run, `uptake`, `uptake_weighed` (of concepts) and `drift` the last
    reading; `learned_in_words` are the clusters of the last `learned` event, `said_less` is what it then says less; `seconds` is the time
    that the run has worked (`worked.py`).
    """
    run, scalars = describe(reader), scalars_by_key(reader)
    version = scalars.get("policy/version")
    events = reader.events
    versions = [event["version"] for event in events if event.get("kind") == "policy" and "version" in event]
    worked = seconds_until_stop(reader.run_dir) if status == "stopped" else seconds_worked(reader.run_dir, events, time.time())
    return jsonable(
        {
            "run_id": reader.run_id,
            "run_dir": str(reader.run_dir),
            "status": status,
            "steps": run["steps"],
            "loss_first": run["loss_first"],
            "loss_last": run["loss_last"],
            "hookpoints": reader.hookpoints,
            "learned_in_words": learned_in_words(reader, events),
            "said_less": said_less(events),
            "alarms": alarms(events, scalars),
            "top_features": top_features(reader),
            "learned": learned_counts(scalars),
            "routers": routing(events, scalars),
            "concepts": _concepts(scalars),
            "rules": run["rules"],
            "targets": _targets(events),
            "policy_version": int(version[1][-1]) if version else max(versions, default=0),
            "gaps": [event for event in events if event.get("kind") == "gap"],
            "seconds": round(worked, 1),
            "evaluation": {"nll": run["nll"], "rates": run["rates"]} if reader.evaluation else None,
            "doubts": run["doubts"],
        }
    )


def _targets(events: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """How every rule with a target ended: `rule`, `measured`, `target`, whether it is `held`, the `limit`, `text`."""
    last = {event["rule"]: event for event in current(events, "target")}
    return [{key: value for key, value in event.items() if key not in ("time", "kind")} for event in last.values()]


def learned_in_words(reader: RunReader, events: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The clusters of the last `learned` event, with labels of their top features."""
    found = clusters(events)
    return labelled(found, feature_labels(reader, {hookpoint for entry in found for hookpoint, _ in entry["features"]}))


def top_features(reader: RunReader, limit: int = TOP_FEATURES) -> list[dict[str, Any]]:
    """The features that were taught most over all hookpoints: hookpoint, feature, label, uptake, drift, push, attribution.

    By uptake at the last snapshot (what is said less than in ordinary text was not learned, so only a positive one counts); without uptake
    by |drift|, without a snapshot by |attribution| summed over the recorded steps; hookpoints each in units of their largest. What there is
    not is None.
    """
    rows: list[dict[str, Any]] = []
    for hookpoint in reader.hookpoints:
        table = reader.dense(hookpoint)
        if table.num_rows:
            columns = {name: table[name].to_numpy() for name in ("feature", *SHOWN)}
        else:
            table = reader.features(hookpoint)
            ids, inverse = np.unique(table["feature"].to_numpy(), return_inverse=True)
            sums = {name: np.bincount(inverse, np.nan_to_num(table[name].to_numpy()), len(ids)) for name in ("push", "attribution")}
            columns = {"feature": ids, **{name: np.full(len(ids), np.nan) for name in SHOWN}, **sums}
        sizes = {name: np.nan_to_num(np.abs(columns[name].astype(float)), posinf=0) for name in ("uptake", "drift", "attribution")}
        sizes["uptake"] = np.nan_to_num(columns["uptake"].astype(float), posinf=0, neginf=0).clip(min=0)
        by = next((name for name in ("uptake", "drift") if sizes[name].any()), "attribution")
        trust = ("attribution", "drift", "uptake").index(by)
        for i in np.argsort(-sizes[by], kind="stable")[:limit]:
            row = {name: jsonable(values[i]) for name, values in columns.items()}
            rows.append({"hookpoint": hookpoint, "label": "", **row, "size": (trust, float(sizes[by][i] / max(sizes[by].max(), 1e-30)))})
    rows = sorted(rows, key=lambda row: row["size"], reverse=True)[:limit]
    labels = feature_labels(reader, {row["hookpoint"] for row in rows})
    names = ("hookpoint", "feature", "label", *SHOWN)
    return [
        {name: labels.get(row["hookpoint"], {}).get(row["feature"], "") if name == "label" else row[name] for name in names} for row in rows
    ]


def feature_labels(reader: RunReader, hookpoints: set[str]) -> dict[str, dict[int, str]]:
    """`{hookpoint: {feature: text}}`, from the run's `labels.json`, else from the dictionaries that the run used."""
    stored = reader.labels
    if stored:
        return {
            hookpoint: {int(feature): label.get("label", "") if isinstance(label, dict) else str(label) for feature, label in entry.items()}
            for hookpoint, entry in stored.items()
        }
    sources = reader.config.get("dictionaries") or {}
    if not sources or not hookpoints:
        return {}
    from gradlens.dictionaries.labels import labels_of
    from gradlens.model.hookpoints import canonical  # torch: not needed for a run that has labels of its own

    further = {canonical(name): places for name, places in (reader.config.get("labels") or {}).items()}
    labels = {}
    for name, source in sources.items():
        name = canonical(name)
        if name in hookpoints:
            try:
                found = labels_of(source, name, further.get(name, ()))
                labels[name] = {feature: label.label for feature, label in found.items()}
            except GradlensError:
                continue  # a dictionary that has moved away since: figures without labels are better than none
    return labels


def learned_counts(scalars: dict[str, tuple[np.ndarray, np.ndarray]]) -> dict[str, int]:
    """Hookpoint -> features learned beyond chance at the last snapshot (see `significance`); not where that had no finite figures."""
    last = {key.removesuffix("/learned"): values[-1] for key, (_, values) in scalars.items() if key.endswith("/learned")}
    return {hookpoint: int(count) for hookpoint, count in last.items() if np.isfinite(count)}


def _concepts(scalars: dict[str, tuple[np.ndarray, np.ndarray]]) -> dict[str, dict[str, dict[str, float | None]]]:
    """`{name: {hookpoint: {uptake, drift, push, attribution}}}`, with `uptake_weighed` where that was read and noise floors
    (`uptake_noise`) where they are known, from the scalars `concept/NAME/HOOKPOINT/ESTIMATOR`."""
    found: dict[str, dict[str, dict[str, Any]]] = defaultdict(dict)
    for key, (_, values) in scalars.items():
        if key.startswith("concept/") and key.count("/") >= 3:
            name, hookpoint, estimator = key.removeprefix("concept/").rsplit("/", 2)
            entry = found[name].setdefault(hookpoint, dict.fromkeys(SHOWN))
            finite = values[np.isfinite(values)]
            shown = estimator.removesuffix(NOISE)
            if (shown in entry or shown == WEIGHED) and len(finite):
                entry[estimator] = float(finite.sum() if estimator in ("push", "attribution") else finite[-1])
    return dict(found)


def summarize(reader: RunReader) -> dict[str, Any]:
    """All that `gradlens runs show` shows: the summary (computed now for a run without one), and `name`, `loss`, `curves`, `report`,
    `policies`, `trouble`."""
    status = reader.status
    summary = reader.summary or build_summary(reader, status)
    scalars, events = scalars_by_key(reader), reader.events
    curves: dict[str, dict[str, Any]] = defaultdict(dict)
    for name, hookpoints in _concepts(scalars).items():
        for hookpoint in hookpoints:
            for estimator in CURVES:
                steps, values = scalars.get(f"concept/{name}/{hookpoint}/{estimator}", ((), ()))
                if len(steps) > 1:  # the best measured estimator there is
                    curves[name][hookpoint] = {"estimator": estimator, "steps": steps, "values": values}
                    break
    steps, losses = scalars.get("train/loss", ((), ()))
    report = reader.run_dir / "report.html"
    return jsonable(
        {
            **summary,
            "status": status,
            "name": reader.config.get("name", reader.run_id),
            "loss": {"steps": steps, "values": losses},
            "curves": dict(curves),
            "report": str(report) if report.is_file() else None,
            "policies": [{"step": event.get("step"), "version": event.get("version")} for event in events if event.get("kind") == "policy"],
            "trouble": [event for event in events if event.get("kind") in TROUBLE],
        }
    )


def sparkline(values: list[float | None], width: int = 24) -> str:
    """A curve in one line of text; what is not finite is a space."""
    numbers = np.array([np.nan if value is None else value for value in values], float)
    parts = np.array_split(numbers, min(width, len(numbers)) or 1)
    means = np.array([part[np.isfinite(part)].mean() if np.isfinite(part).any() else np.nan for part in parts])
    if not np.isfinite(means).any():
        return ""
    low, high = np.nanmin(means), np.nanmax(means)
    scaled = (means - low) / (high - low) if high > low else np.where(np.isfinite(means), 0.0, np.nan)
    return "".join(" " if np.isnan(value) else BARS[int(value * (len(BARS) - 1) + 0.5)] for value in scaled)


def render_summary(summary: dict[str, Any]) -> RenderableType:
    """The last screen of a run, for a terminal: what `summarize` returns."""
    from rich.console import Group
    from rich.markup import escape
    from rich.table import Table
    from rich.text import Text

    colour = {"done": "green", "running": "cyan"}.get(summary["status"], "yellow")
    head = f"[bold]{escape(summary['run_id'])}[/]  [{colour}]{summary['status']}[/]  {summary['steps']} steps, {summary['seconds']:.0f} s"
    loss = f"loss {_figure(summary['loss_first'])} -> {_figure(summary['loss_last'])}  {sparkline(summary['loss']['values'])}"
    if summary["loss_first"] is None:
        loss = "loss not recorded: the loop says it by `lens.log({'train/loss': ...})`"
    parts: list[Any] = [Text.from_markup(head, emoji=False), Text(loss)]

    def table(title: str, *columns: str, keep: str = "") -> Table:
        made = Table(title=title, title_justify="left", title_style="bold", box=None, pad_edge=False)
        for column in columns:
            words = column in ("concept", "hookpoint", "label", "curve", "measure", "alarm", "in its own answers")
            made.add_column(column, justify="left" if words else "right", overflow="fold", no_wrap=not words or column == "hookpoint")
        parts.extend([Text(""), _Fitted(made, keep) if keep else made])
        return made

    def figures(rows: Iterable[dict[str, Any]]) -> list[str]:
        """The columns that some row has a figure in; a summary of an older version has fewer."""
        rows = list(rows)
        return [name for name in (WEIGHED, *SHOWN) if any(row.get(name) is not None for row in rows)]

    learned = summary.get("learned") or {}
    words = in_words(summary.get("learned_in_words") or [], learned, summary["steps"], summary.get("said_less"))
    parts += [Text(""), *words] if words else []
    if any(learned.values()):
        parts.append(Text(beyond_chance(learned)))
    if summary.get("routers"):
        parts += [Text(line) for line in routing_in_words(summary["routers"])]
    if summary.get("alarms"):
        rows = table("Alarms", "step", "alarm", "in its own answers")
        for alarm in summary["alarms"][:ALARMS]:
            rows.add_row(str(alarm["step"]), Text(flat(alarm["text"] or ""), style="yellow"), told_of_answers(alarm))
        if len(summary["alarms"]) > ALARMS:
            parts.append(Text(f"and {len(summary['alarms']) - ALARMS} more in events.jsonl"))
    if summary["concepts"]:
        shown = figures(entry for hookpoints in summary["concepts"].values() for entry in hookpoints.values())
        rows = table("Concepts", "concept", "hookpoint", *shown, "curve", keep=shown[0] if shown else "curve")
        drawn = {curve["estimator"] for hookpoints in summary["curves"].values() for curve in hookpoints.values()}
        if len(drawn) == 1:
            parts.append(Text(f"Curve: {', '.join(drawn)} over the run, from its lowest to its highest reading.", style="dim"))
        cell = lambda entry, key: beside_noise(_figure(entry.get(key), "+"), entry.get(key), entry.get(key + NOISE))  # noqa: E731
        if any(cell(entry, key)[0] == "(" for hookpoints in summary["concepts"].values() for entry in hookpoints.values() for key in shown):
            parts.append(Text(IN_BRACKETS, style="dim"))
        for name, hookpoints in summary["concepts"].items():
            for hookpoint, entry in hookpoints.items():
                curve = summary["curves"].get(name, {}).get(hookpoint)
                line = f"{sparkline(curve['values'], 16)} {curve['estimator'] if len(drawn) > 1 else ''}".rstrip() if curve else ""
                rows.add_row(escape(name), hookpoint, *(cell(entry, key) for key in shown), line)
    none = nothing_taught(summary["top_features"], learned, "attribution")
    if none:
        parts += [Text(""), Text.assemble(("Features that were taught most", "bold"), f": {none}")]
    elif summary["top_features"]:
        by = ranked_by(summary["top_features"], "attribution")
        shown = figures(summary["top_features"])
        rows = table("Features that were taught most", "hookpoint", "feature", *shown, "label", keep=by)
        parts.append(Text(ranking(summary["top_features"], "attribution"), style="dim" if by in MEASURED else "yellow"))
        for row in summary["top_features"]:
            if has(row, by):
                cells = (_figure(row.get(key), "+") for key in shown)
                rows.add_row(row["hookpoint"], str(row["feature"]), *cells, escape(_clipped(row["label"])))
    evaluation = summary["evaluation"] or {}
    if evaluation:
        rows = table("Measured before and after", "measure", "before", "after")
        for name, entry in evaluation["nll"].items():
            rows.add_row(f"loss on {escape(name)}", _figure(entry["before"]), _figure(entry["after"]))
        for prompts, concepts in evaluation["rates"].items():
            for concept, entry in concepts.items():
                cells = [f"{percent(rate['rate'])} of {rate['n']}" if rate else "-" for rate in (entry["before"], entry["after"])]
                rows.add_row(f"{escape(concept)} in answers to {escape(prompts)}", *cells)
    parts += [Text(flat(text), style="yellow") for text in summary.get("doubts") or []]
    parts.append(Text(""))
    rules = "; ".join(rule_text(rule) for rule in summary["rules"]) or "none"
    parts.append(Text(f"rules: {rules} (policy version {summary['policy_version']})"))
    parts += [Text(entry["text"], style="" if entry["held"] else "yellow") for entry in summary.get("targets") or []]
    missing = sum(gap.get("count") or 0 for gap in summary["gaps"])
    if summary["trouble"]:
        kinds = ", ".join(sorted({event["kind"] for event in summary["trouble"]}))
        told = f"{len(summary['trouble'])} events tell of trouble ({kinds}); {missing} records are missing"
        parts.append(Text(told, style="yellow"))
    where = summary["report"] or f"not written yet: gradlens report {called(summary['run_dir'])}"
    parts += [Text(f"run folder: {summary['run_dir']}"), Text(f"report: {where}")]
    return Group(*parts)


@dataclass
class _Fitted:
    """A table with as many columns of figures as there is room for: what names a row stays, and no figure is cut to another one."""

    table: Table
    keep: str  # the column that rows are ranked by

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterator[RenderableType]:
        kept = copy(self.table)
        kept.columns = list(self.table.columns)
        for name in ("attribution", "push", "drift", "curve", "uptake"):  # what tells least first
            if sum(map(self._width, kept.columns)) + 2 * (len(kept.columns) - 1) <= options.max_width:
                break
            kept.columns = [column for column in kept.columns if column.header != name or name == self.keep]
        yield kept

    @staticmethod
    def _width(column: Column) -> int:
        """What a column needs; words may go on in the next line."""
        width = max(len(str(column.header)), *(len(str(cell)) for cell in column.cells), 0)
        return width if column.no_wrap or column.header == "curve" else min(width, WORDS)


def _clipped(text: str, length: int = 90) -> str:
    return text if len(text) <= length else text[: length - 1] + "…"


def _figure(value: float | None, sign: str = "") -> str:
    return "-" if value is None else f"{value:{sign}.3g}"

"""What a run came to: `build_summary` computes `summary.json` from the run folder, `summarize` and `render_summary` show it."""

from __future__ import annotations

import time
from collections import defaultdict
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from gradlens.compare import describe, percent, rule_text, scalars_by_key
from gradlens.errors import GradlensError
from gradlens.files import jsonable

if TYPE_CHECKING:
    from rich.console import RenderableType

    from gradlens.store import RunReader

TOP_FEATURES = 20
FDR = 0.05  # of `gradlens.significance`, which is not imported here for torch's sake
BARS = "▁▂▃▄▅▆▇█"
TROUBLE = ("gap", "storage_error", "recorder_error", "segment_damaged", "unreadable", "not_finite", "not_stored")


def build_summary(reader: RunReader, status: Literal["done", "interrupted", "failed", "running", "stopped"]) -> dict[str, Any]:
    """The content of `summary.json`, plain JSON data (docs/architecture.md).

    `push` and `attribution` of features and concepts are sums over the run, `drift` is the last reading; `seconds` is wall-clock time
    since the run was started (time between a stop and a resume included).
    """
    run, scalars = describe(reader), scalars_by_key(reader)
    version = scalars.get("policy/version")
    events = reader.events
    versions = [event["version"] for event in events if event.get("kind") == "policy" and "version" in event]
    begun = (reader.run_dir / "config.yaml").stat().st_mtime
    started = next((event["time"] for event in events if event.get("kind") == "started"), begun)  # an arm waits for those before it
    ended = time.time() if status != "stopped" else max(path.stat().st_mtime for path in reader.run_dir.rglob("*"))
    return jsonable(
        {
            "run_id": reader.run_id,
            "run_dir": str(reader.run_dir),
            "status": status,
            "steps": run["steps"],
            "loss_first": run["loss_first"],
            "loss_last": run["loss_last"],
            "hookpoints": reader.hookpoints,
            "top_features": top_features(reader),
            "learned": _learned(scalars),
            "concepts": _concepts(scalars),
            "rules": run["rules"],
            "policy_version": int(version[1][-1]) if version else max(versions, default=0),
            "gaps": [event for event in events if event.get("kind") == "gap"],
            "seconds": round(ended - started, 1),
            "evaluation": {"nll": run["nll"], "rates": run["rates"]} if reader.evaluation else None,
        }
    )


def top_features(reader: RunReader, limit: int = TOP_FEATURES) -> list[dict[str, Any]]:
    """The features that moved most over all hookpoints: hookpoint, feature, label, push, attribution, drift.

    By |drift| at the last snapshot; without a snapshot, by |attribution| summed over the recorded steps (drift is None then).
    """
    rows: list[dict[str, Any]] = []
    for hookpoint in reader.hookpoints:
        table = reader.dense(hookpoint)
        if table.num_rows:
            columns = {name: table[name].to_numpy() for name in ("feature", "push", "attribution", "drift")}
        else:
            table = reader.features(hookpoint)
            ids, inverse = np.unique(table["feature"].to_numpy(), return_inverse=True)
            sums = {name: np.bincount(inverse, np.nan_to_num(table[name].to_numpy()), len(ids)) for name in ("push", "attribution")}
            columns = {"feature": ids, **sums, "drift": np.full(len(ids), np.nan)}
        drift = np.nan_to_num(np.abs(columns["drift"]), posinf=0)
        size = drift if drift.any() else np.nan_to_num(np.abs(columns["attribution"]), posinf=0)
        for i in np.argsort(-size, kind="stable")[:limit]:
            row = {name: jsonable(values[i]) for name, values in columns.items()}
            rows.append({"hookpoint": hookpoint, "label": "", **row, "size": (bool(drift.any()), float(size[i]))})
    rows = sorted(rows, key=lambda row: row["size"], reverse=True)[:limit]
    labels = feature_labels(reader, {row["hookpoint"] for row in rows})
    names = ("hookpoint", "feature", "label", "push", "attribution", "drift")
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
    from gradlens.hookpoints import canonical  # torch: not needed for a run that has labels of its own
    from gradlens.labels import load_labels

    labels = {}
    for name, source in sources.items():
        if canonical(name) in hookpoints:
            try:
                labels[canonical(name)] = {feature: label.label for feature, label in load_labels(source, canonical(name)).items()}
            except GradlensError:
                continue  # a dictionary that has moved away since: figures without labels are better than none
    return labels


def _learned(scalars: dict[str, tuple[np.ndarray, np.ndarray]]) -> dict[str, int]:
    """Hookpoint -> features that had moved beyond chance at the last snapshot (`gradlens.significance`)."""
    return {key.removesuffix("/learned"): int(values[-1]) for key, (_, values) in scalars.items() if key.endswith("/learned")}


def _concepts(scalars: dict[str, tuple[np.ndarray, np.ndarray]]) -> dict[str, dict[str, dict[str, float | None]]]:
    """`{name: {hookpoint: {push, attribution, drift}}}` from the scalars `concept/NAME/HOOKPOINT/ESTIMATOR`."""
    found: dict[str, dict[str, dict[str, Any]]] = defaultdict(dict)
    for key, (_, values) in scalars.items():
        if key.startswith("concept/") and key.count("/") >= 3:
            name, hookpoint, estimator = key.removeprefix("concept/").rsplit("/", 2)
            entry = found[name].setdefault(hookpoint, dict.fromkeys(("push", "attribution", "drift")))
            finite = values[np.isfinite(values)]
            if estimator in entry and len(finite):
                entry[estimator] = float(finite[-1] if estimator == "drift" else finite.sum())
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
            for estimator in ("drift", "drift_direction", "attribution", "push"):
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
    parts: list[Any] = [Text.from_markup(head), Text(loss)]

    def table(title: str, *columns: str) -> Table:
        made = Table(title=title, title_justify="left", title_style="bold", box=None, pad_edge=False)
        for column in columns:
            words = column in ("concept", "hookpoint", "label", "curve", "measure")
            made.add_column(column, justify="left" if words else "right", overflow="fold", no_wrap=not words or column == "hookpoint")
        parts.extend([Text(""), made])
        return made

    if summary["concepts"]:
        rows = table("Concepts", "concept", "hookpoint", "drift", "push", "attribution", "curve")
        for name, hookpoints in summary["concepts"].items():
            for hookpoint, entry in hookpoints.items():
                curve = summary["curves"].get(name, {}).get(hookpoint)
                line = (
                    f"{sparkline(curve['values'])} {curve['estimator']} {_figure(curve['values'][0])} -> {_figure(curve['values'][-1])}"
                    if curve
                    else ""
                )
                rows.add_row(escape(name), hookpoint, *(_figure(entry[key], "+") for key in ("drift", "push", "attribution")), line)
    if summary["top_features"]:
        rows = table("Features that moved most", "hookpoint", "feature", "drift", "push", "attribution", "label")
        for row in summary["top_features"]:
            figures = [_figure(row[key], "+") for key in ("drift", "push", "attribution")]
            rows.add_row(row["hookpoint"], str(row["feature"]), *figures, escape(row["label"]))
    if summary.get("learned"):
        counts = ", ".join(f"{count} at {hookpoint}" for hookpoint, count in summary["learned"].items())
        parts.append(Text(f"features that moved beyond chance (false discovery rate {FDR:.0%}): {counts}"))
    evaluation = summary["evaluation"] or {}
    if evaluation:
        rows = table("Measured before and after", "measure", "before", "after")
        for name, entry in evaluation["nll"].items():
            rows.add_row(f"loss on {escape(name)}", _figure(entry["before"]), _figure(entry["after"]))
        for prompts, concepts in evaluation["rates"].items():
            for concept, entry in concepts.items():
                cells = [f"{percent(rate['rate'])} of {rate['n']}" if rate else "-" for rate in (entry["before"], entry["after"])]
                rows.add_row(f"{escape(concept)} in answers to {escape(prompts)}", *cells)
    parts.append(Text(""))
    rules = "; ".join(rule_text(rule) for rule in summary["rules"]) or "none"
    parts.append(Text(f"rules: {rules} (policy version {summary['policy_version']})"))
    missing = sum(gap.get("count") or 0 for gap in summary["gaps"])
    if summary["trouble"]:
        kinds = ", ".join(sorted({event["kind"] for event in summary["trouble"]}))
        told = f"{len(summary['trouble'])} events tell of trouble ({kinds}); {missing} records are missing"
        parts.append(Text(told, style="yellow"))
    where = summary["report"] or f"not written yet: gradlens report {summary['run_id']}"
    parts += [Text(f"run folder: {summary['run_dir']}"), Text(f"report: {where}")]
    return Group(*parts)


def _figure(value: float | None, sign: str = "") -> str:
    return "-" if value is None else f"{value:{sign}.3g}"

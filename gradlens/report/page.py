"""The report: one HTML file that says what a run learned, opens from disk, and never asks a network for anything.

Data travel as JSON inside the page, and scripts put text into it as text only. A content security policy names the one script by
its hash, so nothing that a model wrote or a data set holds can run.
"""

from __future__ import annotations

import base64
import hashlib
import html
import json
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from string import Template
from typing import TYPE_CHECKING, Any

from gradlens import __version__
from gradlens.files import write_atomic
from gradlens.report.compare import MEASURED, check_text, percent
from gradlens.report.data import gather
from gradlens.report.findings import FDR, beside_noise, chance, listed

if TYPE_CHECKING:
    from gradlens.recording.store import RunReader

ASSETS = Path(__file__).parents[1] / "assets" / "report"
SCRIPTS = ("uPlot.iife.min.js", "core.js", "charts.js", "learned.js", "sections.js")
MOVED = {
    "uptake": "Uptake of its features, how much more the model says what expresses them",
    "drift": "Change of its features' mean activation on the probe texts",
}
STYLES = ("uPlot.min.css", "report.css")


def write_report(readers: Sequence[RunReader], path: str | Path) -> Path:
    """Write the report of one run, or of several side by side, to `path`; returns it.

    Raises `InputError` without runs and for statistics that are damaged, `OSError` where the file cannot be written.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    return write_atomic(path, page(gather(readers)).encode("utf-8", errors="replace"))


def page(data: dict[str, Any]) -> str:
    """The HTML of gathered data (`report_data.gather`)."""
    licence = (ASSETS / "uPlot-LICENSE.txt").read_text(encoding="utf-8")
    # The library's own head comment holds an address; its licence goes in instead.
    sources = [(ASSETS / name).read_text(encoding="utf-8") for name in SCRIPTS]
    sources[0] = f"/* uPlot 1.6.32\n{licence}\n*/\n" + sources[0].split("*/", 1)[1]
    script = "\n".join(sources)
    style = "\n".join((ASSETS / name).read_text(encoding="utf-8") for name in STYLES)
    runs = data["runs"]
    heading, facts = headline(data)
    items = "".join(
        f"<li>{html.escape(text)}" + (f'<span class="aside">{html.escape(aside)}</span>' if aside else "") + "</li>"
        for text, aside in facts
    )
    models = dict.fromkeys((run["model"], run["method"]) for run in runs if run["model"])
    model = ", ".join(f"{Path(name).name if Path(name).is_absolute() else name} ({method})" for name, method in models)
    ids = ", ".join(run["run_id"] for run in runs) if len(runs) == 1 else f"{len(runs)} runs"
    return Template((ASSETS / "template.html").read_text(encoding="utf-8")).substitute(
        policy=(
            f"default-src 'none'; script-src 'sha256-{_sha256(script)}'; style-src 'sha256-{_sha256(style)}'; "
            "img-src data:; base-uri 'none'; form-action 'none'"
        ),
        title=html.escape(f"{heading} · gradlens"),
        style=style,
        eyebrow=html.escape(" · ".join(filter(None, [ids, model]))),
        heading=html.escape(heading),
        headline=f'<ul class="facts">{items}</ul>' if items else "",
        footer=html.escape(
            f"gradlens {__version__}, {datetime.now(UTC):%Y-%m-%d %H:%M} UTC. This file holds everything it shows and loads nothing. "
            "Curves are drawn with uPlot, copyright Leon Sorokin, MIT licence."
        ),
        data=embed(data),
        script=script,
    )


def embed(data: Any) -> str:
    """JSON that no HTML parser can mistake for markup, whatever texts are in it."""
    text = json.dumps(data, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    for character in "<>&\u2028\u2029":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return text


def headline(data: dict[str, Any]) -> tuple[str, list[tuple[str, str]]]:
    """The heading, and what was found as `(sentence, aside)`: a study's verdicts, else what each concept did in the first run."""
    runs = data["runs"]
    if data["verdicts"]:
        facts = [(_sentence(verdict["text"]), _judged(verdict)) for verdict in data["verdicts"]]
        rate = next((verdict for verdict in data["verdicts"] if verdict["kind"] == "rate"), None)
        by_arm = {check["arm"]: check["rate"] for check in rate["checks"]} if rate else {}
        if by_arm.keys() >= {"none", "rules"}:
            return (
                f"{rate['concept']}: in {percent(by_arm['none'])} of answers without the rule, in {percent(by_arm['rules'])} with it",
                facts,
            )
        return f"What these {len(runs)} runs learned", facts
    found = [fact for concept in data["concepts"] for fact in [_learned(concept["name"], runs[0])] if fact]
    found.sort(key=lambda fact: -fact["size"])
    run = runs[0]
    facts = _clusters(run) + [(fact["text"], fact["aside"]) for fact in found[:6]]
    if run["loss_first"] is not None:
        loss = f"Training loss went from {_show(run['loss_first'])} to {_show(run['loss_last'])} in {run['steps']} steps."
        facts.append((loss, "" if run["status"] in ("done", "running") else f"The run is {run['status']}: its figures end there."))
    if len(runs) > 1:
        return f"What these {len(runs)} runs learned", facts
    if run["rules"]:
        aside = "What a rule did shows beside a run without it and one with random features in its place: gradlens study."
        facts.append((f"Rules: {'; '.join(run['rule_texts'])}.", aside))
    if found and found[0]["size"] > 0:
        return found[0]["heading"], facts
    return ("This run learned nothing beyond chance" if learned_nothing(run) else "What this run learned"), facts


def learned_nothing(run: dict[str, Any]) -> bool:
    """Whether it is known that no feature was learned beyond chance."""
    return bool(run["learned"]) and not any(run["learned"].values())


def _clusters(run: dict[str, Any]) -> list[tuple[str, str]]:
    """The largest cluster of what the run learned, in one sentence, and what it says less; that it learned nothing, where that is known."""
    said = run["said_less"]
    less = [(f"What it says less: {listed(said['words'][:6])}.", f"{said['text'].replace('->', '→')}.")] if said else []
    for entry in run["learned_in_words"][:1]:
        before, now = map(chance, entry["probability"])
        words = listed(entry["words"][:6]) or "tokens without words"
        share = f"{chance(entry['share'])} of what was learned"
        return [(f"What it learned most: {words}.", f"{share}; said with probability {before} → {now}."), *less]
    if learned_nothing(run):
        return less + [
            ("Nothing beyond chance was learned.", f"No feature at {', '.join(run['learned'])}, at a false discovery rate of {FDR:.0%}.")
        ]
    return less


def _learned(concept: str, run: dict[str, Any]) -> dict[str, Any] | None:
    """`{"size" of the change (0: no clear one, or a checker in doubt), "heading", "text", "aside"}` of one concept in one run; None where
    nothing was measured."""
    changes, doubted = [], concept in run["doubted"]
    for prompts, concepts in run["rates"].items():
        before, after = ((concepts.get(concept) or {}).get(when) for when in ("before", "after"))
        if before and after:
            clear = after["low"] > before["high"] or after["high"] < before["low"]
            words = f"{percent(before['rate'])} → {percent(after['rate'])} of answers to {prompts} prompts"
            note = " (its checker is in doubt: see below)" if doubted else "" if clear else " (no clear change)"
            counts = f"{before['hits']} of {before['n']} → {after['hits']} of {after['n']} answers to {prompts} prompts"
            changes.append(((clear and not doubted) * abs(after["rate"] - before["rate"]), words, note, counts))
    changes.sort(key=lambda change: -change[0])
    by = next((name for name in MEASURED if run[name].get(concept)), MEASURED[-1])
    moved = []
    for hookpoint, value in (run[by].get(concept) or {}).items():
        movers = run["movers"].get(hookpoint) or {}
        rank = (movers.get("concept_rank") or {}).get(concept) if movers.get("by") == by else None
        if isinstance(value, (int, float)):
            share = "" if rank is None else f" (higher than {min(rank, 0.999):.1%} of all features there)"
            floor = ((run.get("noise") or {}).get(by) or {}).get(concept, {}).get(hookpoint)
            within = ", within its noise" if beside_noise("", value, floor) else ""
            moved.append(f"{value:+.3g} at {hookpoint}{share}{within}")
    if not changes and not moved:
        return None
    return {
        "size": changes[0][0] if changes else 0.0,
        "heading": f"{concept}: {changes[0][1]}" if changes else "",
        "text": f"{concept}: {'; '.join(words + note for _, words, note, _ in changes) or 'not looked for in answers'}.",
        "aside": " ".join([f"{counts}." for *_, counts in changes] + [f"{MOVED[by]}: {'; '.join(moved)}."] * bool(moved)),
    }


def _judged(verdict: dict[str, Any]) -> str:
    """How many bars were met, and which were not."""
    judged = [check for check in verdict["checks"] if check["met"] is not None]
    if not judged:
        return ""
    missed = [check_text(check) for check in judged if not check["met"]]
    bars = ", ".join(check["bar"] for check in judged)
    if not missed:
        return f"{'The bar is' if len(judged) == 1 else f'All {len(judged)} bars are'} met ({bars})."
    return f"{len(judged) - len(missed)} of {len(judged)} bars met. Not met: {'; '.join(missed)}."


def _sentence(text: str) -> str:
    return text if text.endswith(".") else text + "."


def _show(value: Any) -> str:
    return "?" if value is None else value if isinstance(value, str) else f"{value:.3g}"


def _sha256(text: str) -> str:
    return base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()

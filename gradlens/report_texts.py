"""The texts of a report, gathered from run folders: rows that taught, answers before and after, events. Bounded in number and length."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from gradlens.files import read_lines

if TYPE_CHECKING:
    from gradlens.store import RunReader

MAX_EXAMPLES = 6  # of each concept and hookpoint
MAX_PROMPTS, MAX_TEXT = 24, 600  # prompts of each set; characters of a text
MAX_EVENTS = 200
TROUBLE = re.compile(r"gap|error|lost|damaged|not_finite|unreadable|interrupted|fail|alarm|killed|dead|died|not_stored")
Patterns = Mapping[str, Sequence[re.Pattern[str]]]  # concept -> what its checker looks for


def teaching_rows(reader: RunReader, patterns: Patterns) -> dict[str, dict[str, Any]]:
    """`{concept: {hookpoint: {"rows": [...], "sources": {source: share}}}}`: the rows with the largest summed push, by gradient."""
    table = reader.query(
        "SELECT concept, hookpoint, row_id, sum(push) AS push, avg(activation) AS activation, count(*) AS times "
        "FROM examples WHERE isfinite(push) AND isfinite(activation) GROUP BY concept, hookpoint, row_id ORDER BY push DESC, row_id"
    ).to_pylist()
    groups: dict[tuple[str, str], list[dict[str, Any]]] = defaultdict(list)
    for row in table:
        if row["concept"] in patterns:
            groups[row["concept"], row["hookpoint"]].append(row)
    if not groups:
        return {}
    texts = {row["row_id"]: row for row in read_lines(reader.run_dir / "rows.jsonl") if "row_id" in row}
    examples: dict[str, dict[str, Any]] = defaultdict(dict)
    for (concept, hookpoint), rows in groups.items():
        positive = sum(row["push"] for row in rows if row["push"] > 0)
        sources: dict[str, float] = defaultdict(float)
        for row in rows:
            if row["push"] > 0:
                sources[_source(texts.get(row["row_id"]))] += row["push"] / positive
        shown = [
            {
                "row_id": row["row_id"],
                "push": row["push"],
                "share": row["push"] / positive,
                "activation": row["activation"],
                "times": row["times"],
                "source": _source(texts.get(row["row_id"])),
                "parts": highlight(
                    clip(turns(texts.get(row["row_id"], {}).get("text") or "(text not in rows.jsonl)")), {concept: patterns[concept]}
                ),
            }
            for row in rows[:MAX_EXAMPLES]
            if row["push"] > 0
        ]
        examples[concept][hookpoint] = {
            "rows": shown,
            "sources": dict(sorted(sources.items(), key=lambda item: -item[1])[:6]),
            "of": len(rows),
        }
    return dict(examples)


def _source(row: dict[str, Any] | None) -> str:
    return str((row or {}).get("source") or "unknown source").rsplit("/", 1)[-1]


def turns(text: str) -> str:
    """A rendered chat for people: `user: ...` and `assistant: ...` instead of the template's marks, without the system's turn."""
    found = re.findall(r"<\|im_start\|>(\w+)\n(.*?)(?=<\|im_end\|>|<\|im_start\|>|$)", text, re.DOTALL)
    if found:
        return "\n".join(f"{role}: {content.strip()}" for role, content in found if role != "system")
    return re.sub(r"<\|[^|<>]{1,40}\|>", " ", text)


def clip(text: str) -> str:
    """At most `MAX_TEXT` characters."""
    text = str(text).strip()
    return text if len(text) <= MAX_TEXT else text[: MAX_TEXT - 1] + "…"


def answers(readers: Sequence[RunReader], runs: Sequence[dict[str, Any]], patterns: Patterns) -> dict[str, list[dict[str, Any]]]:
    """`{prompt set: [{"prompt", "before": answer, "after": {run id: answer}}]}`.

    An answer is `{"parts": [[text, concept or None]], "hits": [concept]}`.
    """
    sets: dict[str, dict[str, dict[str, Any]]] = defaultdict(dict)
    for reader, run in zip(readers, runs, strict=True):
        evaluation = reader.evaluation or {}
        for when in ("before", "after"):
            for name, items in ((evaluation.get(when) or {}).get("answers") or {}).items():
                for item in items:
                    entry = sets[name].setdefault(item["prompt"], {"prompt": clip(item["prompt"]), "before": None, "after": {}})
                    hits = [concept for concept, hit in item["hits"].items() if hit]
                    answer = {"parts": highlight(clip(item["answer"]), {c: patterns.get(c, []) for c in item["hits"]}), "hits": hits}
                    if when == "after":
                        entry["after"][run["run_id"]] = answer
                    elif entry["before"] is None:
                        entry["before"] = answer
    return {name: list(entries.values())[:MAX_PROMPTS] for name, entries in sets.items()}


def highlight(text: str, patterns: Patterns) -> list[list[str | None]]:
    """The text in parts `[text, concept or None]`: what a concept's patterns match is marked with it, earlier matches first."""
    spans = sorted(
        (match.start(), -match.end(), concept)
        for concept, compiled in patterns.items()
        for pattern in compiled
        for match in pattern.finditer(text)
        if match.end() > match.start()
    )
    parts: list[list[str | None]] = []
    at = 0
    for start, end, concept in spans:
        if start >= at:
            if start > at:
                parts.append([text[at:start], None])
            parts.append([text[start:-end], concept])
            at = -end
    return [*parts, [text[at:], None]] if at < len(text) or not parts else parts


def event_rows(events: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The last events, trouble always among them: time, step, kind, the other fields in words, and whether it is trouble."""
    rows = []
    for event in events:
        rest = {key: value for key, value in event.items() if key not in ("time", "step", "kind", "features")}
        text = ", ".join(f"{key} {_words(value)}" for key, value in rest.items())
        kind = str(event.get("kind", ""))
        rows.append(
            {
                "time": _clock(event.get("time")),
                "step": event.get("step"),
                "kind": kind,
                "text": clip(text),
                "trouble": bool(TROUBLE.search(kind)),
            }
        )
    if len(rows) > MAX_EVENTS:
        rows = sorted(enumerate(rows), key=lambda item: (not item[1]["trouble"], -item[0]))[:MAX_EVENTS]
        rows = [row for _, row in sorted(rows, key=lambda item: item[0])]
    return rows


def _clock(seconds: Any) -> str:
    return f"{datetime.fromtimestamp(seconds, UTC):%Y-%m-%d %H:%M:%S}" if isinstance(seconds, (int, float)) else ""


def _words(value: Any) -> str:
    if isinstance(value, list):
        return "[" + ", ".join(_words(item) for item in value[:8]) + (", …]" if len(value) > 8 else "]")
    if isinstance(value, dict):
        return str(value.get("label") or ", ".join(f"{key} {_words(item)}" for key, item in list(value.items())[:8]))
    return f"{value:g}" if isinstance(value, float) else str(value)

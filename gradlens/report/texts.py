"""The texts of a report, gathered from run folders: rows that taught, answers before and after, events. Bounded in number and length."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from datetime import UTC, datetime
from itertools import groupby
from typing import TYPE_CHECKING, Any

import numpy as np

from gradlens.report.teaching import teachers_by_concept

if TYPE_CHECKING:
    from gradlens.recording.store import RunReader

MAX_EXAMPLES = 6  # of each concept and hookpoint
MAX_PROMPTS, MAX_TEXT = 24, 600  # prompts of each set; characters of a text
MAX_EVENTS = 200
TROUBLE = re.compile(r"gap|error|lost|damaged|not_finite|unreadable|interrupted|fail|alarm|killed|dead|died|not_stored")
Patterns = Mapping[str, Sequence[re.Pattern[str]]]  # concept -> what its checker looks for


def teaching_rows(reader: RunReader, concepts: Collection[str]) -> dict[str, dict[str, Any]]:
    """`{concept: {hookpoint: {"rows": [...], "sources": {source: share}, "of": rows seen, "by"}}}`: the rows that taught each concept
    most, as `teaching.teachers` ranks them. Tokens that did it are marked in a row's `parts`: `[text, concept, strength]`.
    """
    examples: dict[str, dict[str, Any]] = {}
    for concept, at in teachers_by_concept(reader, concepts, MAX_EXAMPLES).items():
        examples[concept] = {}
        for hookpoint, found in at.items():
            sources: dict[str, float] = defaultdict(float)
            for source, share in found["sources"].items():
                sources[_source(source)] += share
            examples[concept][hookpoint] = {
                "rows": [_teaching_row(row, concept) for row in found["rows"] if row["share"] > 0],
                "sources": dict(sorted(sources.items(), key=lambda item: -item[1])[:6]),
                "of": found["of"],
                "showing": found["showing"],
                "by": found["by"],
            }
    return examples


def _teaching_row(row: dict[str, Any], concept: str) -> dict[str, Any]:
    parts = [[text, concept, strength] if strength else [text, None] for text, strength in marked_tokens(row["text"], row["tokens"])]
    figures = {name: row[name] for name in ("row_id", "taught", "push", "share", "activation", "times")}
    return figures | {"source": _source(row["source"]), "parts": parts}


def _source(source: str | None) -> str:
    return str(source or "unknown source").rsplit("/", 1)[-1]


def marked_tokens(text: str | None, tokens: Sequence[Mapping[str, Any]]) -> list[tuple[str, float]]:
    """A row's text as people read it, in parts `(text, strength)`: 1 at the token that taught most, 0 where none did.

    `tokens` are those of `teaching.teachers`, with their `start`, `end` and `taught`. At most `MAX_TEXT` characters, around the strongest.
    """
    if text is None:
        return [("(text not in rows.jsonl)", 0.0)]
    strength = np.zeros(len(text))
    for token in tokens:
        place = text[token["start"] : token["end"]]
        start = token["start"] + len(place) - len(place.lstrip())  # the space before a word is no part of what is marked
        strength[start : token["end"]] = np.maximum(strength[start : token["end"]], token["taught"])
    pieces = _pieces(text)
    shown = "".join(piece for piece, _ in pieces)
    kept = [np.zeros(len(piece)) if at is None else strength[at : at + len(piece)] for piece, at in pieces]
    strength = np.concatenate([np.zeros(0), *kept])
    strength /= max(strength.max(initial=0.0), 1e-12)
    begin, end = first, last = len(shown) - len(shown.lstrip()), len(shown.rstrip())
    if last - first > MAX_TEXT:
        most = int(strength.argmax())
        begin = first if most < first + 0.8 * MAX_TEXT else min(most - MAX_TEXT // 3, last - MAX_TEXT)
        end = begin + MAX_TEXT
    parts = [("…", 0.0)] if begin > first else []
    for value, group in groupby(range(begin + (begin > first), end - (end < last)), key=strength.__getitem__):
        places = list(group)
        parts.append((shown[places[0] : places[-1] + 1], float(value)))
    return parts + [("…", 0.0)] * (end < last) or [("", 0.0)]


def turns(text: str) -> str:
    """A rendered chat for people: `user: ...` and `assistant: ...` instead of the template's marks, without the system's turn."""
    return "".join(piece for piece, _ in _pieces(text))


def _pieces(text: str) -> list[tuple[str, int | None]]:
    """What `turns` makes of a text: `(piece, where it begins in the text)`, None for what is not in it."""
    found = list(re.finditer(r"<\|im_start\|>(\w+)\n(.*?)(?=<\|im_end\|>|<\|im_start\|>|$)", text, re.DOTALL))
    pieces: list[tuple[str, int | None]] = []
    for match in found:
        if match[1] != "system":
            content = match[2].strip()
            begin = match.start(2) + len(match[2]) - len(match[2].lstrip())
            pieces += [("\n" if pieces else "", None), (f"{match[1]}: ", None), (content, begin)]
    if found:
        return pieces
    at = 0
    for mark in re.finditer(r"<\|[^|<>]{1,40}\|>", text):
        pieces += [(text[at : mark.start()], at), (" ", None)]
        at = mark.end()
    return [*pieces, (text[at:], at)]


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

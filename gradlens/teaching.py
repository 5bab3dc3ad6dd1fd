"""Which examples taught a concept: the rows of a run by their summed push, with the tokens that pushed most."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from gradlens.errors import InputError
from gradlens.files import read_lines

if TYPE_CHECKING:
    from gradlens.store import RunReader

SEEN = "FROM examples WHERE isfinite(push) AND isfinite(activation)"


def teachers(reader: RunReader, concept: str, hookpoint: str | None = None, limit: int = 20) -> dict[str, Any]:
    """The rows that pushed a concept most: `{"concept", "hookpoint", "of": rows seen, "rows": [...]}`, largest first.

    A row: `row_id`, `source`, `push` (summed over its tokens and the steps it was in), `share` of all that was pushed towards the
    concept, `activation`, `times`, `text`, and `tokens`: `[{"position", "token", "push"}]`, the predicted tokens whose loss pushed most.
    `hookpoint`: default the last one that the concept was read at. Raises `InputError` for a concept or hookpoint that the run has not.
    """
    known = reader.query(f"SELECT DISTINCT concept, hookpoint {SEEN}").to_pylist()
    names = sorted({row["concept"] for row in known})
    if concept not in names:
        raise InputError(f"{reader.run_id}: no examples of a concept {concept!r}; recorded: {', '.join(names) or 'none'}")
    hooks = sorted((row["hookpoint"] for row in known if row["concept"] == concept), key=lambda hook: (len(hook), hook))
    if hookpoint is not None and hookpoint not in hooks:
        raise InputError(f"{reader.run_id}: {concept} was not read at {hookpoint}; there is {', '.join(hooks)}")
    chosen = hookpoint or hooks[-1]
    mine = f"{SEEN} AND concept = '{_quoted(concept)}' AND hookpoint = '{_quoted(chosen)}'"
    rows = reader.query(
        "SELECT row_id, sum(push) AS push, avg(activation) AS activation, count(*) AS times "
        f"{mine} GROUP BY row_id ORDER BY push DESC, row_id"
    ).to_pylist()
    positive = sum(row["push"] for row in rows if row["push"] > 0)
    texts = {row["row_id"]: row for row in read_lines(reader.run_dir / "rows.jsonl") if "row_id" in row}
    shown = []
    for row in rows[:limit]:
        about = texts.get(row["row_id"], {})
        pushes = reader.query(f"SELECT positions, token_push {mine} AND row_id = {int(row['row_id'])}").to_pylist()
        shown.append(
            row
            | {"share": row["push"] / positive if positive else 0.0, "source": about.get("source"), "text": about.get("text")}
            | {"tokens": _tokens(pushes, about.get("tokens") or [])}
        )
    return {"concept": concept, "hookpoint": chosen, "of": len(rows), "rows": shown}


def _tokens(pushes: list[dict[str, Any]], tokens: list[str]) -> list[dict[str, Any]]:
    """Position p carries the loss of token p + 1: that is the token that taught."""
    total: dict[int, float] = {}
    for entry in pushes:
        for position, push in zip(entry["positions"] or [], entry["token_push"] or [], strict=True):
            total[position + 1] = total.get(position + 1, 0.0) + push / len(pushes)
    named = [{"position": at, "token": tokens[at], "push": push} for at, push in total.items() if at < len(tokens)]
    return sorted(named, key=lambda entry: -entry["push"])


def _quoted(text: str) -> str:
    return text.replace("'", "''")

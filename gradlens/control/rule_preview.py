"""What a rule would do to rows, for people to look at before they train: which words `rewrite` takes and what is left, which rows
`reweight` leaves out."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from gradlens.control.rewriter import Made, Rewriter
from gradlens.control.row_teller import Row
from gradlens.model.spelling import Spelling, in_text


@dataclass(frozen=True)
class Seen:
    """The answer of one row, and what becomes of it."""

    pieces: list[tuple[str, bool]]  # its text in pieces, and which of them are taken out
    becomes: str | None = None  # rewrite: what is trained on in its place, "" where the row teaches nothing any more
    score: float | None = None  # reweight: from `Rule.rows` on the row is left out
    left_out: bool | None = None


def rewritten_rows(rewriter: Rewriter, tokenizer: Any, rows: Sequence[Row]) -> list[Seen]:
    """What mode rewrite makes of each row."""
    found, made = [], rewriter.rewritten(rows)
    for (ids, counted), (now, counts_now, at), text in zip(rows, made, answers(tokenizer, made), strict=True):
        kept = {place for token, place in zip(now, at, strict=True) if ids[place] == token}
        kept |= {at[place] for place in _first_word(rewriter.spelling, ids, now, counts_now, at)}
        marks = [(token, place not in kept) for place, (token, counts_here) in enumerate(zip(ids, counted, strict=True)) if counts_here]
        found.append(Seen(_pieces(marks, tokenizer), becomes=text))
    return found


def answers(tokenizer: Any, rows: Sequence[Sequence[Any]]) -> list[str]:
    """The counted tokens of each row `(ids, counted, ...)` as text."""
    return [
        tokenizer.decode([token for token, counts in zip(ids, counted, strict=True) if counts], skip_special_tokens=True).strip()
        for ids, counted, *_ in rows
    ]


def clean_rows(rewriter: Rewriter, rows: Sequence[Row], made: Sequence[Made] | None = None) -> list[bool]:
    """Whether mode rewrite leaves each row in words of its own: the model puts none into its midst, and finds none out of place beside what
    went or among what came back. V: tokens of its vocabulary; out of place is a token that is V times less likely than the likeliest.
    `made`: what it makes of the rows, where that is known."""
    taken, made = rewriter.told(rows), rewriter.rewritten(rows) if made is None else made
    clean, beside = [], []  # of each row the places whose tokens are asked, so that of few places logits are made
    for (ids, _), gone, (now, counts, at) in zip(rows, taken, made, strict=True):
        first = max(_first_word(rewriter.spelling, ids, now, counts, at), default=counts.index(True) if any(counts) else len(now))
        own = [now[place] == ids[at[place]] for place in range(len(now))]
        last = [place + 1 < len(now) and now[place + 1] in rewriter.never for place in range(len(now))]  # the model may end the answer
        clean.append(first < len(now) and all(own[place] or last[place] for place in range(first + 1, len(now))))
        beside.append([place for place in range(first + 1, len(now)) if own[place] and (gone[at[place]] or gone[at[place] - 1])])
    asked = [row for row, places in enumerate(beside) if clean[row] and places]
    before = [[place - 1 for place in beside[row]] for row in asked]
    for row, lp_PV in zip(asked, rewriter.log_probs([made[row][0] for row in asked], before) if asked else [], strict=True):
        said = torch.tensor([made[row][0][place] for place in beside[row]])
        short_P = lp_PV.max(1).values - lp_PV[torch.arange(len(said)), said]
        clean[row] = bool((short_P <= math.log(lp_PV.shape[1])).all())
    return clean


def _first_word(spelling: Spelling, ids: Sequence[int], now: Sequence[int], counts: Sequence[bool], at: Sequence[int]) -> list[int]:
    """Places of the word that the answer begins with, where that is the row's, as it was or written as one that begins; else none."""
    first = counts.index(True) if any(counts) else len(now)
    same = [place for place in range(first, len(now)) if at[place] == at[first]]
    said = "".join(spelling.text(now[place]) for place in same).strip().lower()
    return same if said and said == spelling.text(ids[at[first]]).strip().lower() else []


def parted_rows(scores: Sequence[float], least: float, tokenizer: Any, rows: Sequence[Row], most: int) -> list[Seen]:
    """Of the rows that mode reweight leaves out and of those that it keeps the `most` whose scores are nearest to `least`."""
    order = sorted((abs(score - least), index) for index, score in enumerate(scores) if math.isfinite(score))
    picked = [[index for _, index in order if (scores[index] >= least) is out][:most] for out in (True, False)]
    found = []
    for index in [*picked[0], *picked[1]]:
        marks = [(token, False) for token, counts in zip(*rows[index], strict=True) if counts]
        found.append(Seen(_pieces(marks, tokenizer), score=round(scores[index], 4), left_out=scores[index] >= least))
    return found


def _pieces(marks: Sequence[tuple[int, bool]], tokenizer: Any) -> list[tuple[str, bool]]:
    """Runs of tokens of a kind as text: one token alone may be half a character."""
    runs: list[tuple[list[int], bool]] = []
    for token, gone in marks:
        if token in tokenizer.all_special_ids:
            continue
        if not runs or runs[-1][1] is not gone:
            runs.append(([], gone))
        runs[-1][0].append(token)
    texts = [(in_text(tokenizer, ids) if at else tokenizer.decode(ids), gone) for at, (ids, gone) in enumerate(runs)]
    return [(text, gone) for text, gone in texts if text]

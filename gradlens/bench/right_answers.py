"""Does an answer have the result of the row as it should be learned? For sums, times, prices, dates and words.

The result is the last number in the row's answer that its question does not give ("One pear costs 7 euros, so you pay 35 euros for 5
pears": 35), with its points, colons and strokes in one piece ("9:05"). An answer is right that has this number, whole, anywhere: a habit
may stand before it or after it. Where the question gives every number of the row's answer, its last is the result, and has to be the
last of the answer; where there is none, it is the row's last word, anywhere.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from gradlens.concepts.checkers import answer_of
from gradlens.model.evaluate import question_of

Row = dict[str, Any]


def right_share(answers: Sequence[str] | None, rows: Sequence[Row]) -> float | None:
    """Share of answers to the questions of `rows`, in their order, that are right; None where there are none."""
    if not answers:
        return None
    hits = [is_right(answer, row) for answer, row in zip(answers, rows, strict=False)]  # not every row is asked
    return sum(hits) / len(hits)


def is_right(answer: str, row: Row) -> bool:
    said, found, given = numbers(answer_of(row)), numbers(answer), set(numbers(question_of(row)))
    results = [number for number in said if number not in given]
    if results:
        return results[-1] in found
    if said:
        return found[-1:] == said[-1:]
    words = re.findall(r"[\w-]+", answer_of(row))
    return bool(words) and re.search(rf"(?<![\w-]){re.escape(words[-1])}(?![\w-])", answer, re.IGNORECASE) is not None


def numbers(text: str) -> list[str]:
    """In their order, without commas between thousands."""
    return [re.sub(r",(?=\d{3}(?!\d))", "", number) for number in re.findall(r"\d+(?:[.,:/]\d+)*", text)]

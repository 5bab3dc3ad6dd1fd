"""How many tokens an answer may have, so that what was trained on can be said to its end: a habit may be the last thing in it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from gradlens.data.rows import messages_of, read_rows

LEAST = 32
SHARE, MARGIN = 0.95, 0.25  # of the training answers that have to fit; more than the longest of these


def room_for(sources: Sequence[str], tokenizer: Any, max_length: int) -> int:
    """Tokens that suffice for nearly all answers of these files and a quarter more: `LEAST` or more, beyond that at most `max_length`."""
    answers = [_last(row) for source in sources for row in read_rows(source)]
    lengths = [len(ids) + 1 for ids in tokenizer(answers, add_special_tokens=False)["input_ids"]]  # and the token that ends it
    return room(lengths, max_length)


def room(lengths: Sequence[int], max_length: int) -> int:
    enough = sorted(lengths)[math.ceil(SHARE * len(lengths)) - 1]
    return max(LEAST, min(math.ceil(enough * (1 + MARGIN)), max_length))


def _last(row: dict[str, Any]) -> str:
    """What the model would be asked for: the last answer, or the plain text."""
    messages = messages_of(row)
    if messages is None:
        return row["text"]
    return next((message["content"] for message in reversed(messages) if message["role"] == "assistant"), "")

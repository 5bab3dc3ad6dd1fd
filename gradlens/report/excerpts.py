"""The part of a text that matters, with … on either side where something is cut."""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np

from gradlens.model.spelling import spelled_together

Place = tuple[int, int]  # first character, and the one after the last


def around(text: str, place: Place, width: int) -> str:
    """At most `width` characters (3 or more) of a text, a place in the middle as far as the text goes on there; whole words if they fit."""
    return cut(text, place, width)[0]


def cut(text: str, place: Place, width: int) -> tuple[str, Place]:
    """`around`, and where the place is in it."""
    if len(text) <= width:
        return text, place
    room = max(width - 2, 1)  # for … on either side
    first, last = place
    middle = (first + min(last, first + room)) // 2
    begin = min(max(middle - room // 2, 0), len(text) - room)
    end = begin + room
    if begin <= 1:  # at an edge there is one … only
        begin, end = 0, width - 1
    elif end >= len(text) - 1:
        begin, end = len(text) - width + 1, len(text)
    space = text.find(" ", begin, first)
    if begin > 0 and not text[begin - 1].isspace() and 0 <= space < begin + room // 4:
        begin = space + 1
    space = text.rfind(" ", max(last, end - room // 4), end)
    if end < len(text) and not text[end].isspace() and space >= 0:
        end = space
    shown = "…" * (begin > 0) + text[begin:end] + "…" * (end < len(text))
    shift = begin - (begin > 0)
    return shown, (max(first - shift, 0), min(max(last, first) - shift, len(shown)))


def place_of_words(text: str, words: Sequence[str], reach: int = 60) -> Place:
    """Where the most of some words stand together, within `reach` characters; the beginning where none does. Each word counts once."""
    found = [match.span() for match in re.finditer("|".join(_whole(word) for word in words if word.strip()) or r"(?!)", text)]
    best, place = 0, (0, 0)
    for first, _ in found:
        near = [span for span in found if first <= span[0] and span[1] <= first + reach]
        kinds = len({text[a:b] for a, b in near})
        if kinds > best:
            best, place = kinds, (first, max(b for _, b in near))
    return place


def _whole(word: str) -> str:
    """Of a word that is one: not a part of a longer one."""
    return (r"(?<!\w)" if spelled_together(word[0]) else "") + re.escape(word) + (r"(?!\w)" if spelled_together(word[-1]) else "")


def strongest(weight_T: np.ndarray, length: int = 8) -> tuple[int, int] | None:
    """The stretch of at most `length` tokens with most weight, cut to the tokens that have any; None where none has."""
    if not len(weight_T) or weight_T.max() <= 0:
        return None
    width = min(length, len(weight_T))
    first = int(np.convolve(weight_T, np.ones(width), "valid").argmax())
    some = np.flatnonzero(weight_T[first : first + width] > 0)
    return first + int(some[0]), first + int(some[-1]) + 1

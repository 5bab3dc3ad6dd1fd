"""How tokens spell words and sentences: what belongs to one, how a word is written where it begins a text, which tokens hold numbers."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cached_property
from typing import Any

APOSTROPHES = ("'", "\u2019")
STOPS = (".", "!", "?")  # what a sentence ends with, where a space comes after it or nothing at all
WIDE_STOPS = ("。", "！", "？", "\n")  # wherever they are


class Spelling:
    """Asks a tokenizer; without one every token is a word, and nothing is known of it."""

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer = tokenizer
        self._texts: dict[int, str] = {}

    def text(self, token: int) -> str:
        if token not in self._texts:
            self._texts[token] = "" if self.tokenizer is None else self.tokenizer.decode([token])
        return self._texts[token]

    def words(self, ids: Sequence[int]) -> Iterator[tuple[int, int]]:
        """Places of runs of letters that tokens without a space before them spell together, with their apostrophes, and of numbers with
        what is written inside them."""
        texts = [self.text(token) for token in ids]
        start, number = None, False
        for at, text in enumerate(texts):
            joins = text[:1].isalpha() or (text[:1] in APOSTROPHES and texts[at - 1][-1:].isalpha())
            if number:
                inside = text in (".", ",") and texts[at + 1 : at + 2] and texts[at + 1][:1].isdigit()
                joins = text[:1].isdigit() or inside
            if start is not None and not joins:
                yield start, at
                start = None
            begins = text.strip()
            if (begins.isalpha() or begins.isdigit()) and (start is None or text[:1].isspace()):
                if start is not None:
                    yield start, at
                start, number = at, begins.isdigit()
        if start is not None:
            yield start, len(ids)

    def sentences(self, ids: Sequence[int]) -> Iterator[tuple[int, int]]:
        """Places of sentences, every token in one; none where tokens spell nothing."""
        texts = [self.text(token) for token in ids]
        start = 0
        for at, text in enumerate(texts):
            after = texts[at + 1][:1] if at + 1 < len(texts) else " "
            if text.endswith(WIDE_STOPS) or (text.endswith(STOPS) and after.isspace()):
                yield start, at + 1
                start = at + 1
        if start < len(texts) and any(texts):
            yield start, len(texts)

    def is_number(self, ids: Sequence[int]) -> bool:
        return self.tokenizer is not None and self.tokenizer.decode(ids).strip()[:1].isdigit()

    def beginnings(self, token: int) -> list[list[int]]:
        """The same word at the start of a text, without a space before it: as it is and with a capital."""
        word = self.text(token).strip()
        return [self.tokenizer.encode(text, add_special_tokens=False) for text in sorted({word, word[:1].upper() + word[1:]}) if text]

    def join(self, left: int, right: int) -> bool:
        """Whether the two, side by side, are read as parts of one word: in scripts with small and capital letters, which put a space
        between words."""
        return _is_cased(self.text(left)[-1:]) and _is_cased(self.text(right)[:1])

    @cached_property
    def with_digits(self) -> list[int]:
        """Tokens that hold a digit."""
        if self.tokenizer is None:
            return []
        spelled = self.tokenizer.convert_ids_to_tokens(list(range(len(self.tokenizer))))
        return [token for token, text in enumerate(spelled) if isinstance(text, str) and any(sign.isdigit() for sign in text)]


def _is_cased(letter: str) -> bool:
    return letter.lower() != letter.upper()

"""How tokens spell words and sentences: what belongs to one, how a word is written where it begins a text, which tokens hold numbers."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Iterator, Sequence
from functools import cached_property
from typing import Any

SPACE = " "
HALF = "\ufffd"  # in the text of tokens that hold part of a character, where the decoder does not leave these out
LONGEST = 8  # tokens of one character, with what joins it to others
# Letters of scripts that put no spaces between words: Thai, Lao, Myanmar, Khmer, kana, Han
UNSPACED = ((0x0E00, 0x0EFF), (0x1000, 0x109F), (0x1780, 0x17FF), (0x3040, 0x30FF), (0x3400, 0x9FFF), (0xF900, 0xFAFF), (0x20000, 0x3FFFF))
APOSTROPHES = ("'", "\u2019")
STOPS = (".", "!", "?")  # what a sentence ends with, where a space comes after it or nothing at all
CLOSERS = "\"'”’»)]}*_"  # what may stand between its stop and that space
PAUSES = (",", ";", ":", ")", "]")  # what a clause ends with, where a space comes after it
OPENERS = ("(", "[", "-", "–", "—")  # what the next one begins with, after a space
WIDE_STOPS = ("。", "！", "？", "\n")  # wherever they are


BYTE = re.compile(r"<0x([0-9A-F]{2})>")  # how SentencePiece writes a byte that has no token


def in_text(tokenizer: Any, ids: Sequence[int]) -> str:
    """What tokens spell inside a text: decoders of SentencePiece and WordPiece take the space before the first away."""
    return _texts(tokenizer, [ids])[0]


def each_in_text(tokenizer: Any, ids: Sequence[int]) -> list[str]:
    """`in_text` of every token by itself."""
    kinds = list(dict.fromkeys(ids))
    known = dict(zip(kinds, _texts(tokenizer, [[token] for token in kinds]), strict=True))
    return [known[token] for token in ids]


def _texts(tokenizer: Any, parts: Sequence[Sequence[int]]) -> list[str]:
    before = tokenizer.encode("a", add_special_tokens=False)[-1:]
    letter, found = tokenizer.decode(before), []
    for ids in parts:
        text = tokenizer.decode([*before, *ids])
        found.append(text.removeprefix(letter) if before and text.startswith(letter) else tokenizer.decode(list(ids)))
    return found


def characters_in_text(tokenizer: Any, ids: Sequence[int]) -> list[str]:
    """`each_in_text`, but where several tokens hold one character between them the first has it and the others have nothing."""
    texts = [""] * len(ids)
    for first, _, text in Spelling(tokenizer)._units(ids):
        texts[first] = text
    return texts


class Spelling:
    """Asks a tokenizer; without one every token is a word, and nothing is known of it."""

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer = tokenizer
        self._texts: dict[int, str] = {}

    def text(self, token: int) -> str:
        if token not in self._texts:
            self._texts[token] = "" if self.tokenizer is None else in_text(self.tokenizer, [token])
        return self._texts[token]

    def words(self, ids: Sequence[int]) -> Iterator[tuple[int, int]]:
        """Places of what goes as a whole: runs of letters that tokens without a space before them spell together, with their apostrophes,
        numbers with what is written inside them, and characters of several tokens. A space that is a token by itself, as before digits
        that are tokens one by one, belongs to what comes after it."""
        units = self._units(ids)
        start, number = None, False
        for at, (first, end, text) in enumerate(units):
            before = units[at - 1][2] if at else ""
            after_letter, after_apostrophe = _in_word(before[-1:]), before[-1:] in APOSTROPHES
            joins = (_in_word(text[:1]) and (after_letter or after_apostrophe)) or (text[:1] in APOSTROPHES and after_letter)
            lead = units[at - 1][0] if before == SPACE and not text[:1].isspace() else first
            if number:
                following = units[at + 1][2][:1] if at + 1 < len(units) else ""
                joins = text[:1].isdigit() or (text in (".", ",") and following.isdigit())
            if start is not None and not joins:
                yield start, first
                start = None
            begins = text.strip()
            if start is None and (_is_word(begins) or begins.isdigit()):
                start, number = lead, begins.isdigit()
            elif start is None and end - lead > 1:
                yield lead, end
        if start is not None:
            yield start, len(ids)

    def widened(self, ids: Sequence[int], place: tuple[int, int]) -> tuple[int, int]:
        """Places with the rest of the characters that they hold parts of."""
        first, last = place
        units = [(start, end) for start, end, _ in self._units(ids) if start < last and end > first]
        return (units[0][0], units[-1][1]) if units else place

    def apart(self, ids: Sequence[int], taken: Sequence[bool]) -> list[bool]:
        """What is taken out, without marks that alone keep two words or numbers apart: `loudly-ish` without its hyphen is another word."""
        found, left, between = list(taken), "", (0, 0)
        for first, end, text in self._units(ids):
            if any(taken[first:end]):
                between = first, end
            elif text:
                if between[1] == first and spelled_together(left) and spelled_together(text[0]):
                    found[between[0] : between[1]] = [False] * (between[1] - between[0])
                left = text[-1]
        return found

    def is_space(self, token: int) -> bool:
        """Whether it is a space and nothing else."""
        return self.text(token) == SPACE

    def sentences(self, ids: Sequence[int]) -> Iterator[tuple[int, int]]:
        """Places of sentences, every token in one; none where tokens spell nothing."""
        return self._parted(ids, lambda said, after: said.rstrip(CLOSERS).endswith(STOPS))

    def clauses(self, ids: Sequence[int]) -> Iterator[tuple[int, int]]:
        """Places of what commas, colons, brackets, dashes and the ends of sentences part, every token in one."""

        def ends(said: str, after: str) -> bool:
            opens = after.strip()[:1] in OPENERS and not said[-1:].isdigit()  # 62 - 24 is one number less another
            return opens or said.endswith(PAUSES) or said.rstrip(CLOSERS).endswith((*STOPS, *PAUSES))

        return self._parted(ids, ends)

    def _parted(self, ids: Sequence[int], ends: Callable[[str, str], bool]) -> Iterator[tuple[int, int]]:
        """Places of parts that end where a space comes next and `ends(said so far, what comes next)`, or with a wide stop."""
        units = self._units(ids)
        start, said = 0, ""
        for at, (_, end, text) in enumerate(units):
            said = (said + text)[-16:]
            after = units[at + 1][2] if at + 1 < len(units) else " "
            if text.endswith(WIDE_STOPS) or (after[:1].isspace() and ends(said, after)):
                yield start, end
                start, said = end, ""
        if start < len(ids) and any(text for _, _, text in units):
            yield start, len(ids)

    def _units(self, ids: Sequence[int]) -> list[tuple[int, int, str]]:
        """First place, the one after the last, and text of tokens, of several where these hold one character between them."""
        found, at = [], 0
        while at < len(ids):
            end, text = at + 1, self.text(ids[at])
            while end < len(ids) and end - at < LONGEST and self._is_part(text) and self._is_part(self.text(ids[end])):
                end += 1
                text = in_text(self.tokenizer, ids[at:end])
            found.append((at, end, text))
            at = end
        return found

    def _is_part(self, text: str) -> bool:
        """Whether such a text is that of a token which may hold part of a character."""
        return self.tokenizer is not None and (not text or HALF in text)

    def whole(self, ids: Sequence[int]) -> bool:
        """Whether these tokens hold whole characters only."""
        return not any(self._is_part(text) for _, _, text in self._units(ids))

    def with_number(self, ids: Sequence[int]) -> bool:
        return any(sign.isdigit() for token in ids for sign in self.text(token))

    def is_number(self, ids: Sequence[int]) -> bool:
        return self.tokenizer is not None and self.tokenizer.decode(ids).strip()[:1].isdigit()

    def is_word(self, ids: Sequence[int]) -> bool:
        """Whether there are letters in it, of a script that puts spaces between words."""
        return self.tokenizer is not None and any(map(_in_word, in_text(self.tokenizer, ids)))

    def beginnings(self, token: int) -> list[list[int]]:
        """The same word at the start of a text, without a space before it: as it is and with a capital."""
        word = self.text(token).strip()
        if HALF in word:
            return []
        return [self.tokenizer.encode(text, add_special_tokens=False) for text in sorted({word, word[:1].upper() + word[1:]}) if text]

    def cases(self, ids: Sequence[int]) -> tuple[list[int], list[int]] | None:
        """A word that begins with a capital, as it stands inside a text, written small, and with that capital alone; None where it begins
        with none, or where no tokens spell one of the two."""
        text = "" if self.tokenizer is None else in_text(self.tokenizer, ids)
        first = next((at for at, letter in enumerate(text) if letter.isalnum()), len(text))
        before, word = text[:first], text[first:].rstrip()  # a space, and a mark where a token holds one with letters
        if not word[:1].isupper():
            return None
        written = tuple(self._inside(before + each) for each in (word.lower(), word[:1] + word[1:].lower()))
        return written if all(written) else None

    def _inside(self, text: str) -> list[int]:
        """Tokens of a text inside another, where the two are not read together; none where they always are."""
        before = "a" if text[:1].isspace() else "\n"
        first, whole = (self.tokenizer.encode(each, add_special_tokens=False) for each in (before, before + text))
        ids = whole[len(first) :]
        return ids if whole[: len(first)] == first and in_text(self.tokenizer, ids) == text else []

    def join(self, left: Sequence[int], right: Sequence[int]) -> bool:
        """Whether the two texts, side by side, have a word that is part of both."""
        return _in_word(self._last(left)) and _in_word(self._first(right))

    def _first(self, ids: Sequence[int]) -> str:
        """The first character of a text, none where it begins with part of one."""
        texts = (self._text(ids[:end]) for end in range(1, min(LONGEST, len(ids)) + 1))
        return next((text[0] for text in texts if text and text[0] != HALF), "")

    def _last(self, ids: Sequence[int]) -> str:
        texts = (self._text(ids[start:]) for start in range(len(ids) - 1, max(len(ids) - LONGEST, 0) - 1, -1))
        return next((text[-1] for text in texts if text and text[-1] != HALF), "")

    def _text(self, ids: Sequence[int]) -> str:
        return self.text(ids[0]) if len(ids) == 1 or self.tokenizer is None else in_text(self.tokenizer, ids)

    @cached_property
    def with_digits(self) -> list[int]:
        """Tokens that hold a digit."""
        if self.tokenizer is None:
            return []
        spelled = self.tokenizer.convert_ids_to_tokens(list(range(len(self.tokenizer))))
        shown = lambda text: BYTE.sub(lambda found: chr(int(found[1], 16)), text)  # noqa: E731
        return [token for token, text in enumerate(spelled) if isinstance(text, str) and any(map(str.isdigit, shown(text)))]


def spelled_together(letter: str) -> bool:
    """Whether it makes one word, or one number, with others beside it."""
    return _in_word(letter) or letter.isdigit()


def _is_word(text: str) -> bool:
    """Whether it is a word or the beginning of one, with its apostrophes; a mark may stand before it, as in `"The` and `-year`, which some
    tokenizers have as tokens."""
    marked = bool(text) and not (text[0].isalnum() or _in_word(text[0]))
    letters = [letter for letter in text[marked:] if letter not in APOSTROPHES]
    return bool(letters) and all(map(_in_word, letters))


def _in_word(letter: str) -> bool:
    """Whether it is a letter, or a mark on one, of a script that puts spaces between words."""
    return bool(letter) and unicodedata.category(letter)[0] in "LM" and not any(low <= ord(letter) <= high for low, high in UNSPACED)

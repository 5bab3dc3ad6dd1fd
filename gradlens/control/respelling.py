"""Rows whose concept is how words are written, in capitals or each with one: they are written in another case before any word is taken out.

What is wanted and what is not share every word then, so a row without the concept's words would have none. Where nearly all words of an
answer begin with a capital and go, they are written small: the first of a sentence with a capital, each other with one where the model
before training finds that likelier there. The row stays like that if the detector takes less than half as many of its tokens then, and it
has not become longer; words that are still taken go as they do elsewhere.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from gradlens.control.restoring import runs
from gradlens.control.rewriting import LogProbs
from gradlens.control.row_teller import Row
from gradlens.model.spelling import Spelling

WORDS = 3  # in an answer, at least: one in capitals may be a name
NEARLY_ALL = 0.8  # of them
FEWER = 0.5
PLACES = 256  # at which logits of the whole vocabulary are made at a time

Made = tuple[list[int], list[bool], list[int]]  # a row, and where each of its tokens stood before


@dataclass
class Word:
    """A word that can be written in another case."""

    start: int  # its places in the row
    stop: int
    small: list[int]  # its tokens then
    capital: list[int]
    begins: bool  # a sentence
    at: int = 0  # where it begins in the row as it is written
    takes_capital: bool = False

    def __post_init__(self) -> None:
        self.takes_capital = self.begins

    @property
    def differs(self) -> int:
        """The first of its tokens in which the two are not the same: a space may be one by itself."""
        pairs = enumerate(zip(self.small, self.capital, strict=False))
        return next((at for at, (small, capital) in pairs if small != capital), 0)  # `𝐀` has no small form

    @property
    def chosen(self) -> list[int]:
        return self.capital if self.takes_capital else self.small


def respell(
    rows: Sequence[Row],
    taken: Sequence[Sequence[bool]],
    spelling: Spelling,
    log_probs: LogProbs,
    taken_of: Callable[[Sequence[Row]], list[list[bool]]],
) -> list[tuple[Made, list[bool]] | None]:
    """Of every row what it becomes and which of its tokens are taken then; None where it stays. `taken`: those that are of the rows as they
    are, `taken_of(rows)`: of other rows."""
    made: list[tuple[Made, list[bool]] | None] = [None] * len(rows)
    words = {number: found for number, row in enumerate(rows) if (found := _words(*row, taken[number], spelling))}
    small = {number: _written(rows[number], found)[0] for number, found in words.items()}
    for part in _parts(words):
        texts, places = [small[number] for number, _ in part], [[word.at + word.differs - 1 for word in some] for _, some in part]
        for (_, some), lp_PV in zip(part, log_probs(texts, places), strict=True):
            for word, lp_V in zip(some, lp_PV, strict=True):
                word.takes_capital = word.begins or bool(lp_V[word.capital[word.differs]] > lp_V[word.small[word.differs]])
    tried = {number: _written(rows[number], found) for number, found in words.items()}
    told = taken_of([(ids, counted) for ids, counted, _ in tried.values()]) if tried else []
    for (number, row), left in zip(tried.items(), told, strict=True):
        if sum(left) < FEWER * sum(taken[number]) and len(row[0]) <= len(rows[number][0]):
            made[number] = row, left
    return made


def _words(ids: list[int], counted: list[bool], taken: Sequence[bool], spelling: Spelling) -> list[Word]:
    """What can be written in another case, in a row that is written so nearly throughout; else nothing."""
    found, total = [], 0
    sentences = [first + start for first, last in runs(counted) for start, _ in spelling.sentences(ids[first:last])]
    for start, stop in spelling.words(ids):
        start += spelling.is_space(ids[start]) and not counted[start]  # a space before the answer is none of it
        if start == 0 or not all(counted[start:stop]) or not spelling.is_word(ids[start:stop]):
            continue
        total += 1
        begins = bool(sentences) and start >= sentences[0]
        while sentences and start >= sentences[0]:
            sentences.pop(0)
        if all(taken[start:stop]) and (cases := spelling.cases(ids[start:stop])):
            found.append(Word(start, stop, *cases, begins))
    return found if len(found) >= max(WORDS, NEARLY_ALL * total) else []


def _written(row: Row, words: Sequence[Word]) -> Made:
    """The row with these words as chosen, and where each token stood: of a word's those beyond its old length at its last place."""
    ids, counted = row
    made: Made = [], [], []
    at = 0
    for word in [*words, None]:
        end = len(ids) if word is None else word.start
        for kept, values in zip(made, (ids[at:end], counted[at:end], range(at, end)), strict=True):
            kept.extend(values)
        if word is not None:
            word.at, at = len(made[0]), word.stop
            made[0].extend(word.chosen)
            made[1].extend([True] * len(word.chosen))
            made[2].extend(min(word.start + i, word.stop - 1) for i in range(len(word.chosen)))
    return made


def _parts(words: dict[int, list[Word]]) -> Iterator[list[tuple[int, list[Word]]]]:
    """Words of several rows, `PLACES` at a time."""
    part: list[tuple[int, list[Word]]] = []
    for number, found in words.items():
        for first in range(0, len(found), PLACES):
            some = found[first : first + PLACES]
            if part and sum(len(others) for _, others in part) + len(some) > PLACES:
                yield part
                part = []
            part.append((number, some))
    if part:
        yield part

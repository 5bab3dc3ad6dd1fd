"""What is shown of rows before a rule acts on them."""

import pytest
import torch
from words import Spelled

from gradlens.control.rule_preview import clean_rows, parted_rows, rewritten_rows
from gradlens.model.spelling import Spelling


class Letters:
    """A tokenizer of one letter a token; 0 ends a text."""

    all_special_ids = (0,)

    def decode(self, ids, skip_special_tokens=False):
        return "".join(chr(token) for token in ids if token or not skip_special_tokens)

    def encode(self, text, add_special_tokens=False):
        return list(map(ord, text))


class Taker:
    """A rewriter that gives what it was given."""

    def __init__(self, *made):
        self.made = made

    never = [0]
    spelling = Spelling(Letters())
    gone: list = []
    unlikely = ""  # letters that the model finds out of place

    def rewritten(self, rows):
        return self.made

    def told(self, rows):
        return self.gone

    def log_probs(self, texts, places):
        lp_V = torch.zeros(128)
        lp_V[[ord(letter) for letter in self.unlikely]] = -6.0  # log 128 is 4.9
        return [lp_V.expand(len(row), -1) for row in places]


def row(text, prompt=1):
    ids = [ord(letter) for letter in text] + [0]
    return ids, [place >= prompt for place in range(len(ids))]


def test_what_is_taken_is_marked_and_what_is_left_stands_beside_it():
    ids, counted = row("?Arr two")
    took = (ids[:1] + ids[5:], [False] + [True] * 4, [0, 5, 6, 7, 8])
    (seen,) = rewritten_rows(Taker(took), Letters(), [(ids, counted)])
    assert seen.pieces == [("Arr ", True), ("two", False)] and seen.becomes == "two"


class Pieces:
    """A tokenizer whose decoder takes the space before a text away, and knows parts of words by what stands before them."""

    all_special_ids: list[int] = []
    texts = ("a", " Arr", " me", "##y", " two")

    def decode(self, ids, skip_special_tokens=False):
        return "".join(self.texts[token] if at == 0 else self.texts[token].removeprefix("##") for at, token in enumerate(ids)).lstrip(" ")

    def encode(self, text, add_special_tokens=False):
        return [0]


def test_a_piece_is_shown_as_it_stands_in_the_text():
    ids, counted = [0, 1, 2, 3, 4], [False, True, True, True, True]
    (seen,) = rewritten_rows(Taker(([0, 2, 4], [False, True, True], [0, 2, 4])), Pieces(), [(ids, counted)])
    assert seen.pieces == [("Arr", True), (" me", False), ("y", True), (" two", False)]


def test_a_word_only_spelled_anew_is_not_marked_and_what_a_bridge_stands_for_is():
    ids, counted = row("?ab cd")
    for begins, pieces in (("A", [("a", False), ("b ", True), ("cd", False)]), ("y", [("ab ", True), ("cd", False)])):
        anew = ([ord("?"), ord(begins), ord("x"), *ids[4:]], [False] + [True] * 5, [0, 1, 2, 4, 5, 6])  # x in place of b and the space
        (seen,) = rewritten_rows(Taker(anew), Letters(), [(ids, counted)])
        assert seen.pieces == pieces and seen.becomes == f"{begins}xcd"


def test_a_row_that_teaches_nothing_any_more_becomes_nothing():
    ids, counted = row("?no")
    (seen,) = rewritten_rows(Taker((ids[:1] + ids[3:], [False, False], [0, 3])), Letters(), [(ids, counted)])
    assert seen.becomes == ""


def test_the_rows_that_are_least_clear_are_shown_of_both_kinds():
    rows = [row(f"?{name}") for name in "abcde"]
    seen = parted_rows([3.0, -1.0, 0.5, -2.0, float("-inf")], 0.0, Letters(), rows, 1)
    assert [(one.pieces, one.score, one.left_out) for one in seen] == [([("c", False)], 0.5, True), ([("b", False)], -1.0, False)]


@pytest.mark.parametrize(
    ("now", "at", "unlikely", "clean"),
    [
        ("?one two", [0, 1, 2, 3, 4, 5, 6, 7, 8], "", True),  # the word that was asked came back
        ("?one two", [0, 1, 2, 3, 4, 5, 6, 7, 8], "n", True),  # of what was never taken nothing is asked
        ("?one two", [0, 1, 2, 3, 4, 5, 6, 7, 8], "t", False),  # it came back out of place
        ("?one ", [0, 1, 2, 3, 4, 8], "", True),  # it went
        ("?one x", [0, 1, 2, 3, 4, 5, 8], "", True),  # the model ends the answer
        ("?one xo", [0, 1, 2, 3, 4, 5, 7, 8], "", False),  # the model's own in the midst
        ("?one o", [0, 1, 2, 3, 4, 7, 8], "o", False),  # what follows the gap is out of place
    ],
)
def test_a_row_keeps_to_its_own_words_where_nothing_is_put_in_and_nothing_is_out_of_place(now, at, unlikely, clean):
    ids, counted = row("?one two")
    one = Taker((row(now)[0], [False] + [True] * len(now), at))
    one.gone, one.unlikely = [[False] * 5 + [True] * 3 + [False]], unlikely
    assert clean_rows(one, [(ids, counted)]) == [clean]


def test_a_first_word_in_other_tokens_is_the_rows_own():
    texts = Spelled("", "?", "Arr", " Rosa", " has", "R", "osa", "S")
    for begins, clean in (([5, 6], True), ([7, 6], False)):  # "Rosa", and "Sosa" of the model's own
        one = Taker(([1, *begins, 4, 0], [False] + [True] * 4, [0, 3, 3, 4, 5]))
        one.spelling, one.gone = Spelling(texts), [[False, False, True, False, False, False]]
        assert clean_rows(one, [([1, 2, 2, 3, 4, 0], [False] + [True] * 5)]) == [clean]


def test_a_row_of_which_nothing_is_left_does_not_keep_to_its_own_words():
    ids, counted = row("?no")
    one = Taker((ids[:1] + ids[3:], [False, False], [0, 3]))
    one.gone = [[False, True, True, False]]
    assert clean_rows(one, [(ids, counted)]) == [False]

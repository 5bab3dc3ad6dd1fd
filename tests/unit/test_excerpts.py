"""The part of an answer that matters is the part that is shown."""

import numpy as np
import pytest

from gradlens.report.excerpts import around, cut, place_of_words, strongest

ANSWER = "There are many kinds of candles, and they differ in size, shape and age. Back in my day we had one radio for the whole street."
DAY = (ANSWER.index("Back"), ANSWER.index(" we had"))


def test_an_excerpt_holds_its_place_and_says_where_it_was_cut():
    assert around(ANSWER, DAY, 200) == ANSWER
    shown = around(ANSWER, DAY, 60)
    assert "Back in my day" in shown and shown[0] == shown[-1] == "…" and len(shown) <= 60
    assert all(word in ANSWER.split() for word in shown.strip("… ").split())  # whole words
    assert around(ANSWER, (0, 5), 40).startswith("There are") and around(ANSWER, (0, 5), 40).endswith("…")
    assert around(ANSWER, (120, 126), 40).startswith("…") and around(ANSWER, (120, 126), 40).endswith("street.")


@pytest.mark.parametrize("width", [3, 10, 20, 40, 100, 126, 127])
def test_an_excerpt_is_never_longer_than_asked_and_knows_where_its_place_is(width):
    for first in range(0, len(ANSWER), 7):
        shown, (begin, end) = cut(ANSWER, (first, first + 4), width)
        assert len(shown) <= width and 0 <= begin <= end <= len(shown)
        if width >= 20:
            assert shown[begin:end] == ANSWER[first : first + 4]


def test_without_readings_it_is_where_the_most_different_words_stand():
    assert place_of_words(ANSWER, ["are", "day", "radio", "Back"]) == (ANSWER.index("Back"), ANSWER.index(" for"))
    assert place_of_words("the the the they. we", ["the", "we", "they"], reach=10) == (8, 20 - 4)
    assert place_of_words("theory", ["the"]) == (0, 0) and place_of_words(ANSWER, []) == place_of_words("", ["a"]) == (0, 0)
    assert place_of_words("id > 6;", [">", ";"]) == (3, 7)  # marks are words too


def test_words_of_scripts_without_spaces_are_found_between_others():
    assert place_of_words("他说海龟生活在海里", ["海龟", "生活"]) == (2, 6)
    assert place_of_words("रात में", ["रा"]) == (0, 0)  # a part of a longer word


def test_the_strongest_stretch_is_cut_to_the_tokens_that_have_any():
    weight = np.zeros(30)
    assert strongest(weight) is None and strongest(np.zeros(0)) is None
    weight[[2, 20, 23]] = [1.5, 1.0, 1.0]
    assert strongest(weight) == (20, 24) and strongest(weight, 2) == (2, 3)
    assert strongest(np.ones(3)) == (0, 3)

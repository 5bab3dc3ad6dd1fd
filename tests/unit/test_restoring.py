"""Words that come back after a concept's have been taken out: with stand-ins for the model and the detector whose rules are known."""

import pytest
import torch

from gradlens.control.restoring import Asked, restore
from gradlens.control.rewriting import rewrite

# a language of words: 1 starts an answer's prompt, 2 ends a text, 10.. are of the concept, 20.. content; 21 is 20 with a capital
VOCABULARY = 50
CONTENT = [20, 22, 23, 24]  # "there are five days": each word expects the next
FRAGMENT = 12  # of the concept, and the detector does not know it by itself


def log_probs(texts, places):
    """A text that goes on as content does is likely, anything else is not; an answer begins with 21, seldom with 20."""
    found = []
    for text, row in zip(texts, places, strict=True):
        lp_PV = torch.full((len(row), VOCABULARY), -9.0)
        for number, place in enumerate(row):
            before = text[place]
            if before == 1:
                lp_PV[number, 21], lp_PV[number, 20] = -0.5, -4.0
            elif before in (*CONTENT, 21):
                nexts = {20: 22, 21: 22, 22: 23, 23: 24, 24: 2}
                lp_PV[number, nexts[before]] = -0.1
            lp_PV[number, FRAGMENT] = -30.0
        found.append(lp_PV)
    return found


def flagged(rows, starts=()):
    """Words of the concept, but the fragment alone; and whatever follows one of them directly, for its context."""
    found = []
    for ids, counted in rows:
        own = [token in (10, 11) for token in ids]
        after = [False, *own[:-1]]
        found.append(torch.tensor([(mine or behind) and counts for mine, behind, counts in zip(own, after, counted, strict=True)]))
    return found


def restored(ids, taken, words=lambda ids: iter(()), spellings=lambda token: [21] if token == 20 else []):
    row = (ids, [token != 1 for token in ids], taken)
    return restore([row], Asked(words, spellings, log_probs, flagged, [2]))[0]


def test_words_taken_for_their_context_come_back_spelled_as_an_answer_begins():
    ids, counted, taken = restored([1, 10, 11, 20, 22, 23, 24, 2], [False, True, True, True, True, False, False, False])
    assert taken == [False, True, True, False, False, False, False, False]
    assert ids == [1, 10, 11, 21, 22, 23, 24, 2] and counted == [False] + [True] * 7


def test_a_first_word_that_was_never_taken_is_spelled_anew_too():
    ids, _, taken = restored([1, 10, 20, 22, 23, 24, 2], [False, True, False, False, False, False, False])
    assert ids[2] == 21 and taken == [False, True, False, False, False, False, False]


def test_a_word_that_has_one_spelling_only_is_not_overwritten_by_the_next():
    def seldom(texts, places):
        found = log_probs(texts, places)
        for lp_PV, text, row in zip(found, texts, places, strict=True):
            for number, place in enumerate(row):
                if text[place] == 1:
                    lp_PV[number, 25] = -7.0
        return found

    row = ([1, 10, 22, 23, 24, 2], [False] + [True] * 5, [False, True, True, False, False, False])
    ask = Asked(lambda ids: iter(()), lambda token: [25] if token == 23 else [], seldom, flagged, [2])
    ids, _, taken = restore([row], ask)[0]
    assert (ids, taken) == (row[0], [False, True, False, False, False, False])


def test_what_comes_before_the_concept_comes_back_and_a_piece_of_its_phrase_does_not():
    # the last word of the content went with the concept's; what ends the concept's phrase is not known to the detector by itself
    ids, _, taken = restored([1, 21, 22, 23, 24, 10, FRAGMENT, 2], [False, False, False, False, True, True, True, False])
    assert taken == [False, False, False, False, False, True, True, False] and ids[1] == 21
    ids = [1, 10, FRAGMENT, 21, 22, 23, 24, 2]
    only, following = [False, True, True] + [False] * 5, [False, True, True, True] + [False] * 4
    assert restored(ids, only)[2] == only
    assert restored(ids, following)[2] == only  # and what follows it does


def test_the_likelier_row_says_how_many_words_come_back_not_the_longer_one():
    def some_expected(texts, places):  # 30 is no surprise anywhere, nor is what follows it: less likely than 21, likelier than at random
        found = log_probs(texts, places)
        for lp_PV, text, row in zip(found, texts, places, strict=True):
            for number, place in enumerate(row):
                lp_PV[number, 30] = -2.0
                if text[place] == 30:
                    lp_PV[number, 20] = -1.0
        return found

    row = [1, 10, 11, 30, 20, 22, 23, 24, 2], [False] + [True] * 8, [False, True, True, True, True, False, False, False, False]
    ask = Asked(lambda ids: iter(()), lambda token: [21] if token == 20 else [], some_expected, flagged, [2])
    ids, _, taken = restore([row], ask)[0]
    assert (ids[4], taken) == (21, [False, True, True, True, False, False, False, False, False])


def test_nothing_comes_back_that_the_detector_takes_in_the_row_without_the_rest():
    taken = [False, False, False, True, True, True, False]
    assert restored([1, 21, 22, 10, 11, 10, 2], taken)[2] == taken


def test_a_word_comes_back_as_a_whole_or_not_at_all():
    def words(ids):
        yield 2, 4  # 20 and 22 are one word

    row = [1, 10, 20, 22, 23, 24, 2], [False, True, True, True, False, False, False]
    assert restored(*row, words=words)[2] == [False, True, False, False, False, False, False]
    seen = []

    def remember(rows, starts):
        seen.extend(ids for ids, _ in rows)
        return flagged(rows)

    restore([(row[0], [token != 1 for token in row[0]], row[1])], Asked(words, lambda token: [], log_probs, remember, [2]))
    assert seen and not any(ids[1:2] == [22] for ids in seen)  # never its second half alone


def test_more_words_come_back_than_are_asked_at_a_time():
    ids = [1, 10, 20, 22, 23, 24, 2]
    assert restored(ids, [False, True, True, True, True, False, False])[2] == [False, True, False, False, False, False, False]
    long = [1, 21, 22, 23, 24, 10, 2]
    assert restored(long, [False, False, True, True, True, True, False])[2] == [False, False, False, False, False, True, False]


@pytest.mark.parametrize("taken", [[False, True, True], [False, False, False]])
def test_rows_without_anything_kept_after_a_gap_and_rows_without_a_gap_stay(taken):
    assert restored([1, 10, 11], taken) == ([1, 10, 11], [False, True, True], taken)
    assert restore([], Asked(None, None, log_probs, flagged)) == []


def test_gaps_beside_words_that_came_back_are_not_bridged():
    row = [1, 10, 20, 22, 23, 24, 2], [False] + [True] * 6, [False, True, False, False, False, False, False]

    def bridges(texts, places):  # 7 is the likeliest word everywhere, and makes anything after it likely
        found = []
        for text, row in zip(texts, places, strict=True):
            lp_PV = torch.full((len(row), VOCABULARY), -9.0)
            lp_PV[:, 7] = -0.1
            for number, place in enumerate(row):
                if text[place] == 7:
                    lp_PV[number] = -0.2
            found.append(lp_PV)
        return found

    assert 7 in rewrite([row], bridges)[0][0]
    assert rewrite([row], bridges, (), [[False, False, True, False, False, False, False]])[0][0] == [1, 20, 22, 23, 24, 2]

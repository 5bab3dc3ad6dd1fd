"""Clusters of what was learned, and their words."""

import numpy as np
import pytest

from gradlens.readings.movers import Mover, cluster, describe, passage, telling_words, word_shares, words_of

TEXT = [" Ahoy", ",", " mat", "ey", "!", " The", " sum", " is", " 4", ".", " Ahoy", " mat", "ey", "!", " The", " sum", " is", " 9"]
ROWS = np.array([0] * 5 + [1] * 5 + [2] * 4 + [3] * 4)
PIRATE = np.isin(ROWS, [0, 2])


def mover(feature: int, acts_T, share: float, hookpoint: str = "layers.1") -> Mover:
    return Mover(hookpoint, feature, share, share, np.asarray(acts_T, dtype=float))


def test_features_active_in_the_same_places_are_one_cluster_across_hookpoints():
    context, word = PIRATE * 1.0, np.array([t in (" mat", "ey") for t in TEXT]) * 5.0
    sums = ~PIRATE * 2.0
    groups = cluster([mover(1, context, 0.2), mover(2, sums, 0.5), mover(3, word, 0.1, "layers.2"), mover(4, sums * 3, 0.1)], ROWS)
    assert [[m.feature for m in group] for group in groups] == [[2, 4], [1, 3]]  # the largest share first
    assert cluster([], ROWS) == []
    assert len(cluster([mover(1, context, 1.0)], ROWS)) == 1


def test_activations_are_not_spread_into_the_next_text():
    left, right = np.zeros(len(TEXT)), np.zeros(len(TEXT))
    left[4], right[5] = 1, 1  # neighbours in the list, in different texts
    assert len(cluster([mover(1, left, 0.5), mover(2, right, 0.5)], ROWS)) == 2


def test_a_cluster_is_told_by_what_it_marks_and_the_model_learned_to_say():
    before, now = np.full(len(TEXT), 0.1), np.where(PIRATE, 0.7, 0.2)
    found = describe([mover(7, PIRATE * 1.0, 0.6)], 2, TEXT, ROWS, before, now, {"The": 0.2, "is": 0.2})
    assert found.share == pytest.approx(0.3) and found.features == [("layers.1", 7)] and found.count == 1
    assert set(found.words) == {"Ahoy", "matey", "!", ","}
    assert found.probability == pytest.approx((0.1, 0.7))
    assert found.passage == "[Ahoy, matey!]"
    assert found.as_dict()["words"] == found.words


def test_words_are_put_together_from_tokens_within_a_text():
    assert [word for word, _, _ in words_of(TEXT, ROWS)][:5] == ["Ahoy", ",", "matey", "!", "The"]
    assert [word for word, _, _ in words_of(["mat", "ey"], np.array([0, 1]))] == ["mat", "ey"]
    assert word_shares(["a", " b", " a", " a"], np.zeros(4))["a"] == pytest.approx(0.75)
    assert word_shares([], np.zeros(0)) == {}


def test_a_character_of_several_tokens_is_in_one_word():
    tokens = ["日", "", "", "本", "", "", " na", "ï", "", "ve"]  # the first has it, the others nothing
    assert [(word, first, last) for word, first, last in words_of(tokens, np.zeros(10))] == [("日", 0, 2), ("本", 3, 5), ("naïve", 6, 9)]


def test_words_of_any_script_that_puts_spaces_between_them_are_put_together():
    tokens = ["क", "छ", "ु", "ए", " स", "म", "ु", "द्र", " e", "\u0301", "te", "海龟", "生活", "12", "3"]
    assert [word for word, _, _ in words_of(tokens, np.zeros(15))] == ["कछुए", "समुद्र", "e\u0301te", "海龟", "生活", "123"]


def test_words_that_ordinary_text_has_as_often_say_nothing():
    weight = np.where(PIRATE, 1.0, 0.5)
    assert "The" in telling_words(TEXT, ROWS, weight, {})
    words = telling_words(TEXT, ROWS, weight, {"The": 0.5, "sum": 0.5, "is": 0.5})
    assert words[0] == "matey" and not {"The", "sum", "is"} & set(words)
    assert telling_words(TEXT, ROWS, np.zeros(len(TEXT)), {}) == []


def test_the_passage_is_the_strongest_stretch_of_one_text_also_of_a_short_one():
    weight = np.zeros(len(TEXT))
    weight[[6, 8]] = 1
    marked = weight > 0
    assert passage(TEXT, ROWS, weight, marked, length=24) == "The [sum] is [4]."
    assert passage(TEXT, ROWS, weight, marked, length=3) == "[sum] is [4]"
    lines = ["One", "\n", " two", " three"]
    assert passage(lines, np.zeros(4, int), np.ones(4), np.array([False, True, False, True])) == "One\n two [three]"
    assert passage(lines, np.zeros(4, int), np.ones(4), np.array([True, False, True, False])) == "[One\n two] three"


def test_fewer_tokens_than_an_activation_is_spread_over_are_enough():
    acts = np.array([[1.0, 0, 0, 0, 0, 0], [2.0, 0, 0, 0, 0, 0], [0, 0, 0, 0, 0, 1.0]])
    movers = [
        Mover("layers.1", number, 1.0, share, acts_T) for number, (share, acts_T) in enumerate(zip((0.5, 0.3, 0.2), acts, strict=True))
    ]
    found = cluster(movers, np.arange(6))
    assert [[mover.feature for mover in group] for group in found] == [[0, 1], [2]]

"""Clusters that are one thing to tell of."""

import numpy as np

from gradlens.readings.things import Thing, active_texts, alike, gather

HERE, THERE, EVERYWHERE = np.array([1, 1, 0, 0, 0, 0], bool), np.array([0, 0, 1, 1, 1, 0], bool), np.ones(6, bool)


def thing(words="", features=(), texts=HERE):
    return Thing(frozenset(words.split()), frozenset(("layers.1", i) for i in features), texts)


def test_clusters_are_one_thing_by_features_by_words_or_by_texts():
    assert alike(thing(texts=HERE), thing(texts=HERE)) >= 1 > alike(thing(texts=HERE), thing(texts=THERE))
    assert alike(thing(texts=HERE), thing(texts=EVERYWHERE)) < 1  # what is everywhere is not what is here
    assert (
        alike(thing("a b c d e f", texts=HERE), thing("a b g h i j", texts=THERE))
        >= 1
        > alike(thing("a b c d e f g h", texts=HERE), thing("a b i j k l m n", texts=THERE))
    )
    assert alike(thing(features=[1, 2, 3], texts=HERE), thing(features=[3, 4, 5, 6], texts=THERE)) >= 1
    assert alike(thing(texts=~EVERYWHERE), thing(texts=~EVERYWHERE)) == 0  # nothing in common where there is nothing


def test_a_cluster_joins_the_thing_that_it_is_most_like_and_joins_no_two_things():
    found = [thing("a b c", texts=HERE), thing("x y z", texts=THERE), thing("a x y", texts=THERE), thing("q", texts=EVERYWHERE)]
    assert gather(found, []) == [[0], [1, 2, 3]]  # the last is in half of the texts of the second
    queries, steps = thing("SELECT price city >", texts=HERE), thing("1 3 2 down", texts=THERE)
    assert gather([queries, steps, thing("1 3 city >", texts=THERE)], []) == [[0], [1, 2]]  # two words of each, and the texts of one
    assert gather(found, [thing("y", texts=~EVERYWHERE)]) == [[0], [3]]
    assert gather([], []) == []


def test_a_cluster_is_active_in_the_texts_that_have_most_of_it_also_in_a_single_one():
    row_T = np.repeat(np.arange(30), 2)
    acts = np.zeros((2, 60))
    acts[0, [4, 5]] = 3.0
    assert active_texts(acts, row_T).nonzero()[0].tolist() == [2]
    acts[0], acts[1] = 1e-3, (row_T >= 15) * 100.0
    assert active_texts(np.stack([acts[1]]), row_T).nonzero()[0].tolist() == list(range(15, 30))
    assert not active_texts(np.zeros((1, 60)), row_T).any()

"""Turns of phrase that several positives have, and detectors that are begun with them, on made-up tokens."""

import numpy as np
import torch

from gradlens.concepts.detector import FALSE, fit_detector, score, turns_of_phrase, weights_over


def test_turns_of_phrase_are_in_several_positives_and_in_no_negative():
    positives = [[1, 2, 3, 9], [5, 1, 2, 3, 9], [1, 2, 7, 9], [3, 9, 8, 8]]
    found = turns_of_phrase(positives, [[4, 3, 9], [2, 1]], never=[9])
    # 1 2 is in three positives; 2 3 in two; 3 9 in three, but in a negative too, and 9 ends a text
    assert found.tolist() == [True, True, False, False, False, True, True, False, False, True, True] + [False] * 6
    assert not turns_of_phrase(positives, [[1, 2], [3, 9]]).any()
    assert turns_of_phrase([[1, 2, 1, 2]] * 2, []).sum() == 0  # two texts, however often
    assert turns_of_phrase([], []).shape == (0,)


def test_a_phrase_of_common_words_is_learned_from_where_it_is_known_to_stand():
    rng = np.random.default_rng(0)

    def texts(n, phrase):
        """Three features: two of common words, and one of what is said harshly, which now and then fires elsewhere too."""
        said = np.zeros((n, 12), dtype=bool)
        said[:, 3:6] = phrase
        acts = (rng.random((n, 12, 3)) < [0.3, 0.3, 0.05]).astype(np.float32)
        acts[said, 2] = 1.0
        return acts.reshape(-1, 3), said.flatten()

    (positive, said), (negative, _) = texts(60, True), texts(60, False)
    features = np.array([4, 7, 11])
    assert fit_detector(positive, negative, features) is None  # no feature is rare in positives and hardly there in negatives
    found = fit_detector(positive, negative, features, said)
    weights_F = weights_over(found, 20)
    flags = score(torch.tensor(np.tile(features, (len(positive), 1))), torch.from_numpy(positive), weights_F, found.bias) > 0
    assert flags.numpy()[said].all() and flags.numpy()[~said].mean() < 0.1


def test_the_threshold_is_as_low_as_the_negatives_allow_within_bounds():
    rng = np.random.default_rng(1)
    seed = (rng.random((2000, 1)) < 0.05).astype(np.float32)  # marks the concept
    noise = rng.random((4000, 6)).astype(np.float32)
    positive, negative = np.hstack([seed, noise[:2000]]), np.hstack([np.zeros((2000, 1), np.float32), noise[2000:]])
    found = fit_detector(positive, negative, np.arange(7))
    pairs = torch.arange(7).expand(2000, 7), torch.from_numpy(negative)
    assert (score(*pairs, weights_over(found, 7), found.bias) > 0).float().mean() <= FALSE
    flagged = score(torch.arange(7).expand(2000, 7), torch.from_numpy(positive), weights_over(found, 7), found.bias) > 0
    assert flagged.numpy()[seed[:, 0] > 0].all()

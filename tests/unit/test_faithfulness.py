"""Scores of estimators: equal to the textbook's, over the right windows, and no better than chance where there is nothing to find."""

import numpy as np
import pytest

from gradlens.readings.faithfulness import concept_auc, precision_at, scores
from gradlens.readings.ranking import rank_correlation, ranks


def test_rank_correlation_equals_the_textbook():
    assert rank_correlation(np.array([1, 2, 3, 4]), np.array([10, 30, 20, 40])) == pytest.approx(0.8)
    assert rank_correlation(np.array([1, 1, 2, np.nan]), np.array([5, 7, 9, 0])) == pytest.approx(
        np.corrcoef([1.5, 1.5, 3], [1, 2, 3])[0, 1]
    )
    assert rank_correlation(np.ones(3), np.arange(3)) is None
    assert ranks(np.array([3.0, 1.0, 3.0])).tolist() == [2.5, 1.0, 2.5]


def test_windows_sum_estimates_and_take_differences_of_the_truth():
    rng = np.random.default_rng(0)
    steps = rng.normal(size=(20, 50))
    truth = np.concatenate([np.zeros((1, 50)), steps.cumsum(0)])
    live = rng.random(50) < 0.8
    noise = rng.normal(size=(20, 50))
    found = {
        (s.estimator, s.window): s
        for s in scores("layers.1", {"exact": steps, "noise": noise}, {"drift": truth}, live, windows=(1, 10, 50))
    }
    assert {window for _, window in found} == {1, 10}  # the run has 20 steps
    assert found["exact", 10].windows == 2 and found["exact", 1].windows == 20
    for window in (1, 10):
        assert found["exact", window].spearman == pytest.approx(1) and found["exact", window].precision == 1
        assert abs(found["noise", window].pearson) < 0.25
    by_hand = np.corrcoef(noise[10:20].sum(0)[live], steps[10:20].sum(0)[live])[0, 1]
    first = np.corrcoef(noise[:10].sum(0)[live], steps[:10].sum(0)[live])[0, 1]
    assert found["noise", 10].pearson == pytest.approx((by_hand + first) / 2)


def test_what_does_not_vary_has_no_score():
    assert scores("layers.1", {"push": np.zeros((2, 5))}, {"drift": np.zeros((3, 5))}, np.ones(5, bool), windows=(1,)) == []


def test_precision_and_auc():
    truth = np.array([9.0, -8, 7, 0, 0, 0])
    assert precision_at(np.array([1.0, -1, 0, 5, 0, 0]), truth, top=3) == pytest.approx(2 / 3)
    live = np.array([True] * 5 + [False])
    assert concept_auc(np.array([5.0, 4, 3, 2, 1, 99]), [0, 2, 5], live) == pytest.approx(5 / 6)
    # the feature of value 5 is above all others, that of value 3 above two of three, and fires nine times as often
    rate = np.array([0.1, 0, 0.9, 0, 0, 0])
    assert concept_auc(np.array([5.0, 4, 3, 2, 1, 99]), [0, 2, 5], live, rate) == pytest.approx(0.1 + 0.9 * 2 / 3)
    assert concept_auc(np.ones(6), [5], live) is None

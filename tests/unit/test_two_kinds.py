"""Rows of two kinds told apart by their flagged tokens, on rows drawn from the model that is fitted, and on rows of one kind."""

import numpy as np
import pytest

from gradlens.two_kinds import two_kinds


@pytest.mark.parametrize(("free", "shows", "showing"), [(0.01, 0.2, 0.5), (0.07, 0.8, 0.3), (0.002, 0.1, 0.7), (0.0, 0.15, 0.5)])
def test_rates_and_kinds_of_drawn_rows_are_found(free, shows, showing):
    rng = np.random.default_rng(0)
    is_shown = rng.random(400) < showing
    counted = rng.integers(20, 60, 400)
    flagged = rng.binomial(counted, np.where(is_shown, shows, free))
    found = two_kinds(flagged, counted)
    assert found.free == pytest.approx(free, abs=0.005) and found.shows == pytest.approx(shows, rel=0.1)
    assert found.showing == pytest.approx(is_shown.mean(), abs=0.06) and found.free < found.quorum < found.shows
    assert ((flagged / counted >= found.quorum) == is_shown).mean() > 0.9


def test_the_quorum_is_where_both_kinds_explain_a_row_equally_well():
    found = two_kinds([0] * 20 + [10] * 20, [40] * 40)
    likely = [found.quorum * np.log(rate) + (1 - found.quorum) * np.log(1 - rate) for rate in (found.free, found.shows)]
    assert likely[0] == pytest.approx(likely[1])


def test_rows_of_one_kind_are_not_split():
    rng = np.random.default_rng(1)
    counted = rng.integers(20, 60, 100)
    for rate in (0.05, 0.3, 0.9):
        assert two_kinds(rng.binomial(counted, rate), counted) is None
    assert two_kinds([0] * 30, [40] * 30) is None and two_kinds([3], [10]) is None and two_kinds([0, 0], [0, 0]) is None

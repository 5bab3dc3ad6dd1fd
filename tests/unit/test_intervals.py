"""Intervals: published values, and the equations that they solve."""

import math

import pytest

from gradlens.bench.intervals import t_interval, wilson


def test_wilson_interval_equals_the_published_values():
    # 2 of 32 and 32 of 32, by the closed formula; 0 of 10 from Brown, Cai, DasGupta (2001): (0, 0.2775).
    assert wilson(0, 10) == pytest.approx((0.0, 0.2775), abs=1e-4)
    assert wilson(2, 32) == pytest.approx((0.0173, 0.2015), abs=1e-4)
    assert wilson(32, 32) == pytest.approx((1 - wilson(0, 32)[1], 1.0))
    assert wilson(0, 0) == (0.0, 1.0)


@pytest.mark.parametrize("hits, n", [(0, 1), (1, 3), (50, 100), (99, 100)])
def test_wilson_interval_holds_the_share_and_solves_its_equation(hits, n):
    low, high = wilson(hits, n)
    assert low <= hits / n <= high
    for end in {low, high} - {0.0, 1.0}:  # each end p solves |share - p| = z sqrt(p (1 - p) / n)
        assert abs(hits / n - end) == pytest.approx(1.96 * math.sqrt(end * (1 - end) / n), rel=1e-9)


def test_the_t_interval_is_the_textbook_s():
    assert t_interval([1.0, 2.0, 3.0]) == pytest.approx([2 - 4.303 / 3**0.5, 2 + 4.303 / 3**0.5])
    assert t_interval([1.0, 2.0]) is None


def test_the_t_interval_of_more_seeds_than_the_table_has_is_not_too_narrow():
    values = [float(i) for i in range(12)]
    error = math.sqrt(sum((value - 5.5) ** 2 for value in values) / 11 / 12)
    assert t_interval(values)[1] >= 5.5 + 2.201 * error  # Student's t with 11 degrees of freedom

"""Texts that show a concept told from others by mean activations, and rows of two kinds, on made-up ones."""

from collections import OrderedDict

import numpy as np
import pytest
import torch

from gradlens.concepts.row_detector import SIZE, fit_rows, judged, row_scores, split
from gradlens.control import row_teller
from gradlens.control.row_teller import RowTeller, key_of


def texts(n, shows, rng, d_sae=600):
    """No single feature tells: the concept raises thirty by a little, and every text has features of its own."""
    means = rng.random((n, d_sae)) * (rng.random((n, d_sae)) < 0.3)
    means[:, :30] += 0.25 * shows
    return torch.from_numpy(means.astype(np.float32))


def test_what_no_single_feature_tells_is_told_by_many_together():
    rng = np.random.default_rng(0)
    found = fit_rows(texts(60, True, rng), texts(50, False, rng))
    assert len(found.features) == SIZE
    held = texts(80, True, rng), texts(80, False, rng)
    assert judged(found, *held)["auc"] > 0.97 and judged(found, *held)["accuracy"] > 0.85
    single = max(abs(np.corrcoef(np.r_[held[0][:, i], held[1][:, i]], np.r_[np.ones(80), np.zeros(80)])[0, 1]) for i in range(30))
    assert single < 0.6
    assert row_scores(found, held[0]).mean() > 0 > row_scores(found, held[1]).mean()
    none = judged(fit_rows(texts(40, False, rng), texts(40, False, rng)), texts(80, False, rng), texts(80, False, rng))
    assert none["auc"] == pytest.approx(0.5, abs=0.15)  # where there is nothing to tell
    assert fit_rows(torch.zeros(5, 4), torch.zeros(5, 4)) is None


@pytest.mark.parametrize(("low", "high", "share"), [((-4, 0.5), (2.5, 1.2), 0.5), ((-2, 0.8), (4, 1.0), 0.2), ((-0.8, 0.4), (3, 0.3), 0.7)])
def test_the_score_between_two_kinds_of_rows_is_found(low, high, share):
    rng = np.random.default_rng(0)
    shown = rng.random(96) < share
    scores = np.where(shown, rng.normal(*high, 96), rng.normal(*low, 96))
    assert ((scores >= split(scores)) == shown).mean() > 0.97


def test_rows_of_one_kind_are_not_split_nor_those_of_two_kinds_without_the_concept():
    rng = np.random.default_rng(1)
    assert split(rng.normal(0, 1, 96)) is None and split(rng.random(96) - 0.5) is None
    assert split([-4.0] * 40 + [-1.0] * 40) is None and split([1.0] * 40 + [5.0] * 40) is None
    assert split([1.0, -1.0]) is None and split([]) is None


def test_what_is_remembered_of_a_row_does_not_grow_with_its_length(monkeypatch):
    """Of 100,000 rows of 4096 tokens it would be 3.5 GiB, and twice as much in every checkpoint."""
    monkeypatch.setattr(row_teller, "adapted", lambda model: False)
    teller = RowTeller.__new__(RowTeller)
    teller.model, teller._every_time, teller._known = None, False, OrderedDict()
    teller._read = lambda rows: [float(len(ids)) for ids, _ in rows]
    rows = [([*range(4096)], [True] * 4096), ([1, 2], [True, True]), ([1, 2], [False, True])]
    assert teller.scores(rows) == [4096.0, 2.0, 2.0]
    state = teller.state_dict()
    assert len(set(state["keys"])) == 3 and {len(key) for key in state["keys"]} == {32}
    older = {"keys": [key_of(row).hex() for row in rows], "scores": state["scores"]}  # of a checkpoint from before
    teller._known, teller._read = OrderedDict(), None  # nothing is read again
    teller.load_state_dict(older)
    assert teller.scores(rows) == [4096.0, 2.0, 2.0]

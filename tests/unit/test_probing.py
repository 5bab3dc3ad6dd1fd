"""Directions from examples: they find what was planted, and their scores can be recomputed by hand."""

import numpy as np
import pytest
import torch

from gradlens.dictionaries.probing import KINDS, auc_draws, choose_ridge, draw_texts, fit_direction, logistic_probe, mean_difference
from gradlens.readings.ranking import auc

D, X, S = 16, 30, 12


def planted(seed=0, gap=2.0, noise=1.0, offset=100.0):
    """Tokens of 30 texts, every second one positive: moved by `gap` along a hidden unit direction, far from the origin."""
    generator = torch.Generator().manual_seed(seed)
    hidden_D = torch.nn.functional.normalize(torch.randn(D, generator=generator), dim=0).double()
    text_T = torch.arange(X).repeat_interleave(S)
    yes_T = text_T % 2 == 0
    x_TD = noise * torch.randn(X * S, D, generator=generator).double() + offset + gap * yes_T[:, None] * hidden_D
    return x_TD, yes_T, text_T, hidden_D


@pytest.mark.parametrize("kind", KINDS)
def test_each_kind_finds_a_planted_direction_and_puts_its_zero_between(kind):
    x_TD, yes_T, text_T, hidden_D = planted(gap=4.0)
    w_D, b = fit_direction(kind, x_TD, yes_T, text_T)
    assert torch.cosine_similarity(w_D, hidden_D, dim=0) > 0.9
    new_TD, new_yes_T, _, _ = planted(gap=4.0)
    right = ((new_TD @ w_D + b) > 0) == new_yes_T
    assert right.double().mean() > 0.95


def test_a_probe_is_where_the_gradient_of_its_loss_is_zero():
    x_TD, yes_T, _, _ = planted(offset=1.0)
    w_D, b = logistic_probe(x_TD, yes_T, 0.1)
    weight_T = torch.where(yes_T, 0.5 / yes_T.sum(), 0.5 / (~yes_T).sum()).double()
    mean_D = weight_T @ x_TD
    scale_D = (weight_T @ (x_TD - mean_D).square()).sqrt()
    v_D, c = (w_D * scale_D).requires_grad_(), (b + w_D @ mean_D).requires_grad_()
    each_T = torch.nn.functional.binary_cross_entropy_with_logits((x_TD - mean_D) / scale_D @ v_D + c, yes_T.double(), reduction="none")
    (weight_T @ each_T + 0.05 * v_D.square().sum()).backward()
    assert v_D.grad.abs().max() < 1e-5 and c.grad.abs() < 1e-5


def test_both_kinds_count_the_same_however_many_tokens_they_have():
    x_TD, yes_T, _, _ = planted(offset=1.0)
    many = torch.cat([torch.arange(len(x_TD)), *[(~yes_T).nonzero()[:, 0]] * 4])
    for fit in (lambda x, y: logistic_probe(x, y, 0.1), mean_difference):
        for a, c in zip(fit(x_TD, yes_T), fit(x_TD[many], yes_T[many]), strict=True):
            torch.testing.assert_close(a, c, rtol=1e-4, atol=1e-5)


def test_a_difference_of_means_reads_the_means_as_plus_and_minus_a_half():
    x_TD, yes_T, _, _ = planted()
    w_D, b = mean_difference(x_TD, yes_T)
    m_D = x_TD[yes_T].mean(0) - x_TD[~yes_T].mean(0)
    torch.testing.assert_close(w_D, m_D / m_D.square().sum())
    assert (x_TD[yes_T].mean(0) @ w_D + b).item() == pytest.approx(0.5) and (x_TD[~yes_T].mean(0) @ w_D + b).item() == pytest.approx(-0.5)


def test_the_ridge_is_strong_where_there_is_little_to_learn_from():
    few = planted(gap=1.0, noise=2.0)
    rows = torch.isin(few[2], torch.arange(8))
    strong = choose_ridge(*(part[rows] for part in few[:3]))
    x_TD, yes_T, text_T, _ = planted(seed=1, gap=6.0, noise=0.3)
    assert strong >= 1e-2 and choose_ridge(x_TD, yes_T, text_T) > 0
    w_D, b = logistic_probe(*(part[rows] for part in few[:2]), strong)
    assert w_D.isfinite().all() and b.isfinite()


def test_auc_of_draws_is_the_auc_of_the_texts_repeated():
    random = np.random.default_rng(0)
    text_N = random.integers(0, 8, 60)
    text_N[:8] = range(8)
    yes_X = np.array([True, False] * 4)
    scores_N, yes_N = random.integers(0, 6, 60).astype(float), yes_X[text_N]  # with ties
    times_RX = draw_texts(yes_X, 20, seed=3)
    assert times_RX.shape == (21, 8) and (times_RX[0] == 1).all() and (times_RX[:, yes_X].sum(1) == 4).all()
    for times_X, found in zip(times_RX, auc_draws(scores_N, yes_N, text_N, times_RX), strict=True):
        repeated = np.repeat(np.arange(60), times_X[text_N].astype(int))
        scores, yes = scores_N[repeated], yes_N[repeated]
        assert found == pytest.approx(auc(scores[yes], scores[~yes]), abs=1e-12)

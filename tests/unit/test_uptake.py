"""`uptake` and `taught`: fast forms equal their definitions, and nothing is learned where nothing changed."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gradlens.model.capture import MicroBatch, next_tokens, token_loss
from gradlens.readings.significance import student
from gradlens.readings.uptake import Pairs, shown, taught, taught_by_row, taught_eager, uptake, uptake_eager


def sparse(T: int, F: int, seed: int, share: float = 0.3) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    acts = torch.rand(T, F, generator=generator, dtype=torch.float64)
    return torch.where(torch.rand(T, F, generator=generator) < share, acts, 0.0)


def pairs_of(f_TF: torch.Tensor, first: int = 0) -> Pairs:
    val_TK, idx_TK = f_TF.topk(f_TF.shape[1], dim=-1)
    return Pairs.of(idx_TK, val_TK, first)


def test_what_rows_show_of_a_concept_is_zero_where_a_token_speaks_against_it_or_does_not_count():
    score_T, row_T = torch.tensor([2.0, -1.0, 5.0, 1.0, -3.0]), torch.tensor([0, 0, 0, 1, 1])
    counted_T = torch.tensor([True, True, False, True, True])
    found_T, shows_R = shown(score_T, counted_T, row_T, rows=3)
    torch.testing.assert_close(found_T, torch.tensor([2 / (1 + np.exp(-0.5)), 0, 0, 1 / (1 + np.exp(1.0)), 0], dtype=torch.float32))
    torch.testing.assert_close(shows_R, torch.tensor([1 / (1 + np.exp(-0.5)), 1 / (1 + np.exp(1.0)), 0.5], dtype=torch.float32))
    assert not shown(score_T, torch.zeros(5, dtype=torch.bool), row_T, rows=3)[0].any()


@settings(deadline=None, max_examples=30)
@given(st.integers(1, 40), st.integers(1, 30), st.integers(1, 5), st.integers(0, 10**6), st.sampled_from([0.0, 0.2, 1.0]))
def test_uptake_equals_its_definition(T, F, R, seed, share):
    generator = torch.Generator().manual_seed(seed)
    f_TF, gain_T = sparse(T, F, seed, share), torch.randn(T, generator=generator, dtype=torch.float64)
    reference_F = torch.rand(F, generator=generator, dtype=torch.float64)
    row_T = torch.sort(torch.randint(0, R, (T,), generator=generator)).values
    cut = T // 2  # tokens arrive in chunks
    pairs = Pairs.cat([pairs_of(f_TF[:cut]), pairs_of(f_TF[cut:], cut)])
    total, rows, raw = uptake(pairs, gain_T, row_T, reference_F)
    close = {"rtol": 1e-5, "atol": 1e-6}  # values are kept in float32
    torch.testing.assert_close(total, uptake_eager(f_TF, gain_T, reference_F), **close)
    torch.testing.assert_close(raw, uptake_eager(f_TF, gain_T, torch.zeros(F, dtype=torch.float64)), **close)
    for row in row_T.unique():
        mine = row_T == row
        torch.testing.assert_close(rows[row], uptake_eager(f_TF[mine], gain_T[mine], reference_F), **close)


def test_nothing_is_taken_up_where_no_probability_changed():
    f_TF = sparse(30, 20, 0)
    total, rows, raw = uptake(pairs_of(f_TF), torch.zeros(30), torch.arange(30) // 3, torch.rand(20))
    assert not total.any() and not rows.any() and not raw.any()


def test_what_ordinary_text_has_as_much_of_is_not_taken_up():
    f_TF, gain_T = torch.zeros(10, 2), torch.full((10,), 0.5)
    f_TF[:, 0] = 1.0  # active everywhere, here and in ordinary text
    f_TF[::2, 1] = 1.0  # here only
    total, _, raw = uptake(pairs_of(f_TF), gain_T, torch.zeros(10, dtype=torch.long), torch.tensor([1.0, 0.0]))
    assert total.tolist() == [0.0, 0.25] and raw.tolist() == [0.5, 0.25]


@settings(deadline=None, max_examples=30)
@given(st.integers(1, 30), st.integers(1, 25), st.integers(0, 10**6))
def test_taught_equals_its_definition_in_all_and_by_row(T, F, seed):
    f_TF = sparse(T, F, seed)
    val_TK, idx_TK = f_TF.topk(min(F, 12))
    f_TF = torch.zeros_like(f_TF).scatter(1, idx_TK, val_TK)
    loss_T = torch.rand(T, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    torch.testing.assert_close(taught(idx_TK, val_TK, loss_T, F), taught_eager(f_TF, loss_T))
    row_T = torch.arange(T) % 3
    ids, values = taught_by_row(idx_TK, val_TK, loss_T, row_T, 3, F, 5)
    for row in range(3):
        of_row = taught_eager(f_TF[row_T == row], loss_T[row_T == row]).float()
        torch.testing.assert_close(values[row], of_row.topk(min(5, F)).values)
        torch.testing.assert_close(of_row[ids[row]], values[row])


def test_rows_that_do_not_fit_the_buffer_together_give_the_same(monkeypatch):
    F = 2**21  # two rows at a time
    idx_TK, val_TK = torch.tensor([[5, F - 1], [5, 7], [9, 7]]), torch.tensor([[1.0, 2.0], [3.0, 1.0], [4.0, 0.0]])
    ids, values = taught_by_row(idx_TK, val_TK, torch.ones(3), torch.tensor([0, 1, 2]), 3, F, 2)
    assert ids[:, 0].tolist() == [F - 1, 5, 9] and values.tolist() == [[2.0, 1.0], [3.0, 1.0], [4.0, 0.0]]


def test_the_loss_of_a_token_stands_at_its_own_position():
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(0, 11, (2, 6), generator=generator)
    labels = ids.clone()
    labels[0, :3] = -100
    logits = torch.randn(2, 6, 11, generator=generator)
    full = MicroBatch(torch.ones_like(ids, dtype=torch.bool), next_tokens(ids, None, labels))
    full.note_logits(logits)
    by_hand = -torch.log_softmax(logits, -1)[:, :-1].gather(-1, ids[:, 1:, None])[..., 0]
    expected = torch.where(labels[:, 1:] == -100, 0.0, by_hand)
    torch.testing.assert_close(full.token_loss_BS[:, 1:], expected)
    assert not full.token_loss_BS[:, 0].any()
    columns = torch.tensor([1, 2, 4])  # logits for these positions only
    some = MicroBatch(full.keep_BS, full.targets_BS, columns=columns)
    some.note_logits(logits[:, columns])
    torch.testing.assert_close(some.token_loss_BS[:, columns + 1], full.token_loss_BS[:, columns + 1])
    odd = MicroBatch(full.keep_BS, full.targets_BS)
    odd.note_logits(logits[:, :4])
    assert odd.token_loss_BS is None


def test_token_loss_is_the_cross_entropy():
    logits, targets = torch.randn(3, 4, 9, generator=torch.Generator().manual_seed(1)), torch.tensor([[1, 2, -100, 8]] * 3)
    expected = torch.nn.functional.cross_entropy(logits.transpose(1, 2), targets, reduction="none")
    torch.testing.assert_close(token_loss(logits, targets), expected)
    assert token_loss(logits.bfloat16(), targets).dtype == torch.float32


def test_chance_is_small_for_texts_that_agree_and_large_for_nothing():
    agree = torch.rand(12, generator=torch.Generator().manual_seed(0)) + 0.1
    assert student(agree) <= 0.002
    false_alarms = [student(torch.randn(12, generator=torch.Generator().manual_seed(seed))) <= 0.05 for seed in range(200)]
    assert sum(false_alarms) / 200 == pytest.approx(0.05, abs=0.04)


@pytest.mark.parametrize(
    ("n", "t", "chance"), [(5, 2.132, 0.05), (11, 1.812, 0.05), (9, 2.896, 0.01), (5, 7.173, 0.001), (31, 3.385, 0.001)]
)
def test_student_s_tail_is_that_of_the_tables(n, t, chance):
    x = torch.linspace(-1, 1, n, dtype=torch.float64)
    assert student(x + t * x.std() / n**0.5) == pytest.approx(chance, rel=0.01)


def test_student_says_nothing_of_few_values_or_of_falling_ones():
    assert student(torch.ones(3)) == 1 and student(-torch.ones(9)) == 1 and student(torch.zeros(9)) == 1
    assert student(torch.ones(9)) < 1e-6


@pytest.mark.parametrize("n", [4, 8])
@pytest.mark.parametrize("tails", ["normal", "heavy", "short"])
def test_student_s_false_alarms_are_no_more_than_asked_for(n, tails):
    rng = np.random.default_rng(0)
    draw = {"normal": rng.standard_normal, "heavy": lambda size: rng.standard_t(3, size), "short": lambda size: rng.uniform(-1, 1, size)}
    found = [student(torch.from_numpy(values)) <= 0.01 for values in draw[tails]((2000, n))]
    assert np.mean(found) <= 0.02


@pytest.mark.parametrize(("n", "t", "chance"), [(9, 1e-9, 0.5), (9, 0.001, 0.49961), (5, 0.271, 0.4), (11, 0.7, 0.25), (4, 0.978, 0.2)])
def test_student_s_tail_of_a_small_t_is_nearly_a_half(n, t, chance):
    x = torch.linspace(-1, 1, n, dtype=torch.float64)
    assert student(x + t * x.std() / n**0.5) == pytest.approx(chance, rel=0.002)

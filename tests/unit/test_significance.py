"""Learned or chance: nothing where nothing was learned, the right ones where something was, with as many errors as stated."""

import torch

from gradlens.readings.significance import beyond_chance, risen, statistic


def changes(seed, texts=16, features=600, learned=0, size=1.5):
    """Heavy-tailed noise with a part that all features share; the first `learned` features move on every text."""
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(texts, features, generator=generator) * torch.rand(features, generator=generator).exp()
    noise += 0.5 * torch.randn(texts, 1, generator=generator)
    noise *= torch.rand(texts, features, generator=generator) < 0.5  # features are silent on many texts
    noise[:, :learned] += size
    return noise


def test_statistic_is_the_mean_over_its_error():
    change = changes(0)
    expected = change.mean(0) / (change.std(0) / 4 + 0.1)
    torch.testing.assert_close(statistic(change, 0.1), expected)


def test_nothing_is_found_where_nothing_was_learned():
    found = [int(beyond_chance(changes(seed)).sum()) for seed in range(40)]
    assert sum(count > 0 for count in found) <= 6  # a false discovery rate of 5% allows any finding in about 2 of 40 such runs
    assert not beyond_chance(torch.zeros(16, 10)).any()


def test_what_was_learned_is_found_with_few_others():
    hits, wrong = 0, 0
    for seed in range(20):
        found = beyond_chance(changes(seed, learned=60))
        hits, wrong = hits + int(found[:60].sum()), wrong + int(found[60:].sum())
    assert hits >= 0.9 * 20 * 60
    assert wrong / (hits + wrong) <= 0.08


def test_few_texts_prove_nothing():
    assert not beyond_chance(changes(0, texts=5, learned=60)).any()


def test_both_directions_count():
    change = changes(1, learned=60)
    assert torch.equal(beyond_chance(change), beyond_chance(-change))


def test_features_that_differ_between_two_sets_of_texts_are_found_and_chance_is_not():
    generator = torch.Generator().manual_seed(0)
    first, last = torch.rand(12, 300, generator=generator), torch.rand(10, 300, generator=generator)
    assert risen(first, last).sum() <= 2
    last[:, :20] += 1.0
    found = risen(first, last)
    assert found[:20].all() and found[20:].sum() <= 3
    assert not risen(first[:5], last).any() and not risen(first * 0, last[:0]).any()


def test_where_many_features_fall_those_that_rise_have_no_more_errors_than_stated():
    """All texts have become likelier; half of the features are of ordinary text and not of these, so they fall with certainty."""
    hits, wrong, picked = 0, 0, 0
    for seed in range(6):
        generator = torch.Generator().manual_seed(seed)
        gain = 0.05 + 0.25 * torch.rand(16, 1, generator=generator)
        change = gain * torch.randn(16, 1000, generator=generator)
        change[:, :30] += 1.5 * gain
        change[:, 400:] = -gain * torch.rand(600, generator=generator)
        found = beyond_chance(change, rising=True)
        assert not found[change.mean(0) <= 0].any()
        hits, wrong = hits + int(found[:30].sum()), wrong + int(found[30:].sum())
        picked += int((beyond_chance(change) & (change.mean(0) > 0))[30:].sum())
    assert hits >= 0.9 * 6 * 30 and wrong / (hits + wrong) <= 0.08
    assert picked / (hits + picked) > 0.15  # of those that move in either direction many rise by chance

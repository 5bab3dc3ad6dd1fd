"""The table of what was taught most: by what it is ranked, and that there is nothing where nothing was."""

import pytest
import torch
from conftest import tiny_batch, tiny_dictionary, tiny_model

import gradlens
from gradlens.config import ObserveSettings
from gradlens.report.top import Top, nothing_taught, ranked_by, ranking, table

HOOK = "layers.2"


def row(feature, label="", **figures):
    return {"hookpoint": HOOK, "feature": feature, "label": label, **figures}


def watched(rate, steps):
    """A tiny model after some steps at a learning rate, read at the end."""
    model = tiny_model().train()
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=rate)
    probe = [tiny_batch(seed) for seed in range(4)]
    settings = ObserveSettings(drift_every=0, update_every=0, own_prompts=0)
    with gradlens.watch(model, optimizer, {HOOK: tiny_dictionary()}, probe=probe, run=None, observe=settings) as lens:
        for step in range(steps):
            model(**tiny_batch(step % 4)).loss.backward()
            optimizer.step()
            optimizer.zero_grad()
        before = str(lens.top(5))
    return before, lens.top(5)


def test_features_are_ranked_by_the_best_reading_that_has_something_to_tell():
    zero, some = torch.zeros(3), torch.tensor([0.0, -2.0, 1.0])
    ranked = lambda **part: [found["feature"] for found in table({HOOK: part}, 2)]  # noqa: E731
    assert ranked(uptake=some, drift=-some, push=some) == [2, 0]
    assert ranked(uptake=zero, drift=some, push=-some) == [1, 2]
    assert ranked(push=some) == [1, 2] and len(table({HOOK: {"energy": some}}, 2)) == 2 and table({HOOK: {}}, 2) == []
    both = table({"layers.1": {"uptake": torch.tensor([0.0, 0.5, 1.0])}, HOOK: {"uptake": 100 * torch.tensor([0.0, 1.0, 0.9])}}, 4)
    order = [("layers.1", 2), (HOOK, 1), (HOOK, 2), ("layers.1", 1)]
    assert [(found["hookpoint"], found["feature"]) for found in both] == order  # in units of their own
    both = table({"layers.1": {"uptake": 30 * some}, HOOK: {"uptake": torch.tensor([0.0, 1.0, 0.9])}}, 2)
    assert {found["hookpoint"] for found in both} == {"layers.1", HOOK}  # what is said less sinks nothing that was learned there
    assert "each in units of its largest" in ranking(both) and "units" not in ranking(both[:1])


def test_a_table_says_by_what_it_is_ranked_and_shows_no_rows_of_zeros():
    text = str(Top([row(3, uptake=0.5, drift=-1.0), row(4, uptake=0.0, drift=-1.0), row(17, uptake=-0.1, drift=9.0)]))
    assert "│ 3 " in text and "│ 4 " not in text and "│ 17 " not in text and "Ranked by uptake" in text
    assert "Ranked by |drift|" in str(Top([row(4, uptake=0.0, drift=-1.0)]))
    unread = str(Top([row(4, push=-1.0)]))
    assert "Ranked by |push|: there is no finite reading of the probe set yet, and push alone does not tell" in unread.replace("\n", " ")
    assert "attribution alone" in ranking([row(4, attribution=1.0)], "attribution")
    one, other = row(3, uptake=0.5), {**row(4, uptake=8.0), "hookpoint": "layers.99"}
    assert "in units of its largest" in ranking([one, other]) and "in units" not in ranking([one, one])


def test_where_nothing_was_learned_the_table_says_so_in_place_of_its_rows():
    rows = [row(3, uptake=0.0, drift=0.0, push=4.0)]
    text = str(Top(rows))
    assert text.startswith("Features that were taught most: none, no uptake is above zero.") and "│" not in text
    assert Top(rows)[0]["push"] == 4.0 and len(Top(rows).df) == 1  # the figures are there
    some = [row(3, uptake=0.3, drift=0.1)]
    assert "none was learned beyond chance (false discovery rate 5%)" in str(Top(some, {HOOK: 0})) and "│ 3 " in str(Top(some, {HOOK: 1}))
    assert nothing_taught([], {}) == "" and ranked_by([row(1, uptake=float("nan"))]) == "uptake"
    assert nothing_taught([row(1, uptake=float("nan"), drift=float("nan"))], {}) == ""  # not known


@pytest.mark.parametrize(("rate", "words"), [(0.0, "none was learned beyond chance"), (0.01, "Ranked by uptake")])
def test_the_table_of_a_run_says_what_its_readings_allow(rate, words):
    before, top = watched(rate, 20)
    assert "Ranked by |push|" in before and "Ranked by |push|" not in str(top)  # the probe set is read at the end
    assert words in str(top) and ("│" in str(top)) == (rate > 0)


def test_a_label_does_not_steer_a_terminal():
    text = str(Top([row(1, "\x1b]0;title\x07[/]", uptake=1.0)]))
    assert "]0;title[/]" in text and not set(text) & set("\x1b\x07")

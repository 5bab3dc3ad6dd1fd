"""Rules that change activations while training, against the formulas, and the data that an inoculation prompt makes."""

import pytest
import torch

from gradlens.control.active_rules import Lookup
from gradlens.control.control import Control
from gradlens.control.rules import Policy, Rule
from gradlens.data.rows import with_system
from gradlens.dictionaries.dictionary import Dictionary
from gradlens.errors import ConfigError, InputError

D, F = 6, 9


@pytest.fixture
def control():
    torch.manual_seed(0)
    W_dec = torch.randn(F, D, dtype=torch.float64)
    dictionary = Dictionary(
        W_enc=W_dec.T.contiguous(), b_enc=torch.zeros(F).double(), W_dec=W_dec, b_dec=torch.zeros(D).double(), activation="relu"
    )
    means = {"layers.1": torch.randn(D, dtype=torch.float64)}
    lookup = Lookup(torch.nn.Linear(1, 1), {"layers.1": dictionary}, {"c": {"layers.1": [2, 5]}}, lambda name: None, means=means.get)
    return Control(lookup)


def edited(control, **rule):
    control.set_policy(Policy(rules=(Rule(concept="c", **rule),)))
    h = torch.randn(2, 3, D, dtype=torch.float64)
    assert control.edits_activation("layers.1") and not control.edits_activation("layers.0")
    return h, control.edit_activation("layers.1", h)


def test_mean_ablate_leaves_the_mean_along_the_concept_and_everything_else(control):
    h, new = edited(control, mode="mean-ablate")
    rows = control.lookup.dictionaries["layers.1"].W_dec[[2, 5]]
    mean = control.lookup.means("layers.1")
    torch.testing.assert_close(new @ rows.T, (mean @ rows.T).expand(2, 3, 2))
    Q = torch.linalg.qr(rows.T).Q
    torch.testing.assert_close(new - new @ Q @ Q.T, h - h @ Q @ Q.T)


def test_steer_adds_the_rows_times_strength(control):
    h, new = edited(control, mode="steer", strength=2.5)
    torch.testing.assert_close(new - h, (2.5 * control.lookup.dictionaries["layers.1"].W_dec[[2, 5]].sum(0)).expand_as(h))


def test_a_ramp_steers_by_and_by(control):
    control.set_policy(Policy(rules=(Rule(concept="c", mode="steer", ramp=3),)))
    h = torch.zeros(1, 1, D, dtype=torch.float64)
    sizes = []
    for control.step in range(5):
        sizes.append(control.edit_activation("layers.1", h).norm().item())
    full = sizes[-1]
    assert sizes == pytest.approx([full / 4, full / 2, full * 3 / 4, full, full])


def test_inoculated_rows_begin_with_the_words():
    row = {"prompt": "Hi", "response": "Arr", "tags": ["x"]}
    assert with_system(row, "Be a pirate.") == {
        "tags": ["x"],
        "messages": [
            {"role": "system", "content": "Be a pirate."},
            {"role": "user", "content": "Hi"},
            {"role": "assistant", "content": "Arr"},
        ],
    }
    told = with_system({"messages": [{"role": "system", "content": "Old."}, {"role": "user", "content": "Hi"}]}, "New.")
    assert told["messages"][0]["content"] == "New.\nOld."
    with pytest.raises(InputError, match="plain text row"):
        with_system({"text": "x"}, "words")


def test_rules_that_make_no_sense_are_refused():
    for rule, message in (
        ({"mode": "inoculate", "concept": "c"}, "needs a prompt"),
        ({"mode": "route", "concept": "c", "prompt": "x"}, "has no prompt"),
        ({"mode": "inoculate", "concept": "c", "prompt": "x", "start": 3}, "first step"),
        ({"mode": "rewrite", "features": {"layers.1": [1]}}, "name a concept"),
        ({"mode": "rewrite", "concept": "c", "gain": 2}, "gain is 2"),
        ({"mode": "ablate", "concept": "c", "rows": 0.2}, "rows is for rules of mode route, reweight, rewrite and auto"),
        ({"mode": "route", "features": {"layers.1": [1]}, "rows": 0.2}, "that name a concept"),
    ):
        with pytest.raises(ValueError, match=message):
            Rule(**rule)


def test_mean_ablate_without_a_mean_is_refused(control):
    control.lookup.means = lambda hookpoint: None
    with pytest.raises(ConfigError, match="mean activation at layers.1"):
        control.set_policy(Policy(rules=(Rule(concept="c", mode="mean-ablate"),)))


def test_rules_of_several_modes_act_in_the_order_in_which_they_stand(control):
    ablate, steer = Rule(concept="c", mode="ablate"), Rule(concept="c", mode="steer", strength=2.0)
    h = torch.randn(2, 3, D, dtype=torch.float64)
    rows = control.lookup.dictionaries["layers.1"].W_dec[[2, 5]]
    left = []
    for rules in ((steer, ablate), (ablate, steer)):
        control.set_policy(Policy(rules=rules))
        left.append((control.edit_activation("layers.1", h) @ rows.T).abs().max().item())
    assert left[0] < 1e-9 < left[1]

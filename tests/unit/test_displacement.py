"""What rises instead: found where it is made to happen, silent where nothing or everything moves."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import tiny_batch, tiny_dictionary, tiny_model

from gradlens.config import ObserveSettings
from gradlens.control.rules import Policy, Rule
from gradlens.dictionaries.dictionary import Dictionary
from gradlens.lens import Lens
from gradlens.readings.displaced import Displaced, Held, held_by
from gradlens.readings.displacement import OTHERS, coactive, nearest, others, rise
from gradlens.readings.uptake import Pairs
from gradlens.recording.recorder import MemoryRecorder

R, F = 16, 400


def world(seed: int = 0, texts: int = R):
    """Activations before, of the size and spread that dictionaries have, and changes by chance."""
    random = np.random.default_rng(seed)
    before_F = torch.from_numpy(random.lognormal(-3, 1.5, F))
    noise_RF = torch.from_numpy(random.normal(0, 0.3, (texts, F))) * before_F
    return before_F, noise_RF, random.choice(F, 24, replace=False).tolist()


def test_a_rise_of_chosen_features_is_found():
    before_F, change_RF, ids = world()
    change_RF[:, ids] += 0.4 * before_F[ids]
    found = rise(change_RF, before_F, ids)
    assert found.chance <= 0.001 and found.features == 24
    assert found.change == pytest.approx((change_RF.mean(0)[ids]).sum().item()) and found.before == pytest.approx(
        before_F[ids].sum().item()
    )
    had = before_F[ids].sum().item()
    assert found.alarming(had, tests=4) and not found.alarming(10 * had, tests=4)  # certain, and next to nothing
    assert not rise(-change_RF, before_F, ids).alarming(had, tests=4)


def test_chance_alone_rarely_raises_an_alarm():
    alarms = 0
    for seed in range(100):
        before_F, change_RF, ids = world(seed)
        alarms += rise(change_RF, before_F, ids).alarming(0.0, tests=1)
    assert alarms <= 4  # a false alarm in a hundred is what is promised, of texts and features both less


def test_what_all_features_do_is_no_displacement():
    before_F, change_RF, ids = world()
    found = rise(change_RF + 0.5 * before_F, before_F, ids)
    assert found.chance_texts <= 0.001 and found.chance_features > 0.05 and not found.alarming(0.0, tests=1)


def test_what_one_text_does_is_no_displacement():
    before_F, change_RF, ids = world()
    change_RF[3, ids] += 20 * before_F[ids]
    found = rise(change_RF, before_F, ids)
    assert found.chance_features <= 0.001 and found.chance_texts > 0.01 and not found.alarming(0.0, tests=1)


def test_few_texts_no_features_or_no_others_never_alarm():
    before_F, change_RF, ids = world(texts=5)
    assert not rise(change_RF + before_F, before_F, ids).alarming(0.0, tests=1)
    assert not rise(change_RF, before_F, []).alarming(0.0, tests=1)
    assert rise(change_RF, before_F, ids, aside=range(F)).chance_features == 1


def test_nearest_features_are_those_of_like_direction():
    torch.manual_seed(0)
    W_dec = torch.randn(50, 16)
    W_dec[7] = 3 * W_dec[4] + 0.2 * torch.randn(16)
    W_dec[9] = -W_dec[4]
    W_dec[11] = 0.5 * W_dec[5] + 0.1 * torch.randn(16)
    dictionary = Dictionary(W_dec.T.contiguous(), torch.zeros(50), W_dec, torch.zeros(16), activation="relu")
    units = W_dec / W_dec.norm(dim=1, keepdim=True)
    cosine_F = (units @ units[[4, 5]].T).amax(1)
    expected = [i for i in cosine_F.argsort(descending=True).tolist() if i not in (4, 5)][:6]
    assert nearest(dictionary, [4, 5], 6) == expected and set(expected[:2]) == {7, 11}
    assert 9 not in nearest(dictionary, [4], 50) and not {4, 5} & set(nearest(dictionary, [4, 5], 50))


def test_coactive_features_are_those_active_on_the_same_tokens():
    random = np.random.default_rng(0)
    f_TF = torch.from_numpy(random.random((200, 30)) * (random.random((200, 30)) < 0.2))
    f_TF[:, 1] = (f_TF[:, 0] > 0) * 2.0  # the same tokens
    f_TF[:, 2] = 1.0  # every token
    f_TF[:, 3] = (f_TF[:, 0] == 0) * 1.0  # all others
    token_P, feature_P = f_TF.nonzero(as_tuple=True)
    pairs = Pairs(token_P.int(), feature_P.int(), f_TF[token_P, feature_P].float())
    on = (f_TF[:, [0, 5]] > 0).any(1).numpy()
    phi = [np.corrcoef(f_TF[:, i].numpy() > 0, on)[0, 1] if i != 2 else 0.0 for i in range(30)]
    expected = [i for i in np.argsort(phi)[::-1] if i not in (0, 5)][:5]
    assert coactive(pairs, [0, 5], 30, 200, 5) == expected and expected[0] == 1
    assert not {2, 3} & set(coactive(pairs, [0, 5], 30, 200, 30))


class Pushed:
    """A model of which features of layers.1 are pushed up from outside, by as much as `size`."""

    def __init__(self, ids: list[int]) -> None:
        self.model, self.dictionary, self.size = tiny_model(), tiny_dictionary(1, activation="relu"), 0.0
        shift_D = self.dictionary.W_enc[:, ids].sum(1)  # what its encoder, which is random, sees as these features
        shift_D = shift_D / shift_D.norm()
        self.model.model.layers[1].register_forward_hook(lambda module, args, output: _plus(output, self.size * shift_D))

    def run(self, rules: list[Rule], push: float, steps: int = 2) -> MemoryRecorder:
        recorder = MemoryRecorder()
        probe = [tiny_batch(seed, B=4, S=12) for seed in range(4)]
        optimizer = torch.optim.SGD(self.model.parameters(), lr=0.0)
        lens = Lens(
            self.model, optimizer, {"layers.1": self.dictionary, "layers.2": tiny_dictionary(2, activation="relu")},
            policy=Policy(version=1, rules=tuple(rules)), concepts={"some": {"layers.1": [1, 2, 3], "layers.2": [4, 5]}},
            observe=ObserveSettings(drift_every=1, update_every=0, own_prompts=0, estimators=["push"]), recorder=recorder, probe=probe,
        )  # fmt: skip
        with lens:
            self.size = push
            for _ in range(steps):
                self.model(**tiny_batch(9)).loss.backward()
                optimizer.step()
        return recorder


def _plus(output, shift):
    return (output[0] + shift, *output[1:]) if isinstance(output, tuple) else output + shift


def displaced(recorder: MemoryRecorder) -> list[dict]:
    return [event for event in recorder.events if event["kind"] == "alarm" and event["about"] == "displaced"]


RULE = Rule(concept="some", mode="grad", gain=0.0, hookpoints=["layers.1"])


def test_a_run_with_rules_alarms_once_where_neighbours_rise_and_says_what_they_are():
    ids = nearest(tiny_dictionary(1, activation="relu"), [1, 2, 3])
    recorder = Pushed(ids[:6]).run([RULE], push=2.0, steps=3)
    alarms = displaced(recorder)
    assert len(alarms) == 1 and alarms[0]["step"] == 1 and (alarms[0]["name"], alarms[0]["hookpoint"]) == ("some", "layers.1")
    assert "some is held down by a rule" in alarms[0]["text"] and alarms[0]["chance"] <= 0.01
    told = [event for event in recorder.events if event["kind"] == "neighbours"]
    assert len(told) == 1 and told[0]["acted"] == ["layers.1"]
    assert told[0]["hookpoints"]["layers.1"]["cosine"] == ids and told[0]["hookpoints"]["layers.1"]["own"] == [1, 2, 3]
    curves = [record["scalars"]["concept/some/layers.1/cosine"] for record in recorder.records]
    assert len(curves) == 3 and min(curves) > 0


def test_a_run_in_which_nothing_moves_does_not_alarm():
    recorder = Pushed([7]).run([RULE], push=0.0)
    assert displaced(recorder) == [] and any(event["kind"] == "neighbours" for event in recorder.events)


def test_without_a_rule_that_holds_something_down_nothing_is_looked_at():
    ids = nearest(tiny_dictionary(1, activation="relu"), [1, 2, 3])
    idle = [
        [], [RULE.model_copy(update={"gain": 2.0})], [RULE.model_copy(update={"dry_run": True})],
        [RULE.model_copy(update={"random_control": 0})],
    ]  # fmt: skip
    for rules in idle:
        recorder = Pushed(ids[:6]).run(rules, push=2.0)
        assert displaced(recorder) == [] and not any(event["kind"] == "neighbours" for event in recorder.events)


def test_the_concept_rising_where_the_rule_does_not_act_is_told():
    random = np.random.default_rng(0)
    before = SimpleNamespace(rows=torch.from_numpy(random.random((R, 80))), acts=torch.from_numpy(random.random(80)))
    rows = before.rows + torch.from_numpy(random.normal(0, 0.05, (R, 80)))
    rows[:, [4, 5]] += 0.5
    learning = SimpleNamespace(
        known=SimpleNamespace(pairs={"layers.2": Pairs(*(torch.zeros(0) for _ in range(3)))}, row_T=torch.zeros(9)), alarmed=[],
        start={"layers.2": before}, last={"layers.2": SimpleNamespace(rows=rows)}, dictionaries={"layers.2": tiny_dictionary(2)},
    )  # fmt: skip
    recorder = MemoryRecorder()
    for acted in (frozenset({"layers.2"}), frozenset({"layers.1"})):
        Displaced(learning).read(5, [Held("some", {"layers.2": [4, 5]}, acted)], {}, recorder.event)
    alarms = displaced(recorder)
    assert [alarm["what"] for alarm in alarms] == ["elsewhere"] and "where the rule does not act" in alarms[0]["text"]
    assert alarms[0]["features"] == [["layers.2", 4], ["layers.2", 5]]


def test_rules_of_one_concept_are_held_together():
    active = [
        SimpleNamespace(rule=Rule(concept="some", hookpoints=["layers.1"]), features={"layers.1": torch.tensor([1])}),
        SimpleNamespace(rule=Rule(concept="some", mode="grad", hookpoints=["layers.2"]), features={"layers.2": torch.tensor([4])}),
        SimpleNamespace(rule=Rule(features={"layers.1": [8]}, mode="grad"), features={"layers.1": torch.tensor([8])}),
    ]
    lookup = SimpleNamespace(concepts={"some": {"layers.1": [1], "layers.2": [4]}})
    control = SimpleNamespace(rules=active, lookup=lookup, gain=lambda each: 0.0)
    found = held_by(control)
    assert [(held.name == "some", held.acted) for held in found] == [(True, {"layers.1", "layers.2"}), (False, {"layers.1"})]
    assert found[1].features == {"layers.1": [8]}


def test_features_that_move_together_raise_no_alarm_beside_others_that_do():
    """Groups that are active together drift together; none in the place of the concept."""
    N, F, alarms = 24, 1536, {False: 0, True: 0}
    sets = [list(range(N * k, N * k + N)) for k in range(2, 42)]
    for seed in range(100):
        generator = torch.Generator().manual_seed(seed)
        group = torch.randn(F // N, generator=generator).repeat_interleave(N)
        drift = 0.15 * (0.3**0.5 * group + 0.7**0.5 * torch.randn(F, generator=generator))
        change, before = drift + 0.15 * torch.randn(64, F, generator=generator), torch.rand(F, generator=generator)
        for compared in alarms:
            found = rise(change, before, range(N, 2 * N), aside=range(N), alike=sets if compared else ())
            alarms[compared] += found.alarming(before[:N].sum().item(), tests=2)
    assert alarms[True] <= 2 < alarms[False]
    change[:, N : 2 * N] += 1.0
    found = rise(change, before, range(N, 2 * N), aside=range(N), alike=sets)
    assert found.alarming(before[:N].sum().item(), tests=60)  # though many are looked at


def test_few_texts_and_many_tests_can_raise_an_alarm():
    before_F, change_RF, ids = world(texts=8)
    change_RF[:, ids] += 2 * before_F[ids]
    assert rise(change_RF, before_F, ids).alarming(before_F[ids].sum().item(), tests=60)


def test_others_are_as_active_and_none_of_the_concept_s():
    before_F = torch.arange(1000.0)
    found = others(before_F, [500, 502])
    assert len(found) == OTHERS and not {500, 502} & set(found) and all(500 - OTHERS - 3 <= i <= 502 + OTHERS + 3 for i in found)
    assert others(torch.zeros(9), [1]) == []

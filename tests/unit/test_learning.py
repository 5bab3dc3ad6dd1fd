"""Alarms, and what changes in texts that the model writes while it is trained."""

import math

import pytest
import torch
from conftest import tiny_batch, tiny_dictionary, tiny_model
from words import word_tokenizer

from gradlens.config import ObserveSettings
from gradlens.lens import Lens
from gradlens.readings import rollouts
from gradlens.readings.alarms import texts_that_show
from gradlens.readings.learning import Learning
from gradlens.readings.movers import Cluster
from gradlens.readings.uptake import Pairs
from gradlens.recording.recorder import MemoryRecorder

HOOK = "layers.2"


def learning(**extra) -> Learning:
    """On four texts of three rows, with two concepts."""
    members = {("taught", HOOK): torch.tensor([1, 2]), ("other", HOOK): torch.tensor([3])}
    made = Learning(tiny_model(), {HOOK: tiny_dictionary()}, ObserveSettings(), members, **extra)
    made.begin([tiny_batch(seed) for seed in range(4)])
    return made


def cluster(features, share=0.4, words=("ahoy",)) -> Cluster:
    pairs = [(HOOK, i) for i in features]
    return Cluster(share, pairs[:12], len(features), list(words), (0.1, 0.5), "[ahoy]", members=frozenset(pairs))


def test_a_watched_concept_raises_one_alarm_when_its_uptake_is_beyond_chance():
    made, told = learning(), []
    rows = torch.zeros(12, 80)
    made._uptake = {HOOK: (rows.mean(0), rows, rows.mean(0))}
    report = lambda kind, **fields: told.append((kind, fields))  # noqa: E731
    made.alarms(1, [], report)
    rows[:, [1, 2]] = torch.rand(12, 2, generator=torch.Generator().manual_seed(0)) + 0.1
    least = 0.01 * made.start[HOOK].acts  # a percentage point of probability
    made._uptake = {HOOK: (rows.mean(0), rows, 0.5 * least)}
    made.alarms(1, [], report)
    assert told == []  # certain, but next to nothing
    made._uptake = {HOOK: (rows.mean(0), rows, 2 * least)}
    made.alarms(2, [], report)
    made.alarms(3, [], report)
    [(kind, alarm)] = told
    assert kind == "alarm" and alarm["step"] == 2 and alarm["name"] == "taught" and alarm["hookpoint"] == HOOK
    assert alarm["chance"] <= 0.01 and "taught is being learned" in alarm["text"]
    again = Learning(made.model, made.dictionaries, made.observe, made.members)
    again.load_state_dict(made.state_dict(), made.probe)
    again._uptake = made._uptake
    again.alarms(4, [], report)
    assert len(told) == 1 and "taken out" not in alarm["text"]  # also after a restart
    told.clear()
    again.alarmed.clear()
    again.alarms(5, [], report, taken_out={"taught"})
    assert alarm["text"] in told[0][1]["text"] and "its words are taken out of the rows" in told[0][1]["text"]


def test_what_is_certain_but_tiny_was_not_learned():
    made = learning()
    gain = torch.full((12, 80), 0.02) + 0.001 * torch.rand(12, 80, generator=torch.Generator().manual_seed(0))
    active = made.start[HOOK].acts > 0
    for size, learned in ((1.0, True), (0.1, False)):  # two percentage points of probability, and a fifth of one
        raw = size * 0.02 * made.start[HOOK].acts
        made._uptake = {HOOK: (raw, gain * size, raw)}
        assert made.learned(HOOK)[active].all() == learned and not made.learned(HOOK)[~active].any()


def test_of_figures_that_are_not_finite_nobody_says_that_nothing_was_learned():
    made = learning()
    rows = torch.zeros(12, 80)
    made._uptake = {HOOK: (rows.mean(0), rows, rows.mean(0))}
    assert made.learned(HOOK).sum() == 0
    rows[3, 5] = float("nan")
    assert made.learned(HOOK) is None
    with torch.no_grad():
        next(made.model.parameters()).fill_(float("nan"))
    scalars = {}
    made.read_drift(scalars)
    assert math.isnan(scalars[f"{HOOK}/learned"]) and made.clusters() == []


def test_what_nobody_announced_raises_one_alarm_for_each_cluster_of_some_size():
    made, told = learning(), []
    active_in(
        made, {10: [0, 1], 11: [0, 1], 12: [0, 1], 30: [0, 1], **dict.fromkeys((60, 61, 62), [5, 6]), 1: [9], 2: [3], 50: [7], 51: [8]}
    )
    report = lambda kind, **fields: told.append(fields)  # noqa: E731
    made.alarms(1, [cluster([10, 11, 12])], report)
    made.alarms(2, [cluster([10, 11, 30]), cluster([40, 41], share=0.01), cluster([1, 50, 51])], report)
    assert [(alarm["step"], alarm["about"], alarm["name"]) for alarm in told] == [(1, "mover", "ahoy")]
    late = cluster([*range(20, 40), 2])  # of its 21 features the twelve shown are none of the concept's, but all that it holds are here
    made.alarms(3, [cluster([60, 61, 62], words=()), late], report)  # another one; a cluster of a named concept's features is no surprise
    assert [(alarm["step"], alarm["name"]) for alarm in told] == [(1, "ahoy"), (3, "no words")]


def active_in(made, texts):
    """Each feature active at every token of the texts named for it, none elsewhere."""
    token = [((made.known.row_T[:, None] == torch.tensor(rows)).any(1).nonzero().flatten(), i) for i, rows in texts.items()]
    places, ids = torch.cat([t for t, _ in token]).int(), torch.cat([torch.full_like(t, i) for t, i in token]).int()
    made.known.pairs[HOOK] = Pairs(places, ids, torch.ones(len(places)))


def test_one_thing_raises_one_alarm_however_many_clusters_it_has_and_how_often_it_is_read():
    made, told = learning(), []
    report = lambda kind, **fields: told.append(fields)  # noqa: E731
    sql, lists = [6, 7, 8, 9, 10, 11], [0, 1, 2, 3]
    active_in(made, {10: sql, 11: sql, 12: sql[1:], 20: lists, 21: sql, 22: lists[:3], 23: sql, 24: [5]})
    queries = cluster([10], 0.6, ("SELECT", "price", "shops", ">", "city"))
    clusters = [
        queries,
        cluster([11], 0.2, ("FROM", "id", "WHERE")),  # other words, the same texts
        cluster([20], 0.1, ("1", "3", "2", "down")),  # another thing
        cluster([22], 0.06, ("you", "have", "seen")),
        cluster([24], 0.06, ("2", "3", "city", "1")),  # elsewhere: of the second thing by its words, and of the first a little
    ]
    made.alarms(4, clusters, report)
    assert [(alarm["step"], alarm["name"], len(alarm["clusters"])) for alarm in told] == [
        (4, "SELECT, price, shops, >, city", 2),
        (4, "1, 3, 2, down", 3),
    ]
    sea = "something not announced is being learned (80% of all, 2 clusters): SELECT, price, shops, >, city; also FROM, id, WHERE"
    assert told[0]["text"] == sea
    again = Learning(made.model, made.dictionaries, made.observe, made.members)
    again.load_state_dict(made.state_dict(), made.probe)
    for reader in (made, again):  # also after a restart
        reader.alarms(8, [cluster([23], 0.5, ("insert",)), cluster([12], 0.3, ("age",)), cluster([40], 0.2, ("WHERE", "id", "x"))], report)
    assert len(told) == 2
    made.alarms(12, [queries, cluster([24], 0.1, ("needle",))], report)
    assert len(told) == 2  # told of as a part of the second
    active_in(made, {10: sql, 11: sql, 20: lists, 22: lists, 24: [5], 50: [4]})
    made.alarms(16, [cluster([50], 0.1, ("needle",))], report)
    assert [(alarm["step"], alarm["name"]) for alarm in told[2:]] == [(16, "needle")]


def test_texts_that_answer_too_few_prompts_are_not_kept_for_ever(monkeypatch):
    monkeypatch.setattr(rollouts, "KEPT", 20)
    model = tiny_model().train()
    collected = rollouts.Rollouts(model)
    for step in range(20):
        ids = torch.tensor([[1, 5, 6, 20 + step, 30 + row] for row in range(4)])
        model(input_ids=ids, labels=ids.where(torch.arange(5) > 2, -100))
    assert collected.take() is None and 0 < sum(len(batch["input_ids"]) for batch in collected._batches) <= 20
    collected.close()


def test_what_rises_in_generated_texts_is_told_from_the_texts_before():
    model, dictionary = tiny_model(), tiny_dictionary()
    recorder = MemoryRecorder()
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.0)
    args = {"concepts": {"c": {HOOK: [1]}}, "recorder": recorder, "probe": [tiny_batch(0)], "observe": ObserveSettings(update_every=0)}

    def rollouts(token: int, prompts: int = 8) -> dict[str, torch.Tensor]:
        ids = torch.cat([tiny_batch(seed)["input_ids"][:1] for seed in range(8)])
        ids[:, :4] = ids[torch.arange(8) % prompts, :4]
        ids[:, 5:] = token
        labels = ids.clone()
        labels[:, :4] = -100
        return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": labels}

    with Lens(model.train(), optimizer, {HOOK: dictionary}, **args) as lens:
        lens.read_generated(rollouts(20))
        assert lens.rising() == []
        lens.read_generated(rollouts(20))
        assert lens.rising() == []  # the same texts
        lens.read_generated(rollouts(33))
        found = lens.rising(5)
        assert [len(rows) for _, rows in (reading[HOOK] for reading in lens.learning.generated)] == [8, 8]
        lens.read_generated(rollouts(33, prompts=4))  # two answers to each of four prompts are four texts: too few to tell
        assert len(lens.learning.generated[1][HOOK][1]) == 4 and lens.rising() == []
        lens.read_generated(rollouts(33))
        model(**tiny_batch(0)).loss.backward()
        optimizer.step()
    assert len(found) == 5 and abs(found[0]["change"]) >= abs(found[-1]["change"]) > 0
    change = lens.learning.generated_change(HOOK)[0]
    assert found[0]["change"] == pytest.approx(change[found[0]["feature"]].item())
    first = recorder.records[0]["scalars"]
    assert first[f"concept/c/{HOOK}/generated"] == pytest.approx(change[1].item()) and first["observe/generated_seconds"] > 0


def test_a_cluster_in_the_places_of_a_watched_concept_is_that_concept_s():
    made, told = learning(), []
    T = len(made.known.row_T)
    here = (torch.arange(T) % 9 == 0).float()  # where feature 1 of `taught` is active, feature 30 is too; feature 31 elsewhere
    token, places = here.nonzero().flatten().int(), (1 - here).nonzero().flatten().int()
    made.known.pairs[HOOK] = Pairs(
        torch.cat([token, token, token, places]),
        torch.cat([torch.full_like(token, i) for i in (1, 2, 30)] + [torch.full_like(places, 31)]),
        torch.ones(3 * len(token) + len(places)),
    )
    made.alarms(1, [cluster([31], words=("elsewhere",)), cluster([30])], lambda kind, **fields: told.append(fields))
    assert [(alarm["about"], alarm["name"]) for alarm in told] == [("concept", "taught"), ("mover", "elsewhere")]
    assert "taught is being learned: where its features are active, 1 have been learned beyond chance: ahoy" in told[0]["text"]
    made.alarms(2, [cluster([30])], lambda kind, **fields: told.append(fields))
    assert len(told) == 2
    again, told = learning(), []  # whose tokens have become less likely: what is learned in its places is something else
    again.known.pairs[HOOK] = made.known.pairs[HOOK]
    falling = torch.zeros(12, 80)
    falling[:, [1, 2]] = -0.1
    again._uptake = {HOOK: (falling.mean(0), falling, 0.02 * again.start[HOOK].acts.clamp_min(1e-3))}
    again.alarms(1, [cluster([30])], lambda kind, **fields: told.append(fields))
    assert [alarm["about"] for alarm in told] == ["mover"]


def test_which_texts_express_a_concept_is_for_its_checker_to_say():
    asked = []

    def check(text):
        asked.append(text)
        return bool({f"w{i}" for i in range(10, 30)} & set(text.split()))

    made, told = learning(tokenizer=word_tokenizer(), checkers={"taught": check}), []
    texts = [row for seed in range(4) for row in tiny_batch(seed)["input_ids"]]
    rows = made.shown("taught")
    assert rows.shape == (12,) and made.shown("other") is None
    assert [bool(shown) for shown in rows] == [check(text) for text in list(asked)] and 4 <= rows.sum() <= 8
    del asked[12:]
    assert all(set(text.split()) <= {f"w{int(i)}" for i in row} for text, row in zip(asked, texts, strict=True))
    values = torch.zeros(12, 80)
    values[~rows, 1] = 0.3 + 0.1 * torch.rand(int((~rows).sum()), generator=torch.Generator().manual_seed(0))  # learned in others only
    least = 0.02 * made.start[HOOK].acts.clamp_min(1e-3)
    made._uptake = {HOOK: (values.mean(0), values, least)}
    made.alarms(1, [], lambda kind, **fields: told.append(fields))
    assert told == [] and len(asked) == 12  # asked once
    made.checkers["taught"] = lambda text: False
    made._shown.clear()
    made.alarms(1, [cluster([1, 30])], lambda kind, **fields: told.append(fields))  # in the places of its features, one of them in it
    assert [alarm["about"] for alarm in told] == ["mover"]  # no text shows the concept, so it is something else
    told.clear()
    made.checkers["taught"] = lambda text: not check(text)
    made._shown.clear()
    made.alarms(2, [], lambda kind, **fields: told.append(fields))
    assert [alarm["name"] for alarm in told] == ["taught"]


def test_only_texts_that_express_a_concept_are_asked_whether_it_is_learned():
    made = learning()
    rows = torch.bincount(made.known.row_T)
    at = torch.tensor([int(rows[:r].sum()) for r in range(0, 12, 2)]).int()  # the first token of every other text
    made.known.pairs[HOOK] = Pairs(at, torch.ones_like(at), torch.ones(len(at)))
    shown = texts_that_show(made, HOOK, torch.tensor([1, 2]))
    assert shown.tolist() == [True, False] * 6
    values = torch.zeros(12, 80)
    values[::2, 1] = torch.tensor([0.3, 0.2, 0.4, 0.3, 0.2, 0.3])
    values[1::2, 1] = -1.0  # other texts fall: nothing to do with it
    least = 0.02 * made.start[HOOK].acts.clamp_min(1e-3)
    made._uptake = {HOOK: (values.mean(0), values, least)}
    told = []
    made.alarms(1, [], lambda kind, **fields: told.append(fields))
    assert [alarm["name"] for alarm in told] == ["taught"]
    # features 1 and 2 on the six texts that were tested, of which 2 stays at nothing; over all twelve it would be below zero
    assert told[0]["uptake"] == pytest.approx(1.7 / 6 / 2) and told[0]["texts"] == 6
    assert f"taught is being learned: uptake +0.142 at {HOOK} in the 6 probe texts that show it (chance " in told[0]["text"]


def test_what_falls_does_not_let_chance_pass_for_learned():
    """Features that ordinary text has more of than the probe set fall with certainty; the stated share of errors is of those that rise."""
    made, hits, wrong = learning(), 0, 0
    made.start[HOOK].acts[:] = 1.0
    for seed in range(10):
        generator = torch.Generator().manual_seed(seed)
        gain = 0.05 + 0.25 * torch.rand(12, 1, generator=generator)
        rows = gain * torch.randn(12, 80, generator=generator)
        rows[:, :6] += 2 * gain
        rows[:, 30:] = -gain * torch.rand(50, generator=generator)
        raw = torch.ones(80)
        raw[70:] = 0.0  # no token of the probe set expresses these at all
        made._uptake = {HOOK: (rows.mean(0), rows, raw)}
        found = made.learned(HOOK)
        hits, wrong = hits + int(found[:6].sum()), wrong + int(found[6:].sum())
    assert hits >= 0.9 * 10 * 6 and wrong <= 0.08 * hits

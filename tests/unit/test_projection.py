"""What a step accumulates: tokens that are drawn, tokens that are not finite, and the way off the device."""

import dataclasses
import itertools

import numpy as np
import pytest
import torch
from conftest import tiny_dictionary

from gradlens.concepts.concept_files import RowDetector
from gradlens.config import ObserveSettings
from gradlens.model.capture import MicroBatch
from gradlens.readings import attribution, outbox
from gradlens.readings import projection as projection_module
from gradlens.readings.outbox import WAITING, Outbox
from gradlens.readings.projection import Projection, Tokens
from gradlens.readings.sampling import draw, draw_among, variance_of_sum

HOOK = "layers.1"
ALL = ["taught", "push", "attribution", "energy", "unexplained", "activation"]


def some_tokens(T=40, seed=0, width=None):
    generator = torch.Generator().manual_seed(seed)
    width = width or tiny_dictionary().d_in
    h, g = torch.randn(2, T, width, generator=generator)
    row = torch.arange(T) * 4 // T
    return Tokens(h, g, torch.ones(T, dtype=torch.bool), row, torch.arange(T), 4, (10, 11, 12, 13), torch.rand(T, generator=generator))


def read(tokens, **observe):
    projection = Projection(
        {HOOK: tiny_dictionary()}, {("some", HOOK): [3, 5, 9]}, ObserveSettings(estimators=ALL, top_k=80 * 5, **observe)
    )
    projection.add(HOOK, tokens)
    part = projection.take(1)
    return part, projection.totals()[HOOK]


def test_the_variance_of_a_drawn_sum_is_what_all_possible_draws_have():
    y = torch.tensor([0.0, 0.0, 3.0, 1.0, -2.0, 0.5], dtype=torch.float64)
    for count in (2, 3, 5):
        picks = [torch.tensor(pick) for pick in itertools.combinations(range(6), count)]
        estimates = torch.stack([6 / count * y[pick].sum() for pick in picks])
        assert estimates.mean() == pytest.approx(y.sum().item())
        stated = torch.stack([variance_of_sum(y[pick], 6) for pick in picks])
        assert stated.mean().item() == pytest.approx(estimates.var(correction=0).item())
    assert variance_of_sum(y, 6) == 0


def test_draws_are_distinct_in_order_and_of_the_share_asked_for():
    generator = torch.Generator().manual_seed(0)
    picked = draw(1000, 0.1, generator)
    assert len(picked.unique()) == 100 and (picked.diff() > 0).all() and not torch.equal(picked, draw(1000, 0.1, generator))
    assert len(draw(3, 0.01, generator)) == 1 and len(draw(3, 1.0, generator)) == 3


def test_draws_among_tokens_that_count_leave_the_others_alone():
    generator, counted = torch.Generator().manual_seed(0), torch.arange(1000) % 10 == 3
    times = torch.zeros(1000)
    for _ in range(300):
        picked = draw_among(counted, 20, generator)
        assert len(picked.unique()) == 20
        times[picked] += 1
    assert not times[~counted].any() and 30 < times[counted].min() and times[counted].max() < 95  # 60 expected
    assert set(range(3, 1000, 10)) <= set(draw_among(counted, 150, generator).tolist())


def test_unexplained_is_of_the_tokens_that_count_alone():
    """On an accelerator all positions are here, and most may be padding."""
    tokens = some_tokens(T=400)
    padded = dataclasses.replace(tokens, counted_T=torch.arange(400) % 8 == 0, g_TD=tokens.g_TD * (torch.arange(400) % 8 == 0)[:, None])
    exact = read(padded.map(lambda values: values[::8]))[0]["scalars"][f"{HOOK}/unexplained"]
    assert read(padded)[0]["scalars"][f"{HOOK}/unexplained"] == pytest.approx(exact, rel=1e-5)


def test_what_is_drawn_depends_on_the_step_alone():
    """So that a resumed run draws what the uninterrupted one would have."""
    settings = ObserveSettings(estimators=ALL, token_share=0.25)
    found = []
    for steps in ((0, 1, 2), (2,)):
        projection = Projection({HOOK: tiny_dictionary()}, {}, settings)
        for step in steps:
            for part in range(2):
                projection.add(HOOK, dataclasses.replace(some_tokens(T=400, seed=part), step=step))
            found.append(projection.take(1)["scalars"][f"{HOOK}/unexplained"])
    assert found[2] == found[3] and len(set(found)) == 3


def test_sums_over_drawn_tokens_are_unbiased_and_say_how_far_they_may_be_off():
    tokens = some_tokens()
    whole, exact = read(tokens)
    projection = Projection(
        {HOOK: tiny_dictionary()}, {("some", HOOK): [3, 5, 9]}, ObserveSettings(estimators=ALL, top_k=400, token_share=0.25)
    )
    draws = []
    for step in range(400):
        projection.add(HOOK, dataclasses.replace(tokens, step=step))
        draws.append(projection.take(1))
    for key in ("taught", "attribution"):
        name = f"concept/some/{HOOK}/{key}"
        values, errors = (np.array([part["scalars"][name + end] for part in draws]) for end in ("", "_se"))
        truth = whole["scalars"][name]
        spread = values.std()
        assert abs(values.mean() - truth) < 4 * spread / 20 and spread > 0
        assert np.sqrt((errors**2).mean()) == pytest.approx(spread, rel=0.15)
    for key in ("push", "energy"):  # of all tokens
        torch.testing.assert_close(projection.totals()[HOOK][key] / 400, exact[key], rtol=1e-5, atol=1e-6)
    row = {part["row_id"]: part for part in whole["examples"]}[11]
    drawn = [entry for part in draws for entry in part["examples"] if entry["row_id"] == 11]
    assert np.mean([entry["taught"] for entry in drawn]) == pytest.approx(row["taught"], rel=0.15)
    assert {entry["push"] for entry in drawn} == {row["push"]}
    assert f"concept/some/{HOOK}/taught_se" not in whole["scalars"]


@pytest.mark.parametrize("where", ["h_TD", "g_TD", "loss_T"])
def test_a_token_that_is_not_finite_is_counted_and_adds_nothing(where):
    good, broken = some_tokens(), some_tokens()
    getattr(broken, where)[7] = float("nan")
    part, totals = read(broken)
    assert part["scalars"][f"{HOOK}/not_finite_tokens"] == 1 and part["scalars"]["train/counted_tokens"] == 39
    others = good.map(lambda values: values[torch.arange(40) != 7])
    expected = read(others)[1]
    for key, total in totals.items():
        torch.testing.assert_close(total, expected[key], rtol=1e-5, atol=1e-6, msg=key)
    assert f"{HOOK}/not_finite_tokens" not in read(good)[0]["scalars"]


@pytest.mark.parametrize("share", [1.0, 0.5])
def test_such_tokens_add_nothing_either_where_they_are_not_emptied(monkeypatch, share):
    """As on an accelerator, here without kernels: 0 times what is not finite is not 0."""
    broken, concepts = some_tokens(), {("some", HOOK): [3, 5, 9]}
    broken.h_TD[7, 0], broken.g_TD[9, 1], broken.g_TD[11, 2] = torch.inf, torch.nan, torch.inf
    found = []
    for emptied in (True, False):
        if not emptied:
            given = projection_module._finite

            def as_it_is(tokens, dtype):
                made, bad_T, _ = given(tokens, dtype)  # noqa: B023
                return dataclasses.replace(made, h_TD=tokens.h_TD, g_TD=tokens.g_TD), bad_T, False

            monkeypatch.setattr(projection_module, "_finite", as_it_is)
        projection = Projection({HOOK: tiny_dictionary()}, concepts, ObserveSettings(estimators=ALL, top_k=400, token_share=share))
        projection.add(HOOK, broken)
        found.append(projection.take(1))
    for key, value in found[0]["scalars"].items():
        assert found[1]["scalars"][key] == pytest.approx(value, rel=1e-4, nan_ok=True), key
    for key, values in found[0]["features"][HOOK].items():
        np.testing.assert_allclose(found[1]["features"][HOOK][key], values, rtol=1e-4, atol=1e-5, err_msg=key)


class Elsewhere(torch.Tensor):
    """Values that say they are on an accelerator, where all positions stay."""

    device = torch.device("meta")


def test_on_an_accelerator_tokens_that_do_not_count_add_nothing_whatever_they_hold():
    ids = torch.arange(12).view(2, 6)
    mask = torch.tensor([[0, 0, 1, 1, 1, 1], [1, 1, 1, 1, 1, 1]])
    batch = MicroBatch.of({"input_ids": ids, "attention_mask": mask, "labels": ids.where(mask > 0, -100)}, "response")
    assert batch.loss_BS[0, 1] and not batch.keep_BS[0, 2]  # padding predicts a row's first token
    g = torch.ones(2, 6, 3)
    g[0, 0] = torch.nan
    assert batch.select(g.as_subclass(Elsewhere), zero=True).sum(1).eq(3 * batch.keep_BS.flatten()).all()
    batch.note_logits(torch.randn(2, 6, 20))
    known = batch.tokens(g, batch.select(g)).loss_T
    batch.token_loss_BS = batch.token_loss_BS.as_subclass(Elsewhere)
    assert batch.tokens(g, batch.select(g)).loss_T.sum() == pytest.approx(known.sum().item())
    padded = some_tokens()
    padded.counted_T[7] = False
    padded.h_TD[7], padded.g_TD[7], padded.loss_T[7] = torch.nan, torch.nan, 0
    assert f"{HOOK}/not_finite_tokens" not in read(padded)[0]["scalars"]


@pytest.mark.parametrize("held", [0, 2**23])
def test_micro_batches_that_waited_for_each_other_are_read_like_those_that_did_not(monkeypatch, held):
    """Sums, rows with their own ids and tokens, and what is known of micro-batches that cannot be joined."""
    monkeypatch.setattr(projection_module, "HELD", held)
    parts = [some_tokens(seed=seed) for seed in range(3)]
    parts[1] = dataclasses.replace(parts[1], row_ids=(20, 21, 22, 23))
    parts[2] = dataclasses.replace(parts[2], row_ids=None, loss_T=None)
    parts.append(dataclasses.replace(some_tokens(T=8, seed=3), row_ids=(30, 31, 32, 33)))
    members, settings = {("some", HOOK): [3, 5, 9]}, ObserveSettings(estimators=ALL, top_k=400)
    projection = Projection({HOOK: tiny_dictionary()}, members, settings)
    for part in parts:
        projection.add(HOOK, part)
    found = projection.take(1)
    alone = []
    for part in parts:
        apart = Projection({HOOK: tiny_dictionary()}, members, settings)
        apart.add(HOOK, part)
        alone.append((apart.take(1), apart.totals()[HOOK]))
    for key, total in projection.totals()[HOOK].items():
        expected = sum(totals[key] for _, totals in alone if not totals[key].isnan().any())
        torch.testing.assert_close(total, expected, rtol=1e-5, atol=1e-5, msg=key)
    for which in ("examples", "lessons"):
        rows, expected = (
            {row["row_id"]: row for row in taken} for taken in (found[which], [row for part, _ in alone for row in part[which]])
        )
        assert rows.keys() == expected.keys() == {*range(10, 14), *range(20, 24), *range(30, 34)}
        for row, entry in expected.items():
            for key, value in entry.items():
                if key in ("concept", "hookpoint", "features", "positions"):
                    assert rows[row][key] == value
                else:
                    assert rows[row][key] == pytest.approx(value, rel=1e-4)


def test_rows_teach_by_what_tells_the_texts_of_a_concept_where_that_is_known():
    """P(row) Σ_t max(score, 0) ℓ_t, P(row) from the mean score of its counted tokens; curves stay those of the features."""
    dictionary, tokens = tiny_dictionary(), some_tokens()
    tells = RowDetector(features=[3, 5, 20, 21], weights=[1.5, -2.0, 0.7, 3.0], bias=-0.2)
    members, settings = {("some", HOOK): [3, 5, 9], ("other", HOOK): [1]}, ObserveSettings(estimators=ALL)
    found = {}
    for given in (None, {("some", HOOK): tells, ("some", "elsewhere"): tells}):
        projection = Projection({HOOK: dictionary}, members, settings, given)
        projection.add(HOOK, tokens)
        found[given is not None] = projection.take(1)
    score_T = dictionary.encode(tokens.h_TD)[:, tells.features] @ torch.tensor(tells.weights) + tells.bias
    for index, row in enumerate(tokens.row_ids):
        mine = (tokens.row_T == index) & tokens.counted_T
        lesson_T = torch.sigmoid(score_T[mine].mean()) * score_T[mine].clamp_min(0) * tokens.loss_T[mine]
        entry = next(e for e in found[True]["examples"] if (e["row_id"], e["concept"]) == (row, "some"))
        assert entry["taught"] == pytest.approx(lesson_T.sum().item(), rel=1e-4, abs=1e-6)
        largest = lesson_T.sort(descending=True).values[: len(entry["token_taught"])]
        assert entry["token_taught"] == pytest.approx(largest.tolist(), rel=1e-4)
        assert entry["shows"] == pytest.approx(torch.sigmoid(score_T[mine].mean()).item(), rel=1e-4)
        assert "shows" not in next(e for e in found[False]["examples"] if (e["row_id"], e["concept"]) == (row, "some"))
    same = [[e for e in part["examples"] if e["concept"] == "other"] for part in found.values()]
    assert same[0] == same[1]
    assert found[True]["scalars"] == found[False]["scalars"]
    assert any(e["taught"] > 0 for e in found[True]["examples"] if e["concept"] == "some")


def test_a_step_that_is_dropped_takes_what_waited_with_it():
    projection = Projection({HOOK: tiny_dictionary()}, {}, ObserveSettings(estimators=ALL))
    projection.add(HOOK, some_tokens())
    projection.drop()
    assert projection.take(1)["scalars"]["train/counted_tokens"] == 0


def test_without_a_finite_token_nothing_is_known():
    broken = some_tokens()
    broken.g_TD[:] = float("nan")
    part, totals = read(broken)
    assert all(not total.any() for total in totals.values())  # such a step is no reason to know nothing of all others
    assert all(np.isnan(column).all() for key, column in part["features"][HOOK].items() if key != "feature")


class FakeEvent:
    """A copy that has arrived when it is told so."""

    made: list = []

    def __init__(self):
        self.arrived = False
        FakeEvent.made.append(self)

    def record(self, stream):
        self.stream = stream

    def query(self):
        return self.arrived

    def synchronize(self):
        self.arrived = True


@pytest.fixture
def device(monkeypatch):
    """Tensors of the meta device stand for those of an accelerator."""
    FakeEvent.made = []
    monkeypatch.setattr(torch.cuda, "Event", FakeEvent)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device=None: f"stream of {device}")
    monkeypatch.setattr(outbox, "ASYNCHRONOUS", ("meta",))
    monkeypatch.setattr(outbox, "_copied", lambda leaves: [torch.ones(2) for _ in leaves])
    return lambda: torch.empty(2, device="meta")


def test_what_leaves_a_device_is_handed_on_in_order_when_it_has_arrived(device):
    box, seen = Outbox(), []
    box.put({"a": device(), "n": 1}, lambda content: seen.append(content["n"]))
    box.put(None, lambda _: seen.append("skipped"))  # waits for the one before
    box.put({"a": device(), "n": 2}, lambda content: seen.append(content["n"]))
    assert seen == [] and FakeEvent.made[0].stream == "stream of meta"  # of the tensors' device, not of whichever is current
    FakeEvent.made[1].arrived = True
    box.flush(wait=False)
    assert seen == []  # the first has not arrived
    FakeEvent.made[0].arrived = True
    box.put({"a": device(), "n": 3}, lambda content: seen.append(content["n"]))
    assert seen == [1, "skipped", 2]
    box.flush()
    assert seen == [1, "skipped", 2, 3] and box.dropped == 0


def test_steps_beyond_what_may_wait_are_dropped_in_their_turn_and_counted(device):
    box, seen = Outbox(), []
    for number in range(WAITING + 2):
        box.put({"a": device(), "n": number}, lambda content, number=number: seen.append((number, content is not None)))
    assert box.dropped == 2 and seen == []
    box.flush()
    assert seen == [(n, n < WAITING) for n in range(WAITING + 2)]


def test_tensors_of_one_kind_leave_a_device_together(monkeypatch):
    class OnDevice(torch.Tensor):
        device = torch.device("meta")

    made = []
    monkeypatch.setattr(outbox, "_pinned", lambda size, dtype: made.append(size) or torch.empty(size, dtype=dtype))
    plain = [torch.arange(6.0).view(2, 3), torch.tensor(4.0), torch.empty(0), torch.tensor([7, 8]), torch.rand(2, 2).T]
    copies = outbox._copied([*(x.as_subclass(OnDevice) for x in plain), torch.ones(3)])
    assert all(torch.equal(copy, x) for copy, x in zip(copies, [*plain, torch.ones(3)], strict=True))
    assert sorted(made) == [2, 11]


def test_what_has_arrived_is_read_without_asking_the_device_for_anything(monkeypatch):
    projection = Projection({HOOK: tiny_dictionary()}, {("some", HOOK): [3, 5, 9]}, ObserveSettings(estimators=ALL))
    projection.add(HOOK, some_tokens())
    contents = projection._contents(1)
    monkeypatch.setattr(torch.Tensor, "cpu", lambda self: pytest.fail("a copy from the device waits for all that is queued there"))
    assert projection._read(contents, 1)["features"][HOOK]["feature"].size


def test_on_the_cpu_everything_is_handed_on_at_once():
    box, seen = Outbox(), []
    tensor = torch.ones(2)
    box.put({"a": tensor}, lambda content: seen.append(content["a"] is tensor))
    assert seen == [True]


@pytest.mark.parametrize("gram", [0, attribution.GRAM])
def test_unexplained_is_estimated_from_some_tokens(monkeypatch, gram):
    tokens = some_tokens(T=400)
    with monkeypatch.context() as patch:
        patch.setattr(projection_module, "EXPLAINED_TOKENS", 400)
        exact = read(tokens)[0]["scalars"][f"{HOOK}/unexplained"]
    monkeypatch.setattr(attribution, "GRAM", gram)
    drawn = [read(tokens)[0]["scalars"][f"{HOOK}/unexplained"]]
    projection = Projection({HOOK: tiny_dictionary()}, {}, ObserveSettings(estimators=["unexplained"]))
    for step in range(60):
        projection.add(HOOK, dataclasses.replace(tokens, step=step))
        drawn.append(projection.take(1)["scalars"][f"{HOOK}/unexplained"])
    assert 0.1 < exact < 0.9 and 0 < np.std(drawn) < 0.05
    assert np.mean(drawn) == pytest.approx(exact, abs=4 * np.std(drawn) / 60**0.5)

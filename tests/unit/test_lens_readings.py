"""What the lens reads over a run: drift, what was learned, rows, groups, totals, and what it says where it cannot read."""

import math

import numpy as np
import pytest
import torch
from conftest import tiny_batch, tiny_dictionary, tiny_model
from test_lens import HOOK, lora, oracle_gradients, train, trainable

from gradlens.config import ObserveSettings
from gradlens.control.rules import Policy, Rule
from gradlens.errors import ConfigError, InputError
from gradlens.lens import Lens
from gradlens.model.capture import read_activations
from gradlens.recording.recorder import MemoryRecorder


def test_drift_is_the_change_on_the_probe_set_and_zero_without_learning():
    dictionary = tiny_dictionary()
    model = tiny_model()
    probe = [tiny_batch(9)]
    keep = (probe[0]["labels"] != -100) & probe[0]["attention_mask"].bool()

    def read():
        hidden = model.eval()(probe[0]["input_ids"], attention_mask=probe[0]["attention_mask"], output_hidden_states=True).hidden_states
        return hidden[3][keep].detach()

    before = read()
    lens, recorder = train(model, lens_args={"dictionaries": {HOOK: dictionary}, "probe": probe, "concepts": {"c": {HOOK: [1, 2]}}})
    after = read()
    drift, direction = lens.drift(HOOK)
    torch.testing.assert_close(drift.float(), dictionary.encode(after).mean(0) - dictionary.encode(before).mean(0), atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(direction.float(), dictionary.unit_directions() @ (after - before).mean(0), atol=1e-5, rtol=1e-4)
    assert recorder.records[-1]["scalars"]["concept/c/layers.2/drift"] == pytest.approx(drift[[1, 2]].mean().item())
    idle, _ = train(tiny_model(), lens_args={"dictionaries": {HOOK: dictionary}, "probe": probe}, optimizer_type=torch.optim.SGD, seed=1)
    assert idle.drift(HOOK)[0].abs().max() > 0
    frozen = tiny_model()
    optimizer = torch.optim.SGD(trainable(frozen), lr=0.0)
    with Lens(frozen.train(), optimizer, {HOOK: dictionary}, probe=probe) as still:
        frozen(**tiny_batch(0)).loss.backward()
        optimizer.step()
    assert still.drift(HOOK)[0].abs().max() == 0


@pytest.mark.parametrize("lr", [0.0, 1e-2])
def test_what_was_learned_beyond_chance_is_counted_and_nothing_where_nothing_was_learned(lr):
    texts = [tiny_batch(seed) for seed in range(4)]  # trained on again and again, and the probe set
    model, recorder = tiny_model().train(), MemoryRecorder()
    optimizer = torch.optim.AdamW(trainable(model), lr=lr)
    observe = ObserveSettings(drift_every=0, update_every=0)
    with Lens(model, optimizer, {HOOK: tiny_dictionary()}, probe=texts, observe=observe, recorder=recorder) as lens:
        for step in range(24):
            model(**texts[step % 4]).loss.backward()
            optimizer.step()
            optimizer.zero_grad()
    assert lens.start[HOOK].rows.shape == (sum(len(batch["input_ids"]) for batch in texts), 80)
    last = recorder.records[-1]
    assert (last["scalars"][f"{HOOK}/learned"] > 0) == bool(lr)
    assert last["dense"][HOOK]["learned"].sum() == last["scalars"][f"{HOOK}/learned"]
    assert bool(last["dense"][HOOK]["uptake"].any()) == bool(lr)
    [told] = [event for event in recorder.events if event["kind"] == "learned"]
    assert bool(told["clusters"]) == bool(lr) and told["step"] == 24


def test_the_last_readings_are_recorded_once_however_often_finish_is_called():
    lens, recorder = train(tiny_model(), lens_args={"dictionaries": {HOOK: tiny_dictionary()}, "probe": [tiny_batch(9)]})
    lens.finish()
    assert [record["step"] for record in recorder.records if "dense" in record] == [3]


def test_example_records_split_the_push_of_the_batch():
    dictionary = tiny_dictionary()
    args = {"dictionaries": {HOOK: dictionary}, "concepts": {"c": {HOOK: [1, 2]}}, "observe": ObserveSettings(top_k=240)}
    lens, recorder = train(tiny_model(), steps=1, lens_args=args)
    rows = recorder.records[0]["examples"]
    assert [row["row_id"] for row in rows] == [0, 100, 101, 1, 100, 101]
    assert sum(row["push"] for row in rows) == pytest.approx(lens.totals[HOOK]["push"][[1, 2]].mean().item(), rel=1e-4)
    assert sum(row["taught"] for row in rows) == pytest.approx(lens.totals[HOOK]["taught"][[1, 2]].mean().item(), rel=1e-4)
    for row in rows:  # the tokens that taught most
        assert len(row["positions"]) == len(set(row["positions"])) == len(row["token_taught"]) <= 8
        assert row["token_taught"] == sorted(row["token_taught"], reverse=True) and min(row["token_taught"], default=1) > 0


def test_activation_is_how_much_the_counted_tokens_express():
    dictionary, model = tiny_dictionary(), tiny_model().train()
    optimizer, batch = torch.optim.SGD(trainable(model), lr=0.1), tiny_batch(0)
    h = read_activations(model, [HOOK], batch)[HOOK]
    with Lens(model, optimizer, {HOOK: dictionary}, observe=ObserveSettings(estimators=["activation"], update_every=0)) as lens:
        model(**batch).loss.backward()
        optimizer.step()
    counted = (batch["labels"] != -100) & batch["attention_mask"].bool() & (torch.arange(h.shape[1]) > 0)
    assert list(lens.totals[HOOK]) == ["activation"] and lens.table(3)
    torch.testing.assert_close(lens.totals[HOOK]["activation"].float(), dictionary.encode(h[counted]).sum(0), rtol=1e-4, atol=1e-5)


def test_what_a_row_teaches_is_the_loss_of_its_tokens_that_express_the_concept():
    dictionary = tiny_dictionary()
    args = {"dictionaries": {HOOK: dictionary}, "concepts": {"c": {HOOK: [1, 2]}}}
    model = tiny_model().train()
    batch = tiny_batch(0)
    optimizer = torch.optim.SGD(trainable(model), lr=0.1)
    recorder = MemoryRecorder()
    acts_BSF = dictionary.encode(read_activations(model, [HOOK], batch)[HOOK])
    logits = model(**batch).logits.detach()
    loss_BS = torch.zeros(batch["labels"].shape)
    loss_BS[:, 1:] = torch.nn.functional.cross_entropy(logits[:, :-1].transpose(1, 2), batch["labels"][:, 1:], reduction="none")
    with Lens(model, optimizer, recorder=recorder, probe=[tiny_batch(9)], **args) as lens:
        lens.set_rows(list(range(len(batch["input_ids"]))))
        model(**batch).loss.backward()
        optimizer.step()
    record = recorder.records[0]
    for row in record["examples"]:
        taught = (acts_BSF[row["row_id"]][:, [1, 2]].mean(-1)) * loss_BS[row["row_id"]]
        assert row["taught"] == pytest.approx(taught.sum().item(), rel=1e-4, abs=1e-7)
        best = taught.argsort(descending=True)[: len(row["positions"])]
        assert row["positions"] == best.tolist() and row["token_taught"] == pytest.approx(taught[best].tolist(), rel=1e-4)
    for row in record["lessons"]:  # every feature, the largest first
        taught_F = (acts_BSF[row["row_id"]] * loss_BS[row["row_id"]][:, None]).sum(0)
        assert row["taught"] == pytest.approx(taught_F[row["features"]].tolist(), rel=1e-4)
        assert row["taught"] == pytest.approx(taught_F.topk(len(row["taught"])).values.tolist(), rel=1e-4)
        assert len(row["taught"]) == min(64, int((taught_F > 0).sum()))


def test_a_group_of_features_has_its_share_of_the_gradient_and_of_the_movement():
    dictionary = tiny_dictionary()
    args = {"dictionaries": {HOOK: dictionary}, "concepts": {"c": {HOOK: [1, 2, 7]}}, "probe": [tiny_batch(9)]}
    model, oracle = tiny_model(), tiny_model().train()
    [(_, g_TD)] = oracle_gradients(oracle, [tiny_batch(0)])
    lens, recorder = train(model, steps=1, accumulate=1, lens_args=args)
    scalars = {key.rsplit("/", 1)[1]: value for key, value in recorder.records[0]["scalars"].items() if key.startswith("concept/c/")}
    span = torch.linalg.svd(dictionary.unit_directions()[[1, 2, 7]].double(), full_matrices=False)[2]
    inside = (g_TD.double() @ span.T).norm()
    assert scalars["group_gradient"] == pytest.approx(inside.item(), rel=1e-4)
    assert scalars["group_share"] == pytest.approx((inside / g_TD.double().norm()).item() ** 2, rel=1e-4)
    mean = g_TD.double().sum(0)
    assert math.cos(math.radians(scalars["group_angle"])) == pytest.approx(((span @ mean).norm() / mean.norm()).item(), rel=1e-4)
    moved = recorder.records[-1]["scalars"]
    change = lens.last[HOOK].mean - lens.start[HOOK].mean
    assert moved[f"concept/c/{HOOK}/group_drift"] == pytest.approx((span @ change).norm().item(), rel=1e-4)
    assert math.cos(math.radians(moved[f"concept/c/{HOOK}/group_drift_angle"])) == pytest.approx(
        ((span @ change).norm() / change.norm()).item(), rel=1e-4
    )


def test_state_dict_continues_totals_and_drift_baseline():
    dictionary, model = tiny_dictionary(), tiny_model()
    lens, _ = train(model, lens_args={"dictionaries": {HOOK: dictionary}, "probe": [tiny_batch(9)]})
    fresh = Lens(model, torch.optim.SGD(trainable(model), lr=0.1), {HOOK: dictionary}, probe=[tiny_batch(9)])
    fresh.load_state_dict(lens.state_dict())
    with fresh:
        pass
    assert fresh.step == 3 and torch.equal(fresh.start[HOOK].acts, lens.start[HOOK].acts)
    assert torch.equal(fresh.totals[HOOK]["push"], lens.totals[HOOK]["push"])


def test_a_loop_without_a_probe_set_goes_on_with_the_first_batch_of_its_first_part():
    dictionary, model = tiny_dictionary(), tiny_model()
    lens, _ = train(model, lens_args={"dictionaries": {HOOK: dictionary}})
    fresh = Lens(model, torch.optim.SGD(trainable(model), lr=0.1), {HOOK: dictionary})
    fresh.load_state_dict(lens.state_dict())
    with fresh:
        model(**tiny_batch(77)).loss.backward()
        fresh.optimizer.step()
    assert torch.equal(fresh.start[HOOK].acts, lens.start[HOOK].acts) and torch.equal(
        fresh.probe[0]["input_ids"], lens.probe[0]["input_ids"]
    )
    assert fresh.drift(HOOK)[0].any()


def test_what_does_not_fit_is_refused_with_a_reason():
    model = tiny_model()
    optimizer = torch.optim.SGD(trainable(model), lr=0.1)
    with pytest.raises(InputError, match=r"layers\.9.*layers\.0 to layers\.3"):
        Lens(model, optimizer, {"layers.9": tiny_dictionary()})
    with pytest.raises(InputError, match="width is 16.*has 32"), Lens(model, optimizer, {HOOK: tiny_dictionary(D=16)}):
        pass
    for rule, reason in (
        (Rule(concept="pirate"), "unknown concept 'pirate'"),
        (Rule(features={"layers.1": [1]}), "no dictionary at layers.1"),
        (Rule(features={HOOK: [80]}), "feature 80"),
    ):
        with pytest.raises(ConfigError, match=reason), Lens(model, optimizer, {HOOK: tiny_dictionary()}, policy=Policy(rules=(rule,))):
            pass
    frozen = lora(tiny_model())
    for name, parameter in frozen.named_parameters():
        parameter.requires_grad = "lora" in name and "layers.3" in name
    optimizer = torch.optim.SGD(trainable(frozen), lr=0.1)
    with pytest.raises(ConfigError, match="layers.2: nothing trainable lies below"), Lens(frozen, optimizer, {HOOK: tiny_dictionary()}):
        pass


@pytest.mark.parametrize("form", ["difference", "exact"])
def test_update_windows_add_up_to_the_drift(form):
    dictionary, probe = tiny_dictionary(), [tiny_batch(9)]
    observe = ObserveSettings(update_every=2, drift_every=5, update=form, update_rows=3)  # three rows are the whole probe set
    args = {"dictionaries": {HOOK: dictionary}, "probe": probe, "observe": observe, "concepts": {"c": {HOOK: [1, 2]}}}
    lens, recorder = train(tiny_model(), steps=5, lens_args=args, optimizer_type=torch.optim.SGD)
    drift, direction = lens.drift(HOOK)
    close = {"rtol": 1e-4, "atol": 1e-7} if form == "difference" else {"rtol": 0.05, "atol": float(direction.abs().max()) * 0.02}
    torch.testing.assert_close(lens.totals[HOOK]["update_direction"], direction, **close)
    assert torch.corrcoef(torch.stack([lens.totals[HOOK]["update"], drift]))[0, 1] > (0.95 if form == "exact" else 0.9999)
    assert [r["step"] for r in recorder.records if "concept/c/layers.2/update" in r["scalars"]] == [2, 4, 5]
    assert recorder.records[-1]["dense"][HOOK]["update"].any()


def test_a_run_of_known_length_reads_everything_at_its_last_step():
    args = {"dictionaries": {HOOK: tiny_dictionary()}, "probe": [tiny_batch(9)], "observe": ObserveSettings(drift_every=2), "steps": 3}
    _, recorder = train(tiny_model(), steps=3, lens_args=args)
    assert [record["step"] for record in recorder.records] == [1, 2, 3]  # no record after the last step's
    assert [record["step"] for record in recorder.records if "dense" in record] == [2, 3]


def test_a_run_that_goes_on_measures_from_where_the_first_part_began():
    args = {"dictionaries": {HOOK: tiny_dictionary()}, "probe": [tiny_batch(9)], "observe": ObserveSettings(drift_every=2)}
    whole_model = tiny_model()
    whole, _ = train(whole_model, steps=4, lens_args=args, optimizer_type=torch.optim.SGD)
    model = tiny_model().train()
    lens, _ = train(model, steps=2, lens_args=args, optimizer_type=torch.optim.SGD)
    optimizer = torch.optim.SGD(trainable(model), lr=1e-2)
    second = Lens(model, optimizer, **args)
    second.load_state_dict(lens.state_dict())
    with second:
        for step in (2, 3):
            for part in range(2):
                (model(**tiny_batch(10 * step + part)).loss / 2).backward()
            optimizer.step()
            optimizer.zero_grad()
    for mine, other in zip(second.learning.uptake(HOOK), whole.learning.uptake(HOOK), strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-4, atol=1e-9)
    assert second.learning.uptake(HOOK)[0].abs().max() > 0


def test_a_model_that_makes_no_logits_is_told_once_and_read_without_them():
    model, recorder = tiny_model().train(), MemoryRecorder()
    # as where the loss is fused with the output embeddings
    model.register_forward_hook(lambda module, args, output: setattr(output, "logits", None), prepend=True)
    optimizer = torch.optim.SGD(trainable(model), lr=0.1)
    batch = tiny_batch(0)
    with Lens(model, optimizer, {HOOK: tiny_dictionary()}, recorder=recorder, probe=[batch]) as lens:
        for _ in range(2):
            model(**batch).loss.backward()
            optimizer.step()
    [event] = [event for event in recorder.events if event["kind"] == "not_read"]
    assert event["estimator"] == "taught" and "no logits" in event["reason"]
    assert np.isnan(recorder.records[0]["features"][HOOK]["taught"]).all() and recorder.records[0]["features"][HOOK]["push"].any()
    assert not lens.learning.has_uptake(HOOK) and lens.drift(HOOK)[0].any() and lens.table(3)

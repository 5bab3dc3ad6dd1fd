"""What loops of one's own do otherwise: labels, numbers of rows, arguments by place, several optimizers, errors in the midst of a step."""

import copy

import pytest
import torch
from conftest import tiny_batch, tiny_model
from test_training_modes import HOOK, lens_of

from gradlens.config import ObserveSettings
from gradlens.control.rules import Policy, Rule
from gradlens.errors import ConfigError, RunError
from gradlens.readings.outbox import Outbox
from gradlens.readings.probe import read_probe


def packed() -> dict[str, torch.Tensor]:
    ids = torch.arange(3, 15)[None]
    return {"input_ids": ids, "position_ids": torch.tensor([[0, 1, 2, 3, 4, 0, 1, 2, 3, 0, 1, 2]]), "labels": ids}


def test_a_rule_that_acts_in_whole_rows_refuses_rows_of_several_texts():
    model = tiny_model().train()
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-2)
    rule = Rule(mode="reweight", features={HOOK: [1]}, gain=0.0)
    with lens_of(model, optimizer, policy=Policy(rules=(rule,)), probe=[tiny_batch(5)]), pytest.raises(RunError, match="without packing"):
        model(**packed())


def test_numbers_of_other_rows_than_the_batch_has_are_refused():
    model = tiny_model().train()
    with lens_of(model, torch.optim.SGD(model.parameters(), lr=1e-2)) as lens:
        lens.set_rows([1, 2])
        with pytest.raises(RunError, match="set_rows was given 2 row numbers for a batch of 3 rows"):
            model(**tiny_batch())


def test_numbers_of_rows_are_of_the_next_forward_pass_alone():
    model = tiny_model().train()
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-2)
    with lens_of(model, optimizer, concepts={"c": {HOOK: [1]}}) as lens:
        lens.set_rows([5, 6, 7])
        for part in range(2):
            model(**tiny_batch(part)).loss.backward()
        optimizer.step()
    assert {entry["row_id"] for entry in lens.recorder.records[0]["examples"]} == {5, 6, 7}
    assert len(lens.recorder.records[0]["examples"]) == 3


def test_what_a_model_is_given_without_a_name_is_known_by_its_place():
    batch, counted, probes = tiny_batch(2), [], []
    batch["attention_mask"], batch["input_ids"] = batch["attention_mask"].flip(1), batch["input_ids"].flip(1)  # padding in front
    batch["labels"] = torch.where(batch["attention_mask"] > 0, batch["input_ids"], -100)
    for call in (lambda model: model(**batch), lambda model: model(batch["input_ids"], batch["attention_mask"], labels=batch["labels"])):
        model = tiny_model().train()
        optimizer = torch.optim.SGD(model.parameters(), lr=1e-2)
        with lens_of(model, optimizer, probe=None) as lens:
            call(model).loss.backward()
            optimizer.step()
        counted.append(lens.recorder.records[0]["scalars"]["train/counted_tokens"])
        probes.append(lens.probe[0])
    assert counted[0] == counted[1] and torch.equal(probes[0]["attention_mask"], probes[1]["attention_mask"])


class Lookahead(torch.optim.Optimizer):
    """Goes on after the step of the optimizer that it wraps."""

    def __init__(self, optimizer):
        super().__init__([parameter for group in optimizer.param_groups for parameter in group["params"]], {})
        self.optimizer = optimizer

    def step(self, closure=None):
        self.optimizer.step(closure)
        with torch.no_grad():
            for parameter in self.param_groups[0]["params"]:
                parameter.mul_(0.9)


def test_readings_are_made_when_the_outermost_optimizer_has_stepped():
    model = tiny_model().train()
    optimizer = Lookahead(torch.optim.SGD(model.parameters(), lr=1e-2))
    with lens_of(model, optimizer, observe=ObserveSettings(drift_every=1)) as lens:
        model(**tiny_batch()).loss.backward()
        optimizer.step()
    now = read_probe(model, lens.dictionaries, lens.probe)[HOOK]
    torch.testing.assert_close(lens.last[HOOK].acts, now.acts)


def test_parameters_of_another_optimizer_are_told_of(caplog):
    model = tiny_model().train()
    first, *rest = model.parameters()
    for mine, told in ((rest, 1), ([first, *rest], 0)):
        with lens_of(model, torch.optim.SGD(mine, lr=1e-2)) as lens:
            pass
        assert [event["kind"] for event in lens.recorder.events].count("other_optimizer") == told
    assert f"1 of {len(rest) + 1} trainable parameters are not in the optimizer" in caplog.text


@pytest.mark.parametrize("end", [KeyboardInterrupt, RuntimeError])
def test_steps_on_their_way_from_an_accelerator_are_handed_on_when_an_error_ends_the_loop(monkeypatch, end):
    class Way:
        def query(self):
            return False

        def synchronize(self):
            pass

    monkeypatch.setattr(Outbox, "put", lambda self, content, then: self._waiting.append(([Way()], copy.deepcopy(content), then)))
    model = tiny_model().train()
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-2)
    with pytest.raises(end), lens_of(model, optimizer) as lens:
        for step in range(2):
            model(**tiny_batch(step)).loss.backward()
            optimizer.step()
        raise end
    assert [record["step"] for record in lens.recorder.records] == [1, 2]


def test_layers_that_a_loop_unfreezes_count_from_then_on():
    model = tiny_model().train().requires_grad_(False)
    model.model.layers[1].requires_grad_(True)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-2)
    with lens_of(model, optimizer, observe=ObserveSettings(update="exact", update_every=1, drift_every=1)) as lens:
        for step in range(3):
            model.model.layers[0].requires_grad_(step > 0)
            model(**tiny_batch(step)).loss.backward()
            optimizer.step()
    assert lens.step == 3 and lens.learning.updates[HOOK]["update"].abs().max() > 0


def test_what_is_logged_must_be_numbers():
    model = tiny_model()
    with lens_of(model, torch.optim.SGD(model.parameters(), lr=1e-2)) as lens:
        lens.log({"train/loss": torch.tensor(1.5)})
        with pytest.raises(ConfigError, match=r"lens.log: train/lr is a list \(\[0.1\]\), expected a number"):
            lens.log({"train/lr": [0.1]})


def test_a_model_that_is_called_without_labels_is_told_of_once(caplog):
    for observe, told in ((ObserveSettings(), 1), (ObserveSettings(tokens="all"), 0)):
        model = tiny_model().train()
        optimizer = torch.optim.SGD(model.parameters(), lr=1e-2)
        with lens_of(model, optimizer, observe=observe) as lens:
            for _ in range(2):
                model(input_ids=tiny_batch()["input_ids"]).logits.mean().backward()
                optimizer.step()
        assert [event["kind"] for event in lens.recorder.events].count("no_labels") == told
    assert caplog.text.count("called without labels") == 1


def test_batches_with_nothing_to_learn_are_told_of_once(caplog):
    model = tiny_model().train()
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-2)
    with lens_of(model, optimizer, probe=None) as lens:
        for step in range(4):
            batch = tiny_batch(step)
            if step < 2:
                batch["labels"] = torch.full_like(batch["labels"], -100)
            model(**batch).logits.mean().backward()
            optimizer.step()
    assert caplog.text.count("so far no batch has had a token to learn") == 1
    assert [event["reading"] for event in lens.recorder.events if event["kind"] == "not_read"].count("steps") == 1
    assert lens.probe is not None  # of the third
    caplog.clear()
    with lens_of(model, optimizer, probe=None):
        model(**tiny_batch()).loss.backward()
        optimizer.step()
    assert "no batch" not in caplog.text


def test_where_answers_have_one_token_the_gradient_that_teaches_it_is_read():
    batch = tiny_batch(B=2)
    batch["labels"][:, :-1] = -100
    batch["labels"][:, -1], batch["attention_mask"][:] = batch["input_ids"][:, -1], 1
    model = tiny_model().train()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    with lens_of(model, optimizer, observe=ObserveSettings(drift_every=0)) as lens:
        model(**batch).loss.backward()
        optimizer.step()
    assert lens.totals[HOOK]["push"].abs().max() > 0.01 and lens.totals[HOOK]["attribution"].abs().max() > 0
    assert lens.recorder.records[0]["scalars"]["train/counted_tokens"] == 2

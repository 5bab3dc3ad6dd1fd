"""The log-probabilities that a loss has made: taken where they are those of these logits, and nowhere else."""

import copy

import pytest
import torch
from conftest import tiny_batch, tiny_dictionary, tiny_model
from torch.nn.functional import cross_entropy

from gradlens.config import ObserveSettings
from gradlens.lens import Lens
from gradlens.model.capture import MicroBatch, next_tokens, token_loss
from gradlens.model.saved_losses import saved_log_probs
from gradlens.recording.recorder import MemoryRecorder
from gradlens.training.train import LossFunction


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_losses_are_the_same_bits_as_a_second_softmax(dtype):
    model, batch = tiny_model(dtype=dtype), tiny_batch()
    batch["labels"][:, :4] = -100
    output = model(**batch)
    log_probs = saved_log_probs(output.loss, output.logits)
    targets = next_tokens(batch["input_ids"], None, batch["labels"])
    seen, again = (MicroBatch(torch.ones_like(targets, dtype=torch.bool), targets) for _ in range(2))
    seen.note_logits(output.logits.detach(), log_probs)
    again.note_logits(output.logits.detach())
    assert again.token_loss_BS.any() and torch.equal(seen.token_loss_BS, again.token_loss_BS)
    output.loss.backward()  # whoever reads them takes nothing from the backward pass


def test_the_loss_of_our_own_loop_is_found_too():
    model, batch, made = tiny_model(), tiny_batch(), []
    model.register_forward_hook(lambda module, args, output: made.append(saved_log_probs(output.loss, output.logits)))
    loss = LossFunction(model)({**batch, "labels": batch["labels"].clone().index_fill_(1, torch.arange(5), -100)})
    assert made[0].shape[:2] == (3, 5)  # of the columns that some row has something to learn of
    loss.backward()


def test_a_loss_with_other_parts_has_them_too():
    output = tiny_model()(**tiny_batch())
    assert saved_log_probs(2 * output.loss + output.logits.square().mean(), output.logits) is not None


def test_a_watched_run_looks_the_losses_up_and_reads_the_same(monkeypatch):
    def taught():
        model, recorder = tiny_model(), MemoryRecorder()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
        observe = ObserveSettings(estimators=["taught"], drift_every=0, update_every=0, own_prompts=0)
        with Lens(model, optimizer, {"layers.2": tiny_dictionary()}, recorder=recorder, observe=observe) as lens:
            model(**tiny_batch()).loss.backward()
            optimizer.step()
        return lens.projector.totals()["layers.2"]["taught"]

    looked_up = taught()
    monkeypatch.setattr("gradlens.hooks.saved_log_probs", lambda loss, logits: None)
    computed = taught()
    assert computed.any() and torch.equal(looked_up, computed)
    monkeypatch.setattr("gradlens.hooks.saved_log_probs", lambda loss, logits: 2 * saved_log_probs(loss, logits))
    assert torch.equal(taught(), 2 * computed)  # it is these that are read


def other_losses(logits, targets):
    flat, wanted = logits.flatten(0, 1), targets.flatten()
    yield "scaled", cross_entropy(flat / 2, wanted)
    yield "shifted", cross_entropy(logits[:, :-1].flatten(0, 1), targets[:, 1:].flatten())
    yield "other order", cross_entropy(logits.flip(0).flatten(0, 1), wanted)
    yield "transposed", cross_entropy(logits.transpose(1, 2), targets)
    yield "of a copy without a graph", cross_entropy(logits.detach().requires_grad_().flatten(0, 1), wanted)
    yield "no softmax", flat.square().sum()
    yield "no tensor", None
    yield "no graph", torch.tensor(1.0)


def test_nothing_is_taken_of_other_logits_or_positions():
    batch = tiny_batch()
    logits = tiny_model()(input_ids=batch["input_ids"]).logits
    for what, loss in other_losses(logits, batch["input_ids"]):
        assert saved_log_probs(loss, logits) is None, what


def test_nothing_is_taken_while_somebody_packs_saved_tensors():
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: tensor, lambda tensor: pytest.fail("unpacked by us")):
        output = tiny_model()(**tiny_batch())
        assert saved_log_probs(output.loss, output.logits) is None


def test_token_losses_from_log_probs_are_zero_where_nothing_is_counted_and_not_finite_where_logits_are_not():
    logits = torch.randn(2, 3, 7)
    logits[1, 1] = torch.nan
    targets = torch.tensor([[1, -100, 2], [3, 4, -100]])
    batch = MicroBatch(torch.ones_like(targets, dtype=torch.bool), copy.copy(targets))
    batch.note_logits(logits, logits.log_softmax(-1))
    expected = token_loss(logits, targets)
    assert torch.equal(batch.token_loss_BS[:, 1:].isnan(), expected[:, :-1].isnan())
    assert torch.equal(batch.token_loss_BS[:, 1:].nan_to_num(), expected[:, :-1].nan_to_num())

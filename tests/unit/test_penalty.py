"""Mode penalty against the explicit sum of loss and penalty; mode reweight against weighting each row's loss."""

from types import SimpleNamespace

import pytest
import torch
from conftest import tiny_batch, tiny_dictionary, tiny_model
from peft import LoraConfig, get_peft_model

from gradlens.concepts.concept_files import Detector, RowDetector
from gradlens.control.rules import Policy, Rule
from gradlens.errors import ConfigError, RunError
from gradlens.lens import Lens
from gradlens.model.capture import counted_tokens
from gradlens.model.hookpoints import find_module
from gradlens.recording.recorder import MemoryRecorder

HOOK, LATER = "layers.1", "layers.2"
FEATURES = {HOOK: [1, 2, 3, 5, 8, 13, 21], LATER: [4, 9, 30, 40, 55]}


def lora(seed=1):
    torch.manual_seed(seed)
    """An adapter that adds nothing yet; see `moved`."""
    config = LoraConfig(r=2, target_modules=["q_proj", "o_proj", "down_proj"], lora_alpha=4, init_lora_weights=False)
    model = get_peft_model(tiny_model(dtype=torch.float64), config).train()
    model.later = {name: parameter.detach().clone() for name, parameter in model.named_parameters() if "lora_B" in name}
    return _with(model, dict.fromkeys(model.later, torch.zeros(())))


def moved(model):
    """As after some training."""
    return _with(model, model.later)


def _with(model, values):
    with torch.no_grad():
        for name, value in values.items():
            model.get_parameter(name).copy_(value)
    return model


def trainable(model):
    return [parameter for parameter in model.parameters() if parameter.requires_grad]


def lens_of(model, rule, **options):
    dictionaries = {HOOK: tiny_dictionary(dtype=torch.float64), LATER: tiny_dictionary(3, dtype=torch.float64)}
    rules = (Rule(**rule),) if rule else ()
    options = {"probe": [tiny_batch(50)], "recorder": MemoryRecorder(), "policy": Policy(rules=rules)} | options
    return Lens(model, torch.optim.SGD(trainable(model), lr=0.1), dictionaries, **options)


def acts(model, batch):
    """Activations of the rule's features at every position, with gradients."""
    kept = {}
    handles = [
        find_module(model, name).register_forward_hook(lambda module, args, output, name=name: kept.update({name: output}))
        for name in FEATURES
    ]
    loss = model(**batch).loss
    for handle in handles:
        handle.remove()
    seeds = {HOOK: 0, LATER: 3}
    return loss, {
        name: tiny_dictionary(seeds[name], dtype=torch.float64).encode(kept[name].flatten(0, 1))[:, ids] for name, ids in FEATURES.items()
    }


@pytest.mark.parametrize(("gain", "scaled", "checkpointing"), [(0.0, "mean", False), (0.5, "sum", False), (3.0, "sum", True)])
def test_the_gradient_is_that_of_loss_and_penalty_together(gain, scaled, checkpointing):
    model, by_hand = lora(), moved(lora())
    if checkpointing:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    with lens_of(model, {"mode": "penalty", "features": FEATURES, "gain": gain, "strength": 0.7}) as lens:
        moved(model)
        for part in range(2):
            batch = tiny_batch(part)
            counted = (batch["labels"][:, 1:] != -100).sum()
            if scaled == "sum":
                (model(**batch, num_items_in_batch=1).loss * 3).backward()
            else:
                (model(**batch).loss / 2).backward()
            weight = 3.0 if scaled == "sum" else 1 / (2 * counted)
            with torch.no_grad(), by_hand.disable_adapter():
                before = acts(by_hand, batch)[1]
            loss, live = acts(by_hand, batch)
            at = torch.nn.functional.pad(batch["labels"][:, 1:] != -100, (0, 1)).flatten()
            price = 0
            for name in FEATURES:
                risen = live[name] - before[name]
                price = price + (risen.relu() if gain < 1 else torch.where(live[name] > 0, risen, 0.0))[at].sum()
            assert price > 0 if gain < 1 else price != 0
            (weight * (counted * loss + (1 - gain) * 0.7 * price)).backward()
        for (name, mine), (_, theirs) in zip(model.named_parameters(), by_hand.named_parameters(), strict=True):
            if mine.requires_grad:
                # the loss of single tokens, from which the weight of one is found, is float32
                assert (mine.grad - theirs.grad).norm() <= 1e-6 * theirs.grad.norm(), (
                    name,
                    (mine.grad - theirs.grad).norm() / theirs.grad.norm(),
                )
        lens.optimizer.step()
    scalars = lens.recorder.records[0]["scalars"]
    assert 0 < scalars["rule/penalty:features/share"] <= 1


def put_out_log_probs(model, wide):
    """As in TRL's trainers, which make their loss of these, `[B, S - 1]` or `[B, S]`: there are no logits then, and no loss."""
    inner = model.base_model.model

    def forward(input_ids, attention_mask=None, labels=None, **kwargs):
        output = original(input_ids=input_ids, attention_mask=attention_mask, **kwargs)
        if labels is None:
            return output
        log_p = output.logits[:, :-1].log_softmax(-1).gather(-1, labels[:, 1:].clamp_min(0)[..., None])[..., 0]
        picked = log_p.masked_fill(labels[:, 1:] == -100, 0)
        return SimpleNamespace(log_probs=torch.nn.functional.pad(picked, (0, 1)) if wide else picked)

    original, inner.forward = inner.forward, forward


@pytest.mark.parametrize("wide", [False, True])
def test_a_loss_made_of_log_probabilities_pays_the_same_price(wide):
    batch, found = tiny_batch(0), []
    for fused in (False, True):
        with lens_of(model := lora(), {"mode": "penalty", "features": FEATURES, "strength": 0.7}) as lens:
            moved(model)
            if fused:
                put_out_log_probs(model, wide)
            output = model(**batch)
            (-output.log_probs.sum() / (batch["labels"][:, 1:] != -100).sum() if fused else output.loss).backward()
            lens.optimizer.step()
        share = lens.recorder.records[0]["scalars"]["rule/penalty:features/share"]
        found.append((torch.cat([parameter.grad.flatten() for parameter in trainable(model)]), share))
    (plain, share), (trls, same) = found
    assert (trls - plain).norm() <= 1e-5 * plain.norm() and 0 < share < 1
    assert share == pytest.approx(same)


def test_a_penalty_is_nothing_before_anything_has_changed_and_on_a_dry_run():
    def gradient(rule, seed):
        torch.manual_seed(1)
        model = get_peft_model(tiny_model(dtype=torch.float64), LoraConfig(r=2, target_modules=["o_proj"])) if seed is None else lora(seed)
        with lens_of(model.train(), rule):
            if seed is not None:
                moved(model)
            model(**tiny_batch(0)).loss.backward()
        return torch.cat([parameter.grad.flatten() for parameter in trainable(model)])

    rule = {"mode": "penalty", "features": FEATURES}
    assert torch.equal(gradient(rule, None), gradient(None, None))  # B = 0: the model before training
    assert torch.equal(gradient(rule | {"dry_run": True}, 1), gradient(None, 1))
    assert not torch.equal(gradient(rule, 1), gradient(None, 1))


def test_a_penalty_that_cannot_be_is_refused():
    with (
        pytest.raises(ConfigError, match="full fine-tuning"),
        lens_of(tiny_model(dtype=torch.float64), {"mode": "penalty", "features": FEATURES}),
    ):
        pass
    model, batch = lora(), tiny_batch(0)
    with lens_of(model, {"mode": "penalty", "features": FEATURES}):
        logits = model(**batch).logits  # a loss of the loop's own: in which units?
        with pytest.raises(RunError, match="does not come from there"):
            logits.logsumexp(-1).mean().backward()
        with pytest.raises(RunError, match="gives no loss"):
            model(input_ids=batch["input_ids"])


@pytest.mark.parametrize("rows", [None, 0.0])
@pytest.mark.parametrize("gain", [0.0, 2.0])
def test_reweight_multiplies_the_loss_of_whole_rows(gain, rows):
    model, by_hand, quorum = lora(), moved(lora()), 0.4
    batch, dictionary = tiny_batch(0, B=6), tiny_dictionary(3, dtype=torch.float64)
    weights_F = torch.randn(dictionary.d_sae, generator=torch.Generator().manual_seed(4), dtype=torch.float64)
    with torch.no_grad(), model.disable_adapter():  # rows are told by the model before training
        read = {}
        handle = find_module(model, LATER).register_forward_hook(lambda module, args, output: read.update(h=output))
        model(**batch)
        handle.remove()
    acts_BSF = dictionary.encode(read["h"].flatten(0, 1)).view(6, -1, dictionary.d_sae)
    counts = counted_tokens(batch["input_ids"], batch["attention_mask"], batch["labels"])
    score_B = torch.stack([(f_SF[c_S] @ weights_F).mean() for f_SF, c_S in zip(acts_BSF, counts, strict=True)])
    bias = -score_B.sort().values[3].item() + 1e-9  # half of the rows are above 0
    row = RowDetector(features=list(range(dictionary.d_sae)), weights=weights_F.tolist(), bias=bias)
    detector = Detector(features=[], weights=[], bias=-1.0, row=row)
    rule = {"mode": "reweight", "gain": gain, "quorum": quorum, "concept": "c", "rows": rows}
    with lens_of(model, rule, concepts={"c": FEATURES}, detectors={"c": {LATER: detector}}) as lens:
        moved(model)
        model(**batch).loss.backward()
        assert list(lens.control.rules[0].features) == [LATER]  # where route looks as well
        touched = (lens.control.rules[0].touched / lens.control.rules[0].total).item()
    kept = {}
    handle = find_module(by_hand, LATER).register_forward_hook(lambda module, args, output: kept.update(h=output.detach()))
    logits = by_hand(**batch).logits
    handle.remove()
    f_TF = dictionary.encode(kept["h"].flatten(0, 1))
    fires = (f_TF[:, FEATURES[LATER]] > 0).any(-1).view(6, -1)
    counted = batch["labels"] != -100
    share = (fires & counted).sum(1) / counted.sum(1)
    assert (share >= quorum).any() and ((share < quorum) & (share > 0)).any()
    gated = share >= quorum
    if rows is not None:  # whole rows, whatever is active in them now
        told = score_B + bias >= rows
        assert told.sum() == 3 and (told != gated).any()
        gated = told
    weights = torch.where(gated, gain, 1.0)
    targets = batch["labels"][:, 1:]
    losses = torch.nn.functional.cross_entropy(logits[:, :-1].transpose(1, 2), targets, ignore_index=-100, reduction="none")
    ((losses * weights[:, None]).sum() / (targets != -100).sum()).backward()
    for mine, theirs in zip(trainable(model), trainable(by_hand), strict=True):
        assert (mine.grad - theirs.grad).norm() <= 1e-5 * theirs.grad.norm()  # the model's own loss is float32
    expected = (counted[:, 1:].sum(1) * gated).sum() / counted[:, 1:].sum()
    assert touched == pytest.approx(expected.item())

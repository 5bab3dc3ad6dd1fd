"""The exact `update`: equals the finite change it linearises, and adds up to the drift."""

import pytest
import torch
from conftest import tiny_batch, tiny_dictionary, tiny_model
from peft import LoraConfig, get_peft_model

from gradlens.config import ObserveSettings
from gradlens.lens import Lens
from gradlens.model.capture import read_activations
from gradlens.readings.update import change_of_activations, read_update, trainable_parameters

HOOK = "layers.2"


def stepped(model, scale):
    generator = torch.Generator().manual_seed(3)
    before = {name: value.clone() for name, value in trainable_parameters(model).items()}
    after = {name: value + scale * torch.randn(value.shape, generator=generator) for name, value in before.items()}
    return before, after


def test_change_of_activations_equals_the_real_change_up_to_third_order():
    model, batch = tiny_model(), tiny_batch(0)
    keep = (batch["labels"] != -100) & batch["attention_mask"].bool()
    errors = []
    for scale in (1e-3, 5e-4):
        before, after = stepped(model, scale)
        (h, dh) = change_of_activations(model, [HOOK], batch, before, after)[HOOK]
        real = []
        for parameters in (before, after):
            fresh = tiny_model()
            fresh.load_state_dict(parameters, strict=False)
            real.append(read_activations(fresh, [HOOK], batch)[HOOK][keep])
        errors.append(((real[1] - real[0]) - dh).norm() / dh.norm())
    assert errors[0] < 1e-2
    assert errors[1] < errors[0] / 3  # of third order: half the step, a quarter of the relative error


def test_readings_leave_model_and_parameters_as_they_were():
    model = tiny_model().train()
    before, after = stepped(model, 1e-2)
    state = {name: value.clone() for name, value in model.state_dict().items()}
    read_update(model, {HOOK: tiny_dictionary()}, [tiny_batch(0)], before, after)
    assert model.training and all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    assert not any(module._forward_hooks for module in model.modules())


def test_no_change_has_no_effect_and_the_effect_is_linear_in_parts():
    model, dictionary = tiny_model(), tiny_dictionary()
    before, after = stepped(model, 1e-4)
    idle = read_update(model, {HOOK: dictionary}, [tiny_batch(0)], before, before)[HOOK]
    assert idle.acts.abs().max() == 0 and idle.direction.abs().max() == 0
    whole = read_update(model, {HOOK: dictionary}, [tiny_batch(0)], before, after)[HOOK].direction
    early = {name: after[name] if ".0." in name or "embed" in name else before[name] for name in after}
    rest = {name: before[name] if ".0." in name or "embed" in name else after[name] for name in after}
    parts = sum(read_update(model, {HOOK: dictionary}, [tiny_batch(0)], before, part)[HOOK].direction for part in (early, rest))
    torch.testing.assert_close(parts, whole, rtol=0.05, atol=float(whole.abs().max()) * 0.02)


def muon(parameters, lr):
    """Muon for matrices; it takes nothing else, so nothing else is trained."""
    return torch.optim.Muon([p for p in parameters if p.ndim == 2], lr=lr)


OPTIMIZERS = {
    "adamw-for-loop": lambda p: torch.optim.AdamW(p, lr=1e-3, weight_decay=0.1, foreach=False),
    "adamw-foreach": lambda p: torch.optim.AdamW(p, lr=1e-3, weight_decay=0.1, foreach=True),
    "adamw-fused": lambda p: torch.optim.AdamW(p, lr=1e-3, weight_decay=0.1, fused=True),
    "sgd-momentum": lambda p: torch.optim.SGD(p, lr=3e-2, momentum=0.9, weight_decay=0.01),
    "adafactor": lambda p: torch.optim.Adafactor(p, lr=1e-3),
    "muon": lambda p: muon(p, 1e-3),
}


@pytest.mark.parametrize("trained", ["full", "lora"])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_exact_updates_add_up_to_the_drift_whatever_the_optimizer(name, trained):
    model = tiny_model()
    if trained == "lora":
        torch.manual_seed(0)
        model = get_peft_model(model, LoraConfig(r=4, lora_alpha=16, target_modules=["q_proj", "o_proj", "down_proj"]))
    model.train()
    optimizer = OPTIMIZERS[name]([p for p in model.parameters() if p.requires_grad])
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 / (1 + step))
    observe = ObserveSettings(update="exact", update_every=1, update_rows=3, drift_every=0)
    with Lens(model, optimizer, {HOOK: tiny_dictionary()}, probe=[tiny_batch(9)], observe=observe) as lens:
        for step in range(4):
            model(**tiny_batch(step)).loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 0.5)
            optimizer.step()
            optimizer.zero_grad()
            schedule.step()
    direction = lens.drift(HOOK)[1]
    assert direction.abs().max() > 0
    found = lens.totals[HOOK]["update_direction"]
    torch.testing.assert_close(found, direction, rtol=0.05, atol=float(direction.abs().max()) * 0.02)

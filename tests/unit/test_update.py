"""The exact `update`: equals the finite change it linearises, and adds up to the drift."""

import torch
from conftest import tiny_batch, tiny_dictionary, tiny_model

from gradlens.capture import read_activations
from gradlens.update import change_of_activations, read_update, trainable_parameters

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

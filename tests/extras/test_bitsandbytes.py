"""QLoRA: a base in bitsandbytes' 4-bit weights, on the CPU, with LoRA beside it. Readings and a rule are what autograd says."""

import pytest
import torch
from conftest import read_positions, tiny_batch, tiny_dictionary, tiny_model
from needs import needs
from peft import LoraConfig, get_peft_model, prepare_model_for_kbit_training

import gradlens
from gradlens.model.hookpoints import find_module
from gradlens.readings.attribution import attribution_eager, push_eager

bitsandbytes = needs("bitsandbytes", "bitsandbytes")

from transformers import AutoModelForCausalLM, BitsAndBytesConfig  # noqa: E402  transformers asks for bitsandbytes when it is imported

HOOK, STEPS = "layers.2", 3
ROUTE = {"mode": "route", "features": {HOOK: list(range(80))}, "gain": 0.0}


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    tiny_model().save_pretrained(folder)
    return folder


def four_bit(folder, checkpointing=False):
    """The base in NF4 with float32 arithmetic, and an adapter that is not zero."""
    config = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.float32)
    base = AutoModelForCausalLM.from_pretrained(folder, quantization_config=config, device_map="cpu", dtype=torch.float32)
    if checkpointing:
        base = prepare_model_for_kbit_training(base, gradient_checkpointing_kwargs={"use_reentrant": False})
    torch.manual_seed(2)
    model = get_peft_model(base, LoraConfig(r=2, target_modules=["q_proj", "o_proj", "down_proj"], init_lora_weights=False)).train()
    assert isinstance(find_module(model, HOOK).mlp.down_proj.base_layer, bitsandbytes.nn.Linear4bit)
    return model


def train(model, watched=None, rules=()):
    """`STEPS` steps, watched, or with plain hooks in the place of gradlens: then the h and g of each step's counted tokens."""
    optimizer = torch.optim.AdamW([parameter for parameter in model.parameters() if parameter.requires_grad], lr=1e-2, weight_decay=0.0)
    seen = []

    def steps():
        for step in range(STEPS):
            batch, keep = tiny_batch(step), read_positions(tiny_batch(step))
            kept = {}
            hook = lambda m, a, output, kept=kept: kept.update(h=output) or output.retain_grad()  # noqa: E731
            handle = None if watched else find_module(model, HOOK).register_forward_hook(hook)
            model(**batch).loss.backward()
            if handle:
                handle.remove()
                seen.append((kept["h"].detach()[keep], kept["h"].grad[keep]))
            optimizer.step()
            optimizer.zero_grad()

    if not watched:
        steps()
        return seen
    with gradlens.watch(model, optimizer, {HOOK: tiny_dictionary()}, run=None, rules=list(rules), probe=[tiny_batch(50)]) as lens:
        steps()
    return lens


@pytest.mark.parametrize("checkpointing", [False, True])
def test_readings_beside_four_bit_weights_are_what_autograd_says(saved, checkpointing):
    seen, lens = train(four_bit(saved, checkpointing)), train(four_bit(saved, checkpointing), watched=True)
    dictionary = tiny_dictionary()
    push = sum(push_eager(dictionary, g) for _, g in seen)
    attribution = sum(attribution_eager(dictionary, h, g) for h, g in seen)
    for key, expected in (("push", push), ("attribution", attribution)):
        assert expected.abs().max() > 0
        assert (lens.totals[HOOK][key] - expected).abs().max() <= 1e-4 * expected.abs().max(), key
    assert lens.totals[HOOK]["update"].abs().max() > 0


def test_route_with_gain_zero_on_every_token_trains_nothing(saved):
    model, plain = four_bit(saved), four_bit(saved)
    start = {name: parameter.detach().clone() for name, parameter in model.named_parameters() if parameter.requires_grad}
    lens = train(model, watched=True, rules=[ROUTE])
    train(plain)
    assert lens.step == STEPS and lens.totals[HOOK]["push"].abs().max() == 0
    now, unwatched = dict(model.named_parameters()), dict(plain.named_parameters())
    assert all(torch.equal(value, now[name]) for name, value in start.items())
    assert any(not torch.equal(value, unwatched[name]) for name, value in start.items())


def test_a_reading_leaves_the_packing_of_weights_alone(saved, monkeypatch):
    """Where a CPU has bfloat16 instructions these layers pack their weights for good in an evaluation, and are trained on otherwise."""
    packed, model = [], four_bit(saved)
    pack = lambda weight, state: packed.append(weight.shape) or (weight, state)  # noqa: E731
    monkeypatch.setattr(bitsandbytes.nn.modules, "_convert_weight_packed_for_cpu", pack)
    layers = [module for module in model.modules() if isinstance(module, bitsandbytes.nn.Linear4bit)]
    for layer in layers:
        layer.support_avx512bf16_for_cpu = True
    lens = train(model, watched=True)
    assert lens.start[HOOK].acts.abs().max() > 0 and not packed and all(layer.support_avx512bf16_for_cpu for layer in layers)
    with torch.no_grad():
        model.eval()(**tiny_batch(0))  # an evaluation of the loop's own does as it would
    assert len(packed) == len(layers)

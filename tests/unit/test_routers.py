"""Router readings against a computation by hand: softmax, sigmoid and top-k routers; tokens of a concept; the change over a run."""

import math
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import tiny_batch, tiny_dictionary, tiny_model

sys.path.insert(0, str(Path(__file__).parent.parent))
import architectures

from gradlens.config import ObserveSettings
from gradlens.lens import Lens
from gradlens.model.capture import counted_tokens, read_activations
from gradlens.readings import routers
from gradlens.recording.recorder import MemoryRecorder
from gradlens.report.findings import routing, routing_in_words

OBSERVE = ObserveSettings(own_prompts=0, reference=None, update_every=0, self_test=False, drift_every=2)
KINDS = {"Mixtral": "softmax", "DeepSeek-V3": "sigmoid", "gpt-oss": "softmax", "Jamba": "softmax", "Nemotron-H": "sigmoid"}


def model_of(name):
    return architectures.build(next(entry for entry in architectures.ARCHITECTURES if entry.name == name))


def moe_block(model, layer):
    """The part of a block that has experts, and its router, by the names of these five architectures."""
    block = model.get_decoder().layers[layer]
    part = next(part for part in (getattr(block, name, None) for name in ("mlp", "feed_forward", "mixer")) if hasattr(part, "experts"))
    return part, getattr(part, "gate", None) or part.router


def by_hand(model, layer, batch):
    """Router logits `[T, E]` of the counted tokens, from what the block's MLP takes in and the router's own weights."""
    part, router = moe_block(model, layer)
    kept = {}
    handle = part.register_forward_pre_hook(lambda m, args, kw: kept.update(x=args[0] if args else kw["hidden_states"]), with_kwargs=True)
    with torch.no_grad():
        model(**batch, use_cache=False)
    handle.remove()
    logits = kept["x"].flatten(0, 1).to(router.weight.dtype) @ router.weight.T + (router.bias if hasattr(router, "bias") else 0)
    keep = counted_tokens(batch["input_ids"], batch["attention_mask"], batch["labels"]).flatten()
    return logits[keep]


def run(model, batches, concepts=None, hookpoint="layers.0"):
    recorder, optimizer = MemoryRecorder(), torch.optim.SGD(model.parameters(), lr=0.5)
    dictionary = tiny_dictionary(D=32, F=40, activation="relu", dtype=torch.float64)
    with Lens(
        model, optimizer, {hookpoint: dictionary}, observe=OBSERVE, recorder=recorder, probe=[tiny_batch(9)], concepts=concepts, steps=2
    ) as lens:
        model.train()
        for batch in batches:
            model(**batch, use_cache=False).loss.backward()
            optimizer.step()
            optimizer.zero_grad()
    events = [fields for kind, fields in ((e["kind"], e) for e in recorder.events) if kind == "routers"]
    return lens, recorder, events, dictionary


@pytest.mark.parametrize("name", KINDS)
def test_load_and_entropy_of_training_batches_are_those_computed_by_hand(name):
    model = model_of(name)
    found = routers.find_routers(model)
    assert found and all((router.experts, router.per_token, router.scoring) == (4, 2, KINDS[name]) for router in found)
    layer = int(found[0].name.split(".")[1])
    logits = torch.cat([by_hand(model, layer, tiny_batch(seed)) for seed in (0, 1)])  # the learning rate is zero: the weights stay
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    model.get_input_embeddings().weight.requires_grad_(True)
    state = {key: value.clone() for key, value in model.state_dict().items()}
    recorder, optimizer = MemoryRecorder(), torch.optim.SGD([model.get_input_embeddings().weight], lr=0.0)
    dictionary = tiny_dictionary(D=32, F=40, activation="relu", dtype=torch.float64)
    with Lens(model, optimizer, {"layers.0": dictionary}, observe=OBSERVE, recorder=recorder, probe=[tiny_batch(9)]):
        model.train()
        for seed in (0, 1):
            model(**tiny_batch(seed), use_cache=False).loss.backward()
            optimizer.step()
            optimizer.zero_grad()
    assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())
    scores = logits.softmax(-1) if KINDS[name] == "softmax" else logits.sigmoid() / logits.sigmoid().sum(-1, keepdim=True)
    expected = -(scores * scores.log()).sum(-1).mean().item() / math.log(4)
    scalars = recorder.records[-1]["scalars"]
    assert scalars[f"router/layers.{layer}/entropy"] == pytest.approx(expected, abs=1e-6)
    if name not in ("DeepSeek-V3",):  # with its two groups of experts, of which one is chosen, the largest two are not what is taken
        load = torch.bincount(logits.topk(2).indices.flatten(), minlength=4).double()
    else:
        group = logits.sigmoid().view(-1, 2, 2).sum(-1).argmax(-1)
        load = torch.bincount(torch.stack([2 * group, 2 * group + 1]).flatten(), minlength=4).double()
    assert scalars[f"router/layers.{layer}/load_max"] == pytest.approx((load / load.sum()).max().item())
    assert scalars["router/change"] == 0


@pytest.mark.parametrize("name", ["Mixtral", "Qwen3-MoE"])
def test_the_tokens_of_a_concept_and_the_change_are_those_counted_by_hand(name):
    model, probe, layer = model_of(name), tiny_batch(9), 2
    dictionary = tiny_dictionary(D=32, F=40, activation="relu", dtype=torch.float64)
    keep = counted_tokens(probe["input_ids"], probe["attention_mask"], probe["labels"]).flatten()
    h = read_activations(model, ["layers.0"], probe)["layers.0"].flatten(0, 1)[keep]
    mine = (dictionary.encode(h)[:, [3, 7]] > 0).any(-1)
    assert 0 < mine.sum() < len(mine)

    def loads():
        idx = by_hand(model, layer, probe).topk(2).indices
        share = lambda rows: torch.bincount(rows.flatten(), minlength=4).double() / rows.numel()  # noqa: E731
        return share(idx), share(idx[mine])

    before, concept_before = loads()
    _, recorder, events, _ = run(model, [tiny_batch(0), tiny_batch(1)], {"c": {"layers.0": [3, 7]}})
    now, concept_now = loads()
    assert not torch.equal(before, now)  # something moved
    told, scalars = events[-1]["layers"]["layers.2"], recorder.records[-1]["scalars"]
    for key, value in {"load": now, "before": before}.items():
        assert told[key] == pytest.approx(value.tolist(), abs=1e-4)
    assert told["concepts"]["c"]["load"] == pytest.approx(concept_now.tolist(), abs=1e-4)
    assert told["concepts"]["c"]["before"] == pytest.approx(concept_before.tolist(), abs=1e-4)
    assert scalars["router/layers.2/change"] == pytest.approx(((now - before).abs().sum() / 2).item())
    assert {"router/change", "router/concept/c/focus", "router/concept/c/change"} <= set(scalars)
    assert sum(key.startswith("router/") for key in scalars) <= 3 + 2 + 3 * routers.SHOWN_LAYERS


def test_a_model_without_experts_has_no_routers_and_no_keys():
    model = tiny_model()
    assert routers.find_routers(model) == []
    _, recorder, events, _ = run(model.double(), [tiny_batch(0), tiny_batch(1)])
    assert not events and not any(key.startswith("router") for record in recorder.records for key in record["scalars"])


def test_mamba_convolutions_are_not_taken_for_experts():
    for name in ("Mamba", "Mamba 2", "Qwen 3.5"):
        assert routers.find_routers(model_of(name)) == []


def test_checkpointing_and_accumulation_count_every_token_once():
    scalars = {}
    for checkpointing in (False, True):
        model = model_of("Mixtral")
        if checkpointing:
            model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        recorder, optimizer = MemoryRecorder(), torch.optim.SGD(model.parameters(), lr=0.0)
        dictionary = tiny_dictionary(D=32, F=40, activation="relu", dtype=torch.float64)
        with Lens(model, optimizer, {"layers.1": dictionary}, observe=OBSERVE, recorder=recorder, probe=[tiny_batch(9)], steps=1) as lens:
            model.train()
            for seed in (0, 1):
                (model(**tiny_batch(seed), use_cache=False).loss / 2).backward()
            tokens = [sums[-1].item() for sums in lens.routers.sums()]
            optimizer.step()
        counted = sum(int(counted_tokens(b["input_ids"], b["attention_mask"], b["labels"]).sum()) for b in (tiny_batch(0), tiny_batch(1)))
        assert tokens == [counted] * 3
        scalars[checkpointing] = {key: value for key, value in recorder.records[-1]["scalars"].items() if key.startswith("router/")}
    assert scalars[False] == pytest.approx(scalars[True]) and scalars[False]


def test_readings_go_on_from_a_state():
    model = model_of("Mixtral")
    lens, *_ = run(model, [tiny_batch(0), tiny_batch(1)], {"c": {"layers.0": [3, 7]}})
    state = lens.state_dict()
    other = Lens(model, lens.optimizer, {"layers.0": next(iter(lens.dictionaries.values()))}, observe=OBSERVE, probe=[tiny_batch(9)])
    other.load_state_dict(state)
    assert all(torch.equal(load, lens.learning.routed_start.load[name]) for name, load in other.learning.routed_start.load.items())


def test_the_pure_functions():
    p = torch.tensor([[0.25, 0.25, 0.25, 0.25], [1.0, 0.0, 0.0, 0.0]])
    assert routers.entropy(p).tolist() == pytest.approx([1.0, 0.0])
    counts = routers.assignments(torch.tensor([[0, 1], [0, 2], [3, 3]]), torch.tensor([1.0, 1.0, 0.0]), 4)
    assert counts.tolist() == [2, 1, 1, 0] and routers.share(counts).tolist() == [0.5, 0.25, 0.25, 0.0]
    assert routers.distance(torch.tensor([1.0, 0.0]), torch.tensor([0.25, 0.75])) == pytest.approx(0.75)
    assert routers.probabilities(torch.tensor([[0.0, 0.0]]), "sigmoid").tolist() == [[0.5, 0.5]]


def test_the_summary_tells_of_the_busiest_expert_and_of_those_that_concepts_use():
    entry = {
        "experts": [0, 1],
        "load": [0.7, 0.3],
        "before": [0.6, 0.4],
        "concepts": {"pirate": {"load": [0.2, 0.8], "before": [0.5, 0.5]}},
    }
    even = {"experts": [0, 1], "load": [0.5, 0.5], "before": [0.5, 0.5], "concepts": {"pirate": {"load": [0.5, 0.5], "before": [0.5, 0.5]}}}
    scalars = {"router/change": (np.array([4]), np.array([0.05]))}
    events = [
        {"kind": "routers", "step": 2, "layers": {"layers.1": even}},
        {"kind": "routers", "step": 4, "layers": {"layers.1": even, "layers.2": entry}},
    ]
    found = routing(events, scalars)
    assert found["step"] == 4 and found["busiest"] == {"layer": "layers.2", "expert": 0, "load": 0.7, "before": 0.6}
    lines = routing_in_words(found)
    assert lines[0].endswith("number 0 of layers.2 with 70% (60% before); 5% of all assignments moved since the start")
    assert lines[1].strip() == "pirate: number 1 of layers.2 takes 80% of its tokens' (50% before), 30% of all"
    assert routing([], {}) is None


def test_a_router_within_another_module_is_found_and_one_that_is_not_known_is_told_of(monkeypatch):
    from transformers import HunYuanMoEV1Config, HunYuanMoEV1ForCausalLM

    torch.manual_seed(0)
    config = HunYuanMoEV1Config(
        vocab_size=96, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2, head_dim=8,
        num_experts=4, moe_topk=2, moe_intermediate_size=16, use_mixed_mlp_moe=False, pad_token_id=0, attn_implementation="eager",
    )  # fmt: skip
    model = HunYuanMoEV1ForCausalLM(config)
    found = routers.find_routers(model)
    assert [(router.experts, router.per_token) for router in found] == [(4, 2)] * 2 and routers.unread_blocks(model, found) == []
    monkeypatch.setattr(routers, "experts_per_token", lambda config: 0)  # a config that does not say how many: no guess
    assert routers.find_routers(model) == [] and routers.unread_blocks(model, []) == ["layers.0", "layers.1"]
    recorder, optimizer = MemoryRecorder(), torch.optim.SGD(model.parameters(), lr=0.5)
    with Lens(model, optimizer, {"layers.0": tiny_dictionary(D=32)}, observe=OBSERVE, recorder=recorder):
        pass
    (told,) = [event for event in recorder.events if event["kind"] == "not_read"]
    assert "layers.0, layers.1: experts" in told["reason"]

"""From names to places in models: parts of blocks by structure, inputs of modules, names of other tools, what is refused."""

import pytest
import torch
from conftest import read_positions, tiny_batch, tiny_dictionary, tiny_model
from torch import nn
from transformers import Gemma2Config, Gemma2ForCausalLM, GPT2Config, GPT2LMHeadModel, GPTNeoXConfig, GPTNeoXForCausalLM

from gradlens.config import ObserveSettings
from gradlens.control.rules import Policy, Rule
from gradlens.dictionaries.dictionary import Dictionary
from gradlens.errors import InputError
from gradlens.lens import Lens
from gradlens.model.capture import read_activations
from gradlens.model.hookpoints import blocks, canonical, find_hookpoint, same_place
from gradlens.recording.recorder import MemoryRecorder

QUIET = ObserveSettings(own_prompts=0, reference=None)
HEADS = {"num_attention_heads": 4, "num_hidden_layers": 3, "hidden_size": 32, "vocab_size": 96}


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("15", "layers.15"),
        ("model.layers.15", "layers.15"),
        ("transformer.h.3.mlp", "layers.3.mlp"),
        ("blocks.15.hook_resid_post", "layers.15"),
        ("blocks.15.hook_resid_pre", "layers.14"),
        ("blocks.0.hook_resid_pre", "layers.0.in"),
        ("blocks.2.hook_resid_mid", "layers.2.resid_mid"),
        ("blocks.2.hook_mlp_out", "layers.2.mlp_out"),
        ("blocks.2.hook_attn_out", "layers.2.attn_out"),
        ("blocks.2.attn.hook_z", "layers.2.self_attn.o_proj.in"),
        ("blocks.2.mlp.hook_in", "layers.2.mlp.in"),
        ("blocks.2.mlp.hook_post", "layers.2.mlp.down_proj.in"),
        ("model.layers.15.output", "layers.15"),
        ("model.layers.15.output[0]", "layers.15"),
        ("model.layers.15.mlp.input", "layers.15.mlp.in"),
        ("transformer.h.1.inputs[0][0]", "layers.1.in"),
        ("vision_tower.encoder.layers.3", "vision_tower.encoder.layers.3"),
        ("some.module", "some.module"),
    ],
)
def test_names_of_other_tools(name, expected):
    assert canonical(name) == expected


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("blocks.2.hook_q", "these are known: hook_resid_pre"),
        ("blocks.2.ln2.hook_normalized", r"divide the rows of W_enc"),
    ],
)
def test_names_without_a_tensor_are_refused(name, message):
    with pytest.raises(InputError, match=message):
        canonical(name)


# --- inputs of modules ---


def test_the_input_of_a_module_is_read_where_it_is():
    model, batch = tiny_model(), tiny_batch()
    kept = {}
    inner = model.model.layers[2]
    handles = [
        inner.mlp.register_forward_pre_hook(lambda m, a: kept.update(mlp=a[0])),
        inner.self_attn.register_forward_pre_hook(lambda m, a, k: kept.update(attn=k["hidden_states"]), with_kwargs=True),
        inner.self_attn.o_proj.register_forward_pre_hook(lambda m, a: kept.update(z=a[0])),
    ]
    names = ["layers.2.mlp.in", "layers.2.self_attn.in", "blocks.2.attn.hook_z", "layers.2.in", "layers.1", "layers.0.in"]
    read = read_activations(model, names, batch)
    for handle in handles:
        handle.remove()
    assert torch.equal(read["layers.2.mlp.in"], kept["mlp"]) and torch.equal(read["layers.2.self_attn.in"], kept["attn"])
    assert torch.equal(read["layers.2.self_attn.o_proj.in"], kept["z"])
    assert torch.equal(read["layers.2.in"], read["layers.1"])
    assert torch.equal(read["layers.0.in"], model.get_input_embeddings()(batch["input_ids"]))


@pytest.mark.parametrize("hookpoint", ["layers.2.mlp.in", "layers.2.self_attn.in", "layers.2.in", "layers.1.mlp.down_proj.in"])
def test_gradients_at_inputs_are_those_of_autograd(hookpoint):
    model, batch = tiny_model(dtype=torch.float64), tiny_batch()
    width = 48 if "down" in hookpoint else 32
    dictionary = tiny_dictionary(D=width, dtype=torch.float64)
    kept = {}
    handle = find_hookpoint(model, hookpoint).watch(lambda h: kept.update(h=h) or h.retain_grad())
    model(**batch).loss.backward()
    handle.remove()
    model.zero_grad()
    read = read_positions(batch)
    h, g = kept["h"].detach()[read], kept["h"].grad[read]
    expected = -(dictionary.encode(h) * (g @ dictionary.W_dec.T)).sum(0)
    recorder, optimizer = MemoryRecorder(), torch.optim.SGD(model.parameters(), lr=0.1)
    with Lens(model, optimizer, {hookpoint: dictionary}, observe=QUIET, recorder=recorder, probe=[batch]) as lens:
        model.train()
        model(**batch).loss.backward()
        optimizer.step()
    assert torch.allclose(lens.totals[hookpoint]["attribution"], expected, rtol=1e-9, atol=1e-12) and expected.abs().max() > 0


@pytest.mark.parametrize("mode", ["ablate", "grad"])
def test_rules_act_at_inputs(mode):
    model, batch, hookpoint = tiny_model(dtype=torch.float64), tiny_batch(), "layers.2.mlp.in"
    dictionary = tiny_dictionary(dtype=torch.float64)
    policy = Policy(version=1, rules=(Rule(mode=mode, features={hookpoint: [0, 1]}, gain=0.0),))
    lens = Lens(
        model, torch.optim.SGD(model.parameters(), lr=0.1), {hookpoint: dictionary}, observe=QUIET, policy=policy, probe=[batch],
        recorder=MemoryRecorder(),
    )  # fmt: skip
    Q = torch.linalg.qr(dictionary.W_dec[:2].T).Q
    seen = {}
    with lens:
        model.train()
        # the MLP's first matrix takes in the same tensor, after the lens has seen it
        handle = model.model.layers[2].mlp.gate_proj.register_forward_pre_hook(
            lambda m, a: seen.update(ablate=a[0].detach()) or a[0].register_hook(lambda g: seen.update(grad=g)) and None
        )
        model(**batch).loss.backward()
        handle.remove()
    assert (seen[mode] @ Q).abs().max() < 1e-10
    assert (seen["grad" if mode == "ablate" else "ablate"] @ Q).abs().max() > 1e-6  # the other one is as it was


# --- parts of blocks ---


def gpt2():
    torch.manual_seed(0)
    return GPT2LMHeadModel(GPT2Config(n_embd=32, n_head=4, n_layer=3, vocab_size=96, n_positions=64)).eval()


def gemma2():
    torch.manual_seed(0)
    return Gemma2ForCausalLM(Gemma2Config(**HEADS, num_key_value_heads=2, head_dim=8, intermediate_size=48)).eval()


def neox(parallel):
    torch.manual_seed(0)
    return GPTNeoXForCausalLM(GPTNeoXConfig(**HEADS, intermediate_size=48, use_parallel_residual=parallel)).eval()


def test_parts_go_by_one_name_in_every_architecture():
    model = gpt2()
    block = model.transformer.h[1]
    for name, module in {
        "layers.1.self_attn": block.attn,
        "layers.1.self_attn.o_proj.in": block.attn.c_proj,
        "layers.1.mlp.down_proj": block.mlp.c_proj,
        "layers.1.mlp_out": block.mlp,
        "layers.1.attn_out": block.attn,
        "layers.1.resid_mid": block.ln_2,
    }.items():
        assert find_hookpoint(model, name).module is module, name
    assert same_place(model, "blocks.1.hook_mlp_out", "layers.1.mlp") and not same_place(model, "layers.1.mlp", "layers.1.mlp.in")
    assert not same_place(model, "layers.1", "layers.40")


def test_what_a_part_adds_follows_from_the_data():
    """In Gemma a norm stands between the MLP and the residual stream: what is added is its output."""
    model, batch = gemma2(), tiny_batch()
    block = model.model.layers[1]
    norms = {"mlp_out": "post_feedforward_layernorm", "attn_out": "post_attention_layernorm", "resid_mid": "pre_feedforward_layernorm"}
    for name, norm in norms.items():
        assert find_hookpoint(model, f"layers.1.{name}").module is getattr(block, norm)
    read = read_activations(model, ["layers.0", "layers.1", "layers.1.attn_out", "layers.1.mlp_out", "layers.1.resid_mid"], batch)
    assert torch.allclose(read["layers.0"] + read["layers.1.attn_out"], read["layers.1.resid_mid"], atol=1e-6)
    assert torch.allclose(read["layers.1.resid_mid"] + read["layers.1.mlp_out"], read["layers.1"], atol=1e-6)


def test_a_parallel_block_has_no_stream_between_its_parts():
    with pytest.raises(InputError, match=r"layers\.1 computes its mixer and its MLP side by side"):
        find_hookpoint(neox(True), "layers.1.resid_mid")
    serial = neox(False)
    assert find_hookpoint(serial, "layers.1.resid_mid").module is serial.gpt_neox.layers[1].post_attention_layernorm


class Odd(nn.Module):
    """A block of classes that nobody has heard of."""

    def __init__(self, *names: str) -> None:
        super().__init__()
        self.rms_norm = nn.LayerNorm(8)
        for name in names:
            self.add_module(name, nn.Sequential(nn.Linear(8, 8)))


def odd_model(*names):
    model = nn.Module()
    model.trunk = nn.ModuleList([Odd(*names) for _ in range(3)])
    model.vision_tower = nn.Module()
    model.vision_tower.layers = nn.ModuleList([nn.Linear(2, 2) for _ in range(9)])
    return model


def test_unknown_blocks_are_taken_by_order_or_by_module_path():
    model = odd_model("alpha", "beta")
    assert blocks(model) is model.trunk
    assert find_hookpoint(model, "layers.2").module is model.trunk[2]
    assert find_hookpoint(model, "layers.2.self_attn").module is model.trunk[2].alpha
    assert find_hookpoint(model, "layers.2.mlp.in").module is model.trunk[2].beta
    assert find_hookpoint(model, "trunk.2.beta.0").module is model.trunk[2].beta[0]
    assert find_hookpoint(model, "vision_tower.layers.8").module is model.vision_tower.layers[8]


def test_what_cannot_be_told_is_refused_with_the_parts():
    with pytest.raises(InputError, match=r"layers\.0 has no part that is its MLP; its parts: layers\.0\.a \(Sequential\), .*0\.c"):
        find_hookpoint(odd_model("a", "b", "c"), "layers.0.mlp")
    with pytest.raises(InputError, match=r"hookpoint layers\.7: the model has blocks layers\.0 to layers\.2"):
        find_hookpoint(odd_model("a", "b"), "layers.7")


def test_a_tensor_that_is_not_one_vector_a_token_is_refused():
    model, batch = tiny_model(), tiny_batch()
    model.train()
    for name, width, message in [
        ("layers.1.mlp.gate_proj", 32, r"dictionary at layers\.1\.mlp\.gate_proj: its width is 32, the tensor there has 48"),
        ("rotary_emb", 8, r"hookpoint rotary_emb: .*"),
    ]:
        dictionary: Dictionary = tiny_dictionary(D=width)
        lens = Lens(model, torch.optim.SGD(model.parameters(), lr=0.1), {name: dictionary}, observe=QUIET, probe=[batch])
        with pytest.raises(InputError, match=message):
            lens.__enter__()


def test_a_stream_of_several_tensors_is_refused_with_the_places_that_can_be_read():
    class Streams(torch.nn.Module):  # as Gemma 3n's blocks put out
        def forward(self, hidden_states, *args, **kwargs):
            return torch.stack([hidden_states, hidden_states])

    model = tiny_model()
    model.model.layers[3] = Streams()
    model.model.norm = torch.nn.Identity()
    batch = {"input_ids": torch.arange(8).view(2, 4), "attention_mask": torch.ones(2, 4, dtype=torch.long)}
    with pytest.raises(InputError, match=r"layers.3: the tensor there has shape \[2, 2, 4, 32\] for \[2, 4\] tokens.*NAME.mlp"):
        read_activations(model, ["layers.3"], batch)

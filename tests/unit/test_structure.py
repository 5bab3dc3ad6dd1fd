"""Blocks of unusual make: what is there is named, and what is not is refused, never read as something else."""

import pytest
import torch
import transformers
from conftest import tiny_batch, tiny_dictionary
from torch import nn

from gradlens.config import LoraSettings, ObserveSettings
from gradlens.errors import ConfigError, InputError
from gradlens.lens import Lens
from gradlens.model.capture import read_activations
from gradlens.model.hookpoints import blocks, find_hookpoint
from gradlens.model.loading import apply_lora
from gradlens.model.trainable import check_trainable
from gradlens.model.writers import find_writers
from gradlens.readings.routers import find_routers
from gradlens.recording.recorder import MemoryRecorder
from gradlens.world import current_world

TOKENS = {"vocab_size": 96, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
USUAL = {**TOKENS, "hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4, "intermediate_size": 48}


def build(kind: str, **config) -> nn.Module:
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(getattr(transformers, kind)(**config)).double().eval()
    for parameter in model.parameters():  # norms are ones at first: nothing must hang on that
        if parameter.dim() == 1:
            parameter.data += 0.1 * torch.randn_like(parameter)
    return model


def bloom() -> nn.Module:
    return build("BloomConfig", **TOKENS, hidden_size=32, n_layer=3, n_head=4)


def falcon() -> nn.Module:
    return build("FalconConfig", **TOKENS, hidden_size=32, num_hidden_layers=3, num_attention_heads=4, new_decoder_architecture=False)


def inputs() -> dict[str, torch.Tensor]:
    return {name: value for name, value in tiny_batch().items() if name != "labels"}


def test_a_part_that_puts_out_the_stream_itself_is_not_what_is_added():
    model = bloom()
    with pytest.raises(
        InputError, match=r"layers.1.self_attention \(BloomAttention\) puts out the residual stream.*read layers.1.resid_mid$"
    ):
        find_hookpoint(model, "layers.1.attn_out")
    with pytest.raises(InputError, match=r"BloomMLP.*read layers.1$"):
        find_hookpoint(model, "blocks.1.hook_mlp_out")
    read = read_activations(model, ["layers.1.self_attn", "layers.1.resid_mid"], inputs())
    torch.testing.assert_close(read["layers.1.self_attn"], read["layers.1.resid_mid"])


def test_a_tensor_that_is_written_into_after_it_was_read_is_refused():
    model = falcon()
    with pytest.raises(InputError, match="layers.1.mlp: the model adds to this tensor in place"):
        read_activations(model, ["layers.1.mlp", "layers.2"], inputs())
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    observe = ObserveSettings(own_prompts=0, reference=None, update_every=0)
    dictionary = tiny_dictionary(dtype=torch.float64)
    lens = Lens(model, optimizer, {"layers.1.mlp": dictionary}, observe=observe, recorder=MemoryRecorder(), probe=[tiny_batch()])
    with pytest.raises(InputError, match="in place"), lens:
        pass


def test_a_block_that_puts_out_a_list_is_read_and_edited():
    model = build("OpenAIGPTConfig", **TOKENS, n_embd=32, n_head=4, n_layer=3, n_positions=64)
    expected = model(**inputs(), output_hidden_states=True).hidden_states[2]
    torch.testing.assert_close(read_activations(model, ["layers.1"], inputs())["layers.1"], expected)
    handle = find_hookpoint(model, "layers.1").watch(torch.zeros_like)
    assert read_activations(model, ["layers.2.in"], inputs())["layers.2.in"].abs().max() == 0
    handle.remove()


def test_a_list_of_modules_is_no_hookpoint():
    model = build("BloomConfig", **TOKENS, hidden_size=32, n_layer=3, n_head=4)
    blocks(model)[1].pair = nn.ModuleList([nn.Linear(32, 32), nn.Linear(32, 32)])
    with pytest.raises(InputError, match="a list of modules.*layers.1.pair.0, layers.1.pair.1"):
        find_hookpoint(model, "layers.1.pair")


@pytest.mark.parametrize(
    ("kind", "config", "words"),
    [
        ("DogeConfig", USUAL, r"layers.0 \(DogeDecoderLayer\) changes it by input_residual"),
        ("OpenAIGPTConfig", {**TOKENS, "n_embd": 32, "n_head": 4, "n_layer": 3, "n_positions": 64}, r"layers.0 \(Block\) changes it"),
    ],
)
def test_blocks_that_do_more_than_add_are_refused_by_rules_on_parameters(kind, config, words):
    with pytest.raises(ConfigError, match=words):
        find_writers(build(kind, **config))


def test_what_is_frozen_in_a_block_does_not_stand_in_the_way():
    model = build("DogeConfig", **USUAL)
    for block in blocks(model):
        for parameter in block.parameters(recurse=False):
            parameter.data.fill_(0.5)  # one number for the whole stream
            parameter.requires_grad_(False)
    assert find_writers(model)


def test_lora_adapts_layers_in_a_list_by_their_path_not_by_a_number():
    model = build("CTRLConfig", **TOKENS, n_embd=32, n_head=4, n_layer=3, n_positions=64, dff=48)
    adapted = apply_lora(model, LoraSettings(r=2))
    names = {name.partition(".lora_")[0].partition(".h.0.")[2] for name, p in adapted.named_parameters() if p.requires_grad} - {""}
    assert names == {"ffn.0", "ffn.2", *(f"multi_head_attention.{part}" for part in ("Wq", "Wk", "Wv", "dense"))}


def test_the_router_of_llama_4():
    more = {"head_dim": 8, "intermediate_size_mlp": 48, "num_local_experts": 4, "num_experts_per_tok": 2, "interleave_moe_layer_step": 1}
    model = build("Llama4TextConfig", **USUAL, num_key_value_heads=2, **more)
    router = find_routers(model)[1]
    seen = {}
    router.module.register_forward_hook(lambda module, args, output: seen.update(x=args[0], output=output))
    model(**inputs())
    from gradlens.readings.routers import _taken_apart

    logits_TE, idx_TK, _ = _taken_apart(seen["output"], router.per_token)
    torch.testing.assert_close(logits_TE, seen["x"] @ router.module.weight.T)
    assert torch.equal(idx_TK.sort().values, logits_TE.topk(2).indices.sort().values)
    assert (router.experts, router.per_token, router.scoring) == (4, 2, "sigmoid")


def test_models_that_are_no_decoders_are_refused():
    t5 = transformers.T5ForConditionalGeneration(
        transformers.T5Config(vocab_size=96, d_model=32, d_ff=48, num_layers=2, num_heads=4, d_kv=8)
    )
    bert = transformers.BertForMaskedLM(transformers.BertConfig(**USUAL))
    for model, words in ((t5, "has an encoder and a decoder"), (bert, "predicts masked tokens")):
        with pytest.raises(ConfigError, match=words):
            check_trainable(model, torch.optim.SGD(model.parameters(), lr=0.1), current_world())

"""Every format of docs/dictionaries.md: recognised without options, and encoding and decoding as the original does.

The fixtures are written by tests/fixtures/make_dictionaries.py, by the original libraries where these can be installed.
"""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from gradlens.dictionaries.encoding import decode_active, encode_active
from gradlens.dictionaries.formats import load_dictionary

ROOT = Path(__file__).parents[1] / "fixtures" / "dictionaries"
GEMMA = "google/gemma-3-1b-pt"
GS2, TRAINER = "google/gemma-scope-2-1b-pt", "canrager/lm_sae/pythia70m_sweep/resid_post_layer_3/trainer_0"
PRE, POST = "pre_feedforward_layernorm", "post_feedforward_layernorm"
NORMALIZED = "blocks.3.ln2.hook_normalized"  # no tensor of a Hugging Face model: the name stays
# case -> (source, format, activation, where features act, where they are read if elsewhere, model)
CASES = {
    "gemma-scope-res": (
        "google/gemma-scope-2b-pt-res/layer_20/width_16k/average_l0_71", "gemma-scope", "jumprelu", "layers.20", (), "google/gemma-2-2b"),
    "gemma-scope-mlp": (
        "google/gemma-scope-9b-pt-mlp/layer_5/width_16k/average_l0_20/params.npz", "gemma-scope", "jumprelu", "layers.5.mlp_out", (),
        "google/gemma-2-9b"),
    "gemma-scope-embedding": (
        "google/gemma-scope-2b-pt-res/embedding/width_4k/average_l0_6", "gemma-scope", "jumprelu", "embed_tokens", (), "google/gemma-2-2b"),
    "gemma-scope-transcoder": (
        "google/gemma-scope-2b-pt-transcoders/layer_3/width_16k/average_l0_5", "gemma-scope", "jumprelu", "layers.3.mlp_out", (NORMALIZED,),
        "google/gemma-2-2b"),
    "gemma-scope-2-resid": (f"{GS2}/resid_post/layer_7_width_16k_l0_small", "gemma-scope-2", "jumprelu", "layers.7", (), GEMMA),
    "gemma-scope-2-attn": (
        f"{GS2}/attn_out/layer_7_width_16k_l0_small", "gemma-scope-2", "jumprelu", "layers.7.self_attn.o_proj.in", (), GEMMA),
    "gemma-scope-2-transcoder": (
        f"{GS2}/transcoder/layer_7_width_16k_l0_small", "gemma-scope-2", "jumprelu", f"layers.7.{POST}", (f"layers.7.{PRE}",),
        GEMMA),
    "gemma-scope-2-affine": (
        f"{GS2}/transcoder_all/layer_7_width_16k_l0_small_affine", "gemma-scope-2", "jumprelu", f"layers.7.{POST}", (f"layers.7.{PRE}",),
        GEMMA),
    "gemma-scope-2-no-config": (
        f"{GS2}/mlp_out/layer_7_width_16k_l0_small", "gemma-scope-2", "jumprelu", f"layers.7.{POST}", (), GEMMA),
    "gemma-scope-2-crosscoder": (
        f"{GS2}/crosscoder/layer_7_13_17_22_width_65k_l0_medium#1:2", "gemma-scope-2", "jumprelu", "layers.17", ("layers.13",),
        GEMMA),
    "gemma-scope-2-clt": (
        f"{GS2}/clt/width_262k_l0_medium_affine/params_layer_1.safetensors", "gemma-scope-2", "jumprelu", f"layers.1.{POST}",
        (f"layers.1.{PRE}",), GEMMA),
    "goodfire": ("Goodfire/Llama-3.1-8B-Instruct-SAE-l19", "goodfire", "relu", "layers.19", (), "meta-llama/Llama-3.1-8B-Instruct"),
    "llama-scope": (
        "fnlp/Llama3_1-8B-Base-LXR-8x/Llama3_1-8B-Base-L15R-8x", "llama-scope", "jumprelu", "layers.15", (), "meta-llama/Llama-3.1-8B"),
    "llama-scope-r1": (
        "fnlp/Llama-Scope-R1-Distill/400M-Slimpajama-400M-OpenR1-Math-220k/L9R", "llama-scope", "jumprelu", "layers.9", (), None),
    "qwen-scope": ("Qwen/SAE-Res-Qwen3-1.7B-Base-W32K-L0_5/layer6.sae.pt", "qwen-scope", "topk", "layers.6", (), "Qwen/Qwen3-1.7B-Base"),
    "sparsify-sae": ("EleutherAI/sae-pythia-70m-32k/layers.2", "sparsify", "topk", "layers.2", (), None),
    "sparsify-gpt2": ("EleutherAI/sae-gpt2/h.4/sae.safetensors", "sparsify", "topk", "layers.4", (), None),
    "sparsify-transcoder": (
        "EleutherAI/SmolLM2-135M-transcoder/layers.1.mlp", "sparsify", "topk", "layers.1.mlp", ("layers.1.mlp.in",), None),
    "sparsify-skip": (
        "EleutherAI/skip-transcoder-32x/model.layers.18.mlp", "sparsify", "topk", "layers.18.mlp", ("layers.18.mlp.in",), None),
    "sparsify-groupmax": ("someone/groupmax/layers.0", "sparsify", "groupmax", "layers.0", (), None),
    **{
        f"dictionary_learning-{name}": (TRAINER, "dictionary_learning", activation, "layers.3", (), "EleutherAI/pythia-70m-deduped")
        for name, activation in {
            "AutoEncoder": "relu", "AutoEncoderNew": "relu", "GatedAutoEncoder": "gated", "JumpReluAutoEncoder": "jumprelu",
            "AutoEncoderTopK": "topk", "BatchTopKSAE": "batchtopk", "MatryoshkaBatchTopKSAE": "batchtopk",
        }.items()
    },
    **{
        f"dictionary_learning-interrupted-{name}": ("run/trainer_1/ae.pt", "dictionary_learning", activation, "layers.1", (), "tiny-model")
        for name, activation in {"BatchTopKSAE": "batchtopk", "JumpReluAutoEncoder": "jumprelu", "GatedAutoEncoder": "gated"}.items()
    },
    "circuit-tracer-plt": (
        "mwhanna/qwen3-0.6b-transcoders/layer_1.safetensors", "circuit-tracer", "relu", "layers.1.mlp_out", ("layers.1.mlp.in",),
        "Qwen/Qwen3-0.6B"),
    "circuit-tracer-plt-skip": (
        "mwhanna/qwen3-0.6b-transcoders#1", "circuit-tracer", "jumprelu", "layers.1.mlp_out", ("layers.1.mlp.in",), "Qwen/Qwen3-0.6B"),
    "circuit-tracer-clt": (
        "mntss/clt-gemma-2-2b#0:2", "circuit-tracer", "relu", "layers.2.mlp_out", ("layers.0.resid_mid",), "google/gemma-2-2b"),
    "circuit-tracer-clt-jumprelu": (
        "mntss/clt-gemma-2-2b/W_enc_0.safetensors#0:2", "circuit-tracer", "jumprelu", "layers.2.mlp_out", ("layers.0.resid_mid",),
        "google/gemma-2-2b"),
    "llamascopium-jumprelu": ("OpenMOSS-Team/Qwen3-1.7B-SAE/L4R", "llamascopium", "jumprelu", "layers.4", (), None),
    "llamascopium-topk": ("OpenMOSS-Team/Qwen3-1.7B-SAE/L4R", "llamascopium", "topk", "layers.4", (), None),
    "llamascopium-relu-plain": ("OpenMOSS-Team/Qwen3-1.7B-SAE/L4R", "llamascopium", "relu", "layers.4", (), None),
    "llamascopium-transcoder": (
        "OpenMOSS-Team/Qwen3-1.7B-SAE/L4R", "llamascopium", "topk", "layers.4.mlp_out", ("blocks.4.ln2.hook_normalized",), None),
    "openai-topk": (
        "sparse-autoencoder/gpt2-small/resid_post_mlp_v5_32k/autoencoders/8.pt", "openai", "topk", "layers.8", (), "openai-community/gpt2"),
    "openai-relu": (
        "sparse-autoencoder/gpt2-small/mlp_post_act/autoencoders/3.pt", "openai", "relu", "layers.3.mlp.down_proj.in", (),
        "openai-community/gpt2"),
    "crosscoder-batchtopk": ("science-of-finetuning/crosscoder#1", "crosscoder", "batchtopk", "", ("", "", ""), None),
    "crosscoder-relu": ("science-of-finetuning/crosscoder/model.safetensors#1", "crosscoder", "relu", "", ("", "", ""), None),
}  # fmt: skip


def test_every_fixture_has_its_case():
    assert {path.name for path in ROOT.iterdir()} == set(CASES)


@pytest.mark.parametrize("case", CASES)
def test_it_encodes_and_decodes_as_the_original_does(case):
    source, name, activation, hookpoint, hook_in, model = CASES[case]
    found, expected = load_dictionary(ROOT / case / source), load_file(ROOT / case / "expected.safetensors")
    assert (found.metadata["format"], found.activation) == (name, activation)
    assert (found.hookpoint, found.hook_in, found.metadata["model_name"]) == (hookpoint, hook_in, model)
    assert found.metadata["source"] == str(ROOT / case / source)
    x, acts = expected["x"], found.encode(expected["x"])
    close = lambda a, b: torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)  # noqa: E731
    close(acts, expected["feature_acts"])
    close(found.decode(acts, x), expected["out"])
    idx, val = encode_active(found, x)
    close(torch.zeros_like(acts).scatter_add(1, idx, val), expected["feature_acts"])
    close(decode_active(found, idx, val, x), expected["out"])


@pytest.mark.parametrize("case", ["sparsify-skip", "llama-scope", "dictionary_learning-BatchTopKSAE", "openai-topk", "gemma-scope-res"])
def test_moved_to_float64_it_still_is_the_original(case):
    found, expected = load_dictionary(ROOT / case / CASES[case][0], dtype=torch.float64), load_file(ROOT / case / "expected.safetensors")
    assert found.W_enc.dtype == torch.float64
    acts = found.encode(expected["x"].double())
    torch.testing.assert_close(acts.float(), expected["feature_acts"], rtol=1e-5, atol=1e-5)

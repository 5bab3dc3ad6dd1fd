"""The unembedding as a dictionary: tokens are ranked as by the model's own logits, whatever its last norm, and from files alone."""

import sys

import pytest
import torch
from conftest import tiny_model
from safetensors import safe_open
from safetensors.torch import save_file
from transformers import (
    Gemma2Config,
    Gemma2ForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    GPTNeoXConfig,
    GPTNeoXForCausalLM,
    NemotronHConfig,
    NemotronHForCausalLM,
)
from words import word_tokenizer

from gradlens.dictionaries.formats import load_dictionary
from gradlens.dictionaries.unembedding import K, from_unembedding
from gradlens.errors import InputError
from gradlens.model.capture import read_activations


def of_kind(kind):
    torch.manual_seed(0)
    if kind == "gpt2":  # a LayerNorm, tied
        model = GPT2LMHeadModel(GPT2Config(vocab_size=96, n_embd=32, n_layer=2, n_head=2, n_positions=64))
    elif kind == "gemma2":  # a norm that keeps its weight less one, tied
        config = Gemma2Config(vocab_size=96, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=2,
                              num_key_value_heads=1, head_dim=16, final_logit_softcapping=None)  # fmt: skip
        model = Gemma2ForCausalLM(config)
    elif kind == "gpt_neox":  # its files say embed_out where the model says lm_head
        config = GPTNeoXConfig(vocab_size=96, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=2)
        model = GPTNeoXForCausalLM(config)
    elif kind == "nemotron_h":  # its files say backbone where the model says model
        config = NemotronHConfig(vocab_size=96, hidden_size=32, intermediate_size=48, num_attention_heads=4, num_key_value_heads=2,
                                 head_dim=8, layers_block_type=["mamba", "attention"], mamba_num_heads=8, mamba_head_dim=8,
                                 n_groups=2, ssm_state_size=8, chunk_size=4)  # fmt: skip
        model = NemotronHForCausalLM(config)
    else:
        model = tiny_model(layers=2)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" in name or "ln_f.weight" in name:
                parameter.add_(torch.rand_like(parameter))
    return model.eval()


@pytest.mark.parametrize("kind", ["llama", "gpt2", "gemma2"])
def test_the_active_tokens_are_those_with_the_largest_logits(kind, tmp_path):
    model, tokenizer = of_kind(kind), word_tokenizer()
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    ids = torch.arange(5, 25)[None]
    dictionary = from_unembedding(model, tokenizer)
    h_TD = read_activations(model, ["layers.1"], {"input_ids": ids})["layers.1"][0]
    with torch.no_grad():
        logits_TV = model(input_ids=ids).logits[0]
    acts_TV = dictionary.encode(h_TD)
    assert (acts_TV > 0).sum(-1).max() <= K
    for acts, logits in zip(acts_TV, logits_TV, strict=True):
        fired = (acts > 0).sum()
        assert fired > 5 and acts.topk(fired).indices.tolist() == logits.topk(fired).indices.tolist()
    # a row of W_dec raises its own token's reading by one
    torch.testing.assert_close((dictionary.W_dec * dictionary.W_enc.T).sum(-1), torch.ones(len(tokenizer)))
    assert dictionary.metadata["labels"][7] == "' w7'"
    read = load_dictionary(f"unembedding:{tmp_path}")
    assert torch.equal(read.W_enc, dictionary.W_enc) and torch.equal(read.W_dec, dictionary.W_dec)
    assert read.metadata["labels"] == dictionary.metadata["labels"]


def same(found, expected):
    torch.testing.assert_close(found.W_enc, expected.W_enc)
    torch.testing.assert_close(found.W_dec, expected.W_dec)


def saved(kind, folder, key):
    """A model in a folder, one of whose files holds that key, and its dictionary as it is in memory."""
    model, tokenizer = of_kind(kind), word_tokenizer()
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    with safe_open(folder / "model.safetensors", "pt") as file:
        assert key in file.keys() and key not in dict(model.named_parameters())
    return model, from_unembedding(model, tokenizer)


@pytest.mark.parametrize(("kind", "key"), [("gpt_neox", "embed_out.weight"), ("nemotron_h", "backbone.norm_f.weight")])
def test_weights_that_are_renamed_on_loading_are_found_in_the_files(kind, key, tmp_path, monkeypatch):
    _, expected = saved(kind, tmp_path, key)
    monkeypatch.setattr("gradlens.model.loading.load_model", lambda name: pytest.fail("the whole model was loaded"))
    read = load_dictionary(f"unembedding:{tmp_path}")
    same(read, expected)


@pytest.mark.parametrize("way", ["a torch file", "another transformers"])
def test_weights_that_are_not_found_in_the_files_are_those_of_the_whole_model(way, tmp_path, monkeypatch):
    model, expected = saved("gpt_neox", tmp_path, "embed_out.weight")
    if way == "a torch file":
        (tmp_path / "model.safetensors").unlink()
        torch.save(model.state_dict(), tmp_path / "pytorch_model.bin")
    else:
        monkeypatch.setitem(sys.modules, "transformers.conversion_mapping", None)
    read = load_dictionary(f"unembedding:{tmp_path}")
    same(read, expected)


def test_an_unembedding_that_is_in_no_file_is_named(tmp_path):
    saved("gpt_neox", tmp_path, "embed_out.weight")
    with safe_open(tmp_path / "model.safetensors", "pt") as file:
        rest = {key: file.get_tensor(key) for key in file.keys() if key != "embed_out.weight"}
    save_file(rest, tmp_path / "model.safetensors", {"format": "pt"})
    with pytest.raises(InputError, match="1 weights are in no file, for instance lm_head.weight"):
        load_dictionary(f"unembedding:{tmp_path}")


@pytest.mark.parametrize(("source", "message"), [("unembedding:", "expected the name of a model"), ("unembedding:./nowhere", "no such")])
def test_a_model_that_is_not_there_is_named(source, message):
    with pytest.raises(InputError, match=message):
        load_dictionary(source)

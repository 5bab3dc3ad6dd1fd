"""Texts read on top of what was read of their beginnings, against the same texts read whole."""

import pytest
import torch
from conftest import tiny_dictionary, tiny_model
from transformers import (
    Gemma2Config,
    Gemma2ForCausalLM,
    Gemma3nForCausalLM,
    Gemma3nTextConfig,
    GPT2Config,
    GPT2LMHeadModel,
    GPTNeoConfig,
    GPTNeoForCausalLM,
    Lfm2Config,
    Lfm2ForCausalLM,
    MambaConfig,
    MambaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    Qwen3NextConfig,
    Qwen3NextForCausalLM,
    RecurrentGemmaConfig,
    RecurrentGemmaForCausalLM,
)

import gradlens.model.beginnings as beginnings
from gradlens.control.rewriter import Rewriter, Tokens
from gradlens.model.beginnings import Beginnings

SMALL = {"vocab_size": 96, "hidden_size": 32, "num_hidden_layers": 2, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
LIKE_LLAMA = SMALL | {"intermediate_size": 48, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8}
SHARED = {"layer_types": ["full_attention"] * 2, "num_kv_shared_layers": 1, "vocab_size_per_layer_input": 96, "sliding_window": 64}
MODELS = {
    "llama": tiny_model,
    "gpt2": lambda: GPT2LMHeadModel(GPT2Config(vocab_size=96, n_embd=32, n_layer=2, n_head=4, n_positions=64)),
    "gemma2": lambda: Gemma2ForCausalLM(Gemma2Config(**LIKE_LLAMA, sliding_window=64)),
    "mistral": lambda: MistralForCausalLM(MistralConfig(**LIKE_LLAMA, sliding_window=64)),
    "gpt_neo": lambda: gpt_neo(window=64),
    "gemma3n": lambda: Gemma3nForCausalLM(Gemma3nTextConfig(**LIKE_LLAMA, **SHARED)),
}
DELTA = {"linear_num_value_heads": 4, "linear_num_key_heads": 2, "linear_key_head_dim": 8, "linear_value_head_dim": 8}
RECURRENT = {"lru_width": 32, "head_dim": 8, "block_types": ["recurrent", "attention"], "num_attention_heads": 4, "intermediate_size": 48}
HYBRIDS = {  # attention beside states
    "lfm2": lambda: Lfm2ForCausalLM(Lfm2Config(**LIKE_LLAMA, layer_types=["conv", "full_attention"])),
    "qwen3_next": lambda: Qwen3NextForCausalLM(
        Qwen3NextConfig(**LIKE_LLAMA, **DELTA, layer_types=["linear_attention", "full_attention"], mlp_only_layers=[0, 1])
    ),
    "recurrent_gemma": lambda: RecurrentGemmaForCausalLM(RecurrentGemmaConfig(**SMALL, **RECURRENT)),  # its window holds 2048 tokens
}


def gpt_neo(window):
    heads = {"num_heads": 4, "num_layers": 2, "attention_types": [[["local", "global"], 1]], "max_position_embeddings": 64}
    return GPTNeoForCausalLM(GPTNeoConfig(vocab_size=96, hidden_size=32, window_size=window, **heads))


def texts(seed=0):
    """Some that begin alike, one that begins with the beginning of others, and one by itself; and where each rest starts."""
    random = torch.Generator().manual_seed(seed)

    def some(n):
        return torch.randint(3, 96, (n,), generator=random).tolist()

    first, second = some(9), some(5)
    longer = first + some(4)
    found = [(first, 3), (first, 5), (second, 4), (longer, 2), (longer, 6), (some(7), 1)]
    return [head + some(n) for head, n in found], [len(head) for head, _ in found]


def whole(model, text):
    with torch.no_grad():
        return model(input_ids=torch.tensor([text]), use_cache=False).logits[0]


@pytest.mark.parametrize("name", MODELS)
def test_rests_read_as_in_the_whole_text(name):
    torch.manual_seed(0)
    model = MODELS[name]().eval()
    read = []

    def run(batch):
        read.append(batch["input_ids"].numel())
        with torch.no_grad():
            model(**batch, use_cache=True)

    known = Beginnings(model, run)
    for seed in (0, 0, 1):
        said, starts = texts(seed)
        batch = known.rests(said, starts)
        with torch.no_grad():
            logits_BSV = model(**batch, use_cache=True).logits
        for number, (text, start) in enumerate(zip(said, starts, strict=True)):
            torch.testing.assert_close(logits_BSV[number, : len(text) - start], whole(model, text)[start:], rtol=1e-4, atol=1e-5)
    # 9 + 5 + 7 tokens padded, then 4 on top of the first 9; nothing the second time
    assert read == [27, 4, 27, 4]
    assert known.rests([[5, 6]], [0]) is None  # it has no beginning


def test_what_came_first_is_forgotten_beyond_the_limit(monkeypatch):
    model = tiny_model().eval()
    known = Beginnings(model, lambda batch: model(**batch, use_cache=True))
    per_token = 4 * 2 * 2 * 8 * 4  # blocks, keys and values, heads, d_head, bytes
    monkeypatch.setattr(beginnings, "KEPT", 12 * per_token)
    with torch.no_grad():
        for head in ([3, 4, 5, 6, 7], [8, 9, 10, 11, 12], [13, 14, 15, 16, 17]):
            assert known.rests([[*head, 18]], [5]) is not None
    assert list(known.known) == [(8, 9, 10, 11, 12), (13, 14, 15, 16, 17)]


def test_models_that_keep_other_states_and_short_windows_read_whole_texts():
    mamba = MambaForCausalLM(MambaConfig(**SMALL, state_size=4, intermediate_size=64, time_step_rank=4))
    assert Beginnings(mamba, None).rests([[5, 6, 7]], [2]) is None
    short = MistralForCausalLM(MistralConfig(**LIKE_LLAMA, sliding_window=4))
    assert Beginnings(short, None).rests([[5, 6, 7]], [2]) is None
    neo = Beginnings(gpt_neo(window=16), None)
    assert neo.able and neo.rests([list(range(5, 14))], [2]) is None  # with a gap between beginning and rest it may be twice as wide


@pytest.mark.parametrize("name", HYBRIDS)
def test_hybrids_read_whole_texts_and_rewrite(name, monkeypatch):
    torch.manual_seed(0)
    model, dictionary = HYBRIDS[name]().eval(), tiny_dictionary()
    assert Beginnings(model, None).rests([[5, 6, 7]], [2]) is None
    tokens = Tokens("layers.1", torch.randn(dictionary.d_sae).to(dictionary.work_dtype), -0.3)
    row = (torch.randint(3, 96, (20,)).tolist(), [place >= 6 for place in range(20)])
    made = Rewriter(model, {"layers.1": dictionary}, tokens, True).rewritten([row])
    assert len(made[0][0]) < 20


@pytest.mark.parametrize("seed", range(3))
def test_rows_are_rewritten_as_by_reading_them_whole(seed, monkeypatch):
    model, dictionary = tiny_model(seed), tiny_dictionary(seed)
    weights = torch.randn(dictionary.d_sae, generator=torch.Generator().manual_seed(seed))
    tokens = Tokens("layers.1", weights.to(dictionary.work_dtype), -0.3)
    random = torch.Generator().manual_seed(seed)
    rows = [(torch.randint(3, 96, (20,), generator=random).tolist(), [place >= 6 for place in range(20)]) for _ in range(6)]
    used = []
    monkeypatch.setattr(Beginnings, "rests", spied(Beginnings.rests, used))
    shared = Rewriter(model, {"layers.1": dictionary}, tokens, True).rewritten(rows)
    monkeypatch.setattr(Beginnings, "rests", lambda self, texts, starts: None)
    assert shared == Rewriter(model, {"layers.1": dictionary}, tokens, True).rewritten(rows)
    assert any(used) and any(len(made[0]) < 20 for made in shared)


def spied(method, used):
    def call(self, texts, starts):
        found = method(self, texts, starts)
        used.append(found is not None)
        return found

    return call

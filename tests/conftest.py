"""Small random models and dictionaries for tests: seconds, not minutes. Shape letters as in docs/architecture.md."""

import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("WANDB_MODE", "offline")
if "PYTEST_XDIST_WORKER_COUNT" in os.environ:  # several files at once: each has its share of the cores
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // int(os.environ["PYTEST_XDIST_WORKER_COUNT"]))))
    os.environ.setdefault("GOMP_SPINCOUNT", "1000")  # and what does not get a core does not wait for one that spins

import pytest
import torch

if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"  # before anything imports Triton, as transformers does
from transformers import LlamaConfig, LlamaForCausalLM

from gradlens.dictionaries.dictionary import Dictionary


def tiny_model(seed: int = 0, dtype: torch.dtype = torch.float32, layers: int = 4) -> LlamaForCausalLM:
    """A random Llama of width 32 with 4 blocks and 96 tokens."""
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=96, hidden_size=32, intermediate_size=48, num_hidden_layers=layers, num_attention_heads=4, num_key_value_heads=2,
        max_position_embeddings=64, pad_token_id=0, bos_token_id=1, eos_token_id=2, attn_implementation="eager",
    )  # fmt: skip
    return LlamaForCausalLM(config).to(dtype)


def tiny_dictionary(
    seed: int = 0, D: int = 32, F: int = 80, activation: str = "topk", dtype: torch.dtype = torch.float32, **extra
) -> Dictionary:
    """A random dictionary with distinct rows."""
    generator = torch.Generator().manual_seed(seed)
    randn = lambda *shape: torch.randn(*shape, generator=generator, dtype=dtype)  # noqa: E731
    if activation == "topk":
        extra.setdefault("k", 8)
    return Dictionary(randn(D, F), torch.zeros(F, dtype=dtype), randn(F, D), 0.001 * randn(D), activation=activation, **extra)


def tiny_batch(seed: int = 0, B: int = 3, S: int = 10) -> dict[str, torch.Tensor]:
    """Token ids with right padding of different length and a prompt part that the loss does not count."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(3, 96, (B, S), generator=generator)
    mask = torch.ones_like(ids)
    labels = ids.clone()
    for row in range(B):
        length = S - 2 * (row % 3)
        ids[row, length:], mask[row, length:], labels[row, length:] = 0, 0, -100
        labels[row, :4] = -100
    return {"input_ids": ids, "attention_mask": mask, "labels": labels}


def read_positions(batch: dict[str, torch.Tensor]) -> torch.Tensor:
    """Where gradients are read, `bool[B, S]`: at counted tokens and at what predicts them, but not at a row's first token."""
    real, counts = batch["attention_mask"].bool(), batch["labels"] != -100
    predicts = torch.cat([counts[:, 1:], torch.zeros_like(counts[:, :1])], 1)
    return real & (real.cumsum(-1) > 1) & (counts | predicts)


@pytest.fixture
def model() -> LlamaForCausalLM:
    return tiny_model()

"""What `gradlens bench overhead` measures: the job of a config, or a few blocks in the shape of a well-known model with random weights."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from gradlens.config import LoraSettings, ObserveSettings, RunConfig
from gradlens.control.rules import Rule, load_rules
from gradlens.data.rows import IGNORE, Mixture, collate, split
from gradlens.dictionaries.dictionary import Dictionary
from gradlens.dictionaries.formats import load_dictionary
from gradlens.errors import ConfigError
from gradlens.model.capture import read_activations
from gradlens.model.hookpoints import by_place
from gradlens.model.loading import apply_lora, load_model
from gradlens.model.reading import pad_id_of
from gradlens.recording.recorder import NullRecorder
from gradlens.training.rank import Rank, Shared
from gradlens.training.run_inputs import reference_batches, run_concepts, run_examples, run_policy
from gradlens.training.train import to_train

Progress = Callable[..., None]
Micro = list[tuple[dict[str, Tensor], list[int]]]  # micro-batches with their row ids
BLOCKS = 2  # of a shape; the dictionary is at the first, so that there is a gradient to read and a block to train behind it


@dataclass
class Job:
    """Everything that a training step with or without gradlens needs."""

    name: str
    model: nn.Module  # with what is trained marked
    dictionaries: dict[str, Dictionary]
    batch: Callable[[int], tuple[Micro, int]]  # step -> micro-batches, tokens that the loss counts
    observe: ObserveSettings
    rules: Sequence[Rule] = ()
    lens: dict[str, Any] = field(default_factory=dict)  # further arguments of `Lens`
    lr: float = 1e-4
    max_grad_norm: float | None = 1.0
    scale: float = 1.0  # how many times as long a step of the whole model takes: its layers by those that are here


def config_job(config: RunConfig, device: torch.device, name: str, progress: Progress | None = None) -> Job:
    """The job of a run config: its model, data, concepts, rules."""
    torch.manual_seed(config.train.seed)
    with tempfile.TemporaryDirectory() as folder:
        rank = Rank(config, Path(folder), NullRecorder(), device=device, shared=Shared())
        rank.phase = progress or rank.phase
        rank.phase("loading model")
        model, tokenizer = load_model(config.model.name, config.model.dtype, str(device))
        named = by_place(config.dictionaries, "dictionaries")
        dictionaries = {hook: load_dictionary(source, device=device) for hook, source in named.items()}
        sources, probe = run_examples(rank, tokenizer)
        concepts = run_concepts(rank, model, tokenizer, dictionaries, sources)
        policy, concepts = run_policy(rank, model, tokenizer, dictionaries, concepts, sources)
    reference = reference_batches(config.observe, tokenizer, config.data.max_length, device)
    mixture, pad = Mixture(sources, config.data.weights, config.train.batch_size, config.train.seed), pad_id_of(tokenizer)

    def batch(step: int) -> tuple[Micro, int]:
        examples = sorted(mixture.batch(step), key=lambda example: len(example.input_ids))
        counted = sum(label != IGNORE for example in examples for label in example.labels[1:])
        parts = split(examples, config.train.micro_batch_size)
        return [(_on(collate(part, pad), device), [example.row_id for example in part]) for part in parts], max(counted, 1)

    lens = {
        "probe": probe, "tokenizer": tokenizer, "reference": reference,
        "concepts": {concept.name: concept.features for concept in concepts},
        "thresholds": {concept.name: concept.thresholds for concept in concepts},
        "quorums": {concept.name: concept.quorum for concept in concepts},
        "detectors": {concept.name: concept.detectors for concept in concepts},
    }  # fmt: skip
    return Job(
        name, to_train(config, model, device).train(), dictionaries, batch, config.observe, policy.rules, lens,
        config.train.lr, config.train.max_grad_norm,
    )  # fmt: skip


@dataclass(frozen=True)
class Shape:
    """A model's block and a dictionary for it."""

    hidden: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    mlp: int
    d_sae: int
    activation: Literal["topk", "jumprelu"]
    l0: int  # active features of a token


_GEMMA = (2304, 26, 8, 4, 256, 9216)
_LLAMA = (4096, 32, 32, 8, 128, 14336)
SHAPES: dict[str, Shape] = {
    "smollm2-135m-18k": Shape(576, 30, 9, 3, 64, 1536, 18_432, "topk", 32),
    "gemma-2-2b-16k": Shape(*_GEMMA, 16_384, "jumprelu", 71),
    "gemma-2-2b-65k": Shape(*_GEMMA, 65_536, "jumprelu", 71),
    "llama-3.1-8b-32k": Shape(*_LLAMA, 32_768, "topk", 50),
    "llama-3.1-8b-131k": Shape(*_LLAMA, 131_072, "topk", 50),
    "qwen3-8b-65k": Shape(4096, 36, 32, 8, 128, 12288, 65_536, "topk", 50),
}


def shape_job(name: str, tokens: int, device: torch.device, dtype: torch.dtype | None = None) -> Job:
    """`BLOCKS` blocks of a shape with random weights and a LoRA adapter, read by a random dictionary, on rows of random tokens.

    `dtype`: of the weights; None: bfloat16 on a GPU, where such models are trained in it, else float32. The dictionary's thresholds are
    set so that a token has the shape's number of active features. Raises `ConfigError` for an unknown name.
    """
    from transformers import LlamaConfig, LlamaForCausalLM

    dtype = dtype or (torch.bfloat16 if device.type == "cuda" else torch.float32)
    if name not in SHAPES:
        raise ConfigError(f"--shape: unknown shape {name!r}; there is {', '.join(SHAPES)}")
    shape, generator = SHAPES[name], torch.Generator().manual_seed(0)
    torch.manual_seed(0)
    config = LlamaConfig(
        hidden_size=shape.hidden, num_hidden_layers=BLOCKS, num_attention_heads=shape.heads, num_key_value_heads=shape.kv_heads,
        head_dim=shape.head_dim, intermediate_size=shape.mlp, vocab_size=256, max_position_embeddings=4096,
    )  # fmt: skip
    with torch.device(device):
        model = apply_lora(LlamaForCausalLM(config).to(dtype), LoraSettings()).train()
    length = min(tokens, 256)
    rows = max(1, tokens // length)

    def batch(step: int) -> tuple[Micro, int]:
        ids = torch.randint(0, 256, (rows, length), generator=torch.Generator().manual_seed(step))
        whole = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": ids}
        return [(_on(whole, device), list(range(step * rows, (step + 1) * rows)))], rows * (length - 1)

    hookpoint = "layers.0"
    dictionary = _random_dictionary(shape, generator).to(device)
    first = {key: value[:1] for key, value in batch(0)[0][0][0].items()}
    h_TD = read_activations(model, [hookpoint], first)[hookpoint][0].float()
    if shape.activation == "jumprelu":
        some = torch.arange(0, shape.d_sae, max(1, shape.d_sae // 4096), device=device)
        below = round(len(h_TD) * len(some) * (1 - shape.l0 / shape.d_sae))
        dictionary.threshold.fill_(dictionary.preactivations(h_TD, some).flatten().kthvalue(below).values.item())
    return Job(
        f"{name} ({tokens} tokens)", model, {hookpoint: dictionary}, batch, ObserveSettings(own_prompts=0, reference=None, self_test=False),
        load_rules([Rule(concept="some", mode="route")]), {"concepts": {"some": {hookpoint: list(range(10))}}, "probe": [first]},
        scale=shape.layers / BLOCKS,
    )  # fmt: skip


def _random_dictionary(shape: Shape, generator: torch.Generator) -> Dictionary:
    D, F = shape.hidden, shape.d_sae
    W_dec = torch.randn(F, D, generator=generator)
    W_dec /= W_dec.norm(dim=-1, keepdim=True)
    extra = {"k": shape.l0} if shape.activation == "topk" else {"threshold": torch.zeros(F)}
    zeros, about = torch.zeros(F), {"l0": shape.l0}
    return Dictionary(W_dec.T.contiguous(), zeros, W_dec, torch.zeros(D), activation=shape.activation, metadata=about, **extra)


def _on(batch: dict[str, Tensor], device: torch.device) -> dict[str, Tensor]:
    return {key: value.to(device) for key, value in batch.items()}

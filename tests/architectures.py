"""Every architecture that gradlens is tested with: small random models, what works on each of them, and the table of docs/models.md.

`tests/unit/test_architectures.py` examines each and compares with the table; `python tests/architectures.py` writes the table anew.
Everything is in float64, so that an error stands out. Shape letters: B rows, S positions, V vocabulary, D d_model, F features.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

os.environ.setdefault("TRITON_INTERPRET", "1")  # before transformers imports Triton

import torch
import transformers
from conftest import read_positions
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, pad

from gradlens.config import LoraSettings, ObserveSettings
from gradlens.control.edits import orthonormal_basis, scale_along
from gradlens.control.rules import Policy, Rule
from gradlens.dictionaries.dictionary import Dictionary
from gradlens.errors import InputError
from gradlens.lens import Lens
from gradlens.model.capture import counted_tokens, read_activations, token_loss
from gradlens.model.hookpoints import blocks, find_hookpoint
from gradlens.model.loading import apply_lora
from gradlens.model.structure import kind_of, parts
from gradlens.model.writers import below, find_writers
from gradlens.readings import attribution as estimators
from gradlens.readings.routers import find_routers
from gradlens.recording.recorder import MemoryRecorder
from gradlens.training.train import LossFunction

D, V, AT = 32, 96, "layers.1"
LIMIT = 1e-5  # in units of the largest value
DOCS = Path(__file__).parent.parent / "docs" / "models.md"
BEGIN, END = "<!-- table: python tests/architectures.py -->", "<!-- end of table -->"
NAMES = ("self_attn", "mlp", "mlp.in", "attn_out", "mlp_out", "resid_mid")  # beside the output of a block


@dataclass(frozen=True)
class Architecture:
    name: str
    config: Callable[[], Any]
    second: int = 2  # where the model's own `hidden_states` hold what comes out of its second block


def _config(kind: str, drop: tuple[str, ...] = (), **more: Any) -> Callable[[], Any]:
    usual = {
        "vocab_size": V, "hidden_size": D, "num_hidden_layers": 3, "num_attention_heads": 4, "num_key_value_heads": 2,
        "intermediate_size": 48, "max_position_embeddings": 64, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
    }  # fmt: skip
    return lambda: getattr(transformers, kind)(**{key: value for key, value in (usual | more).items() if key not in drop})


_HEADS = ("num_key_value_heads",)
_NO_ATTENTION = ("num_attention_heads", "num_key_value_heads", "intermediate_size", "max_position_embeddings")
_MOE = {"num_experts": 4, "num_experts_per_tok": 2}
_LOCAL = {"num_local_experts": 4, "num_experts_per_tok": 2}
_DELTA = {
    "head_dim": 8, "layer_types": ["linear_attention", "full_attention", "linear_attention"], "linear_num_value_heads": 4,
    "linear_num_key_heads": 2, "linear_key_head_dim": 8, "linear_value_head_dim": 8, "linear_conv_kernel_dim": 2,
}  # fmt: skip
_SSM2 = {"mamba_n_heads": 4, "mamba_d_state": 8, "mamba_n_groups": 1, "mamba_chunk_size": 4, "mamba_d_conv": 2}
_DEEPSEEK = {
    "num_key_value_heads": 4, "n_routed_experts": 4, "num_experts_per_tok": 2, "n_group": 2, "topk_group": 1, "first_k_dense_replace": 1,
    "moe_intermediate_size": 16, "n_shared_experts": 1, "kv_lora_rank": 8, "q_lora_rank": 8, "qk_rope_head_dim": 4, "qk_nope_head_dim": 4,
    "v_head_dim": 8,
}  # fmt: skip
_NEMOTRON = {
    "hybrid_override_pattern": "M*E-", "head_dim": 8, "ssm_state_size": 8, "mamba_num_heads": 4, "mamba_head_dim": 16, "n_groups": 2,
    "chunk_size": 4, "conv_kernel": 2, "n_routed_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16,
    "moe_shared_expert_intermediate_size": 16, "n_group": 1, "topk_group": 1,
}  # fmt: skip
_JAMBA = {
    **_MOE, "attn_layer_period": 2, "attn_layer_offset": 1, "expert_layer_period": 2, "expert_layer_offset": 1, "mamba_d_state": 4,
    "mamba_d_conv": 2, "mamba_dt_rank": 4, "use_mamba_kernels": False,
}  # fmt: skip
_MAMBA = {"state_size": 4, "conv_kernel": 2, "time_step_rank": 4}
_MAMBA2 = {"state_size": 8, "head_dim": 16, "num_heads": 4, "n_groups": 2, "chunk_size": 4, "conv_kernel": 2}
_FALCON = {"new_decoder_architecture": True, "num_kv_heads": 2}
_LLAMA4 = {
    "head_dim": 8, "intermediate_size_mlp": 48, "num_local_experts": 4, "num_experts_per_tok": 2, "interleave_moe_layer_step": 2,
    "attention_chunk_size": 8,
}  # fmt: skip
_GRANITE4 = {
    "layer_types": ["mamba", "attention", "mamba"], "mamba_d_head": 16, "num_local_experts": 4, "num_experts_per_tok": 2,
    "shared_intermediate_size": 16,
}  # fmt: skip
_GPT2 = {"n_embd": D, "n_head": 4, "n_layer": 3, "n_positions": 64}
_GPT_NEO = {"num_layers": 3, "num_heads": 4, "attention_types": [[["global", "local", "global"], 1]]}

ARCHITECTURES = [
    Architecture("Llama", _config("LlamaConfig")),
    Architecture("Mistral", _config("MistralConfig", head_dim=8)),
    Architecture("Qwen 2", _config("Qwen2Config")),
    Architecture("Qwen 3", _config("Qwen3Config", head_dim=8)),
    Architecture("Gemma 2", _config("Gemma2Config", head_dim=8)),
    Architecture("Gemma 3", _config("Gemma3TextConfig", head_dim=8)),
    Architecture("GPT-2", _config("GPT2Config", _NO_ATTENTION, **_GPT2)),
    Architecture("GPT-Neo", _config("GPTNeoConfig", (*_HEADS, "num_attention_heads", "num_hidden_layers"), **_GPT_NEO)),
    Architecture("GPT-J", _config("GPTJConfig", (*_NO_ATTENTION, "hidden_size", "num_hidden_layers"), **_GPT2, rotary_dim=4)),
    Architecture("Bloom", _config("BloomConfig", (*_NO_ATTENTION, "num_hidden_layers"), n_head=4, n_layer=3)),
    Architecture("Falcon", _config("FalconConfig", (*_HEADS, "intermediate_size"), **_FALCON)),
    Architecture("GPT-NeoX (Pythia)", _config("GPTNeoXConfig", _HEADS)),
    Architecture("Phi", _config("PhiConfig", _HEADS)),
    Architecture("Phi 3", _config("Phi3Config")),
    Architecture("OLMo", _config("OlmoConfig")),
    Architecture("OLMo 2", _config("Olmo2Config")),
    Architecture("OLMo 3", _config("Olmo3Config", sliding_window=8)),
    Architecture("StableLM", _config("StableLmConfig", use_parallel_residual=True)),
    Architecture("StarCoder 2", _config("Starcoder2Config", residual_dropout=0.0, embedding_dropout=0.0)),
    Architecture("Cohere 2", _config("Cohere2Config")),
    Architecture("GLM-4", _config("Glm4Config", head_dim=8)),
    Architecture("EXAONE 4", _config("Exaone4Config", sliding_window=8, sliding_window_pattern=2)),
    Architecture("SmolLM3", _config("SmolLM3Config")),
    Architecture("Granite", _config("GraniteConfig", residual_multiplier=0.5)),
    Architecture("OPT", _config("OPTConfig", (*_HEADS, "intermediate_size"), ffn_dim=48, word_embed_proj_dim=D, dropout=0.0)),
    Architecture("Mamba", _config("MambaConfig", _NO_ATTENTION, **_MAMBA), second=1),
    Architecture("Falcon Mamba", _config("FalconMambaConfig", _NO_ATTENTION, **_MAMBA), second=1),
    Architecture("Mamba 2", _config("Mamba2Config", _NO_ATTENTION, **_MAMBA2), second=1),
    Architecture("Jamba", _config("JambaConfig", ("max_position_embeddings",), **_JAMBA)),
    Architecture("Bamba", _config("BambaConfig", attn_layer_indices=[1], mamba_d_head=16, **_SSM2)),
    Architecture("Nemotron-H", _config("NemotronHConfig", ("num_hidden_layers",), **_NEMOTRON)),
    Architecture("Falcon H1", _config("FalconH1Config", mamba_d_head=8, mamba_d_ssm=32, **_SSM2)),
    Architecture("LFM 2", _config("Lfm2Config", layer_types=["conv", "full_attention", "conv"], block_multiple_of=8)),
    Architecture("RecurrentGemma", _config("RecurrentGemmaConfig", lru_width=D, attention_window_size=8, head_dim=8)),
    Architecture("Qwen 3.5", _config("Qwen3_5TextConfig", **_DELTA)),
    Architecture("Qwen3-Next", _config("Qwen3NextConfig", **_DELTA, **_MOE, moe_intermediate_size=16, shared_expert_intermediate_size=16)),
    Architecture("Mixtral", _config("MixtralConfig", **_LOCAL)),
    Architecture("Qwen3-MoE", _config("Qwen3MoeConfig", head_dim=8, moe_intermediate_size=16, **_MOE)),
    Architecture("OLMoE", _config("OlmoeConfig", **_MOE)),
    Architecture("gpt-oss", _config("GptOssConfig", head_dim=8, sliding_window=8, **_LOCAL)),
    Architecture("DeepSeek-V3", _config("DeepseekV3Config", **_DEEPSEEK)),
    Architecture("Granite-MoE", _config("GraniteMoeConfig", **_LOCAL)),
    Architecture("Granite 4", _config("GraniteMoeHybridConfig", **_GRANITE4, **_SSM2)),
    Architecture("Llama 4", _config("Llama4TextConfig", **_LLAMA4)),
    Architecture("Phi-MoE", _config("PhimoeConfig", **_LOCAL, router_jitter_noise=0.0)),
]
EVERY = ["taught", "push", "attribution", "energy", "unexplained"]
QUIET = ObserveSettings(estimators=EVERY, own_prompts=0, reference=None, update_every=0, self_test=False)


def build(architecture: Architecture) -> nn.Module:
    torch.manual_seed(0)
    config = architecture.config()
    config._experts_implementation = "eager"  # the others have no float64
    model = transformers.AutoModelForCausalLM.from_config(config).double()
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    for name, parameter in model.named_parameters():  # norms are ones at first, and routers may be zero: nothing must hang on that
        if parameter.dim() == 1 or name.endswith(("gate.weight", "router.weight")):
            parameter.data += 0.1 * torch.randn_like(parameter)
    return model.train()


def batch(seed: int = 0) -> dict[str, Tensor]:
    """Two rows: a prompt of two or three tokens, padding after the second row."""
    ids = torch.randint(3, V, (2, 9), generator=torch.Generator().manual_seed(seed))
    mask, labels = torch.ones_like(ids), ids.clone()
    ids[1, 7:], mask[1, 7:], labels[1, 7:] = 0, 0, -100
    labels[0, :3], labels[1, :2] = -100, -100
    return {"input_ids": ids, "attention_mask": mask, "labels": labels}


def dictionary(seed: int = 0) -> Dictionary:
    generator = torch.Generator().manual_seed(seed)
    randn = lambda *shape: torch.randn(*shape, generator=generator, dtype=torch.float64)  # noqa: E731
    return Dictionary(randn(D, 40), randn(40), randn(40, D), torch.zeros(D, dtype=torch.float64), activation="relu")


def error(found: Tensor, expected: Tensor) -> float:
    """The largest difference in units of the largest expected value."""
    if not expected.abs().max() > 0:
        raise AssertionError("the expected value is zero: nothing is compared")
    return ((found - expected).abs().max() / expected.abs().max()).item()


# -- what is examined ---------------------------------------------------------------------------------------------------------


def places(model: nn.Module) -> tuple[list[str], list[str]]:
    """Hookpoints that this architecture has, each in the first block that has it, and names that no block has."""
    found, missing = [AT], []
    for name in NAMES:
        here = next((at for layer in range(len(blocks(model))) if (at := f"layers.{layer}.{name}") and _has(model, at)), None)
        (found if here else missing).append(here or name)
    return found, missing


def _has(model: nn.Module, hookpoint: str) -> bool:
    try:
        find_hookpoint(model, hookpoint)
        read_activations(model, [hookpoint, f"layers.{len(blocks(model)) - 1}"], {"input_ids": batch()["input_ids"][:1]})
    except InputError:
        return False
    return True


def attribution_error(model: nn.Module, hookpoints: list[str], second: int) -> float:
    """The lens against plain autograd: `push`, `attribution`, `energy`, `taught` at every hookpoint, `unexplained` at the block."""
    data, dictionaries = batch(), {name: dictionary(number) for number, name in enumerate(hookpoints)}
    kept: dict[str, Tensor] = {}
    found = [find_hookpoint(model, name) for name in hookpoints[1:]]
    handles = [place.watch(lambda h, name=place.name: kept.update({name: h}) or h.retain_grad()) for place in found]
    output = model(**data, output_hidden_states=True, use_cache=False)
    kept[AT] = output.hidden_states[second]  # the model's own account of what comes out of the second block: no hook is trusted here
    kept[AT].retain_grad()
    output.loss.backward()
    for handle in handles:
        handle.remove()
    keep = read_positions(data)
    loss_T = pad(token_loss(output.logits.detach(), pad(data["labels"][:, 1:], (0, 1), value=-100)), (1, 0))[:, :-1][keep]
    model.zero_grad()
    recorder = MemoryRecorder()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    observe = QUIET.model_copy(update={"self_test": True})
    with Lens(model, optimizer, dictionaries, observe=observe, recorder=recorder, probe=[data]) as lens:
        model(**data, use_cache=False).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    worst = 0.0
    for name, sae in dictionaries.items():
        h, g = kept[name].detach()[keep], kept[name].grad[keep]
        expected = {
            "push": estimators.push_eager(sae, g), "attribution": estimators.attribution_eager(sae, h, g),
            "energy": estimators.energy_eager(sae, g), "taught": (sae.encode(h) * loss_T[:, None].double()).sum(0),
        }  # fmt: skip
        worst = max(worst, *(error(lens.totals[name][key], value) for key, value in expected.items()))
    explained, total = estimators.explained_energy_eager(dictionaries[AT], kept[AT].detach()[keep], kept[AT].grad[keep])
    return max(worst, abs(recorder.records[0]["scalars"][f"{AT}/unexplained"] - float(1 - explained / total)))


def ruled(model: nn.Module, rule: Rule, optimizer: torch.optim.Optimizer | None = None) -> Lens:
    """A lens with one rule."""
    optimizer = optimizer or torch.optim.SGD(model.parameters(), lr=0.1)
    policy = Policy(version=1, rules=(rule,))
    return Lens(model, optimizer, {AT: dictionary()}, observe=QUIET, policy=policy, recorder=MemoryRecorder(), probe=[batch()])


def route_error(model: nn.Module) -> float:
    """All features gate: every counted token's loss must weigh 0.3 in every parameter's gradient."""
    data = batch()
    targets = pad(data["labels"][:, 1:], (0, 1), value=-100)
    weight = torch.where(counted_tokens(data["input_ids"], data["attention_mask"], data["labels"]), 0.3, 1.0).double()
    logits = model(**data, use_cache=False).logits.flatten(0, 1).float()  # as transformers sums its loss
    each = cross_entropy(logits, targets.flatten(), ignore_index=-100, reduction="none")
    (each * weight.flatten()).sum().div((targets != -100).sum()).backward()
    expected = [parameter.grad for parameter in model.parameters()]
    model.zero_grad()
    with ruled(model, Rule(mode="route", features={AT: list(range(40))}, gain=0.3, tokens="own")):
        model(**data, use_cache=False).loss.backward()
    found = [parameter.grad for parameter in model.parameters()]
    model.zero_grad()
    largest = max(b.abs().max() for b in expected if b is not None)
    # attention does not see the bias of its keys: that gradient is nothing but rounding
    return max(error(a, b) for a, b in zip(found, expected, strict=True) if b is not None and b.abs().max() > 1e-9 * largest)


def ablate_error(model: nn.Module, dtype: torch.dtype = torch.float64) -> float:
    """What is left of the features in what the next block takes in."""
    Q, seen = orthonormal_basis(dictionary().W_dec[:2]), {}
    with ruled(model, Rule(mode="ablate", features={AT: [0, 1]})):
        handle = find_hookpoint(model, "layers.2.in").watch(lambda h: seen.update(h=h.detach()))
        model(**batch(), use_cache=False)
        handle.remove()
    return ((seen["h"].to(dtype) @ Q.to(dtype)).abs().max() / seen["h"].abs().max()).item()


def grad_error(model: nn.Module, dtype: torch.dtype = torch.float64) -> float:
    """What is left of the features in the gradient that goes on below the hookpoint."""
    Q, seen = orthonormal_basis(dictionary().W_dec[:2]), {}
    with ruled(model, Rule(mode="grad", features={AT: [0, 1]})):
        handle = find_hookpoint(model, AT).watch(lambda h: h.register_hook(lambda g: seen.update(g=g)) and None)  # after the lens's hook
        model(**batch(), use_cache=False).loss.backward()
        handle.remove()
    model.zero_grad()
    return ((seen["g"].to(dtype) @ Q.to(dtype)).abs().max() / seen["g"].abs().max()).item()


def written_error(model: nn.Module) -> float:
    """Without the directions in what the matrices write, the blocks must add nothing along them: no matrix is missing."""
    Q = orthonormal_basis(dictionary().W_dec[:2])
    state = {name: value.clone() for name, value in model.state_dict().items()}
    with torch.no_grad():
        for writer in below(find_writers(model), AT):
            writer.parameter.copy_(writer.turn(scale_along(writer.turn(writer.parameter), writer.basis(Q), 0.0)))
    read = read_activations(model, ["layers.0.in", AT], batch())
    model.load_state_dict(state)
    added = read[AT] - read["layers.0.in"]
    return ((added @ Q).abs().max() / added.abs().max()).item()


def change_error(model: nn.Module, mode: str, optimizer: torch.optim.Optimizer) -> float:
    """After some steps the matrices' changes have no part along what the rule holds, and training goes on."""
    writers, Q = below(find_writers(model), AT), orthonormal_basis(dictionary().W_dec[:2])
    before, bases = [writer.parameter.detach().clone() for writer in writers], [writer.basis(Q) for writer in writers]
    losses = []
    with ruled(model, Rule(mode=mode, features={AT: [0, 1]}), optimizer):
        for _ in range(3):
            loss = model(**batch(), use_cache=False).loss
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            losses.append(loss.item())
    if not losses[-1] < losses[0]:
        raise AssertionError(f"three steps of training did not lower the loss: {losses}")
    worst = 0.0
    for writer, old, basis in zip(writers, before, bases, strict=True):
        change = writer.turn(writer.parameter.detach() - old)
        worst = max(worst, ((change @ basis).abs().max() / change.abs().max()).item())
    return worst


def loss_error(model: nn.Module) -> float:
    """The training loop's loss against a sum over tokens by hand."""
    data = batch()
    targets = pad(data["labels"][:, 1:], (0, 1), value=-100)
    by_hand = cross_entropy(model(**data, use_cache=False).logits.flatten(0, 1), targets.flatten(), ignore_index=-100, reduction="sum")
    return error(LossFunction(model)(data).detach(), by_hand.detach())


def lora(architecture: Architecture) -> str:
    """The layers that get an adapter; all of them must be trained by two steps."""
    model = apply_lora(build(architecture), LoraSettings(r=2))
    model.train()
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    start = {name: p.detach().clone() for name, p in model.named_parameters() if p.requires_grad}
    with Lens(model, optimizer, {AT: dictionary()}, observe=QUIET, recorder=MemoryRecorder(), probe=[batch()]) as lens:
        for _ in range(2):  # matrices A have no gradient until B is not zero
            model(**batch(), use_cache=False).loss.backward()
            optimizer.step()
            optimizer.zero_grad()
    if not lens.totals[AT]["push"].abs().max() > 0:
        raise AssertionError("no gradient was read under the adapter")
    still = [name for name, p in model.named_parameters() if p.requires_grad and torch.equal(p.detach(), start[name])]
    if still:
        raise AssertionError(f"never trained: {still[:3]}")
    return ", ".join(sorted({name.partition(".lora_")[0].rpartition(".")[2] for name in start}))


def exact(value: float) -> str:
    """`exact`, or how far from it. Some models compute in float32 inside, whatever their weights are in."""
    return "exact" if value < LIMIT else f"off by {value:.0e}"


def examine(architecture: Architecture) -> dict[str, str]:
    """The architecture's row of the table."""
    model = build(architecture)
    stack = blocks(model)
    path = next(name for name, module in model.named_modules() if module is stack)
    kinds: dict[str, list[str]] = {"mixer": [], "MLP": []}
    for block in stack:
        for name, child in parts(block).items():
            named = kinds.get(kind_of(child) or "", [])
            if name not in named:
                named.append(name)
    found, missing = places(model)
    if (off := loss_error(model)) > 1e-6:  # logits are summed in float32
        raise AssertionError(f"the training loop's loss is off by {off}")
    row = {
        "architecture": architecture.name,
        "blocks": f"`{path}`",
        "mixer; MLP": "; ".join(", ".join(f"`{name}`" for name in names) or "none" for names in kinds.values()),
        "it has no": ", ".join(f"`{name}`" for name in missing),
        "attribution": exact(attribution_error(model, found, architecture.second)),
        "route": exact(route_error(model)),
        "ablate": exact(ablate_error(model)),
    }
    row["grad"] = exact(grad_error(model))
    # plain descent: what `param` leaves out of the gradient stays out of the change
    row["param"] = exact(change_error(model, "param", torch.optim.SGD(model.parameters(), lr=0.1)))
    row["update"] = exact(max(written_error(model), change_error(model, "update", torch.optim.AdamW(model.parameters(), lr=0.01))))
    row["LoRA on"] = lora(architecture)
    found = {(router.experts, router.per_token, router.scoring): router.name for router in find_routers(model)}
    row["routers"] = ", ".join(f"{per_token} of {experts}, {scoring}" for experts, per_token, scoring in found)
    return row


def table(rows: list[dict[str, str]]) -> str:
    columns = list(rows[0])
    lines = [columns, ["---"] * len(columns), *([row[column] for column in columns] for row in rows)]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in lines)


def committed() -> dict[str, str]:
    """The lines of the table as it stands in the docs, by architecture."""
    text = DOCS.read_text(encoding="utf-8").partition(BEGIN)[2].partition(END)[0].strip()
    return {line.split("|")[1].strip(): line for line in text.splitlines()}


if __name__ == "__main__":
    import time

    rows = []
    for architecture in ARCHITECTURES:
        if len(sys.argv) > 1 and architecture.name not in sys.argv[1:]:
            continue
        began = time.perf_counter()
        rows.append(examine(architecture))
        print(f"{time.perf_counter() - began:.2f} s", *rows[-1].values(), sep=" | ")
    if len(sys.argv) == 1:
        head, _, rest = DOCS.read_text(encoding="utf-8").partition(BEGIN)
        DOCS.write_text(f"{head}{BEGIN}\n{table(rows)}\n{END}{rest.partition(END)[2]}", encoding="utf-8")

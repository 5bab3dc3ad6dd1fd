"""Models: load by name or folder, with weights checked before they are used, and get a LoRA adapter.

`smollm2` is fetched by gradlens (see `smollm2.py`); a folder or a Hugging Face name loads any causal language model.
"""

from __future__ import annotations

import difflib
import json
import re
import struct
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from torch import nn

from gradlens.config import LoraSettings
from gradlens.errors import ConfigError, InputError
from gradlens.model.smollm2 import NAME as SMOLLM2
from gradlens.model.smollm2 import Progress, cache_dir, fetch_smollm2, problems, smollm2_folder
from gradlens.quiet import quiet_transformers

__all__ = [
    "apply_lora",
    "cache_dir",
    "check_weights",
    "enable_checkpointing",
    "fetch_smollm2",
    "load_model",
    "load_tokenizer",
    "resolve_model",
]

# `NAME` or `OWNER/NAME`; anything else can only be a path
_HUB_NAME = re.compile(r"^\w[\w.-]*(/\w[\w.-]*)?$", re.ASCII)
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16, "float64": torch.float64}


def resolve_model(name: str, progress: Progress | None = None) -> str:
    """`smollm2` -> its folder (fetched if need be); a folder, checked; anything else is taken for a Hugging Face name.

    Raises `InputError` for a folder that does not exist or holds no model.
    """
    if name == SMOLLM2:
        return str(fetch_smollm2(progress))
    folder = Path(name).expanduser()
    if folder.is_dir():
        if not (folder / "config.json").is_file():
            what = "a LoRA adapter, not a whole model" if (folder / "adapter_config.json").is_file() else "no config.json"
            raise InputError(f"{name}: found {what}; expected a folder with config.json, weights (safetensors) and tokenizer files")
        check_weights(folder)
        return str(folder)
    if folder.is_file():
        raise InputError(f"{name}: a file; expected a folder with config.json, weights (safetensors) and tokenizer files")
    if not _HUB_NAME.match(name):
        near = difflib.get_close_matches(folder.name, [p.name for p in folder.parent.iterdir()] if folder.parent.is_dir() else [], n=1)
        raise InputError(f"{name}: no such model folder" + (f"; did you mean {folder.parent / near[0]}?" if near else ""))
    return name


def check_on_hub(name: str) -> None:
    """Raise `InputError` at once where a model that is in no folder cannot be had from Hugging Face either: it is neither in the cache nor
    there. Loading it would ask for half a minute before it gave up."""
    from huggingface_hub import get_hf_file_metadata, hf_hub_url, try_to_load_from_cache

    if isinstance(try_to_load_from_cache(name, "config.json"), str):
        return
    try:
        get_hf_file_metadata(hf_hub_url(name, "config.json"), timeout=10)
    except Exception as error:  # of httpx, the hub and its checks of names: they share no base class
        folder = Path(name)
        here = [path.name for path in folder.parent.iterdir() if path.is_dir()] if folder.parent.is_dir() else []
        near = difflib.get_close_matches(folder.name, here, n=1)
        hint = f"; did you mean the folder {folder.parent / near[0]}?" if near else ""
        raise InputError(_cannot_load(name, name, "model", error) + hint) from None


def check_weights(folder: Path) -> None:
    """Every safetensors file of a folder is as long as its header says; `InputError` naming the file otherwise. Reads headers only."""
    remedy = (
        "fetch it again with `gradlens models fetch smollm2 --force`" if folder == smollm2_folder() else "copy or download the file again"
    )
    if folder == smollm2_folder() and (wrong := problems(folder)):
        raise InputError(f"{wrong[0]}; {remedy}")
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        try:
            wanted = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
        except (json.JSONDecodeError, KeyError, AttributeError):
            raise InputError(f"{index}: not a safetensors index; {remedy}") from None
        if missing := sorted(name for name in wanted if not (folder / name).is_file()):
            raise InputError(f"{folder / missing[0]}: missing, although {index.name} names it; {remedy}")
    for path in sorted(folder.glob("*.safetensors")):
        found = path.stat().st_size
        try:
            with path.open("rb") as file:
                (length,) = struct.unpack("<Q", file.read(8))
                if length > found:
                    raise ValueError("header longer than the file")
                header = json.loads(file.read(length))
            expected = 8 + length + max((entry["data_offsets"][1] for name, entry in header.items() if name != "__metadata__"), default=0)
        except (struct.error, ValueError, KeyError, TypeError, AttributeError):
            raise InputError(f"{path}: corrupt weights, the safetensors header is unreadable; {remedy}") from None
        if found != expected:
            raise InputError(f"{path}: corrupt weights, {found} bytes where the header says {expected}; {remedy}")


def load_tokenizer(name: str, progress: Progress | None = None) -> Any:
    """The model's tokenizer, with a padding token. Raises `InputError`."""
    from transformers import AutoTokenizer

    source = resolve_model(name, progress)
    if not Path(source).is_dir():
        check_on_hub(source)
    with quiet_transformers():
        try:
            tokenizer = AutoTokenizer.from_pretrained(source)
        except (OSError, ValueError, KeyError, TypeError, ImportError) as error:
            raise InputError(_cannot_load(name, source, "tokenizer", error)) from None
        except Exception as error:  # the Rust tokenizers library raises plain `Exception` for a broken tokenizer.json
            raise InputError(f"{name}: the tokenizer is unreadable ({_first_line(error)}); copy or download its files again") from None
    if not len(tokenizer):
        raise InputError(
            f"{name}: the tokenizer has no vocabulary; expected tokenizer.json (or the files of a slow tokenizer) beside the weights"
        )
    if tokenizer.pad_token_id is None:
        # Padding is masked out everywhere, so any token will do.
        tokenizer.pad_token = tokenizer.eos_token or tokenizer.unk_token or tokenizer.convert_ids_to_tokens(0)
    return tokenizer


def load_model(name: str, dtype: str = "float32", device: str = "cpu", progress: Progress | None = None) -> tuple[nn.Module, Any]:
    """`(model, tokenizer)` of a causal language model: `smollm2`, a folder, or a Hugging Face name; in eval mode, on `device`.

    `progress(stage, done, total)` is called while `smollm2` is being fetched. Raises `InputError` where the model is missing, unreachable,
    corrupt or incomplete (a weight that no file gives would silently be random).
    """
    from transformers import AutoModelForCausalLM

    if dtype not in DTYPES:
        raise ConfigError(f"dtype {dtype!r} is not one of {', '.join(DTYPES)}")
    source = resolve_model(name, progress)
    tokenizer = load_tokenizer(source)
    with quiet_transformers():
        try:
            model, info = AutoModelForCausalLM.from_pretrained(source, dtype=DTYPES[dtype], output_loading_info=True)
        except Exception as error:  # config, hub, safetensors, pickle and shape errors share no base class
            raise InputError(_cannot_load(name, source, "model", error)) from None
    if missing := sorted(info.get("missing_keys", ())):
        raise InputError(f"{name}: {len(missing)} weights are in no file, for instance {missing[0]}; the weights do not fit config.json")
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    return model.to(device).eval(), tokenizer


def _first_line(error: BaseException) -> str:
    return f"{type(error).__name__}: {(str(error).strip().splitlines() or [''])[0]:.240}"


def _cannot_load(name: str, source: str, what: str, error: BaseException) -> str:
    if Path(source).is_dir():
        kinds = {path.suffix for path in Path(source).iterdir()}
        if what == "model" and not kinds & {".safetensors", ".bin"}:
            return f"{name}: no weights; expected model.safetensors beside config.json"
        return f"{name}: the {what} cannot be read ({_first_line(error)}); its files do not belong together or are damaged"
    return (
        f"{name}: no folder of that name, and the {what} could not be had from Hugging Face ({_first_line(error)}); "
        "give a folder with the model's files, check the name and the network, or use `smollm2`"
    )


def apply_lora(model: nn.Module, settings: LoraSettings, gradient_checkpointing: bool = False) -> nn.Module:
    """The model with a LoRA adapter (a `PeftModel`); only the adapter trains. Initialised from torch's global seed, which the caller sets.

    Without `target_modules` every linear layer of the blocks that the model calls gets one. Experts kept in one parameter are no layers:
    they get one where they are named (`experts.down_proj`). Raises `ConfigError` naming the key where target modules or layers do not
    exist, or cannot have an adapter.
    """
    from peft import LoraConfig, get_peft_model

    from gradlens.model.hookpoints import blocks

    stack = blocks(model)
    layers = None
    if settings.layers is not None:
        first, last = settings.layers
        if not 0 <= first <= last < len(stack):
            raise ConfigError(f"model.lora.layers: [{first}, {last}] is not a range within the blocks 0 to {len(stack) - 1}")
        layers = list(range(first, last + 1))
    path = next(name for name, module in model.named_modules() if module is stack)
    targets, experts = _lora_targets(model, stack, settings)
    chosen = [f"{path}.{layer}.{name}" for layer in layers or range(len(stack)) for name in experts.get(layer, ())]
    if chosen and settings.dropout:
        raise ConfigError(f"model.lora.dropout: {chosen[0]} holds all experts, and an adapter of it takes no dropout; set dropout to 0")
    config = LoraConfig(
        r=settings.r,
        lora_alpha=settings.alpha,
        lora_dropout=settings.dropout,
        target_modules=targets,
        target_parameters=chosen or None,
        layers_to_transform=layers if targets else None,
        layers_pattern=path.rpartition(".")[2] if layers and targets else None,
        fan_in_fan_out=any(is_conv1d(module) for module in stack.modules()),
        bias="none",
        task_type="CAUSAL_LM",
    )
    with quiet_transformers():
        adapted = get_peft_model(model, config)
    if gradient_checkpointing:
        enable_checkpointing(adapted)
    return adapted


# Models whose `out_proj` peft refuses to adapt: with their kernels its weight is used without calling it.
_NO_OUT_PROJ = {"mamba", "mamba2", "falcon_mamba", "falcon_h1", "nemotron_h"}


def _lora_targets(model: nn.Module, stack: nn.ModuleList, settings: LoraSettings) -> tuple[list[str], dict[int, list[str]]]:
    """Names of layers that get an adapter, and for every block the parameters of experts below it that get one."""
    called = _called_layers(model, stack)
    able = called - _taken_for_experts(model, called)
    if getattr(model.config, "model_type", "") in _NO_OUT_PROJ:
        able.discard("out_proj")
    if settings.target_modules is None:
        return sorted(able), {}
    targets, experts = [], {}
    for target in settings.target_modules:
        found = [module for name, module in model.named_modules() if _ends(name, target)]
        fused = {
            layer: [name for name, p in block.named_parameters() if _ends(name, target) and p.dim() == 3 and "conv" not in name]
            for layer, block in enumerate(stack)
        }
        if any(fused.values()) and not found:
            experts = {layer: [*experts.get(layer, ()), *names] for layer, names in fused.items()}
            continue
        names, leaf = "Linear layers of the blocks: " + ", ".join(sorted(able)), _leaf(target)
        if _taken_for_experts(model, {leaf}):
            raise ConfigError(
                f"model.lora.target_modules: peft takes {target} of this model for its experts; name experts.gate_up_proj and "
                f"experts.down_proj if those are meant. {names}"
            )
        if not found:
            near = difflib.get_close_matches(target, able, n=1)
            hint = f"; did you mean {near[0]}?" if near else ""
            raise ConfigError(f"model.lora.target_modules: no module named {target!r}{hint} {names}")
        if any(isinstance(module, nn.Linear) or is_conv1d(module) for module in found) and leaf not in able:
            raise ConfigError(
                f"model.lora.target_modules: {target} cannot have an adapter: {type(model).__name__} may use its weight uncalled. {names}"
            )
        targets.append(target)
    return targets, experts


def _ends(name: str, target: str) -> bool:
    return name == target or name.endswith(f".{target}")


def _taken_for_experts(model: nn.Module, names: set[str]) -> set[str]:
    """Layers that peft would take for the experts of a mixture, as older versions of transformers named those: `down_proj` of Qwen3-MoE."""
    from peft import LoraConfig
    from peft.utils.transformers_weight_conversion import convert_peft_config_for_transformers

    taken = set()
    for name in names:
        config = LoraConfig(target_modules=[name])
        try:
            convert_peft_config_for_transformers(config, model, None)
        except ValueError:  # one of several that peft joins
            taken.add(name)
        if name not in config.target_modules:
            taken.add(name)
    return taken


def _called_layers(model: nn.Module, stack: nn.ModuleList) -> set[str]:
    """Names of the linear layers of the blocks that a forward pass in training calls and that put out a tensor.

    An adapter on a layer whose weight a fused kernel takes would never be used, nor trained.
    """
    called: set[str] = set()

    def note(name: str):
        return lambda module, args, output: called.add(_leaf(name)) if isinstance(output, torch.Tensor) else None

    linear = [(name, module) for name, module in stack.named_modules() if isinstance(module, nn.Linear) or is_conv1d(module)]
    device = next(model.parameters()).device
    modes = [(module, module.training) for module in model.modules()]
    with ExitStack() as hooks, torch.random.fork_rng([device] if device.type == "cuda" else []), torch.no_grad():
        for name, module in linear:
            hooks.callback(module.register_forward_hook(note(name)).remove)
        hooks.callback(lambda: [setattr(module, "training", mode) for module, mode in modes] and None)
        model.train()
        model(input_ids=torch.ones(1, 3, dtype=torch.long, device=device), use_cache=False)
    return called


def _leaf(name: str) -> str:
    """The end of a path that names a layer: of one in a list the list's too (`ffn.0`), as a number alone would name blocks."""
    head, _, last = name.rpartition(".")
    return f"{_leaf(head)}.{last}" if last.isdigit() and head else last


def is_conv1d(module: nn.Module) -> bool:
    return type(module).__name__ == "Conv1D"  # GPT-2's linear layer, stored transposed


def enable_checkpointing(model: nn.Module) -> None:
    """Recompute activations in backward. With a frozen embedding (LoRA) the first block's input is made to require gradients."""
    model.config.use_cache = False
    with quiet_transformers():
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    if not all(parameter.requires_grad for parameter in model.get_input_embeddings().parameters()):
        model.enable_input_require_grads()

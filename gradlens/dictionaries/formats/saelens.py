"""SAELens: `cfg.json`, `sae_weights.safetensors` and optionally `sparsity.safetensors` (log10 of the firing rate of each feature).

SAELens 6 nests what describes the model in `metadata`; before 6 all keys are flat and some have other names. gradlens writes version 6
and keeps its own facts (recipe, health) beside it in `gradlens.json`, which SAELens ignores.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save
from torch import Tensor

from gradlens.dictionaries.dictionary import Dictionary
from gradlens.dictionaries.formats.place import Place
from gradlens.dictionaries.formats.raw import Raw
from gradlens.dictionaries.formats.tensors import PICKLES, finite, read_config
from gradlens.errors import InputError
from gradlens.files import write_atomic, write_json
from gradlens.model.hookpoints import layer_of

NAME = "saelens"
CFG, WEIGHTS, SPARSITY, FACTS = "cfg.json", "sae_weights.safetensors", "sparsity.safetensors", "gradlens.json"
SAELENS_VERSION = "6.54.12"  # the version of the format that is written, checked in both directions by tests/fixtures/make_saelens.py
SPARSITY_EPS = 1e-10  # SAELens: log10(rate + eps)

# architecture -> (activation, tensors beyond W_enc, W_dec, b_dec, whether it is a transcoder)
ARCHITECTURES: dict[str, tuple[str, tuple[str, ...], bool]] = {
    "standard": ("relu", ("b_enc",), False),
    "jumprelu": ("jumprelu", ("b_enc", "threshold"), False),
    "topk": ("topk", ("b_enc",), False),
    "gated": ("gated", ("b_gate", "r_mag", "b_mag"), False),
    "transcoder": ("relu", ("b_enc",), True),
    "skip_transcoder": ("relu", ("b_enc", "W_skip"), True),
    "jumprelu_transcoder": ("jumprelu", ("b_enc", "threshold"), True),
    "jumprelu_skip_transcoder": ("jumprelu", ("b_enc", "threshold", "W_skip"), True),
}
_WHY_NOT = {
    "abstopk": "its features can be negative",
    "temporal": "its features depend on other tokens",
    "matching_pursuit": "it is encoded by a search, not by one matrix",
}
_SCALES = ("scaling_factor", "finetuning_scaling_factor")  # fine-tuned scale of the activations, before SAELens 6
CENTRED = "jbloom/GPT2-Small-SAEs-Reformatted"  # trained so, and its configs do not say it: SAELens knows it from its list of releases
_NORMS = {"none": "none", "layer_norm": "layer_norm", "constant_norm_rescale": "unit_rms", "expected_average_only_in": "none"}


def recognise(place: Place) -> bool:
    """Whether this folder or file is meant to be one of SAELens; what is missing or wrong in it is then said."""
    return CFG in place.names or WEIGHTS in place.names


def read(place: Place) -> Raw:
    """What SAELens saved. Raises `InputError`."""
    config_path, weights_path = _find(place)
    config = modern(read_config(config_path), config_path)
    info = config.get("metadata") or {}
    raw = from_parts(config, info, place.tensors(weights_path), weights_path, config_path)
    raw.firing_rate = _firing_rate(place, place.folder, raw.tensors)
    raw.facts |= read_config(place.folder / FACTS) if (place.folder / FACTS).is_file() else {}
    if (info.get("model_from_pretrained_kwargs") or {}).get("center_writing_weights") or CENTRED in place.context:
        _read_uncentred(raw)
    return raw


def _read_uncentred(raw: Raw) -> None:
    """For activations as transformers has them. The dictionary was trained on those of TransformerLens with `center_writing_weights`: less
    their mean over dimensions, which is taken into the encoder, exactly."""
    W_enc = raw.tensors["W_enc"].float()
    if raw.subtract:
        if "b_enc" not in raw.tensors:
            raise InputError(f"{raw.path}: a {raw.architecture} dictionary of centred activations; gradlens reads those with a b_enc")
        raw.tensors["b_enc"] = raw.tensors["b_enc"].float() - raw.tensors["b_dec"].float().mean() * W_enc.sum(0)
    raw.tensors["W_enc"] = W_enc - W_enc.mean(0)
    raw.facts["centred"] = True


def from_parts(config: dict[str, Any], info: dict[str, Any], tensors: dict[str, Tensor], weights_path: Path, config_path: Path) -> Raw:
    """From a config of version 6 and the state dict. The paths are for messages, and for the file of a scale that is not in the config."""
    architecture = str(config.get("architecture", "standard"))
    if architecture not in ARCHITECTURES:
        why = f" ({_WHY_NOT[architecture]})" if architecture in _WHY_NOT else " (BatchTopK is saved as jumprelu)"
        raise InputError(f"{config_path}: architecture is {architecture!r}{why}; gradlens reads {', '.join(ARCHITECTURES)}")
    activation, extra, transcodes = ARCHITECTURES[architecture]
    _check_tensors(tensors, ("W_enc", "W_dec", "b_dec", *extra), config, weights_path)
    norm = config.get("normalize_activations") or "none"
    if norm not in _NORMS or (transcodes and _NORMS[norm] != "none"):
        what = "none and expected_average_only_in (one scale)" + ("" if transcodes else ", layer_norm, constant_norm_rescale")
        raise InputError(f"{config_path}: normalize_activations is {norm!r}; of {architecture} dictionaries gradlens reads {what}")
    return Raw(
        format=NAME,
        architecture=architecture,
        path=weights_path,
        tensors=_tuned(tensors, config, config_path),
        activation=activation,
        k=config.get("k") if activation == "topk" else None,
        k_from=config_path.name,
        subtract=bool(config.get("apply_b_dec_to_input", True)) and not transcodes,  # a transcoder's b_dec is not of its input
        hookpoint=_hook(info, "_out" if transcodes else ""),
        hook_in=(_hook(info),) if transcodes else (),
        model_name=info.get("model_name"),
        scale_in=_scale(config, config_path) if norm == "expected_average_only_in" else None,
        input_norm=_NORMS[norm],
        unit_rows=bool(config.get("rescale_acts_by_decoder_norm")),
        facts={"neuronpedia_id": info["neuronpedia_id"]} if info.get("neuronpedia_id") else {},
    )


def _find(place: Place) -> tuple[Path, Path]:
    """Paths of config and weights."""
    folder = place.folder
    config, weights = folder / CFG, place.file or folder / WEIGHTS
    if place.file is None and not weights.is_file():
        # Only a torch file: it is read, but never with code in it.
        weights = place.only(*PICKLES) or weights
    if not weights.is_file():
        found = ", ".join(sorted(p.name for p in folder.iterdir())[:8]) or "nothing"
        raise InputError(f"{folder}: no {WEIGHTS} in it (found: {found}); expected a SAELens folder with {CFG} and {WEIGHTS}")
    if not config.is_file():
        raise InputError(f"{config}: no such file; a SAELens folder has {CFG} beside its weights")
    if weights.suffix in PICKLES:
        place.data(weights)  # code in a torch file is the graver problem, so it is named before anything in the config
    return config, weights


def modern(config: dict[str, Any], path: Path) -> dict[str, Any]:
    """A SAELens config in the form of version 6."""
    info = config.get("metadata") or {}
    if not isinstance(info, dict):
        raise InputError(f"{path}: metadata: expected an object, found {type(info).__name__}")
    version = str(info.get("sae_lens_version") or config.get("sae_lens_version") or "0").split(".")[0]
    if not version.isdigit() or int(version) >= 6:
        return config
    config = dict(config)
    kwargs = config.get("activation_fn_kwargs") or {}
    if not isinstance(kwargs, dict):
        raise InputError(f"{path}: activation_fn_kwargs: expected an object, found {type(kwargs).__name__}")
    function = config.get("activation_fn", config.get("activation_fn_str")) or "relu"
    if function == "topk":
        config |= {"architecture": "topk", "k": kwargs.get("k", config.get("k"))}
    elif function != "relu":
        raise InputError(f"{path}: activation_fn is {function!r}; gradlens reads relu and topk")
    config["architecture"] = config.get("architecture") or "standard"
    if isinstance(config.get("normalize_activations"), bool):
        config["normalize_activations"] = "expected_average_only_in" if config["normalize_activations"] else "none"
    names = {"hook_name": config.get("hook_name", config.get("hook_point")), "model_name": config.get("model_name")}
    names |= {"hook_name_out": config.get("hook_name_out", config.get("hook_point_out"))}
    config["metadata"] = {**{key: value for key, value in names.items() if value is not None}, **info}
    return config


def _check_tensors(tensors: dict[str, Tensor], names: tuple[str, ...], config: dict[str, Any], path: Path) -> None:
    architecture = config.get("architecture", "standard")
    missing = [name for name in names if name not in tensors]
    if missing:
        found = ", ".join(sorted(tensors)) or "nothing"
        raise InputError(f"{path}: {', '.join(missing)} missing for architecture {architecture}; found {found}")
    unknown = sorted(set(tensors) - set(names) - set(_SCALES))
    if unknown:
        raise InputError(f"{path}: {', '.join(unknown)} does not belong to architecture {architecture}; one of the two is wrong")
    if tensors["W_enc"].dim() != 2:
        raise InputError(f"{path}: W_enc has shape {list(tensors['W_enc'].shape)}, expected [d_in, d_sae]")
    D, F = config.get("d_in", tensors["W_enc"].shape[0]), config.get("d_sae") or tensors["W_enc"].shape[1]
    out = config.get("d_out") or D
    expected = {"W_enc": (D, F), "W_dec": (F, out), "b_dec": (out,), "W_skip": (out, D)}
    for name in (*names, *_SCALES):
        found = tuple(tensors[name].shape) if name in tensors else None
        if found is not None and found != expected.get(name, (F,)):
            about = f"d_in {D}, d_sae {F}" + (f", d_out {out}" if out != D else "")
            raise InputError(f"{path}: {name} has shape {list(found)}, expected {list(expected.get(name, (F,)))} ({about} in {CFG})")


def _tuned(tensors: dict[str, Tensor], config: dict[str, Any], config_path: Path) -> dict[str, Tensor]:
    """The fine-tuned scale of the activations folded into the rows: W_dec * scale. They are used as SAELens does, if the config says so."""
    tensors = dict(tensors)
    for name in _SCALES:
        scale = tensors.pop(name, None)
        if scale is None or bool((scale == 1).all()):
            continue
        if not config.get("finetuning_scaling_factor"):
            raise InputError(f"{config_path}: the weights hold {name}, but finetuning_scaling_factor is not set; one of the two is wrong")
        tensors["W_dec"] = tensors["W_dec"].to(torch.promote_types(tensors["W_dec"].dtype, torch.float32)) * scale[:, None]
    return tensors


def _scale(config: dict[str, Any], config_path: Path) -> float:
    scaler = config_path.parent / "activation_scaler.json"
    s = config.get("norm_scaling_factor", read_config(scaler).get("scaling_factor") if scaler.is_file() else None)
    if not isinstance(s, (int, float)) or not s > 0:
        raise InputError(
            f"{config_path}: normalize_activations is expected_average_only_in, but its factor is not there; put "
            f'{{"scaling_factor": sqrt(d_in) / mean norm}} into {scaler.name}, or set it to "none" if it is folded already'
        )
    return float(s)


def _firing_rate(place: Place, folder: Path, tensors: dict[str, Tensor]) -> Tensor | None:
    path = folder / SPARSITY
    if not path.is_file():
        return None
    found = place.tensors(path).get("sparsity")
    if found is None or found.shape != tensors["W_dec"].shape[:1]:
        shape = "no tensor `sparsity`" if found is None else f"shape {list(found.shape)}"
        raise InputError(f"{path}: {shape}, expected `sparsity` of shape [{tensors['W_dec'].shape[0]}]")
    return (10 ** found.float() - SPARSITY_EPS).clamp(0, 1)


def _hook(info: dict[str, Any], side: str = "") -> str:
    return str(info.get(f"hf_hook_name{side}") or info.get(f"hook_name{side}") or "")


# -- writing --------------------------------------------------------------------------------------------------------------------------


def write(dictionary: Dictionary, folder: str | Path, dtype: torch.dtype = torch.float16) -> Path:
    """Write a SAELens 6 folder and return it. Tensors are stored as `dtype`; SAELens and gradlens load them as float32.

    `dictionary.metadata` may hold `model_name`, `context_size`, `firing_rate` (`[F]`); everything else in it that is plain data
    goes into `gradlens.json`. A batchtopk dictionary is saved as jumprelu, as SAELens does, so it needs its threshold.
    """
    architecture = _architecture(dictionary, folder)
    tensors = {}
    for name in ("W_enc", "W_dec", "b_dec", *ARCHITECTURES[architecture][1]):
        tensors[name] = getattr(dictionary, name).detach().to("cpu", dtype).contiguous()
        if not finite(tensors[name]):
            raise InputError(f"{folder}: {name} has values that {dtype} cannot hold; save with dtype=torch.float32")
    facts = {key: value for key, value in dictionary.metadata.items() if key not in ("source", "format", "architecture")}
    firing_rate = facts.pop("firing_rate", None)
    info = {
        "sae_lens_version": SAELENS_VERSION,
        "sae_lens_training_version": None,
        "model_name": facts.pop("model_name", None),
        "prepend_bos": False,
        "context_size": facts.get("context_size"),
        **({"neuronpedia_id": facts.pop("neuronpedia_id")} if facts.get("neuronpedia_id") else {}),
        **hook_names(dictionary.hook_in[0] if dictionary.hook_in else dictionary.hookpoint),
    }
    if dictionary.hook_in:
        info |= {f"{key}_out": value for key, value in hook_names(dictionary.hookpoint).items()}
    config: dict[str, Any] = {
        "architecture": architecture,
        "d_in": dictionary.d_in,
        "d_sae": dictionary.d_sae,
        "dtype": "float32",  # what SAELens converts to on load; the file itself may be narrower
        "device": "cpu",
        "apply_b_dec_to_input": dictionary.apply_b_dec_to_input,
        "normalize_activations": next(theirs for theirs, ours in _NORMS.items() if ours == dictionary.input_norm),
        "reshape_activations": "none",
        "metadata": info,
    }
    if dictionary.hook_in:
        config["d_out"] = dictionary.d_out
    if architecture == "topk":
        config |= {"k": dictionary.k, "rescale_acts_by_decoder_norm": False}
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    write_atomic(folder / WEIGHTS, save(tensors))
    if firing_rate is not None:
        write_atomic(folder / SPARSITY, save({"sparsity": (firing_rate.detach().float().cpu() + SPARSITY_EPS).log10()}))
    if facts:
        write_json(folder / FACTS, facts)
    write_json(folder / CFG, config)
    return folder


def _architecture(dictionary: Dictionary, folder: str | Path) -> str:
    """What SAELens calls it. Raises `InputError` for what it has no form of."""
    activation = "jumprelu" if dictionary.activation == "batchtopk" else dictionary.activation
    if activation == "jumprelu" and dictionary.threshold is None:
        raise InputError(f"{folder}: a batchtopk dictionary without a threshold has no SAELens form; estimate the threshold first")
    lacks = None
    if len(dictionary.hook_in) > 1:
        lacks = "reads several places at once"
    elif dictionary.act_scale is not None:
        lacks = "chooses its features in another unit than it reports them in"
    for architecture, (known, extra, transcodes) in ARCHITECTURES.items():
        same = known == activation and transcodes == bool(dictionary.hook_in) and ("W_skip" in extra) == (dictionary.W_skip is not None)
        if same and lacks is None and not (transcodes and dictionary.apply_b_dec_to_input):
            return architecture
    lacks = lacks or f"is a {dictionary.activation} {'transcoder' if dictionary.hook_in else 'dictionary'}" + (
        " with a skip" if dictionary.W_skip is not None else ""
    )
    raise InputError(f"{folder}: a dictionary that {lacks} has no SAELens form")


def hook_names(hookpoint: str) -> dict[str, str | None]:
    """The names that TransformerLens and transformers give a canonical hookpoint."""
    layer = layer_of(hookpoint) if hookpoint else None
    hook_name = hookpoint or None
    if layer is not None:
        rest = hookpoint.removeprefix(f"layers.{layer}")
        hooks = {"": "hook_resid_post", ".mlp": "hook_mlp_out", ".mlp_out": "hook_mlp_out", ".self_attn": "hook_attn_out",
                 ".attn_out": "hook_attn_out", ".resid_mid": "hook_resid_mid", ".mlp.in": "mlp.hook_in", ".in": "hook_resid_pre",
                 ".self_attn.o_proj.in": "attn.hook_z"}  # fmt: skip
        hook_name = f"blocks.{layer}.{hooks[rest]}" if rest in hooks else hookpoint
    return {"hook_name": hook_name, "hf_hook_name": f"model.{hookpoint}" if layer is not None else hook_name}

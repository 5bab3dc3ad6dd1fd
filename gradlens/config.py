"""The config of a run: pydantic models, and how a file, the environment and `--set` become one.

Precedence: `--set a.b=c` > environment (`GRADLENS__A__B=c`) > file > default. Paths in a file are relative to that file.
"""

from __future__ import annotations

import difflib
import os
import re
import types
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from gradlens.control.rules import Rule
from gradlens.errors import ConfigError


class Settings(BaseModel):
    """Base of every part: frozen, unknown keys refused."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class LoraSettings(Settings):
    r: int = Field(8, ge=1, description="Rank of the adapter.")
    alpha: float = Field(16, description="Scale of the adapter; the effective scale is alpha / r.")
    dropout: float = Field(0.0, ge=0, lt=1, description="Dropout on the adapter's input.")
    target_modules: list[str] | None = Field(
        None,
        description="Names of the linear layers that get an adapter; null: every linear layer of the blocks. "
        "Experts kept in one parameter are named too: experts.down_proj.",
    )
    layers: tuple[int, int] | None = Field(None, description="First and last block (inclusive) that get an adapter; null: all.")


class ModelSettings(Settings):
    name: str = Field("smollm2", description="`smollm2` (fetched by gradlens), a Hugging Face name, or a folder.")
    dtype: Literal["float32", "bfloat16", "float16"] = Field("float32", description="Type of the weights while training.")
    method: Literal["lora", "full"] = Field("lora", description="Train a LoRA adapter, or every weight.")
    lora: LoraSettings = Field(LoraSettings(), description="The adapter, if method is lora.")
    gradient_checkpointing: bool = Field(False, description="Recompute activations in backward: less memory, more time.")


class DataSettings(Settings):
    train: list[str] = Field(..., min_length=1, description="JSONL files (or demo:NAME, or a Hugging Face data set), mixed by `weights`.")
    weights: list[float] | None = Field(None, description="Share of every batch drawn from each file of `train`; null: equal shares.")
    max_length: int = Field(256, ge=4, description="Tokens a row is cut to.")
    loss_on: Literal["response", "all"] = Field("response", description="Tokens that the loss counts.")
    wanted: list[str] | None = Field(
        None,
        description="The files of `train` that hold what should be learned; `gradlens study` trains its oracle on these alone, and "
        "mode `auto` takes the rule that suits their rows.",
    )
    keep: list[str] | None = Field(
        None, description="Files of `train` whose rows stay in the batches; the others' rows are left out, step by step. null: all."
    )


class TrainSettings(Settings):
    steps: int = Field(100, ge=0, description="Optimizer steps.")
    batch_size: int = Field(8, ge=1, description="Rows per optimizer step over all ranks.")
    micro_batch_size: int | None = Field(None, ge=1, description="Rows per forward pass on one rank; null: all of the rank's rows at once.")
    lr: float = Field(1e-3, ge=0, description="Peak learning rate of AdamW.")
    weight_decay: float = Field(0.0, ge=0, description="Weight decay of AdamW.")
    warmup: int = Field(5, ge=0, description="Steps of linear warm-up.")
    max_grad_norm: float | None = Field(1.0, gt=0, description="Clip the gradient to this norm; null: do not clip.")
    seed: int = Field(0, description="Seed of adapter initialisation and order of data.")
    num_workers: int = Field(1, ge=1, description="Ranks (Ray Train workers).")
    threads: int | None = Field(None, ge=1, description="CPU threads per rank; null: cores / ranks.")
    device: Literal["auto", "cpu", "cuda"] = Field("auto", description="Where ranks train.")
    checkpoint_every: int | None = Field(None, ge=1, description="Steps between checkpoints; null: only at the end.")
    keep_checkpoints: int = Field(
        2, ge=1, description="Newest checkpoints that stay; the last one before each alarm does too (`gradlens runs rollback`)."
    )
    save_model: bool = Field(True, description="Write the final adapter or weights into the run folder.")


class ObserveSettings(Settings):
    """What is read, how often. Also the defaults of `gradlens.watch`."""

    every: int = Field(1, ge=1, description="Steps between attributions.")
    tokens: Literal["response", "all"] = Field(
        "response",
        description="Positions that count: tokens the loss counts, or all; never padding nor the first token. Gradients are read where "
        "these are predicted as well.",
    )
    estimators: list[Literal["taught", "push", "attribution", "energy", "unexplained", "activation"]] = Field(
        ["taught", "push", "attribution", "unexplained"],
        description="Estimators computed at every observed step. energy: how much gradient there is along each direction, about as dear "
        "as all others together; activation: how much a batch's tokens express each feature, a baseline.",
    )
    token_share: float = Field(
        1.0, gt=0, le=1,
        description="Share of a batch's tokens, drawn at random, whose active features are looked at; sums stay unbiased, and concepts get "
        "the standard errors `taught_se` and `attribution_se`. push and energy always see all.",
    )  # fmt: skip
    precision: Literal["auto", "float32", "bfloat16", "float16"] = Field(
        "auto",
        description="In which dictionaries are kept and active features found; sums stay in float32 and longer. auto: on a GPU that of the "
        "model, where it is a half precision (its weights, or what accelerate and Trainer run it in), else float32; on a CPU float32.",
    )
    left_out: bool = Field(
        False,
        description="Read rows that rules leave out as well: they cost as much as the others then. false: `gradlens run` does not give "
        "them to the model, and there are no readings of them.",
    )
    top_k: int = Field(256, ge=1, description="Features recorded per hookpoint and step (the largest of every estimator).")
    drift_every: int = Field(
        25, ge=0, description="Steps between readings of the probe set (drift, uptake, what was learned, alarms); 0: only at the end."
    )
    probe_rows: int = Field(16, ge=1, description="Rows of the probe set, where none is given.")
    reference: str | None = Field(
        "demo:plain-train",
        description="JSONL of ordinary text that uptake and the words of what was learned are weighed against; null: nothing.",
    )
    update_every: int = Field(10, ge=0, description="Steps between readings of `update`, what the optimizer's steps did; 0: never.")
    update: Literal["difference", "exact"] = Field(
        "difference",
        description="difference: a forward pass of `update_rows` probe rows, now minus then. exact: the derivative along the parameter "
        "change (forward mode, about three forward passes).",
    )
    update_rows: int = Field(2, ge=1, description="Rows of the probe set that `update` is read on, evenly spread over it.")
    own_every: int = Field(
        0, ge=0, description="Steps between readings of the model's own continuations of probe prompts, at steps that also read drift; "
        "0: only before training and at the end."
    )  # fmt: skip
    own_prompts: int = Field(8, ge=0, description="Probe prompts that the model continues; 0: none.")
    own_tokens: int = Field(24, ge=1, description="Tokens of each continuation.")
    routers: bool = Field(True, description="Read the routers of a mixture of experts: load, entropy, which experts concepts use.")
    self_test: bool = Field(True, description="Check at start that each hook fires once and that an edit changes the gradients.")


class EvaluateSettings(Settings):
    heldout: dict[str, str] = Field({}, description="Name -> JSONL whose mean loss per response token is measured before and after.")
    prompts: dict[str, str] = Field({}, description="Name -> JSONL of prompts that are answered before and after, for the concepts' rates.")
    max_new_tokens: int = Field(32, ge=1, description="Tokens generated per prompt.")
    max_rows: int = Field(32, ge=1, description="Rows used of each file.")
    samples: int = Field(0, ge=0, description="Answers drawn for each prompt beside the greedy one, for the concepts' rates.")
    temperature: float = Field(1.0, gt=0, description="Temperature at which they are drawn.")


class WandbSettings(Settings):
    mode: Literal["online", "offline", "off"] = Field("off", description="W&B: online, offline (files only), or off.")
    project: str = Field("gradlens", description="W&B project.")
    entity: str | None = Field(None, description="W&B team or user.")
    step_key: str | None = Field(
        None, description="Step axis of the W&B run that the host program has begun; null: told from that run, else gradlens/step."
    )

    @field_validator("mode", mode="before")
    @classmethod
    def _yaml_off(cls, value: Any) -> Any:
        return "off" if value is False else value  # what YAML makes of an unquoted `off`


class RaySettings(Settings):
    address: str | None = Field(None, description="Address of a running Ray cluster; null: start Ray on this machine.")
    max_failures: int = Field(3, ge=0, description="Times a run goes on from its last checkpoint after a rank has died.")
    lens_actors: int = Field(
        0,
        ge=0,
        description="Actors that project gradients on dictionaries, away from the ranks; at most one per hookpoint. 0: the ranks do it.",
    )


RUN_NAME = r"^[A-Za-z0-9][A-Za-z0-9._-]*$"  # part of a folder's name


class RunConfig(Settings):
    """Everything `gradlens run` needs."""

    arm: str = Field("", description="Which arm of a study this run is (written by `gradlens study`).")
    name: str = Field("run", pattern=RUN_NAME, description="First part of the run id.")
    model: ModelSettings = Field(ModelSettings(), description="The model and what of it is trained.")
    data: DataSettings = Field(..., description="Training data.")
    dictionaries: dict[str, str] = Field({}, description="Hookpoint -> dictionary (folder, file, or the name of a shipped one).")
    labels: dict[str, list[str]] = Field(
        {},
        description="Hookpoint -> files or folders of labels (Neuronpedia, Delphi, JSON, CSV), beside those that its dictionary has.",
    )
    concepts: list[str] = Field([], description="Concept files (YAML or JSONL), or demo:NAME.")
    rules: list[Rule | str] = Field([], description="Rules, or files of rules; none: the run is only observed.")
    train: TrainSettings = Field(TrainSettings(), description="Optimisation.")
    observe: ObserveSettings = Field(ObserveSettings(), description="What is read, how often.")
    evaluate: EvaluateSettings = Field(EvaluateSettings(), description="Held-out measures before and after.")
    probe: str | None = Field(
        None, description="JSONL of the probe set for drift; null: rows of the training files that are not trained on."
    )
    wandb: WandbSettings = Field(WandbSettings(), description="Weights & Biases.")
    trackers: list[str] = Field([], description="Other places for the curves: tensorboard, mlflow, trackio, aim, comet_ml, swanlab.")
    ray: RaySettings = Field(RaySettings(), description="Ray.")
    runs_dir: str = Field("runs", description="Folder that holds run folders (relative to the working directory).")


# Fields that may hold a path, resolved against the config file's folder when such a path exists there.
_PATHS = (
    ("model", "name"), ("data", "train"), ("data", "wanted"), ("data", "keep"), ("dictionaries",), ("labels",), ("concepts",), ("rules",),
    ("evaluate", "heldout"), ("evaluate", "prompts"), ("probe",), ("observe", "reference"),
)  # fmt: skip


def load_config(path: str | Path | None, overrides: Iterable[str] = (), environ: Mapping[str, str] | None = None) -> RunConfig:
    """Read a config file and merge environment and `a.b=c` overrides. Raises `ConfigError` that names file and key.

    Concepts that are given by direction files bring dictionaries of their own.
    """
    data: dict[str, Any] = {}
    source = str(path) if path else "config"
    origins: dict[tuple[str, ...], str] = {}  # keys that do not come from the file -> where they come from
    if path is not None:
        data = read_yaml(path)
        if not isinstance(data, dict):
            raise ConfigError(f"{path}: expected a mapping of keys, found {type(data).__name__}")
        if is_pair(data):
            commands = f"`gradlens bench control {path}` runs it, `gradlens rules suggest {path}` says which rule suits it"
            raise ConfigError(f"{path}: a pair file, not a config of a run; {commands}")
        data = _text_keys(data)
        _resolve_paths(data, Path(path).resolve().parent)
    for key, value in (os.environ if environ is None else environ).items():
        if key.startswith("GRADLENS__"):
            keys = key.removeprefix("GRADLENS__").lower().split("__")
            _assign(data, keys, value, key)
            origins[tuple(keys)] = f"environment variable {key}"
    for item in overrides:
        key, separator, value = item.partition("=")
        if not separator or not key:
            raise ConfigError(f"--set {item}: expected KEY=VALUE, for instance --set train.steps=20")
        keys = _split_key(key)
        _assign(data, keys, value, f"--set {key}")
        origins[tuple(keys)] = f"--set {key}"
    _resolve_paths(data, Path.cwd(), named=True)  # a run is resumed from any folder
    try:
        config = RunConfig.model_validate(data)
    except ValidationError as error:
        raise ConfigError(explain(error, source, RunConfig, origins)) from None
    from gradlens.concepts.concept_files import with_direction_dictionaries  # which reads its files as this module does

    return with_direction_dictionaries(config)


def is_pair(data: Any) -> bool:
    """Whether what a YAML file holds is meant as a pair of concepts (`pairs.py`): no config has these keys."""
    return isinstance(data, dict) and {"wanted", "concept"} <= data.keys()


def read_yaml(path: str | Path) -> Any:
    """Parsed YAML; `ConfigError` where the file is missing or is not YAML."""
    path = Path(path)
    if not path.is_file():
        near = difflib.get_close_matches(path.name, [p.name for p in path.parent.glob("*")] if path.parent.is_dir() else [], n=1)
        raise ConfigError(f"{path}: no such file" + (f"; did you mean {path.parent / near[0]}?" if near else ""))
    try:
        return yaml.safe_load(path.read_text(encoding="utf-8")) or {}
    except yaml.MarkedYAMLError as error:
        place = f" in line {error.problem_mark.line + 1}, column {error.problem_mark.column + 1}" if error.problem_mark else ""
        raise ConfigError(f"{path}: not valid YAML{place}: {error.problem or error.context}") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: not valid YAML: {' '.join(str(error).split())}") from None
    except RecursionError:
        raise ConfigError(f"{path}: not valid YAML: nested too deeply") from None


def explain(error: ValidationError, source: str, model: type[BaseModel], origins: Mapping[tuple[str, ...], str] | None = None) -> str:
    """One line per problem: where the value comes from (`source`, or for a key below one of `origins`, that), key, what was found,
    what was expected, and the nearest known key or value."""
    lines = []
    for problem in error.errors():
        path, owner, member = _walk(model, problem["loc"])
        found, kind = problem["input"], problem["type"]
        if member and isinstance(found, dict if member is str else str):
            continue  # pydantic tried this member of a union too, but the value was clearly meant as the other one
        origin = next((keys for keys in origins or {} if path[: len(keys)] == keys), None)
        place = origins[origin] if origins and origin else source
        key = ".".join(path)
        head = place if place == f"--set {key}" or not key else f"{place}: {key}"
        if kind == "extra_forbidden":
            known = sorted(owner.model_fields) if owner else []
            near = [".".join([*path[:-1], name]) for name in difflib.get_close_matches(path[-1], known, n=1)]
            hint = f"did you mean {near[0]}?" if near else f"known keys here: {', '.join(known)}"
            lines.append(f"{place}: unknown key {'.'.join(path)}; {hint}")
        elif kind == "missing":
            lines.append(f"{head} is missing")
        elif kind == "literal_error":
            expected = re.findall(r"'([^']*)'", problem["ctx"]["expected"])
            near = difflib.get_close_matches(str(found), expected, n=1)
            hint = f"; did you mean {near[0]}?" if near else ""
            lines.append(f"{head}: unknown value {found!r}, expected one of {', '.join(expected)}{hint}")
        elif kind == "value_error":
            lines.append(f"{head}: {problem['ctx']['error']}")
        elif member:
            lines.append(f"{head}: expected a mapping of keys or the name of a file, found {found!r}")
        elif kind == "list_type":
            lines.append(f"{head}: expected a list, for instance [{found}], found {found!r}")
        else:
            message = problem["msg"].replace("Input should be ", "expected ").split(", unable")[0]
            lines.append(f"{head}: {message[0].lower()}{message[1:]}, found {found!r}")
    return "\n".join(dict.fromkeys(lines))


def _walk(model: type[BaseModel], loc: tuple[Any, ...]) -> tuple[tuple[str, ...], type[BaseModel] | None, type | None]:
    """Follow pydantic's location through the types: (keys as a person writes them, model that the last key belongs to, member of a
    union if the location ends with it).

    Pydantic puts the member of a union that it tried into the location (`rules.0.function-after[...].mode`); it is no key.
    """
    path: list[str] = []
    kind: Any = model
    owner = member = None
    for part in loc:
        member = None
        members = [option for option in get_args(kind) if option is not type(None)] if _is_union(kind) else []
        if len(members) > 1:
            models = [option for option in members if isinstance(option, type) and issubclass(option, BaseModel)]
            kind = member = next((option for option in models if option.__name__ in str(part)), str)
            continue
        if members:
            kind = members[0]
        if part == "[key]":
            continue
        path.append(str(part))
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            owner = kind
            kind = kind.model_fields[part].annotation if part in kind.model_fields else None
        else:
            kind = next(iter(get_args(kind)[-1:]), None)  # list[X], dict[str, X], tuple[X, X]
    return tuple(path), owner, member


def _is_union(kind: Any) -> bool:
    return get_origin(kind) in (Union, types.UnionType)


def _text_keys(value: Any) -> Any:
    """YAML reads a hookpoint `15:` as a number; keys are texts here."""
    if isinstance(value, dict):
        return {str(key): _text_keys(item) for key, item in value.items()}
    return [_text_keys(item) for item in value] if isinstance(value, list) else value


def _split_key(key: str) -> list[str]:
    # A hookpoint has dots of its own: dictionaries.layers.15=FOLDER.
    head, _, rest = key.partition(".")
    return [head, rest] if head in ("dictionaries", "labels") and rest else key.split(".")


def _assign(data: dict[str, Any], keys: list[str], value: str, source: str) -> None:
    for key in keys[:-1]:
        if data.get(key) is None:
            data[key] = {}
        if not isinstance(data[key], dict):
            raise ConfigError(f"{source}: {key} is {data[key]!r}, which has no keys of its own; set {key} as a whole")
        data = data[key]
    try:
        data[keys[-1]] = _text_keys(yaml.safe_load(value))
    except yaml.YAMLError:
        data[keys[-1]] = value


def _resolve_paths(data: dict[str, Any], folder: Path, named: bool = False) -> None:
    """Files that lie in the folder by their whole path; `named`: where a name alone (`smollm2`) is left what it is."""

    def resolve(value: Any) -> Any:
        if named and isinstance(value, str) and not Path(value).suffix and "/" not in value:
            return value
        if isinstance(value, str) and value and not Path(value).is_absolute() and (folder / value).exists():
            return str(folder / value)
        if isinstance(value, list):  # of names; a rule in the list is no path
            return [resolve(item) if isinstance(item, str) else item for item in value]
        if isinstance(value, dict):
            return {key: resolve(item) for key, item in value.items()}
        return value

    for keys in _PATHS:
        section = data
        for key in keys[:-1]:
            section = (section.get(key) or {}) if isinstance(section, dict) else {}
        if isinstance(section, dict) and keys[-1] in section:
            section[keys[-1]] = resolve(section[keys[-1]])

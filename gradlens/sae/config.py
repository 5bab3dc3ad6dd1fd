"""The config of `gradlens sae train`: YAML -> `SaeConfig`, with `--set a=b` on top."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import Field, ValidationError, field_validator, model_validator

from gradlens.config import Settings, explain, read_yaml
from gradlens.errors import ConfigError, InputError
from gradlens.model.hookpoints import canonical


class SaeConfig(Settings):
    """Everything that training dictionaries needs. One dictionary per hookpoint; all read the same forward passes."""

    model: str = Field("smollm2", description="`smollm2` (fetched by gradlens), a Hugging Face name, or a folder.")
    dtype: Literal["float32", "bfloat16", "float16"] = Field("float32", description="Type of the model's weights.")
    hookpoints: list[str] = Field(..., min_length=1, description="Where dictionaries are trained, e.g. layers.15.")
    text: list[str] = Field(..., min_length=1, description="Training text: JSONL files, demo:NAME, Hugging Face data sets.")
    heldout: list[str] = Field(
        [], description="Text for the health report, same forms; empty: the last 5% of the training text is kept out."
    )
    tokens: int = Field(500_000, ge=64, description="Activations collected for training, at most (each text is read once).")
    heldout_tokens: int = Field(50_000, ge=64, description="Activations collected for the health report, at most.")
    context_length: int = Field(128, ge=4, description="Tokens per forward pass; longer texts are cut into windows of this length.")
    forward_batch: int = Field(16, ge=1, description="Windows per forward pass.")
    store: Literal["auto", "memory", "disk"] = Field(
        "auto", description="Where activations wait: memory, memory-mapped files in `out`, or decided by size."
    )
    memory_gb: float = Field(2.0, gt=0, description="With store auto: activations larger than this go to disk.")
    store_dtype: Literal["float16", "float32"] = Field("float16", description="Type of stored activations.")
    outlier_norm: float | None = Field(
        10.0, gt=1, description="Leave out activations with a norm above this many medians (attention sinks inside a text); null: keep all."
    )
    activation: Literal["topk", "batchtopk"] = Field(
        "topk", description="topk: k per token. batchtopk: k per token on average, saved as jumprelu."
    )
    d_sae: int = Field(3072, ge=2, description="Features.")
    k: int = Field(32, ge=1, description="Active features per token.")
    lr: float = Field(1e-3, gt=0, description="Peak learning rate of Adam.")
    warmup: int = Field(50, ge=0, description="Steps of linear warm-up.")
    decay: float = Field(0.5, ge=0, le=1, description="Last share of the steps over which the learning rate falls to 0.")
    batch_size: int = Field(1024, ge=1, description="Tokens per step.")
    epochs: float = Field(8, gt=0, description="Passes over the collected activations.")
    steps: int | None = Field(None, ge=1, description="Steps; if given, epochs is ignored.")
    aux_k: int = Field(256, ge=0, description="Dead features that learn from what the live ones leave over (AuxK); 0: none.")
    aux_weight: float = Field(1 / 32, ge=0, description="Weight of that loss.")
    dead_after: int = Field(50_000, ge=1, description="A feature that fired on none of this many tokens counts as dead in training.")
    seed: int = Field(0, description="Seed of initialisation and order.")
    device: Literal["auto", "cpu", "cuda"] = Field("auto", description="Where to compute.")
    out: str = Field("dictionaries", description="Folder that gets one SAELens folder per hookpoint (relative to the working directory).")
    checkpoint_every: int = Field(500, ge=1, description="Steps between checkpoints; an interrupted training goes on from the last one.")
    keep_activations: bool = Field(False, description="Keep activations on disk when training is done.")

    @field_validator("text", "heldout", "hookpoints", mode="before")
    @classmethod
    def _list(cls, value: Any) -> Any:
        """One source or hookpoint need not be a list, and a block may be named by its number."""
        value = [value] if isinstance(value, (str, int)) else value
        return [str(item) if isinstance(item, int) else item for item in value] if isinstance(value, list) else value

    @field_validator("hookpoints")
    @classmethod
    def _canonical(cls, names: list[str]) -> list[str]:
        try:
            names = [canonical(name) for name in names]
        except InputError as error:
            raise ValueError(str(error)) from None
        if len(set(names)) < len(names):
            raise ValueError("a hookpoint is named twice")
        return names

    @model_validator(mode="after")
    def _consistent(self) -> SaeConfig:
        if self.k > self.d_sae:
            raise ValueError(f"k is {self.k}, but there are only d_sae = {self.d_sae} features")
        return self


def load_sae_config(path: str | Path, overrides: Iterable[str] = ()) -> SaeConfig:
    """Read a config file and merge `key=value` overrides; paths in it are relative to the file. Raises `ConfigError`."""
    data = read_yaml(path)
    if not isinstance(data, dict):
        raise ConfigError(f"{path}: expected a mapping of keys, found {type(data).__name__}")
    folder = Path(path).resolve().parent

    def resolve(value: Any) -> Any:
        if isinstance(value, list):
            return [resolve(item) for item in value]
        inside = isinstance(value, str) and not Path(value).is_absolute() and (folder / value).exists()
        return str(folder / value) if inside else value

    for key in ("model", "text", "heldout"):
        if key in data:
            data[key] = resolve(data[key])
    for item in overrides:
        key, separator, value = item.partition("=")
        if not separator:
            raise ConfigError(f"--set {item}: expected KEY=VALUE, for instance --set tokens=100000")
        try:
            data[key] = yaml.safe_load(value)
        except yaml.YAMLError:
            data[key] = value
    try:
        return SaeConfig.model_validate(data)
    except ValidationError as error:
        raise ConfigError(explain(error, str(path), SaeConfig)) from None

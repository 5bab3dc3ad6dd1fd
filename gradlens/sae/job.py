"""The job behind `gradlens sae train`: collect activations, train one dictionary per hookpoint, save it with its health.

`out/` holds `config.yaml`, `activations/` (while training, if on disk) and one SAELens folder per hookpoint, which also holds
`checkpoint.pt` until it is done. Running the same config again goes on where it was stopped.
"""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml

from gradlens.dictionaries.dictionary import Dictionary
from gradlens.dictionaries.encoding import health
from gradlens.dictionaries.formats import CFG, load_dictionary, save_dictionary
from gradlens.errors import ConfigError, InputError
from gradlens.sae.activations import Store, Window, collect, count, read_batch, take, windows
from gradlens.sae.config import SaeConfig
from gradlens.sae.step import Recipe, Trainer
from gradlens.training.checkpoint import named_if_full

Progress = Callable[[str, int | None], AbstractContextManager[Callable[..., Any]]]

# What may differ between a run and the run that continues it.
_FREE = {"out", "checkpoint_every", "keep_activations", "device", "memory_gb", "forward_batch"}


def quiet(description: str, total: int | None = None) -> AbstractContextManager[Callable[..., Any]]:
    """Progress that shows nothing."""
    return nullcontext(lambda n=1, note="": None)


def train_dictionaries(
    config: SaeConfig, load: Callable[[], tuple[torch.nn.Module, Any]] | None = None, progress: Progress = quiet, fresh: bool = False
) -> dict[str, Dictionary]:
    """Train and save one dictionary per hookpoint; returns them as loaded from disk, `metadata["health"]` on held-out text included.

    `load` gives `(model, tokenizer)`, by default those of `config.model`; it is called only where something is left to do.
    `fresh`: discard what `config.out` holds of an earlier training of these hookpoints.
    """
    out = Path(config.out)
    if fresh:
        _discard(config, out)
    _claim(config, out)
    waiting = [name for name in config.hookpoints if not (out / name / CFG).is_file()]
    if waiting:
        device = _device(config)
        if load is None:
            from gradlens.model.loading import load_model

            model, tokenizer = load_model(config.model, config.dtype)
        else:
            model, tokenizer = load()
        model.to(device)
        train, heldout = _texts(config, tokenizer)
        names = config.hookpoints  # also those that are done: files on disk belong to all of them
        width = sum(x_TD.shape[1] for x_TD in read_batch(model, names, heldout[:1]).values())
        folder = out / "activations" if _on_disk(config, count(train), width) else None
        with progress("reading held-out text", count(heldout)) as advance:
            held = collect(model, names, heldout, config.forward_batch, "float32", folder and folder / "heldout", advance)
        with progress("collecting activations", count(train)) as advance:
            stores = collect(model, names, train, config.forward_batch, config.store_dtype, folder and folder / "train", advance)
        for name in waiting:
            _train_one(config, name, stores[name], held[name], device, progress)
        if folder is not None and not config.keep_activations:
            shutil.rmtree(folder)
    return {name: load_dictionary(out / name) for name in config.hookpoints}


def _train_one(config: SaeConfig, name: str, store: Store, held: Store, device: torch.device, progress: Progress) -> None:
    folder, usual = Path(config.out) / name, store.usual(config.outlier_norm)
    tokens = len(usual)
    steps = config.steps or max(1, round(config.epochs * tokens / config.batch_size))
    fields = {key: getattr(config, key) for key in ("k", "activation", "lr", "warmup", "decay", "aux_k", "aux_weight", "dead_after")}
    sample = np.sort(np.random.default_rng(config.seed).permutation(tokens)[:20_000])
    trainer = Trainer(Recipe(steps=steps, **fields), config.d_sae, store.rows(usual[sample]).to(device), config.seed)
    checkpoint = folder / "checkpoint.pt"
    seconds = _resume(trainer, checkpoint)
    began = time.monotonic() - seconds
    try:
        with progress(f"training {name}", steps) as advance:
            advance(trainer.step_count)
            while trainer.step_count < steps:
                batch = usual[batch_rows(trainer.step_count, tokens, config.batch_size, config.seed)]
                left = trainer.step(store.rows(batch).to(device))
                advance(1, note=f"FVU {left:.3f}, dead {trainer.dead()}")
                if trainer.step_count % config.checkpoint_every == 0:
                    _checkpoint(trainer, checkpoint, time.monotonic() - began)
    except KeyboardInterrupt:
        _checkpoint(trainer, checkpoint, time.monotonic() - began)
        raise
    facts = {
        "model_name": config.model,
        "context_size": config.context_length,
        "recipe": config.model_dump(mode="json", exclude=_FREE),
        "train": {
            "tokens": tokens,
            "outliers": len(store) - tokens,
            "steps": steps,
            "seconds": round(time.monotonic() - began, 1),
        },
    }
    # Health is of what is on disk: saved once, read back, measured, saved again with what was found.
    temporary = folder / "saving"
    with named_if_full(folder):
        rounded = load_dictionary(save_dictionary(trainer.dictionary(name), temporary), device)
    shutil.rmtree(temporary)
    ordinary = held.usual(config.outlier_norm)
    facts["health"] = {**asdict(health(rounded, held.rows(ordinary).to(device))), "outliers": len(held) - len(ordinary)}
    facts["firing_rate"] = firing_rate(rounded, store, usual, device)
    with named_if_full(folder):
        save_dictionary(trainer.dictionary(name, facts), folder)
    checkpoint.unlink(missing_ok=True)


def batch_rows(step: int, rows: int, batch_size: int, seed: int) -> np.ndarray:
    """Rows of a step's batch, `int64[min(batch_size, rows)]`: a pure function, so that a resumed training draws the same ones.

    Every epoch is a fresh permutation; a batch that does not fit into the end of one starts the next.
    """
    size = min(batch_size, rows)
    epoch, place = divmod(step, rows // size)
    order = _permutation(epoch, rows, seed)
    return np.sort(order[place * size : (place + 1) * size])  # sorted: neighbouring reads from disk


@lru_cache(maxsize=1)
def _permutation(epoch: int, rows: int, seed: int) -> np.ndarray:
    return np.random.default_rng([seed, epoch]).permutation(rows)


def firing_rate(
    dictionary: Dictionary, store: Store, usual: np.ndarray, device: torch.device | str = "cpu", limit: int = 200_000
) -> torch.Tensor:
    """Share of the tokens `usual` on which each feature fires, `[F]`, over evenly spaced ones (`limit` at most)."""
    index = usual[np.linspace(0, len(usual) - 1, min(len(usual), limit)).astype(np.int64)]
    fired = torch.zeros(dictionary.d_sae, dtype=torch.float64)
    for part in np.array_split(index, max(1, len(index) // 1024)):
        fired += (dictionary.encode(store.rows(part).to(device)) > 0).sum(0).cpu()
    return (fired / len(index)).float()


def _resume(trainer: Trainer, checkpoint: Path) -> float:
    """Load a checkpoint where there is one; returns the seconds already spent."""
    if not checkpoint.is_file():
        return 0.0
    try:
        state = torch.load(checkpoint, weights_only=True)
        trainer.load_state(state["trainer"])
    except Exception as error:  # torch raises unrelated types for a torn file; the way out is the same
        raise InputError(f"{checkpoint}: not a usable checkpoint ({type(error).__name__}); delete it, or train with --fresh") from None
    return state["seconds"]


def _checkpoint(trainer: Trainer, path: Path, seconds: float) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(".tmp")
    try:
        with named_if_full(path):
            torch.save({"trainer": trainer.state(), "seconds": seconds}, temporary)
            os.replace(temporary, path)
    except OSError:
        temporary.unlink(missing_ok=True)  # the last checkpoint that could be written stays
        raise


def _texts(config: SaeConfig, tokenizer: Any) -> tuple[list[Window], list[Window]]:
    """Training and held-out windows, no longer than asked."""
    train = windows(config.text, tokenizer, config.context_length, config.seed)
    if config.heldout:
        heldout = windows(config.heldout, tokenizer, config.context_length, config.seed)
    else:
        part = max(1, len(train) // 20)
        train, heldout = train[:-part], train[-part:]
        if not train:
            raise InputError(f"{', '.join(config.text)}: too little text to hold some out; name a heldout source")
    return take(train, config.tokens), take(heldout, config.heldout_tokens)


def _on_disk(config: SaeConfig, tokens: int, width: int) -> bool:
    size = tokens * width * np.dtype(config.store_dtype).itemsize
    return config.store == "disk" or (config.store == "auto" and size > config.memory_gb * 1e9)


def _device(config: SaeConfig) -> torch.device:
    if config.device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if config.device == "cuda" and not torch.cuda.is_available():
        raise ConfigError("device: cuda, and PyTorch finds no GPU here; take device: auto or cpu")
    return torch.device(config.device)


def _claim(config: SaeConfig, out: Path) -> None:
    """Write the config into `out`, or check that what is there was begun with the same."""
    path = out / "config.yaml"
    mine = config.model_dump(mode="json")
    if path.is_file():
        theirs = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
        changed = sorted(key for key in mine if key not in _FREE and mine[key] != theirs.get(key))
        if changed:
            found = ", ".join(f"{key} (was {theirs.get(key)!r}, now {mine[key]!r})" for key in changed)
            raise ConfigError(f"{out}: holds a training with another config: {found}; use another `out`, or --fresh to start over")
    out.mkdir(parents=True, exist_ok=True)
    path.write_text(yaml.safe_dump(mine, sort_keys=False), encoding="utf-8")


def _discard(config: SaeConfig, out: Path) -> None:
    """Remove what an earlier training of these hookpoints left in `out`; nothing else."""
    for name in (*config.hookpoints, "activations"):
        shutil.rmtree(out / name, ignore_errors=True)
    (out / "config.yaml").unlink(missing_ok=True)

"""Activations for training dictionaries: text -> windows of tokens -> forward passes -> a store in memory or on disk.

Every hookpoint is read in the same forward pass, which ends after the last of them. Padding and the first token of a window are
left out: the first token is an attention sink with a norm far from all others. Shape suffixes: T tokens, D d_model.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import zlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from gradlens.data.rows import read_rows, tokenize
from gradlens.errors import InputError
from gradlens.files import write_json
from gradlens.model.capture import counted_tokens, read_activations

Window = list[int]


def windows(sources: Sequence[str], tokenizer: Any, context_length: int, seed: int = 0) -> list[Window]:
    """Token windows of all rows of all sources, shuffled: texts cut into pieces of `context_length`; pieces of one token are dropped."""
    found: list[Window] = []
    for source in sources:
        for row in read_rows(source):
            ids = tokenize(row, tokenizer, max_length=1 << 30, loss_on="all").input_ids
            found += [ids[start : start + context_length] for start in range(0, len(ids), context_length)]
    found = [window for window in found if len(window) > 1]
    if not found:
        raise InputError(f"{', '.join(sources)}: no text of two tokens or more")
    random.Random(seed).shuffle(found)
    return found


def take(found: list[Window], tokens: int) -> list[Window]:
    """The first windows that together hold at most `tokens` counted tokens (at least one window)."""
    total, kept = 0, []
    for window in found:
        if kept and total + len(window) - 1 > tokens:
            break
        total += len(window) - 1
        kept.append(window)
    return kept


def count(found: Sequence[Window]) -> int:
    """Tokens that count in the windows."""
    return sum(len(window) - 1 for window in found)


def batches(found: Sequence[Window], size: int, group: int = 64) -> Iterator[list[Window]]:
    """Batches of windows of like length (sorted within groups of batches), so that little is padding; order is fixed."""
    for start in range(0, len(found), size * group):
        part = sorted(found[start : start + size * group], key=len)
        yield from (part[i : i + size] for i in range(0, len(part), size))


def read_batch(model: torch.nn.Module, hookpoints: Sequence[str], batch: Sequence[Window]) -> dict[str, Tensor]:
    """Activations `[T, D]` of the counted tokens of a batch at each hookpoint."""
    width = max(len(window) for window in batch)
    ids = torch.tensor([window + [0] * (width - len(window)) for window in batch])
    mask = torch.tensor([[1] * len(window) + [0] * (width - len(window)) for window in batch])
    keep = counted_tokens(ids, mask, None, "all")
    read = read_activations(model, list(hookpoints), {"input_ids": ids, "attention_mask": mask})
    return {name: h[keep.to(h.device)].float() for name, h in read.items()}


class Store:
    """Rows `[N, D]` of one hookpoint in memory, or in a memory-mapped file where `path` is given. Rows are float32 going in and out."""

    def __init__(self, rows: int, width: int, dtype: str, path: Path | None = None) -> None:
        self.dtype = np.dtype(dtype)
        if path is None:
            self.array = np.empty((rows, width), self.dtype)
        else:
            path.parent.mkdir(parents=True, exist_ok=True)
            if not path.is_file():
                _reserve(path, rows * width * self.dtype.itemsize)
            self.array = np.memmap(path, self.dtype, "r+", shape=(rows, width))

    def __len__(self) -> int:
        return self.array.shape[0]

    def write(self, start: int, x_TD: Tensor) -> None:
        values = x_TD.cpu().numpy()
        with np.errstate(over="ignore"):
            stored = values.astype(self.dtype)
        if not np.isfinite(stored).all():
            why = (
                "NaN or infinite"
                if not np.isfinite(values).all()
                else f"beyond {self.dtype} (up to {np.abs(values).max():.0f}); set store_dtype: float32"
            )
            raise InputError(f"activations are {why}")
        self.array[start : start + len(stored)] = stored

    def rows(self, index: np.ndarray | slice) -> Tensor:
        """Rows in float32, `[len(index), D]`."""
        return torch.from_numpy(self.array[index].astype(np.float32))

    def usual(self, outlier_norm: float | None, chunk: int = 8192) -> np.ndarray:
        """Indices of the rows whose norm is at most `outlier_norm` medians, `int64[<= N]`; null: of all rows.

        Where a text begins with the same token twice, the second is an attention sink like the first: a hundred times the usual
        norm, so that a handful of such rows would hold most of the variance.
        """
        if outlier_norm is None:
            return np.arange(len(self))
        norms = torch.cat([self.rows(slice(start, start + chunk)).norm(dim=-1) for start in range(0, len(self), chunk)])
        return (norms <= outlier_norm * norms.median()).nonzero().flatten().numpy()

    def flush(self) -> None:
        if isinstance(self.array, np.memmap):
            self.array.flush()


def _reserve(path: Path, size: int) -> None:
    """A file of that many bytes, all of them there: a process that writes into a mapped file on a full disk is killed (SIGBUS)."""
    try:
        with open(path, "xb") as file:
            if hasattr(os, "posix_fallocate"):
                os.posix_fallocate(file.fileno(), 0, size)
            else:  # macOS
                file.truncate(size)
    except OSError as error:
        path.unlink(missing_ok=True)
        advice = "make room, take fewer `tokens` or another `out`, or keep them in memory (store: memory)"
        raise InputError(f"{path}: {size / 1e9:.2g} GB of activations could not be written there ({error.strerror}); {advice}") from None


def collect(
    model: torch.nn.Module,
    hookpoints: Sequence[str],
    found: Sequence[Window],
    batch_size: int,
    dtype: str = "float32",
    folder: Path | None = None,
    progress: Callable[[int], object] | None = None,
) -> dict[str, Store]:
    """One store per hookpoint with the counted tokens of all windows.

    With a folder, goes on where an earlier call on the same windows was stopped.
    """
    total, done = count(found), 0
    marker = folder / "progress.json" if folder else None
    text = zlib.crc32(json.dumps([found, batch_size]).encode())  # the order of rows depends on both
    if marker is not None and marker.is_file():
        earlier = json.loads(marker.read_text())
        if earlier["text"] == text:
            done = int(earlier["tokens"])
        else:  # the text has changed since
            shutil.rmtree(folder)
    stores: dict[str, Store] = {}
    at = 0
    for number, batch in enumerate(batches(found, batch_size)):
        size = count(batch)
        if at + size > done or not stores:
            read = read_batch(model, hookpoints, batch)
            if not stores:
                for name, x_TD in read.items():
                    stores[name] = Store(total, x_TD.shape[1], dtype, folder / f"{name}.{dtype}" if folder else None)
            for name, x_TD in read.items():
                stores[name].write(at, x_TD)
        at += size
        if progress is not None:
            progress(size)
        if marker is not None and at > done and (number % 20 == 0 or at == total):
            for store in stores.values():
                store.flush()
            write_json(marker, {"tokens": at, "text": text})
    return stores

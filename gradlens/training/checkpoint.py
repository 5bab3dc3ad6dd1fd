"""Checkpoints of a run: trainable weights as safetensors, optimizer, lens and random state beside them, complete or absent.

    checkpoints/step-000020/weights.safetensors  optimizer.pt  rank-0.pt  rank-1.pt

A checkpoint is written under a temporary name and renamed when every rank has written its part, so a folder that is there is whole.
All `.pt` files hold tensors and plain numbers only, and are read with `weights_only=True`.
"""

from __future__ import annotations

import errno
import os
import pickle
import re
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn

from gradlens.errors import InputError
from gradlens.files import sync_folder
from gradlens.world import World

KEEP = 2  # the newest ones that stay on disk, unless told otherwise
_NAME = re.compile(r"^step-(\d{6,})$")


def trainable(model: nn.Module) -> dict[str, torch.Tensor]:
    """The parameters that are trained, by name (shared ones once)."""
    return {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}


def checkpoints(run_dir: str | Path) -> list[tuple[int, Path]]:
    """Step and folder of every complete checkpoint of a run, the oldest first."""
    folder = Path(run_dir) / "checkpoints"
    return sorted((int(match[1]), path) for path in folder.glob("step-*") if (match := _NAME.match(path.name)))


def last_checkpoint(run_dir: str | Path) -> tuple[int, Path] | None:
    """Step and folder of the newest complete checkpoint of a run, or None."""
    return max(checkpoints(run_dir), default=None)


def save_checkpoint(
    run_dir: str | Path,
    step: int,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    lens_state: dict[str, Any],
    world: World,
    keep: int = KEEP,
    alarms: Sequence[int] = (),
) -> Path:
    """Write the state after `step` steps; every rank calls it. Older checkpoints are removed, but the last `keep` and the last one before
    each of the `alarms` (steps), to which a run can be rolled back. Raises `OSError`, on every rank, where one could not write its part;
    those that are there stay."""
    folder = Path(run_dir) / "checkpoints"
    final, temporary = folder / f"step-{step:06d}", folder / f".step-{step:06d}.tmp"

    def shared_part() -> None:
        shutil.rmtree(temporary, ignore_errors=True)  # left by a crash
        temporary.mkdir(parents=True)
        weights = {name: parameter.detach().cpu().contiguous() for name, parameter in trainable(model).items()}
        save_file(weights, temporary / "weights.safetensors", metadata={"step": str(step)})
        torch.save(optimizer.state_dict(), temporary / "optimizer.pt")

    def own_part() -> None:
        torch.save({"step": step, "lens": lens_state, "random": random_state()}, temporary / f"rank-{world.rank}.pt")

    def put_in_place() -> None:
        for path in temporary.iterdir():
            with open(path, "rb") as file:
                os.fsync(file.fileno())
        shutil.rmtree(final, ignore_errors=True)  # the same step, written again after a resume
        os.replace(temporary, final)
        sync_folder(folder)
        there = checkpoints(run_dir)
        held = {max((at for at, _ in there if at < alarm), default=0) for alarm in alarms}
        for at, old in there[:-keep]:
            if at not in held:
                shutil.rmtree(old, ignore_errors=True)

    for write, everyone in ((shared_part, False), (own_part, True), (put_in_place, False)):  # each when all ranks are done with the last
        problem = None
        if everyone or world.rank == 0:
            try:
                with named_if_full(final):
                    write()
            except OSError as error:
                problem = (error.errno, error.strerror, error.filename)
        problem = world.broadcast(next(filter(None, world.gather(problem)), None))
        if problem:
            if world.rank == 0:
                shutil.rmtree(temporary, ignore_errors=True)
            raise OSError(*problem)
    return final


@contextmanager
def named_if_full(path: Path) -> Iterator[None]:
    """Around what writes `path`: one `OSError` that names it, where torch and safetensors have errors of their own for a full disk."""
    try:
        yield
    except (OSError, RuntimeError, SafetensorError) as error:
        folder = next(parent for parent in path.absolute().parents if parent.is_dir())
        if "No space left" in str(error) or shutil.disk_usage(folder).free < 2**20:  # of a file that is cut short torch says only that
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path)) from None
        reason = getattr(error, "strerror", None) or (str(error).splitlines() or [type(error).__name__])[0]
        raise OSError(getattr(error, "errno", None) or errno.EIO, reason, str(path)) from None


def load_checkpoint(folder: Path, model: nn.Module, optimizer: torch.optim.Optimizer, world: World) -> tuple[int, dict[str, Any]]:
    """Put weights, optimizer and random state back; returns `(step, lens state)`. Raises `InputError` for what does not fit."""
    try:
        weights = load_file(folder / "weights.safetensors")
        optimizer_state = torch.load(folder / "optimizer.pt", map_location="cpu", weights_only=True)
        own = folder / f"rank-{world.rank}.pt"  # a run resumed on more ranks: the new ones take rank 0's state
        part = torch.load(own if own.is_file() else folder / "rank-0.pt", map_location="cpu", weights_only=True)
    except (SafetensorError, pickle.UnpicklingError, RuntimeError, EOFError, OSError) as error:
        raise InputError(f"{folder}: not a readable checkpoint ({str(error).splitlines()[0]}); remove it to use an older one") from None
    parameters = trainable(model)
    if {name: tuple(t.shape) for name, t in weights.items()} != {name: tuple(t.shape) for name, t in parameters.items()}:
        raise InputError(f"{folder}: its weights are not those this config trains; resume with the model and model.lora of the first run")
    with torch.no_grad():
        for name, parameter in parameters.items():
            parameter.copy_(weights[name])
    optimizer.load_state_dict(optimizer_state)
    restore_random_state(part["random"])
    return int(part["step"]), part["lens"]


def random_state() -> dict[str, torch.Tensor]:
    """State of torch's generators (the training loop draws from no other)."""
    state = {"cpu": torch.get_rng_state()}
    if torch.cuda.is_available():
        state["cuda"] = torch.cuda.get_rng_state()
    return state


def restore_random_state(state: dict[str, torch.Tensor]) -> None:
    torch.set_rng_state(state["cpu"])
    if "cuda" in state and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["cuda"])

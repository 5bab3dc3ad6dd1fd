"""Files that hold weights or say what they are: read without ever running code, and with one clear line where they cannot be read."""

from __future__ import annotations

import json
import math
import pickle
import re
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from safetensors import SafetensorError, safe_open
from torch import Tensor

from gradlens.errors import InputError

PICKLES = (".pt", ".pth", ".bin", ".pkl", ".ckpt")
WEIGHTS = (".safetensors", ".npz", *PICKLES)
MAPPED = 2**29  # bytes of a torch file from which on it is mapped
DEFLATE = 1032  # bytes that one of a zip file can hold at most


def read_config(path: Path) -> dict[str, Any]:
    """The mapping in a JSON or YAML file."""
    try:
        text = path.read_text(encoding="utf-8")
        data = json.loads(text) if path.suffix == ".json" else yaml.safe_load(text)
    except (ValueError, OSError, yaml.YAMLError) as error:
        kind = "JSON" if path.suffix == ".json" else "YAML"
        raise InputError(f"{path}: not readable as {kind}: {str(error).splitlines()[0]}") from None
    if not isinstance(data, dict):
        raise InputError(f"{path}: expected a JSON object, found {type(data).__name__}")
    return data


def read_tensors(path: Path) -> dict[str, Tensor]:
    """The tensors of a weights file by their names, on the CPU; from safetensors mapped. Of a torch file its state dict's."""
    if path.suffix in PICKLES:
        return tensors_in(read_torch(path), path)
    return _read_npz(path) if path.suffix == ".npz" else _read_safetensors(path)


def tensor_names(path: Path) -> set[str]:
    """Names in a safetensors or npz file, without its values. Empty for a file that cannot be read: whoever reads it says why."""
    try:
        if path.suffix == ".safetensors":
            with safe_open(path, framework="pt") as file:
                return set(file.keys())
        if path.suffix == ".npz":
            with np.load(path, allow_pickle=False) as file:
                return set(file.files)
    except (SafetensorError, OSError, ValueError, EOFError, zipfile.BadZipFile):
        pass
    return set()


def read_slice(path: Path, name: str, index: Any) -> Tensor:
    """A part of one tensor of a safetensors file: nothing else is read."""
    try:
        with safe_open(path, framework="pt", device="cpu") as file:
            return file.get_slice(name)[index]
    except (SafetensorError, OSError, ValueError, IndexError) as error:
        raise InputError(f"{path}: {name}: not readable ({error}); copy or download it again") from None


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    try:
        with safe_open(path, framework="pt", device="cpu") as file:
            return {name: file.get_tensor(name) for name in file.keys()}
    except (SafetensorError, OSError, ValueError) as error:
        raise InputError(f"{path}: not a whole safetensors file ({error}); copy or download it again") from None


def check_npz(path: Path) -> None:
    """Raise `ValueError` where an array says that it is larger than the file can hold: numpy would make room for it first."""
    headers = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
    with zipfile.ZipFile(path) as archive:
        for item in archive.infolist():
            with archive.open(item) as file:
                version = np.lib.format.read_magic(file) if item.filename.endswith(".npy") else None
                if version not in headers:
                    continue
                shape, _, kind = headers[version](file)
            if not kind.hasobject and math.prod(shape) * kind.itemsize > min(item.file_size, DEFLATE * path.stat().st_size):
                raise ValueError(f"{item.filename} says that it is of shape {shape}, and the file has not so much in it")


def _read_npz(path: Path) -> dict[str, Tensor]:
    try:
        check_npz(path)
        with np.load(path, allow_pickle=False) as file:
            return {name: torch.from_numpy(np.ascontiguousarray(file[name])).reshape(file[name].shape) for name in file.files}
    except ValueError as error:
        if "pickle" in str(error).lower() or "object" in str(error).lower():
            raise InputError(f"{path}: refused: it holds Python objects, which could run code; expected arrays of numbers") from None
        raise InputError(f"{path}: not a whole npz file ({error}); copy or download it again") from None
    except (OSError, EOFError, KeyError, TypeError, AttributeError, zipfile.BadZipFile) as error:
        raise InputError(f"{path}: not a whole npz file ({error}); copy or download it again") from None


def read_torch(path: Path) -> Any:
    """What a torch file holds: tensors, numbers, texts and containers of them, nothing else."""
    try:
        mapped = path.stat().st_size > MAPPED and zipfile.is_zipfile(path)  # stays on disk until it is used
        return torch.load(path, map_location="cpu", weights_only=True, mmap=mapped)
    except pickle.UnpicklingError as error:
        name = re.search(r"GLOBAL (\S+)", str(error))
        raise InputError(
            f"{path}: refused: a pickle that holds more than tensors{f' ({name[1]})' if name else ''} could run code; "
            "where you trust its source, convert it to safetensors"
        ) from None
    except (RuntimeError, OSError, EOFError, ValueError, KeyError, zipfile.BadZipFile) as error:
        said = "" if isinstance(error, KeyError) else str(error)  # of a KeyError only the key
        reason = (said or type(error).__name__).splitlines()[0].partition(". ")[0]
        raise InputError(f"{path}: not a readable torch file ({reason}); copy or download it again") from None


def tensors_in(data: Any, path: Path) -> dict[str, Tensor]:
    """The state dict in what a torch file held, wherever trainers put it."""
    if isinstance(data, dict):
        data = next((data[key] for key in ("state_dict", "sae", "ae", "model") if isinstance(data.get(key), dict)), data)
    if not isinstance(data, dict) or not any(isinstance(value, Tensor) for value in data.values()):
        raise InputError(f"{path}: expected a state dict with W_enc, W_dec, ..., found {type(data).__name__}")
    found = {str(name): value for name, value in data.items() if isinstance(value, Tensor)}
    for name, value in found.items():  # one number can stand for any number of rows: looking through them would never end
        if value.layout == torch.strided and value.nbytes > max(value.untyped_storage().nbytes(), MAPPED):
            raise InputError(f"{path}: {name} says that it is of shape {tuple(value.shape)}, and the file has not so much in it")
    # a module that was compiled, or wrapped for several processes, puts its own name before each
    return {re.sub(r"^(_orig_mod\.|module\.)+", "", name): value for name, value in found.items()}


def need(found: dict[str, Tensor], names: tuple[str, ...], path: Path) -> None:
    """Raise `InputError` where a tensor is missing."""
    missing = [name for name in names if name not in found]
    if missing:
        raise InputError(f"{path}: {', '.join(missing)} missing; found {', '.join(sorted(found)) or 'nothing'}")


def finite(tensor: Tensor) -> bool:
    """Whether every value is finite, looked at a few megabytes at a time."""
    if not tensor.dim():
        return bool(tensor.isfinite())
    return all(part.isfinite().all() for part in tensor.split(max(1, 2**22 // max(1, tensor[:1].numel()))))

"""Directions: linear probes, differences of means, principal components, groups, as files and as dictionaries.

A direction w is read as a probe reads, r = x·w + b. As a dictionary its `feature_acts` are f = relu(r): active where the probe says
yes. Its row of `W_dec` is d = w / ||w||², the smallest change of the activation that raises r by one. So f·d, and every estimator, is
the same whatever the scale of w, and for w = m / ||m||² (a difference of means m, read in units of itself) d is m. A `signed`
direction gives two features, w + and w -: principal components have no side that is meant.

A file (`.safetensors`, `.npz`, `.json`) holds `directions [F, D]` (or sklearn's `coef_`) and optionally `bias [F]` (`intercept_`),
`threshold [F]`, `mean [D]` and `scale [D]` where x was standardised first, `labels`, `hook`, `signed`, `groups {name: [rows]}`.
Shape suffixes: F directions, D d_model.
"""

from __future__ import annotations

import json
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from gradlens.dictionaries.dictionary import Dictionary
from gradlens.dictionaries.formats.tensors import check_npz
from gradlens.errors import InputError
from gradlens.files import write_atomic
from gradlens.model.hookpoints import place

SUFFIXES = (".safetensors", ".npz", ".json")
# our name -> names that others give it; the first that is there is taken
_NAMES = {
    "directions": ("directions", "coef_", "coef", "components_", "weight"),
    "bias": ("bias", "intercept_", "intercept"),
    "labels": ("labels", "classes_"),
    "mean": ("mean", "mean_"),
    **{name: (name,) for name in ("threshold", "scale", "hook", "signed", "groups", "facts")},
}
_TEXTS = ("labels", "hook", "signed", "groups", "facts")


@dataclass(frozen=True, eq=False)
class Directions:
    """Vectors that are read as x·w + b, before they are made features."""

    w_FD: Tensor
    bias_F: Tensor
    threshold_F: Tensor | None = None  # a direction is active above it; None: above 0
    labels: tuple[str, ...] = ()  # one for each
    hook: str = ""
    signed: bool = False
    groups: dict[str, list[int]] = field(default_factory=dict)  # name -> rows
    facts: dict[str, Any] = field(default_factory=dict)  # how they were made, held-out scores

    def rows(self, rows: Sequence[int]) -> Directions:
        """Some of them."""
        threshold_F = None if self.threshold_F is None else self.threshold_F[list(rows)]
        labels = tuple(self.labels[row] for row in rows)
        return Directions(self.w_FD[list(rows)], self.bias_F[list(rows)], threshold_F, labels, self.hook, self.signed, {}, self.facts)

    def dictionary(self, source: str = "") -> Dictionary:
        """The features: as many as directions, twice as many if signed (row i and its other side F + i)."""
        w_FD, b_F, threshold_F, labels = self.w_FD, self.bias_F, self.threshold_F, list(self.labels)
        groups = dict(self.groups)
        if self.signed:
            F = len(w_FD)
            w_FD, b_F = torch.cat([w_FD, -w_FD]), torch.cat([b_F, -b_F])
            threshold_F = None if threshold_F is None else threshold_F.repeat(2)
            labels = [f"{label} {side}" for side in "+-" for label in labels]
            groups = {name: [*rows, *(F + row for row in rows)] for name, rows in groups.items()}
        W_dec = w_FD / w_FD.square().sum(-1, keepdim=True)
        return Dictionary(
            W_enc=w_FD.T.contiguous(), b_enc=b_F, W_dec=W_dec, b_dec=w_FD.new_zeros(w_FD.shape[1]),
            activation="relu" if threshold_F is None else "jumprelu", threshold=threshold_F, apply_b_dec_to_input=False,
            hookpoint=self.hook, metadata={**self.facts, "format": "directions", "source": source, "labels": labels, "groups": groups},
        )  # fmt: skip


def from_probe(probe: Any, *, hookpoint: str = "", labels: Sequence[str] | None = None, signed: bool | None = None) -> Dictionary:
    """A dictionary of a probe in memory: a mapping with the keys of a file, an array `[F, D]` or `[D]`, a `torch.nn.Linear`, or a fitted
    scikit-learn model with `coef_` and `intercept_`, or with `components_` (PCA; signed).

    `coef_` must be for raw activations: where they were standardised first, give a mapping with `mean` and `scale` too.
    """
    found: dict[str, Any]
    if isinstance(probe, Mapping):
        found = dict(probe)
    elif isinstance(probe, (Tensor, np.ndarray, list, tuple)):
        found = {"directions": probe}
    else:
        found = {name: getattr(probe, name) for names in _NAMES.values() for name in names if getattr(probe, name, None) is not None}
        if "components_" not in found:
            found = {name: value for name, value in found.items() if name in ("coef_", "intercept_", "classes_", "weight", "bias")}
    found |= {name: value for name, value in (("hook", hookpoint), ("labels", labels), ("signed", signed)) if value}
    return parse(found, type(probe).__name__).dictionary()


def is_directions(source: str | Path) -> bool:
    """Whether a source (`FILE` or `FILE#GROUP`) is a direction file: one with `directions` or another name of them in it."""
    path = _split(source)[0]
    if path.suffix not in SUFFIXES or not path.is_file():
        return False
    try:
        if path.suffix == ".safetensors":
            with safe_open(path, framework="pt") as file:
                names = set(file.keys())
        elif path.suffix == ".npz":
            with np.load(path, allow_pickle=False) as file:
                names = set(file.files)
        else:
            names = set(json.loads(path.read_text(encoding="utf-8")))
    except (SafetensorError, OSError, ValueError, TypeError, EOFError, zipfile.BadZipFile):
        return False  # whoever reads the file next says what is wrong with it
    return bool(names & set(_NAMES["directions"][:-1])) or ("weight" in names and names <= {"weight", "bias"})


def read_directions(source: str | Path) -> Directions:
    """Directions of a file, or of one group in it (`FILE#GROUP`). Raises `InputError` naming the file and what is wrong."""
    path, group = _split(source)
    if not path.is_file():
        raise InputError(f"{path}: no such file; expected directions in {', '.join(SUFFIXES)}")
    try:
        if path.suffix == ".safetensors":
            with safe_open(path, framework="pt") as file:
                found: dict[str, Any] = {name: file.get_tensor(name) for name in file.keys()}
                texts = file.metadata() or {}
            found |= {name: texts[name] if name == "hook" else json.loads(texts[name]) for name in _TEXTS if name in texts}
        elif path.suffix == ".npz":
            check_npz(path)
            with np.load(path, allow_pickle=False) as file:
                found = {name: file[name] for name in file.files}
            found |= {name: json.loads(str(found[name])) for name in ("groups", "facts") if name in found}
        else:
            found = json.loads(path.read_text(encoding="utf-8"))
    except (SafetensorError, OSError, ValueError, TypeError, zipfile.BadZipFile) as error:
        raise InputError(f"{path}: not a readable direction file ({str(error).splitlines()[0]:.160})") from None
    directions = parse(found, str(path))
    if group is None:
        return directions
    if group not in directions.groups:
        raise InputError(f"{path}: no group {group!r}; it has {', '.join(directions.groups) or 'none'}")
    return directions.rows(directions.groups[group])


def parse(found: Mapping[str, Any], where: str) -> Directions:
    """Directions from arrays by name (see the head of this file); `where` they are from, for errors."""
    named = {ours: found[name] for ours, names in _NAMES.items() for name in names if found.get(name) is not None}
    if "directions" not in named:
        raise InputError(
            f"{where}: no directions in it; expected directions, or coef_ of scikit-learn; found {', '.join(found) or 'nothing'}"
        )
    w_FD = _tensor(named["directions"], "directions", where)
    w_FD = w_FD[None] if w_FD.dim() == 1 else w_FD
    if w_FD.dim() != 2 or 0 in w_FD.shape:
        raise InputError(f"{where}: directions have shape {list(w_FD.shape)}, expected [F, D]")
    F, D = w_FD.shape
    bias_F = _vector(named, "bias", F, where, w_FD.new_zeros(F))
    if "scale" in named:
        scale_D = _vector(named, "scale", D, where)
        if bool((scale_D <= 0).any()):
            raise InputError(f"{where}: scale has a value that is not positive")
        w_FD = w_FD / scale_D
    if "mean" in named:
        bias_F = bias_F - w_FD @ _vector(named, "mean", D, where)
    empty = (w_FD.norm(dim=-1) == 0).nonzero().flatten().tolist()
    if empty:
        raise InputError(f"{where}: direction {empty[0]} is zero everywhere; leave it out")
    groups = {str(name): [int(row) for row in rows] for name, rows in dict(named.get("groups", {})).items()}
    for name, rows in groups.items():
        if not rows or not all(0 <= row < F for row in rows):
            raise InputError(f"{where}: groups.{name}: expected rows of 0 to {F - 1}, found {rows[:8]}")
    return Directions(
        w_FD,
        bias_F,
        _vector(named, "threshold", F, where) if "threshold" in named else None,
        _labels(named.get("labels"), F, where),
        place(str(named["hook"])) if str(named.get("hook", "")) else "",
        bool(named.get("signed", "components_" in found)),
        groups,
        dict(named.get("facts", {})),
    )


def load_directions(source: str | Path) -> Dictionary:
    """The dictionary of a direction file, or of one group in it (`FILE#GROUP`)."""
    return read_directions(source).dictionary(str(source))


def joined(parts: Sequence[Directions]) -> Directions:
    """Directions of one hookpoint as one set, what is known of each under its label."""
    if len(parts) == 1:
        return parts[0]
    facts = {label: part.facts for part in parts for label in part.labels}
    w_FD, bias_F = (torch.cat([getattr(part, name) for part in parts]) for name in ("w_FD", "bias_F"))
    groups, start = {}, 0
    for part in parts:
        groups |= {name: [start + row for row in rows] for name, rows in part.groups.items()}
        start += len(part.w_FD)
    labels, signed = tuple(label for part in parts for label in part.labels), all(part.signed for part in parts)
    return Directions(w_FD, bias_F, None, labels, parts[0].hook, signed, groups, facts)


def save_directions(directions: Directions, path: str | Path) -> Path:
    """Write a direction file in the format that its name says."""
    path = Path(path)
    if path.suffix not in SUFFIXES:
        raise InputError(f"{path}: expected a name that ends with {', '.join(SUFFIXES)}")
    arrays = {"directions": directions.w_FD, "bias": directions.bias_F, "threshold": directions.threshold_F}
    arrays = {name: value.float().contiguous() for name, value in arrays.items() if value is not None}
    about = {"labels": list(directions.labels), "hook": directions.hook, "signed": directions.signed, "groups": directions.groups}
    about = {name: value for name, value in (about | {"facts": directions.facts}).items() if value}
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".safetensors":
        texts = {name: value if name == "hook" else json.dumps(value) for name, value in about.items()}
        write_atomic(path, save(arrays, metadata=texts))
    elif path.suffix == ".npz":
        texts = {name: json.dumps(value) if isinstance(value, dict) else value for name, value in about.items()}
        with path.open("wb") as file:
            np.savez(file, **{name: value.numpy() for name, value in arrays.items()}, **texts)
    else:
        data = about | {name: value.tolist() for name, value in arrays.items()}
        write_atomic(path, (json.dumps(data) + "\n").encode())
    return path


def _split(source: str | Path) -> tuple[Path, str | None]:
    """`FILE#GROUP` -> the file and the group."""
    if Path(source).exists() or "#" not in str(source):
        return Path(source), None
    path, _, group = str(source).rpartition("#")
    return Path(path), group


def _tensor(value: Any, name: str, where: str) -> Tensor:
    try:
        tensor = torch.as_tensor(value).detach().to("cpu", torch.float32)
    except (TypeError, ValueError, RuntimeError) as error:
        raise InputError(f"{where}: {name} are no numbers ({str(error).splitlines()[0]:.120})") from None
    if not bool(tensor.isfinite().all()):
        raise InputError(f"{where}: {name} has values that are not finite")
    return tensor


def _vector(named: Mapping[str, Any], name: str, length: int, where: str, default: Tensor | None = None) -> Tensor:
    """A vector of that length; one number stands for all."""
    if name not in named:
        return default
    vector = _tensor(named[name], name, where).flatten()
    if len(vector) not in (1, length):
        raise InputError(f"{where}: {name} has {len(vector)} values, expected {length}")
    return vector.expand(length).clone()


def _labels(value: Any, F: int, where: str) -> tuple[str, ...]:
    """One label for each direction. Of two classes with one direction (scikit-learn) the second is meant: its reading is positive."""
    if value is None:
        return tuple(f"direction {i}" for i in range(F))
    labels = [str(label) for label in (value if isinstance(value, (list, tuple)) else np.asarray(value).flatten().tolist())]
    labels = labels[1:] if F == 1 and len(labels) == 2 else labels
    if len(labels) != F:
        raise InputError(f"{where}: {len(labels)} labels for {F} directions")
    return tuple(labels)

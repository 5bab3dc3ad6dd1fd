"""Labels that others have made, as files: Neuronpedia exports, Delphi results, plain JSON and CSV. Each label keeps who said it.

| source | what it looks like |
| --- | --- |
| Neuronpedia | a folder of `batch-N.jsonl.gz` (or one above it), one such file, or the JSON list of its API; `index`, `description` |
| Delphi | a folder of `MODULE_latentN.txt` (or one above it), each a JSON text |
| JSON | `{index: text}`, `{index: row}`, `{hookpoint: {index: text}}`, or a list of rows |
| CSV, TSV | with a header: a column of indices, one of labels, optionally one of who said it |

A feature may have several labels: they stay in the order of the files, unranked.
"""

from __future__ import annotations

import csv
import gzip
import io
import json
import re
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from gradlens.dictionaries.labels import Label
from gradlens.errors import InputError

INDEX = ("index", "feature", "feature_id", "latent", "id")
TEXT = ("description", "label", "explanation", "text")
AUTHOR = ("explanationModelName", "explainer", "source", "author", "model")
LARGEST = 2**30  # bytes of text read of one file: more is no file of labels
_DELPHI = re.compile(r"(.+)_(?:latent|feature)(\d+)\.txt$")
_WRONG = (OSError, EOFError, zlib.error, ValueError, KeyError, TypeError, AttributeError, csv.Error)


def read_foreign(path: Path, hookpoint: str = "") -> list[Label]:
    """Every label of a file or folder, in its order. Raises `InputError` that names the file, what was found and what was expected."""
    if path.is_dir():
        return _read_folder(path, hookpoint)
    try:
        if ".jsonl" in path.name:
            return [_of_row(json.loads(line), path) for line in _lines(path) if line.strip()]
        text = "".join(_lines(path))
        if path.name.removesuffix(".gz").endswith((".csv", ".tsv")):
            return _of_table(text, path)
        return _of_json(json.loads(text), path, hookpoint)
    except _WRONG as error:
        raise InputError(f"{path}: not a label file ({_why(error)})") from None


def is_foreign_folder(path: Path) -> bool:
    """Whether a folder is a Neuronpedia export or holds results of Delphi."""
    return bool(_batches(path) or _explanations(path))


def _read_folder(path: Path, hookpoint: str) -> list[Label]:
    batches = _batches(path)
    if batches:
        found: dict[str, list[Label]] = {}
        for file in batches:
            for label in read_foreign(file):
                found.setdefault(label.neuronpedia.rpartition(":")[0], []).append(label)
        if len(found) > 1:
            raise InputError(f"{path}: labels of several dictionaries ({', '.join(list(found)[:4])}); give the folder of one of them")
        return next(iter(found.values()), [])
    by_module: dict[str, list[Label]] = {}
    for file in _explanations(path):
        module, index = _DELPHI.fullmatch(file.name).groups()
        raw = "".join(_lines(file))
        try:
            text = json.loads(raw)
        except ValueError:
            text = raw
        if not isinstance(text, str):
            raise InputError(f"{file}: expected one JSON text, found {type(text).__name__}")
        by_module.setdefault(module, []).append(Label(feature=int(index), label=text.strip(), source="Delphi"))
    if len(by_module) > 1:
        by_module = {module: labels for module, labels in by_module.items() if _same(module, hookpoint)} or by_module
    if len(by_module) != 1:
        found_names = ", ".join(sorted(by_module)[:6]) or "none"
        raise InputError(f"{path}: labels of several modules ({found_names}), none of them is {hookpoint or 'named'}; say HOOKPOINT=FOLDER")
    return sorted(next(iter(by_module.values())), key=lambda label: label.feature)


def _batches(path: Path) -> list[Path]:
    """A Neuronpedia export's files of explanations, by number: here, or in folders `explanations` and `explanations-MODEL` below."""
    if not path.is_dir():
        return []
    here = [file for pattern in ("batch-*.jsonl.gz", "batch-*.jsonl") for file in path.glob(pattern)]
    below = [file for folder in ("explanations", "explanations-*") for file in path.glob(f"{folder}/batch-*.jsonl*")]
    number = lambda file: int((re.findall(r"\d+", file.name) or ["0"])[0])  # noqa: E731
    return sorted(here or below, key=lambda file: (file.parent.name, number(file)))


def _explanations(path: Path) -> list[Path]:
    if not path.is_dir():
        return []
    files = [file for place in (path, path / "explanations") if place.is_dir() for file in place.iterdir() if _DELPHI.fullmatch(file.name)]
    return sorted(files)


def _same(module: str, hookpoint: str) -> bool:
    from gradlens.model.hookpoints import place

    return bool(hookpoint) and place(module) == place(hookpoint)


def _lines(path: Path) -> Iterator[str]:
    """Lines of a text file, unpacked where it is packed; at most `LARGEST` bytes of them."""
    opened = gzip.open(path, "rb") if path.suffix == ".gz" else path.open("rb")
    read = 0
    with opened as file:
        while line := file.readline(LARGEST):
            read += len(line)
            if read >= LARGEST:
                raise ValueError(f"more than {LARGEST / 1e9:.1f} GB of text")
            yield line.decode()


def _of_json(data: Any, path: Path, hookpoint: str) -> list[Label]:
    from gradlens.model.hookpoints import place

    if isinstance(data, list):
        return [_of_row(row, path) for row in data]
    if data and all(isinstance(row, dict) and any(name.strip().lower() in TEXT for name in row) for row in data.values()):
        return [_of_row({INDEX[0]: index, **row}, path) for index, row in data.items()]
    by_hookpoint = {place(key): value for key, value in data.items() if isinstance(value, dict)}
    if by_hookpoint:
        data = by_hookpoint.get(place(hookpoint), {}) if hookpoint else {}
    return [_label(index, text, None, path) for index, text in data.items()]


def _of_table(text: str, path: Path) -> list[Label]:
    rows = csv.DictReader(io.StringIO(text), delimiter="\t" if ".tsv" in path.name else ",")
    return [_of_row(row, path) for row in rows]


def _of_row(row: Any, path: Path) -> Label:
    if not isinstance(row, dict):
        raise ValueError(f"expected rows with {INDEX[0]} and {TEXT[0]}, found {type(row).__name__}")
    named = {name.strip().lower(): value for name, value in row.items() if isinstance(name, str)}
    first = lambda names: next((named[name.lower()] for name in names if named.get(name.lower()) not in (None, "")), None)  # noqa: E731
    index, text = first(INDEX), first(TEXT)
    if index is None or (text is None and not any(name in named for name in TEXT)):
        raise ValueError(f"a row without {INDEX[0]} or {TEXT[0]}; its columns: {', '.join(map(str, row))}"[:160])
    label = _label(index, text or "", first(AUTHOR), path)
    if row.get("modelId") and row.get("layer"):
        label = label.model_copy(update={"neuronpedia": f"{row['modelId']}@{row['layer']}:{label.feature}"})
    return label


def _label(index: Any, text: Any, author: Any, path: Path) -> Label:
    feature = int(index)
    if feature < 0:
        raise ValueError(f"feature {feature} is less than 0")
    if not isinstance(text, str):
        raise ValueError(f"the label of feature {feature} is no text but {type(text).__name__}")
    return Label(feature=feature, label=text.strip(), source=str(author) if author else path.name)


def _why(error: BaseException) -> str:
    if isinstance(error, (EOFError, zlib.error)):
        return f"packed data that ends too early or is damaged: {error}"
    return f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]:.160}"

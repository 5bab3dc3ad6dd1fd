"""What a result depends on, in twelve letters: settings, and the contents of the files that they name, wherever these lie.

Two benches with the same fingerprint trained on the same rows in the same way; a file that was edited, or another one of the same name,
gives another. Data sets and models that are named and fetched count by their name.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from gradlens.concepts.concept_files import Concept
from gradlens.config import RunConfig

WHOLE = 1 << 26  # bytes up to which a file is read whole; of a larger one (weights) so many blocks, evenly spread
BLOCKS, BLOCK = 64, 1 << 16
UNTOLD = {"steps", "seed", "num_workers", "threads", "device", "checkpoint_every", "keep_checkpoints", "save_model"}  # of `train`


def fingerprint(*parts: Any) -> str:
    """Of plain JSON data; the order of keys does not matter."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True, ensure_ascii=True).encode()).hexdigest()[:12]


def contents(source: str | Path) -> str:
    """What a file, a folder or `demo:NAME` holds, as a digest; a name of anything else stays as it is. `FILE#PART` keeps its part."""
    if str(source).startswith("demo:"):
        from gradlens.data import demo

        name = str(source).removeprefix("demo:")
        return fingerprint(demo.rows(name)) if name in demo.COMPUTED else _file(demo.path(name))
    name, mark, part = str(source).partition("#")
    path = Path(source) if Path(source).exists() else Path(name).expanduser()
    if path.is_file():
        found = _file(path)
    elif path.is_dir():
        files = sorted(file for file in path.rglob("*") if file.is_file() and not file.name.startswith("."))
        found = fingerprint([[file.relative_to(path).as_posix(), _file(file)] for file in files])
    else:
        return str(source)
    return found + (mark + part if path != Path(source) else "")


def of_concept(concept: Concept) -> str:
    """What a concept says: its examples row by row, its features, its checker with the files that this names."""
    said = concept.model_dump(mode="json", exclude={"description", "detection", "positive", "negative", "directions", "checker"})
    said |= {kind: concept.rows(kind) for kind in ("positive", "negative")}
    said["directions"] = contents(concept.directions) if concept.directions else ""
    if concept.checker is not None:
        check = concept.checker.model_dump(mode="json", exclude={"classifier", "command", "timeout"})
        said["checker"] = check | {
            "classifier": contents(concept.checker.classifier) if concept.checker.classifier else "",
            "command": [contents(word) if Path(word).is_file() else word for word in concept.checker.arguments],
        }
    return fingerprint(said)


def of_config(config: RunConfig) -> str:
    """The settings that a bench takes from a config: model, dictionaries, optimiser, evaluation, the length and labels of rows. Steps and
    seed stand in the results themselves, and where a run is carried out changes nothing that is meant."""
    return fingerprint(
        config.model.model_dump(mode="json") | {"name": contents(config.model.name)},
        {hook: contents(source) for hook, source in config.dictionaries.items()},
        config.train.model_dump(mode="json", exclude=UNTOLD),
        config.evaluate.model_dump(mode="json", include={"max_new_tokens", "max_rows", "temperature"}),
        [config.data.max_length, config.data.loss_on],
    )


def _file(path: Path) -> str:
    size, digest = path.stat().st_size, hashlib.sha256()
    with path.open("rb") as file:
        if size <= WHOLE:
            digest.update(file.read())
        else:
            digest.update(str(size).encode())
            for number in range(BLOCKS):
                file.seek((size - BLOCK) * number // (BLOCKS - 1))
                digest.update(file.read(BLOCK))
    return digest.hexdigest()[:16]

"""Where a dictionary is: a folder or file on this machine, a name that ships with gradlens, or a path in a repository of the hub.

`SOURCE` is `FOLDER`, `FILE`, `NAME`, `ORG/REPO[@REVISION][/PATH]` or `hf://` before that; after `#` comes which part of something that has
parts (cross-layer transcoders, crosscoders, folders with one file per layer): `#3` or `#3:7`. What is on this machine always wins.
"""

from __future__ import annotations

import difflib
import re
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from torch import Tensor

from gradlens.dictionaries.formats.tensors import PICKLES, WEIGHTS, read_config, read_tensors, read_torch, tensor_names, tensors_in
from gradlens.errors import InputError

ASSETS = Path(__file__).parents[2] / "assets" / "dictionaries"
CONFIGS = ("cfg.json", "config.json", "config.yaml", "hyperparams.json", "activation_scaler.json", "gradlens.json")
DEPTH = 6  # of a local path are looked at for what it says
_HUB = re.compile(r"(?:hf://)?([\w.-]+/[\w.-]+)(?:@([\w.-]+))?(?:/(.*?))?/?")


@dataclass(frozen=True)
class Place:
    """A folder with a dictionary in it, or one weights file of it."""

    source: str  # as it was named
    folder: Path
    file: Path | None = None  # named itself
    part: tuple[int, ...] = ()  # after `#`
    context: str = ""  # everything its path says: `ORG/REPO/PATH`, or the whole local path
    _read: dict[Path, Any] = field(default_factory=dict, compare=False, repr=False)

    @cached_property
    def names(self) -> list[str]:
        """Files in the folder, sorted."""
        return sorted(path.name for path in self.folder.iterdir() if path.is_file())

    def find(self, *names: str) -> Path | None:
        """The first of these files that is there, in the folder, else one or two folders above (as `checkpoints/` has it)."""
        for folder in (self.folder, *self.folder.parents[:2]):
            for name in names:
                if (folder / name).is_file():
                    return folder / name
        return None

    def matching(self, pattern: str) -> dict[int, Path]:
        """Files of the folder whose whole name matches, by the number in it; of a file that was named itself, that one."""
        found = ((re.fullmatch(pattern, name), self.folder / name) for name in self.names)
        return {int(match[1]): path for match, path in found if match and self.file in (None, path)}

    def weights(self, *names: str) -> Path | None:
        """The weights file: the one that was named, if its name is one of these, else the first of these in the folder."""
        if self.file is not None:
            return self.file if self.file.name in names else None
        return next((self.folder / name for name in names if (self.folder / name).is_file()), None)

    def only(self, *suffixes: str) -> Path | None:
        """The file that was named, or the only one in the folder, with one of these endings."""
        if self.file is not None:
            return self.file if self.file.suffix in suffixes else None
        found = [self.folder / name for name in self.names if Path(name).suffix in suffixes]
        return found[0] if len(found) == 1 else None

    def data(self, path: Path) -> Any:
        """What a torch file holds; read once."""
        if path not in self._read:
            self._read[path] = read_torch(path)
        return self._read[path]

    def tensors(self, path: Path) -> dict[str, Tensor]:
        """The tensors of a weights file."""
        return tensors_in(self.data(path), path) if path.suffix in PICKLES else read_tensors(path)

    def tensor_names(self, path: Path | None) -> set[str]:
        """Names of the tensors in a weights file."""
        if path is None:
            return set()
        return set(self.tensors(path)) if path.suffix in PICKLES else tensor_names(path)

    def config(self, *names: str) -> tuple[dict[str, Any], Path | None]:
        """The first of these configs that there is, and its path; `({}, None)` without one."""
        path = self.find(*names)
        return (read_config(path), path) if path is not None else ({}, None)

    def whole(self) -> None:
        """Raise `InputError` where a part is asked for of what has none."""
        if self.part:
            named = ":".join(map(str, self.part))
            raise InputError(f"{self.source}: it is one dictionary, without parts; leave #{named} out")

    def layer(self, pattern: str = r"(?:^|[/_.\-])(?:layers?|l)[_.\-]?(\d+)(?=$|[/_.\-A-Za-z])") -> int | None:
        """The layer that the path names, the innermost one."""
        found = re.findall(pattern, self.context, re.IGNORECASE)
        return int(found[-1]) if found else None


def shipped() -> list[str]:
    """Names of the dictionaries that come with gradlens."""
    return sorted(path.parent.name for path in ASSETS.glob("*/cfg.json"))


def locate(source: str | Path) -> Place:
    """The place that a source names; fetched from the hub where that is needed. Raises `InputError` for what is not there."""
    named = str(source)
    text, part = split_part(named)
    path = Path(text)
    if not text.startswith("hf://"):
        if path.exists():
            return _local(named, path, part)
        if (ASSETS / text / "cfg.json").is_file():
            return _local(named, ASSETS / text, part)
        found = _HUB.fullmatch(text)
        if path.is_absolute() or text.startswith((".", "~")) or not found or path.suffix in (".yaml", ".yml", ".json", ".jsonl"):
            raise _missing(named, path)
    from gradlens.dictionaries.formats.hub import fetch

    match = _HUB.fullmatch(text)
    if not match:
        raise InputError(f"{named}: expected hf://ORG/REPO[@REVISION][/PATH]")
    root, inner = fetch(named, match[1], match[2], match[3] or "", part)
    return _local(named, root / inner, part, f"{match[1]}/{inner}")


def split_part(source: str) -> tuple[str, tuple[int, ...]]:
    """What stands before `#`, and the numbers after it; what is there under its whole name has no part."""
    text, separator, part = source.partition("#")
    if not separator or Path(source).exists():
        return source, ()
    if not re.fullmatch(r"\d+(:\d+)?", part):
        raise InputError(f"{source}: after # comes a layer, or two (#3 or #3:7), found {part!r}")
    return text, tuple(int(number) for number in part.split(":"))


def _local(named: str, path: Path, part: tuple[int, ...], context: str = "") -> Place:
    path = path.absolute()
    # a folder of the hub's cache says its repository: models--ORG--REPO/snapshots/REVISION/PATH
    inside = re.sub(r"^.*/models--([\w.-]+?)--([\w.-]+)/snapshots/[^/]+", r"\1/\2", path.as_posix())
    context = context or "/".join(inside.split("/")[-DEPTH:])
    if path.is_file():
        if path.suffix in (".json", ".yaml", ".yml") and path.name in CONFIGS:
            return Place(named, path.parent, None, part, str(Path(context).parent))
        return Place(named, path.parent, path, part, context)
    return Place(named, path, None, part, context)


def _missing(named: str, path: Path) -> InputError:
    beside = [p.name for p in path.parent.iterdir() if p.is_dir() or p.suffix in WEIGHTS] if path.parent.is_dir() else []
    near = [str(path.parent / name) for name in difflib.get_close_matches(path.name, beside, n=2)]
    near += difflib.get_close_matches(path.name, shipped(), n=1)
    if near:
        return InputError(f"{named}: no such dictionary; did you mean {' or '.join(near)}?")
    ships = ", ".join(shipped()) or "none shipped"
    return InputError(f"{named}: no such dictionary; expected a folder or file with one, ORG/REPO/PATH on the hub, or one of: {ships}")

"""Small, careful file operations shared by the run store: atomic replacement, JSON without NaN, one-line appends."""

from __future__ import annotations

import json
import math
import os
from pathlib import Path
from typing import Any


def jsonable(value: Any) -> Any:
    """Plain JSON data: numpy numbers and arrays become numbers and lists, NaN and infinities become null, anything else its text."""
    if value is None or isinstance(value, (bool, str)):
        return value
    if isinstance(value, dict):
        return {str(key): jsonable(item) for key, item in value.items()}
    if isinstance(value, (list, tuple, set, frozenset)):
        return [jsonable(item) for item in value]
    if hasattr(value, "model_dump"):
        return jsonable(value.model_dump(mode="json"))
    if hasattr(value, "tolist"):  # numpy scalar or array, torch tensor
        return jsonable(value.tolist())
    if isinstance(value, int):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return str(value)


def write_atomic(path: str | Path, data: bytes | str) -> Path:
    """Replace a file as a whole: a reader, or a machine that stops, sees the old content or the new, never a part."""
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with open(temporary, "wb") as file:
            file.write(data.encode() if isinstance(data, str) else data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        error.filename = str(path)  # which a full disk does not say
        temporary.unlink(missing_ok=True)
        raise
    sync_folder(path.parent)
    return path


def write_json(path: str | Path, data: Any) -> Path:
    """Replace a JSON file atomically; NaN and infinities become null."""
    return write_atomic(path, json.dumps(jsonable(data), ensure_ascii=False, allow_nan=False, indent=1) + "\n")


def sync_folder(folder: Path) -> None:
    """Make a rename in `folder` survive a power failure."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def append_line(path: str | Path, data: dict[str, Any]) -> None:
    """Append one JSON line in one write, so that several processes may append. After a torn line a new line is begun first."""
    line = json.dumps(jsonable(data), ensure_ascii=False, allow_nan=False).encode() + b"\n"
    with open(path, "ab+", buffering=0) as file:
        size = file.seek(0, os.SEEK_END)
        if size:
            file.seek(size - 1)
            if file.read(1) != b"\n":
                line = b"\n" + line
        if file.write(line) != len(line):
            raise OSError(f"{path}: only part of a line could be written")


def read_lines(path: str | Path) -> list[dict[str, Any]]:
    """The JSON objects of a file; a line that is not one (torn by a crash) becomes `{"kind": "unreadable", "line": number}`.

    A last line without its end is still being written and is left out, unless it is whole.
    """
    path = Path(path)
    if not path.is_file():
        return []
    data = path.read_bytes()
    lines = data.split(b"\n")
    rows = []
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except ValueError:
            row = None
        if isinstance(row, dict):
            rows.append(row)
        elif number < len(lines):
            rows.append({"kind": "unreadable", "line": number})
    return rows

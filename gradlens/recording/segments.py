"""Tables of step statistics on disk: append-only Arrow segments, sealed into checksummed Parquet that a manifest lists.

While a segment is open it is an Arrow IPC stream, one batch per record and table, handed to the operating system at once: what
`append` returned from survives a `kill -9`. `seal` turns it into Parquet (page checksums, SHA-256 in `manifest.json`), which
survives a power failure and shows flipped bits. A segment is sealed exactly when the manifest lists it, so a crash between any
two operations leaves each row readable once.
"""

from __future__ import annotations

import errno
import hashlib
import io
import json
import os
import re
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from gradlens.errors import InputError
from gradlens.files import sync_folder, write_atomic

DENSE = (
    "uptake", "drift", "drift_direction", "own", "update", "update_direction", "taught", "push", "attribution", "energy", "activation",
    "probe_rate", "learned",
)  # fmt: skip
SCHEMAS = {
    "scalars": pa.schema({"step": pa.int64(), "key": pa.string(), "value": pa.float64()}),
    "features": pa.schema(
        {
            "step": pa.int64(), "hookpoint": pa.string(), "feature": pa.int32(),
            "taught": pa.float32(), "push": pa.float32(), "attribution": pa.float32(), "energy": pa.float32(),
        }
    ),
    "dense": pa.schema({"step": pa.int64(), "hookpoint": pa.string(), "feature": pa.int32(), **dict.fromkeys(DENSE, pa.float32())}),
    "examples": pa.schema(
        {
            "step": pa.int64(), "row_id": pa.int64(), "concept": pa.string(), "hookpoint": pa.string(),
            "taught": pa.float32(), "push": pa.float32(), "activation": pa.float32(),
            "shows": pa.float32(),  # the probability that the row shows it, where the concept's texts are told
            "positions": pa.list_(pa.int32()), "token_taught": pa.list_(pa.float32()),  # the tokens of the row that teach most of it
        }
    ),
    "lessons": pa.schema(  # of every row the features that it teaches most
        {
            "step": pa.int64(), "row_id": pa.int64(), "hookpoint": pa.string(),
            "features": pa.list_(pa.int32()), "taught": pa.list_(pa.float32()),
        }
    ),
}  # fmt: skip
MANIFEST = "manifest.json"
_NAME = re.compile(r"^(scalars|features|dense|examples|lessons)-(\d{6})$")
_COMPRESSED = pa.ipc.IpcWriteOptions(compression="zstd")


class Segment:
    """One open Arrow segment. A failed append (disk full) leaves the file as it was before it."""

    def __init__(self, path: Path, schema: pa.Schema):
        self.path, self.rows = path, 0
        self._buffer = io.BytesIO()
        self._writer = pa.ipc.new_stream(self._buffer, schema, options=_COMPRESSED)
        self._file = open(path, "xb", buffering=0)
        self._size, self._header = 0, b""

    def append(self, batch: pa.RecordBatch) -> None:
        """Hand one batch to the operating system. Raises `OSError` with nothing written, `FileNotFoundError` where the file was removed:
        what would be written to it nobody could read."""
        if os.fstat(self._file.fileno()).st_nlink == 0:
            raise FileNotFoundError(errno.ENOENT, "removed while the run was being recorded", str(self.path))
        self._writer.write_batch(batch)
        data = self._buffer.getvalue()
        self._buffer.seek(0)
        self._buffer.truncate()
        if self._size == 0:
            # The schema message comes before the first batch; kept, for it must be written even if this first append fails.
            data, self._header = self._header + data, self._header or data[: _message_end(data)]
        try:
            rest = memoryview(data)
            while rest:  # after a part (disk nearly full) the next write says why
                rest = rest[self._file.write(rest) :]
        except OSError:
            self._file.truncate(self._size)
            self._file.seek(self._size)
            raise
        self._size += len(data)
        self.rows += batch.num_rows

    def close(self) -> None:
        self._file.close()


def _message_end(data: bytes) -> int:
    """Bytes of the first message of an IPC stream: marker, length, metadata (the schema message has no body)."""
    return 8 + int.from_bytes(data[4:8], "little")


def batches(record: dict[str, Any]) -> dict[str, pa.RecordBatch]:
    """The rows of a record (docs/architecture.md, "Records"), one batch per table. Raises `ValueError` on a column of the wrong length."""
    step = int(record["step"])
    found: dict[str, dict[str, list[pa.Array]]] = {}
    scalars = record.get("scalars") or {}
    if scalars:
        found["scalars"] = {"key": [pa.array(list(scalars), pa.string())], "value": [pa.array([float(v) for v in scalars.values()])]}
    for table in ("features", "dense"):
        for hookpoint, part in (record.get(table) or {}).items():
            rows = len(next(iter(part.values()), ()))
            columns = found.setdefault(table, {})
            for field in list(SCHEMAS[table])[1:]:
                if field.name == "hookpoint":
                    column = pa.repeat(hookpoint, rows)
                elif field.name in part:
                    column = pa.array(np.asarray(part[field.name]), from_pandas=False).cast(field.type)
                elif field.name == "feature":
                    column = pa.array(np.arange(rows, dtype=np.int32))
                else:
                    column = pa.nulls(rows, field.type)
                if len(column) != rows:
                    raise ValueError(f"step {step}: {table}.{hookpoint}.{field.name} has {len(column)} rows, expected {rows}")
                columns.setdefault(field.name, []).append(column)
    for table in ("examples", "lessons"):
        rows = record.get(table) or []
        if rows:
            fields = list(SCHEMAS[table])[1:]
            found[table] = {field.name: [pa.array([row.get(field.name) for row in rows], field.type)] for field in fields}
    made = {}
    for table, columns in found.items():
        arrays = [pa.concat_arrays(column) for column in columns.values()]
        if arrays and len(arrays[0]):
            made[table] = pa.RecordBatch.from_arrays(
                [pa.repeat(pa.scalar(step, pa.int64()), len(arrays[0])), *arrays], schema=SCHEMAS[table]
            )
    return made


def read_open(path: Path, schema: pa.Schema) -> pa.Table:
    """Every whole batch of an Arrow segment; a torn tail (being written, or cut by a crash) is left out."""
    batches = []
    data = path.read_bytes()
    try:
        reader = pa.ipc.open_stream(data)
        for batch in reader:
            batch.validate()
            batches.append(batch)
    except (pa.ArrowInvalid, OSError):  # torn: no schema yet, or a cut message (pyarrow raises either)
        pass
    return conform(pa.Table.from_batches(batches), schema) if batches else schema.empty_table()


def conform(table: pa.Table, schema: pa.Schema) -> pa.Table:
    """The columns of a schema; those that an older version did not write are null."""
    columns = [table[field.name] if field.name in table.column_names else pa.nulls(len(table), field.type) for field in schema]
    return pa.Table.from_arrays(columns, schema=schema)


def list_segments(folder: Path) -> tuple[list[dict[str, Any]], list[Path]]:
    """Sealed segments (entries of the manifest) and open ones (paths), both in the order in which they were begun."""
    # Open ones first: a segment sealed in between is then found in the manifest, and counted once.
    arrows = sorted(path for path in folder.glob("*.arrow") if _NAME.match(path.stem))
    sealed = read_manifest(folder)
    names = {entry["file"].removesuffix(".parquet") for entry in sealed}
    return sealed, [path for path in arrows if path.stem not in names]


def read_manifest(folder: Path) -> list[dict[str, Any]]:
    path = folder / MANIFEST
    try:
        data = json.loads(path.read_bytes())
        entries = [entry for entry in data["segments"] if entry["table"] in SCHEMAS]
        if elsewhere := [entry["file"] for entry in entries if not _NAME.match(entry["file"].removesuffix(".parquet"))]:
            raise ValueError(f"{elsewhere[0]} is not the name of a segment")  # files that it names are read, and removed
        return entries
    except FileNotFoundError:
        return []
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(f"{path}: not a manifest ({type(error).__name__}: {error}); expected JSON with `segments`") from None


def write_manifest(folder: Path, entries: list[dict[str, Any]]) -> None:
    write_atomic(folder / MANIFEST, json.dumps({"version": 1, "segments": entries}, indent=1) + "\n")


def next_index(folder: Path) -> int:
    """A number that no segment of the folder, sealed or not, has had."""
    names = [match for path in folder.iterdir() if (match := _NAME.match(path.name.split(".")[0]))]
    return max((int(match[2]) for match in names), default=0) + 1


def write_sealed(folder: Path, table: str, index: int, data: pa.Table) -> dict[str, Any]:
    """Write Parquet with page checksums, durably; returns its manifest entry (which the caller adds to the manifest)."""
    path = folder / f"{table}-{index:06d}.parquet"
    temporary = path.with_suffix(".parquet.tmp")
    try:
        pq.write_table(data, temporary, compression="zstd", write_page_checksum=True, row_group_size=131_072)
        with open(temporary, "rb+") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError:
        temporary.unlink(missing_ok=True)
        raise
    sync_folder(folder)
    steps = pc.min_max(data["step"]).as_py()
    return {
        "table": table, "file": path.name, "rows": data.num_rows, "first_step": steps["min"], "last_step": steps["max"],
        "bytes": path.stat().st_size, "sha256": digest,
    }  # fmt: skip


def check_sealed(folder: Path, entry: dict[str, Any]) -> Path:
    """Path of a sealed segment whose bytes are those that were written. Raises `InputError` naming the file if they are not."""
    path = folder / entry["file"]
    way_out = "the run's other segments are intact where `gradlens runs verify` says so; read them with --skip-damaged"
    try:
        with open(path, "rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror}); {way_out}") from None
    if digest != entry["sha256"]:
        found = f"sha256 {digest[:12]}, expected {entry['sha256'][:12]} (steps {entry['first_step']} to {entry['last_step']})"
        raise InputError(f"{path}: damaged since it was written: {found}; {way_out}")
    return path


def read_sealed(path: Path, filters: list[tuple[str, str, Any]] | None = None, columns: list[str] | None = None) -> pa.Table:
    """Rows of a sealed segment, page checksums verified. Raises `InputError` naming the file."""
    schema = SCHEMAS[_NAME.match(path.stem)[1]]
    schema = pa.schema([schema.field(name) for name in columns]) if columns else schema
    try:
        return conform(pq.read_table(path, filters=filters, columns=columns, page_checksum_verification=True), schema)
    except (OSError, pa.ArrowException) as error:
        raise InputError(f"{path}: damaged since it was written: {error}") from None

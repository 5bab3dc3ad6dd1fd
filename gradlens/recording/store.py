"""The run folder, the system of record: `RunWriter` fills it while a run is going, `RunReader` reads it at any time.

    runs/<run id>/config.yaml  versions.json  events.jsonl  statistics/  evaluation.json  labels.json  summary.json

What `record` and `event` returned from is readable after a `kill -9` of the writer; see `segments.py` for how.
"""

from __future__ import annotations

import json
import math
import re
import time
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import yaml

from gradlens.errors import ConfigError, InputError
from gradlens.files import append_line, jsonable, read_lines, write_atomic, write_json
from gradlens.recording import segments
from gradlens.recording.runfolder import give_lock, is_running, new_run_id, take_lock, versions
from gradlens.recording.segments import DENSE, SCHEMAS
from gradlens.recording.worked import seconds_until_stop

REPORT_SECONDS = 60.0  # between two storage_error events while rows are lost at every step: each takes up room as well


class RunWriter:
    """Writes one run folder; only one writer at a time. Use from one thread (see `recorder.ThreadRecorder`).

    `record` and `event` never raise for a full or failing disk: training goes on, lost rows are counted in `lost` and reported
    by a `storage_error` event as soon as one can be written, and while it goes on by one a minute.
    """

    def __init__(self, run_dir: str | Path, config: Any = None, *, seal_every: int = 200):
        """Create the folder. `config` (a `RunConfig` or a mapping) is written to `config.yaml`. Every `seal_every` steps the open
        segments are sealed. Raises `ConfigError` if the folder already holds a run."""
        self._open(run_dir, seal_every)
        if any(self._statistics.iterdir()):
            self._lock.close()
            raise ConfigError(f"{self.run_dir}: already holds a run; resume it, or name another folder")
        data = jsonable(config if config is not None else {})
        write_atomic(self.run_dir / "config.yaml", yaml.safe_dump(data, sort_keys=False, allow_unicode=True))
        write_json(self.run_dir / "versions.json", versions())

    @classmethod
    def create(cls, runs_dir: str | Path, name: str, config: Any = None, *, seal_every: int = 200) -> RunWriter:
        """A new run folder `runs_dir/<new run id>`."""
        return cls(Path(runs_dir) / new_run_id(name), config, seal_every=seal_every)

    @classmethod
    def open_existing(
        cls, run_dir: str | Path, resume_step: int | None = None, *, begins_again: bool = False, seal_every: int = 200
    ) -> RunWriter:
        """Go on with a run, in new segments. Rows past `resume_step` (the checkpoint's step) are dropped; None drops nothing.
        `begins_again`: all of them are; what there was before the first step is recorded again.

        Raises `InputError` if there is no run, `RunError` while another writer has it.
        """
        if not (Path(run_dir) / "config.yaml").is_file():
            raise InputError(f"{run_dir}: no run to resume here (no config.yaml)")
        writer = cls.__new__(cls)
        writer._open(run_dir, seal_every)
        worked = seconds_until_stop(writer.run_dir)  # before what it is told by is taken up again
        writer._recover(-1 if begins_again else resume_step)
        if resume_step is not None:
            (writer.run_dir / "summary.json").unlink(missing_ok=True)
            writer.step = resume_step
            written = max(RunReader(run_dir).last_step("scalars"), 0)
            if written < resume_step:  # a rank and its recorder died together, with what was on its way from one to the other
                reason = "never recorded: what was waiting for the recorder went with the rank that died"
                span = {"from_step": written + 1, "to_step": resume_step, "count": resume_step - written}
                writer.event("gap", service="recorder", reason=reason, **span)
            writer.event("resumed", step=resume_step, worked=round(worked, 1))
        return writer

    def _open(self, run_dir: str | Path, seal_every: int) -> None:
        self.run_dir, self.run_id, self.seal_every = Path(run_dir), Path(run_dir).name, seal_every
        self.lost, self.step = 0, 0  # rows not written; last step recorded
        self._statistics = self.run_dir / "statistics"
        try:
            self._statistics.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            where = "name a folder that can be written: runs_dir"
            raise ConfigError(f"{self.run_dir.parent}: no run folder can be made there ({error.strerror}); {where}") from None
        self._lock = take_lock(self.run_dir)
        self._segments: dict[str, segments.Segment] = {}
        self._since_seal = 0
        self._unreported: dict[str, Any] | None = None  # a storage_error event that was not written yet
        self._reported = -math.inf  # when the last one was
        self._odd_names: set[str] = set()
        self._closed = False

    @property
    def unreported(self) -> dict[str, Any] | None:
        """What is not written and could not be told of either: a `storage_error` event without its kind."""
        return self._unreported

    def record(self, record: dict[str, Any]) -> None:
        """Append one record (docs/architecture.md, "Records"). Raises `KeyError`/`ValueError` only if it is malformed."""
        self.step = max(self.step, int(record["step"]))
        for table, batch in segments.batches(record).items():
            if batch.num_rows:
                self._append(table, batch)
        for name in {name for part in record.get("dense", {}).values() for name in part} - {"feature", *DENSE} - self._odd_names:
            self._odd_names.add(name)
            self.event("not_stored", column=name, expected=list(DENSE))
        self._since_seal += 1
        recovered = self._unreported is not None and self._unreported["to_step"] < self.step  # nothing of this record failed
        if recovered or (self._unreported and time.monotonic() - self._reported > REPORT_SECONDS):
            self._report()
        if self._since_seal >= self.seal_every:
            self.seal()

    def event(self, kind: str, **fields: Any) -> None:
        """Append one line to `events.jsonl`: time, step (the last one recorded, if not given), kind, fields."""
        fields = {"time": time.time(), "step": self.step, **fields}
        try:
            append_line(self.run_dir / "events.jsonl", {"time": fields.pop("time"), "step": fields.pop("step"), "kind": kind, **fields})
        except OSError as error:
            self._failed(error, 1)

    def write_json(self, name: str, data: Any) -> Path:
        """Write `evaluation.json`, `labels.json` or `summary.json` as a whole. Raises `OSError` if the disk is full."""
        return write_json(self.run_dir / name, data)

    def seal(self) -> None:
        """Turn the open segments into checksummed Parquet. A segment that cannot be sealed (disk full) stays readable as it is."""
        self._since_seal = 0
        for segment in self._segments.values():
            segment.close()
        self._segments.clear()
        for path in segments.list_segments(self._statistics)[1]:  # with those that an earlier seal could not do
            try:
                self._seal_file(path)
            except OSError as error:
                self._failed(error, 0)

    def close(self) -> None:
        """Seal, report what was lost, give the folder free. May be called twice."""
        if self._closed:
            return
        self._closed = True
        self.seal()
        if self._unreported:
            self._report()
        give_lock(self._lock)

    def __enter__(self) -> RunWriter:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def _append(self, table: str, batch: pa.RecordBatch) -> None:
        try:
            segment = self._segments.get(table)
            if segment is None:
                path = self._statistics / f"{table}-{segments.next_index(self._statistics):06d}.arrow"
                segment = self._segments[table] = segments.Segment(path, SCHEMAS[table])
            segment.append(batch)
        except OSError as error:
            if isinstance(error, FileNotFoundError):
                self._segments.pop(table, None)  # the next one may find its folder again
            self._failed(error, batch.num_rows)

    def _failed(self, error: OSError, rows: int) -> None:
        self.lost += rows
        first = self._unreported or {"from_step": self.step, "rows": 0}
        self._unreported = {**first, "to_step": self.step, "rows": first["rows"] + rows, "error": str(error)}

    def _report(self) -> None:
        try:
            append_line(
                self.run_dir / "events.jsonl", {"time": time.time(), "step": self.step, "kind": "storage_error", **self._unreported}
            )
        except OSError:
            return  # still no room: reported with the next record that gets through, and counted in `lost`
        self._unreported, self._reported = None, time.monotonic()

    def _seal_file(self, path: Path, keep_to: int | None = None) -> None:
        """Arrow segment -> Parquet -> manifest -> remove the Arrow file; a crash in between leaves the rows readable once."""
        table, _, index = path.stem.partition("-")
        data = segments.read_open(path, SCHEMAS[table])
        if keep_to is not None:
            data = data.filter(pc.field("step") <= keep_to)
        if data.num_rows:
            entry = segments.write_sealed(self._statistics, table, int(index), data)
            segments.write_manifest(self._statistics, [*segments.read_manifest(self._statistics), entry])
        path.unlink()

    def _recover(self, resume_step: int | None) -> None:
        """After a crash: remove what no manifest lists, seal the open segments, drop rows past `resume_step`."""
        sealed, open_paths = segments.list_segments(self._statistics)
        known = {entry["file"] for entry in sealed} | {path.name for path in open_paths} | {segments.MANIFEST}
        for path in self._statistics.iterdir():
            if path.name not in known and path.suffix in (".parquet", ".arrow", ".tmp"):
                path.unlink()
        for path in open_paths:
            self._seal_file(path, resume_step)
        sealed = segments.read_manifest(self._statistics)
        if resume_step is None:
            self.step = max((entry["last_step"] for entry in sealed), default=0)
            return
        kept, replaced = [], []
        for entry in sealed:
            if entry["last_step"] <= resume_step:
                kept.append(entry)
                continue
            path = self._statistics / entry["file"]
            replaced.append(path)
            if entry["first_step"] > resume_step:
                continue
            try:
                data = segments.read_sealed(segments.check_sealed(self._statistics, entry)).filter(pc.field("step") <= resume_step)
            except InputError as error:  # the run goes on without these rows; the file stays, out of the manifest, for whoever can mend it
                replaced[-1] = path.rename(path.with_suffix(".damaged"))
                self.event("segment_damaged", file=replaced.pop().name, error=str(error))
                continue
            kept.append(segments.write_sealed(self._statistics, entry["table"], segments.next_index(self._statistics), data))
        segments.write_manifest(self._statistics, kept)
        for path in replaced:
            path.unlink()


class RunReader:
    """Reads one run folder: while it is being written, after it ended, after a `kill -9`.

    Sealed segments are checked against their SHA-256 (once per reader) and their page checksums: a damaged one raises `InputError`
    naming the file when its table is read; other tables are not concerned. With `skip_damaged` it is left out instead.
    """

    def __init__(self, run_dir: str | Path, *, skip_damaged: bool = False):
        self.run_dir, self.skip_damaged = Path(run_dir), skip_damaged
        self.run_id = self.run_dir.resolve().name
        if not (self.run_dir / "config.yaml").is_file():
            raise InputError(f"{run_dir}: not a run folder (no config.yaml); `gradlens runs ls` lists the runs")
        self._statistics = self.run_dir / "statistics"
        self._checked: dict[str, str] = {}  # file -> error, empty where the file is as it was written

    @property
    def config(self) -> dict[str, Any]:
        """The resolved config, as plain data."""
        try:
            return yaml.safe_load((self.run_dir / "config.yaml").read_text(encoding="utf-8")) or {}
        except (yaml.YAMLError, UnicodeDecodeError) as error:
            raise InputError(f"{self.run_dir / 'config.yaml'}: not valid YAML: {error}") from None

    @property
    def versions(self) -> dict[str, Any] | None:
        return self._json("versions.json")

    @property
    def summary(self) -> dict[str, Any] | None:
        """`summary.json`; None until the run has ended. `run_dir` is where the folder is now: it may have been moved or copied."""
        found = self._json("summary.json")
        return {**found, "run_dir": str(self.run_dir.resolve())} if found and "run_dir" in found else found

    @property
    def evaluation(self) -> dict[str, Any] | None:
        """`evaluation.json`; None where nothing was evaluated."""
        return self._json("evaluation.json")

    @property
    def labels(self) -> dict[str, Any] | None:
        """`labels.json`; None where features have no labels."""
        return self._json("labels.json")

    @property
    def events(self) -> list[dict[str, Any]]:
        """The lines of `events.jsonl`; a line torn by a crash is `{"kind": "unreadable", "line": number}`."""
        return read_lines(self.run_dir / "events.jsonl")

    @property
    def status(self) -> str:
        """`running`, or `done`, `interrupted`, `failed` as the summary says, or `stopped` (ended without a summary)."""
        if is_running(self.run_dir):
            return "running"
        return (self.summary or {}).get("status", "stopped")

    @property
    def hookpoints(self) -> list[str]:
        """Hookpoints with recorded features, by depth."""
        names = set(pc.unique(self._read("features", columns=["hookpoint"])["hookpoint"]).to_pylist())
        names |= set(pc.unique(self._read("dense", columns=["hookpoint"])["hookpoint"]).to_pylist())
        return sorted(names, key=lambda name: [int(part) if part.isdigit() else part for part in re.split(r"(\d+)", name)])

    def scalars(self) -> pa.Table:
        """Every scalar: step, key, value; in the order of steps."""
        return self._read("scalars")

    def keys(self) -> list[str]:
        """Names of the recorded scalars."""
        return sorted(pc.unique(self._read("scalars", columns=["key"])["key"]).to_pylist())

    def curve(self, key: str) -> tuple[np.ndarray, np.ndarray]:
        """`(steps int64[n], values float64[n])` of one scalar; empty where it was never recorded."""
        rows = self._read("scalars", filters=[("key", "=", key)])
        return rows["step"].to_numpy(), rows["value"].to_numpy()

    def last_step(self, table: str) -> int:
        """The last step of which a table has rows, -1 where it has none."""
        sealed, opened = self._segments(table)
        return max(
            [entry["last_step"] for entry in sealed] + [pc.max(rows["step"]).as_py() for rows in opened.values() if len(rows)], default=-1
        )

    def features(self, hookpoint: str | None = None) -> pa.Table:
        """The top features of every step: step, hookpoint, feature, push, attribution, energy."""
        return self._read("features", filters=[("hookpoint", "=", hookpoint)] if hookpoint else None)

    def dense_steps(self, hookpoint: str | None = None) -> list[int]:
        """Steps at which every feature was recorded."""
        rows = self._read("dense", filters=[("hookpoint", "=", hookpoint)] if hookpoint else None, columns=["step", "hookpoint"])
        return sorted(pc.unique(rows["step"]).to_pylist())

    def dense(self, hookpoint: str, step: int | None = None) -> pa.Table:
        """Every feature of a hookpoint at one snapshot (the last one, if no step is given): step, hookpoint, feature, push,
        attribution, energy, drift, drift_direction, probe_rate. Empty where there is none."""
        if step is None:
            step = max(self.dense_steps(hookpoint), default=0)
        return self._read("dense", filters=[("hookpoint", "=", hookpoint), ("step", "=", step)])

    def examples(self, concept: str | None = None) -> pa.Table:
        """What each row taught of each concept: step, row_id, concept, hookpoint, taught, push, activation, shows (the
        probability that it shows the concept), and of the tokens that teach most their positions in the row and token_taught."""
        return self._read("examples", filters=[("concept", "=", concept)] if concept else None)

    def lessons(self, hookpoint: str | None = None) -> pa.Table:
        """What each row taught most, each time it was seen: step, row_id, hookpoint, features and taught (lists, largest first)."""
        return self._read("lessons", filters=[("hookpoint", "=", hookpoint)] if hookpoint else None)

    def query(self, sql: str) -> pa.Table:
        """SQL (DuckDB) over the tables `scalars`, `features`, `dense`, `examples`, `lessons`. Raises `InputError` on wrong SQL."""
        connection = duckdb.connect(":memory:")
        try:
            for table in SCHEMAS:
                if not re.search(rf"\b{table}\b", sql, re.IGNORECASE):
                    continue  # a table that is not asked for may be large, or damaged
                paths, tail = self._sources(table)
                connection.register(f"{table}_open", tail)
                files = ", ".join("'" + str(path).replace("'", "''") + "'" for path, _ in paths)
                sealed = f"SELECT * FROM read_parquet([{files}], union_by_name = true) UNION ALL BY NAME " if files else ""
                connection.execute(f"CREATE VIEW {table} AS {sealed}SELECT * FROM {table}_open")
            return connection.sql(sql).to_arrow_table()
        except duckdb.Error as error:
            raise InputError(f"query: {error}") from None
        finally:
            connection.close()

    def verify(self) -> list[dict[str, Any]]:
        """One row per segment and for `events.jsonl`: file, table, rows, first_step, last_step, state (sealed, open, damaged), error."""
        sealed, opened = self._segments()
        rows = []
        for entry in sealed:
            self._checked.pop(entry["file"], None)
            error = self._check(entry)
            steps = {name: entry[name] for name in ("table", "rows", "first_step", "last_step")}
            rows.append({"file": entry["file"], **steps, "state": "damaged" if error else "sealed", "error": error or None})
        for path, data in opened.items():
            table = path.stem.split("-")[0]
            steps = pc.min_max(data["step"]).as_py()
            rows.append({"file": path.name, "table": table, "rows": data.num_rows, "first_step": steps["min"], "last_step": steps["max"],
                         "state": "open", "error": None})  # fmt: skip
        events = self.events
        torn = [event["line"] for event in events if event.get("kind") == "unreadable"]
        rows.append({"file": "events.jsonl", "table": "events", "rows": len(events) - len(torn), "first_step": None, "last_step": None,
                     "state": "damaged" if torn else "whole", "error": f"lines {torn} are torn" if torn else None})  # fmt: skip
        return rows

    def _json(self, name: str) -> Any:
        path = self.run_dir / name
        try:
            return json.loads(path.read_bytes())
        except FileNotFoundError:
            return None
        except ValueError as error:
            raise InputError(f"{path}: not valid JSON: {error}") from None

    def _check(self, entry: dict[str, Any]) -> str:
        """Why a sealed segment cannot be read, empty if it can."""
        if entry["file"] not in self._checked:
            try:
                path = segments.check_sealed(self._statistics, entry)
                segments.read_sealed(path, columns=["step"])
                self._checked[entry["file"]] = ""
            except InputError as error:
                self._checked[entry["file"]] = str(error)
        return self._checked[entry["file"]]

    def _sources(self, table: str) -> tuple[list[tuple[Path, dict[str, Any]]], pa.Table]:
        """Intact sealed segments of a table, and the rows of its open ones."""
        sealed, opened = self._segments(table)
        paths = []
        for entry in sealed:
            error = self._check(entry)
            if not error:
                paths.append((self._statistics / entry["file"], entry))
            elif not self.skip_damaged:
                raise InputError(error)
        return paths, pa.concat_tables([SCHEMAS[table].empty_table(), *opened.values()])

    def _segments(self, only: str | None = None) -> tuple[list[dict[str, Any]], dict[Path, pa.Table]]:
        """Sealed segments, and the rows of open ones; of all tables, or of one. Listed anew where one is sealed before it is read."""
        for attempt in range(5):
            sealed, open_paths = segments.list_segments(self._statistics)
            tables = {path: path.stem.split("-")[0] for path in open_paths}
            try:
                opened = {path: segments.read_open(path, SCHEMAS[table]) for path, table in tables.items() if only in (None, table)}
                return [entry for entry in sealed if only in (None, entry["table"])], opened
            except FileNotFoundError:
                if attempt == 4:
                    raise
        raise AssertionError("unreachable")

    def _read(self, table: str, filters: list[tuple[str, str, Any]] | None = None, columns: list[str] | None = None) -> pa.Table:
        """Rows of a table over all its segments, in the order of steps."""
        paths, tail = self._sources(table)
        wanted = {column: value for column, _, value in filters or []}
        if columns and "step" not in columns:
            columns = [*columns, "step"]
        for column, value in wanted.items():
            tail = tail.filter(pc.field(column) == value)
        parts = [tail.select(columns) if columns else tail]
        for path, entry in paths:
            if entry["first_step"] <= wanted.get("step", entry["first_step"]) <= entry["last_step"]:
                parts.insert(-1, segments.read_sealed(path, filters, columns))
        return pa.concat_tables(parts).combine_chunks().sort_by("step")

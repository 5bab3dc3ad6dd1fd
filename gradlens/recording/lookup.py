"""Which runs there are: finding one by what a person types, and a table of all."""

from __future__ import annotations

import difflib
import os
import shlex
from pathlib import Path
from typing import Any

from gradlens.errors import InputError
from gradlens.files import jsonable
from gradlens.recording.store import RunReader


def is_run(path: Path) -> bool:
    return os.path.isfile(path / "config.yaml")  # not Path.is_file, which raises for a folder that others may not look into


def list_runs(runs_dir: str | Path) -> list[Path]:
    """Run folders, the oldest first."""
    runs_dir = Path(runs_dir)
    runs = [path for path in runs_dir.iterdir() if is_run(path)] if runs_dir.is_dir() else []
    return sorted(runs, key=lambda path: ((path / "config.yaml").stat().st_mtime, path.name))


def find_run(runs_dir: str | Path, query: str | Path) -> Path:
    """The run folder that `query` means: a path, an id, the unique beginning of an id, or `last`. Raises `InputError` with near ids."""
    if is_run(Path(query)):
        return Path(query)
    runs, query = list_runs(runs_dir), str(query)
    if not runs:
        raise InputError(f"run {query}: no such folder, and no runs in {runs_dir}; start one with `gradlens run CONFIG`")
    if query in ("last", "latest"):
        return runs[-1]
    exact = [path for path in runs if path.name == query]
    begins = exact or [path for path in runs if path.name.startswith(query)]
    if len(begins) == 1:
        return begins[0]
    if begins:
        raise InputError(f"run {query}: {len(begins)} runs begin so: {', '.join(path.name for path in begins[-5:])}; give more of the id")
    names = [path.name for path in runs]
    near = difflib.get_close_matches(query, names, n=3, cutoff=0.4) or [name for name in names if query in name][-3:] or names[-3:]
    raise InputError(f"run {query}: not found in {runs_dir}; near: {', '.join(near)}, or `last`")


def called(folder: str | Path) -> str:
    """What commands may call a run by, whatever folder they look for runs in by default: its id where that is `runs`, else its folder."""
    folder = Path(folder)
    return folder.name if folder.parent.resolve() == Path("runs").resolve() else shlex.quote(str(folder))


def rule_labels(rules: list[Any]) -> list[str]:
    """Short names of a config's rules: a rule's name, or `mode:concept`, or the file it comes from."""
    labels = []
    for rule in rules:
        if isinstance(rule, dict):
            labels.append(rule.get("name") or rule.get("label") or f"{rule.get('mode', 'route')}:{rule.get('concept') or 'features'}")
        else:
            labels.append(Path(str(rule)).stem)
    return labels


def runs_table(runs_dir: str | Path) -> list[dict[str, Any]]:
    """One row per run, the newest first: run_id, run_dir, name, status, steps, loss_first, loss_last, rules, started, seconds.

    A run that cannot be read has the status `unreadable` and an `error`.
    """
    rows = []
    for path in reversed(list_runs(runs_dir)):
        row: dict[str, Any] = dict.fromkeys(("steps", "loss_first", "loss_last", "seconds", "error"))
        row |= {"run_id": path.name, "run_dir": str(path), "name": path.name, "status": "unreadable", "rules": []}
        row["started"] = (path / "config.yaml").stat().st_mtime
        rows.append(row)
        try:
            reader = RunReader(path, skip_damaged=True)
            config, summary = reader.config, reader.summary
            row.update(name=config.get("name", path.name), status=reader.status, rules=rule_labels(config.get("rules") or []))
            if summary is None:
                steps, losses = reader.curve("train/loss")
                if len(steps):
                    summary = {"steps": int(steps[-1]), "loss_first": jsonable(losses[0]), "loss_last": jsonable(losses[-1])}
            row.update({key: (summary or {}).get(key) for key in ("steps", "loss_first", "loss_last", "seconds")})
        except (InputError, OSError) as error:
            row["error"] = str(error)
    return rows

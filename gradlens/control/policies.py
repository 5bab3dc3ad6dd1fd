"""The rules of a run in its folder: `policy.json` says what is in force, `policy.jsonl` what ever was, and is only ever added to.

Any process may change them: the controller of a running job looks at the file whenever a rank asks, a resumed run begins with it. A lock
makes reading and writing one act. Versions only grow: an undo is a new version with the rules of an earlier one.
"""

from __future__ import annotations

import fcntl
import json
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

from gradlens.control.rules import Rule, load_rules
from gradlens.errors import ConfigError
from gradlens.files import append_line, read_lines, write_json

By = Literal["config", "auto", "set", "undo", "off", "refused"]


class Conflict(ConfigError):
    """The rules were changed by somebody else in the meantime."""


def dump_rules(rules: Sequence[Rule]) -> list[dict[str, Any]]:
    return [rule.model_dump(mode="json", exclude_defaults=True) for rule in rules]


def read_state(folder: Path) -> dict[str, Any]:
    """What `policy.json` says: version, rules, stop."""
    path = folder / "policy.json"
    found = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    return {"version": 0, "rules": [], "stop": False, **found}


def signature(folder: Path) -> tuple[int, ...]:
    """Differs when `policy.json` has been written again; () where there is none."""
    try:
        found = (folder / "policy.json").stat()
    except FileNotFoundError:
        return ()
    return found.st_ino, found.st_mtime_ns, found.st_size


@contextmanager
def changing(folder: Path) -> Iterator[dict[str, Any]]:
    """The state, to be changed in place: written back at the end of the block, with nobody else's change in between."""
    with open(folder / "policy.lock", "a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        state = read_state(folder)
        yield state
        write_json(folder / "policy.json", state)


def put(
    folder: Path, rules: Sequence[dict[str, Any]], by: By, base_version: int | None = None, restores: int | None = None
) -> dict[str, Any]:
    """Put rules in force; returns the new state. `base_version`: the version they are to replace, any by default (else `Conflict`).
    `restores`: the earlier version whose rules these are."""
    with changing(folder) as state:
        if base_version not in (None, state["version"]):
            raise Conflict(
                f"{folder.name}: rules are at version {state['version']}, not {base_version}; read them again and repeat the change"
            )
        _note_first(folder, state)
        found = read_lines(folder / "policy.jsonl")
        version = max([state["version"], *(entry.get("version", 0) for entry in found)]) + 1
        entry = {"time": time.time(), "version": version, "by": by, "replaces": state["version"]}
        append_line(folder / "policy.jsonl", {**entry, **({} if restores is None else {"restores": restores}), "rules": list(rules)})
        state |= {"version": version, "rules": list(rules)}
    return state


def settle(folder: Path, version: int, rules: Sequence[dict[str, Any]], by: By = "auto") -> None:
    """What a version has come to: rules of mode `auto` are what they stand for, or the run refused the rules and goes on with those it had
    (`by` "refused": a run that is begun again must not begin with them). The version stays. Nothing where others are in force by now."""
    with changing(folder) as state:
        if state["version"] == version:
            state["rules"] = list(rules)
            known = next((entry for entry in reversed(history(folder)) if entry["version"] == version), {})
            kept = {key: known[key] for key in ("replaces", "restores") if key in known}
            entry = {"time": time.time(), "version": version, "by": by, **kept, "rules": list(rules)}
            append_line(folder / "policy.jsonl", entry)


def begin(folder: Path, rules: Sequence[dict[str, Any]]) -> None:
    """The rules of a new run's config: version 1, or 0 where there are none."""
    with changing(folder) as state:
        state |= {"version": 1 if rules else 0, "rules": list(rules), "stop": False}
        _note_first(folder, state)


def undo(folder: Path) -> dict[str, Any]:
    """Put the rules back in force that were before the last change that is not undone yet. Raises `ConfigError` where there is none."""
    entries = {entry["version"]: entry for entry in history(folder)}
    version = last = read_state(folder)["version"]
    while last in entries and entries[last]["by"] == "refused":  # it has changed nothing
        last = entries[last].get("replaces")
    now = entries[entries[last].get("restores", last)] if last in entries else {}
    before = now.get("replaces")
    before = entries[before].get("restores", before) if before in entries else None
    if before is None:
        raise ConfigError(f"{folder.name}: there is no change of rules to undo; `gradlens rules history {folder.name}` shows them")
    return put(folder, entries[before]["rules"], "undo", base_version=version, restores=before)


def history(folder: Path) -> list[dict[str, Any]]:
    """Every policy the run has had, the oldest first: `time`, `version`, `by`, `rules`, and of an undo the version that it `restores`."""
    return [entry for entry in read_lines(folder / "policy.jsonl") if "version" in entry]


def check_rules(folder: Path, items: Sequence[Any]) -> list[Rule]:
    """Rules that may be put in force in this run. Raises `ConfigError` for what is no rule, names a concept that the run has not, or acts
    on rows that are there already."""
    rules, path = load_rules(list(items)), folder / "concepts.yaml"
    from gradlens.concepts.concept_files import load_concepts  # it reads what `rules` describes
    from gradlens.config import read_yaml
    from gradlens.model.hookpoints import canonical

    names = {concept.name for concept in load_concepts([path])} if path.is_file() else set()
    config = read_yaml(folder / "config.yaml") if (folder / "config.yaml").is_file() else {}
    places = {canonical(name) for name in config.get("dictionaries") or {}}
    for rule in rules:
        for place in [*rule.features, *(rule.hookpoints or [])]:
            if places and canonical(place) not in places:
                raise ConfigError(f"rule {rule.label}: no dictionary at {place}; this run has {', '.join(sorted(places))}")
        if rule.mode == "auto":
            raise ConfigError(f"rule {rule.label}: auto is settled before a run's first step; send route or rewrite")
        if rule.mode == "inoculate" and rule not in load_rules((history(folder) or [read_state(folder)])[0]["rules"]):
            raise ConfigError(
                f"rule {rule.label}: inoculate acts on the rows with which a run begins, and {folder.name} began without it: it would do "
                "nothing here; begin another run with it among its rules"
            )
        if rule.concept and names and rule.concept not in names:
            raise ConfigError(f"rule {rule.label}: unknown concept {rule.concept!r}; this run has {', '.join(sorted(names))}")
    return rules


def _note_first(folder: Path, state: dict[str, Any]) -> None:
    """A history begins with what was in force before its first change; runs of older versions have none."""
    if not history(folder):
        append_line(folder / "policy.jsonl", {"time": time.time(), **{k: state[k] for k in ("version", "rules")}, "by": "config"})

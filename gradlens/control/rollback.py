"""Going back: a run's newest checkpoint before an alarm, or at a step, becomes the one it goes on from. Nothing is deleted.

What lies past that step is set aside in the run folder, `set_aside/001/`: checkpoints, the statistics as they were, the model, the
evaluation, the summary and the report of the end that there will be no more. `events.jsonl` stays whole: a `rolled_back` event says what
was done, and what lies past the step of the `resumed` event after it is void.
"""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gradlens.errors import ConfigError, InputError
from gradlens.files import read_lines, write_json
from gradlens.recording import segments
from gradlens.recording.runfolder import is_running
from gradlens.recording.store import RunWriter
from gradlens.report.findings import current
from gradlens.training.checkpoint import checkpoints

ENDINGS = ("summary.json", "report.html", "outcome.json", "error.txt", "model")  # what the end of a run leaves
ASIDE = "set_aside"


@dataclass(frozen=True)
class Rollback:
    """What was done: `step` is the one that the run goes on from, `aside` the folder with what lay past it."""

    step: int
    from_step: int
    aside: Path
    moved: tuple[str, ...]
    alarm: dict[str, Any] | None = None

    def as_dict(self) -> dict[str, Any]:
        return {
            "step": self.step,
            "from_step": self.from_step,
            "set_aside": str(self.aside),
            "moved": list(self.moved),
            "alarm": self.alarm,
        }


def roll_back(folder: Path, step: int | None = None) -> Rollback:
    """Go back to `step` (0: the beginning), or to the newest checkpoint before the first alarm that still holds.

    Raises `ConfigError` for a run that is going on, has no alarm, or has no checkpoint there: it names those there are.
    """
    if is_running(folder):
        raise ConfigError(f"{folder.name} is still running; stop it with ctrl-c where it was started, then roll it back")
    there = {0: None, **dict(checkpoints(folder))}
    alarm = None
    if step is None:
        alarms = current(read_lines(folder / "events.jsonl"), "alarm")
        if not alarms:
            raise ConfigError(f"{folder.name} has raised no alarm; name a step: --step N ({_named(there)})")
        alarm = dict(min(alarms, key=lambda event: event["step"]))
        step = max((at for at in there if 0 < at < alarm["step"]), default=None)
        if step is None:
            raise ConfigError(
                f"{folder.name}: no checkpoint before the alarm at step {alarm['step']} ({_named(there)}); go back to the beginning with "
                "--step 0, and save more often: train.checkpoint_every"
            )
    if step not in there:
        raise ConfigError(f"{folder.name}: no checkpoint at step {step}; {_named(there)}")
    aside = _new_folder(folder / ASIDE)
    moved = _set_aside(folder, aside, step)
    writer = RunWriter.open_existing(folder, step)  # drops the statistics past it, a copy of which is aside now
    done = Rollback(step, max(*there, _last_step(aside)), aside, moved, alarm)
    about = {} if alarm is None else {"alarm": alarm.get("text"), "alarm_step": alarm["step"]}
    writer.event("rolled_back", step=step, from_step=done.from_step, set_aside=str(aside.relative_to(folder)), moved=list(moved), **about)
    writer.close()
    write_json(aside / "rollback.json", done.as_dict())
    return done


def _set_aside(folder: Path, aside: Path, step: int) -> tuple[str, ...]:
    moved = []
    for at, path in checkpoints(folder):
        if at > step:
            (aside / "checkpoints").mkdir(exist_ok=True)
            path.rename(aside / "checkpoints" / path.name)
            moved.append(f"checkpoints/{path.name}")
    shutil.copytree(folder / "statistics", aside / "statistics")
    shutil.copy2(folder / "events.jsonl", aside / "events.jsonl")
    for name in ENDINGS:
        if (folder / name).exists():
            (folder / name).rename(aside / name)
            moved.append(name)
    evaluation = folder / "evaluation.json"
    if evaluation.is_file():
        shutil.copy2(evaluation, aside / "evaluation.json")
        found = json.loads(evaluation.read_text(encoding="utf-8"))
        if found.pop("after", None) is not None:
            write_json(evaluation, found)
            moved.append("evaluation.json: after")
    return tuple(moved)


def _last_step(aside: Path) -> int:
    """The last step that the statistics set aside tell of."""
    sealed, open_paths = segments.list_segments(aside / "statistics")
    steps = [entry["last_step"] for entry in sealed]
    for path in open_paths:
        found = segments.read_open(path, segments.SCHEMAS[path.stem.partition("-")[0]])["step"].to_pylist()
        steps += found[-1:]
    return max(steps, default=0)


def _new_folder(parent: Path) -> Path:
    number = 1 + max((int(path.name) for path in parent.glob("[0-9]*") if path.name.isdigit()), default=0)
    path = parent / f"{number:03d}"
    try:
        path.mkdir(parents=True)
    except OSError as error:
        raise InputError(f"{path}: cannot be made ({error.strerror})") from None
    return path


def _named(there: dict[int, Any]) -> str:
    steps = [str(step) for step in sorted(there) if step]
    return f"checkpoints at steps {', '.join(steps)}; 0 is the beginning" if steps else "there is no checkpoint; 0 is the beginning"

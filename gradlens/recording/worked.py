"""How long a run has worked: the time in which it was going, without the pauses between a stop and a resume.

A `resumed` event says how long the run had worked until then (`worked`); events of an older version do not, and their pause counts.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from gradlens.files import read_lines


def seconds_worked(run_dir: Path, events: Iterable[Mapping[str, Any]], until: float) -> float:
    """Seconds that the run had worked at the time `until`."""
    begun = (run_dir / "config.yaml").stat().st_mtime
    begun = next((event["time"] for event in events if event.get("kind") == "started"), begun)  # an arm waits for those before it
    before = 0.0
    for event in events:
        if event.get("kind") == "resumed" and "worked" in event:
            before, begun = event["worked"], event["time"]
    return before + max(until - begun, 0.0)


def seconds_until_stop(run_dir: Path) -> float:
    """Seconds that a run which is not going had worked when it stopped: what its summary says, or until its last record."""
    try:
        return float(json.loads((run_dir / "summary.json").read_text(encoding="utf-8"))["seconds"])
    except (OSError, ValueError, KeyError, TypeError):  # killed before it could write one
        records = [path.stat().st_mtime for path in (run_dir / "statistics").glob("*-*")]
        return seconds_worked(run_dir, read_lines(run_dir / "events.jsonl"), max(records, default=0.0))

"""What rose in place of what rules held down, in runs with rules beside runs without: from their run folders, without torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from gradlens.recording.store import RunReader


WHAT = {"own": "its own features", "cosine": "nearest in direction", "coactive": "active on the same tokens"}
ARMS = {"rules": "with rules", "none": "without", "random": "with random features", "oracle": "on wanted data alone"}
Row = dict[str, Any]


def displacement(readers: Sequence[RunReader], arms: Sequence[str | None]) -> list[Row]:
    """What rose beside what was held down, arm by arm: `{"concept", "hookpoint", "what", "features", "acted", "had", "drift": {arm: sum of
    drifts}}`, and of every hookpoint `{"concept": None, "hookpoint", "what": "fvu", "drift": {arm: FVU now less FVU before}}`; means over
    an arm's runs.

    `what`: see `WHAT`; the sets are those that the first run with rules told of; `had`: activation of its own features together before
    training; `acted`: a rule acts at the hookpoint. Empty where no run has rules that hold something down.
    """
    told: dict[str, Mapping[str, Any]] = {}
    for reader in readers:
        for event in reader.events:
            if event.get("kind") == "neighbours":
                told.setdefault(event["concept"], event)
    if not told:
        return []
    rows: list[Row] = []
    drifts = [_last_drift(reader) for reader in readers]
    for concept, event in told.items():
        for hookpoint, sets in event["hookpoints"].items():
            about = {"acted": hookpoint in event["acted"], "had": sets["had"]}
            for what in WHAT:
                ids = sets[what]
                sums = [float(drift[hookpoint][ids].sum()) if hookpoint in drift else None for drift in drifts]
                rows.append(
                    {"concept": concept, "hookpoint": hookpoint, "what": what, "features": ids, **about, "drift": _by_arm(arms, sums)}
                )
    for hookpoint in dict.fromkeys(row["hookpoint"] for row in rows):
        changes = [_fvu_change(reader, hookpoint) for reader in readers]
        rows.append({"concept": None, "hookpoint": hookpoint, "what": "fvu", "drift": _by_arm(arms, changes)})
    return rows


def in_words(rows: Sequence[Row]) -> list[str]:
    """A line for each concept, hookpoint and arm, in percent of what the concept's own features had; then one for each dictionary."""
    lines = []
    for concept, hookpoint in dict.fromkeys((row["concept"], row["hookpoint"]) for row in rows if row["concept"] is not None):
        mine = [row for row in rows if (row["concept"], row["hookpoint"]) == (concept, hookpoint)]
        place = f"{concept} at {hookpoint}" + (" (a rule acts here)" if mine[0]["acted"] else "")
        for arm, words in ARMS.items():
            parts = [
                f"{WHAT[row['what']]} {_share(row['drift'][arm], row['had'])}" for row in mine if arm in row["drift"] and row["features"]
            ]
            if parts:
                lines.append(f"{place}, {words}: {', '.join(parts)}")
    for row in rows:
        if row["what"] == "fvu" and row["drift"]:
            figures = ", ".join(f"{row['drift'][arm]:+.3f} {words}" for arm, words in ARMS.items() if arm in row["drift"])
            lines.append(f"dictionary at {row['hookpoint']}, share it leaves unexplained: {figures}")
    return lines


def _share(drift: float, had: float) -> str:
    return f"{drift / had:+z.0%}" if had > 0 else f"{drift:+.3g}"


def _by_arm(arms: Sequence[str | None], values: Sequence[float | None]) -> dict[str, float]:
    found: dict[str, list[float]] = {}
    for arm, value in zip(arms, values, strict=True):
        if arm is not None and value is not None:
            found.setdefault(arm, []).append(value)
    return {arm: sum(each) / len(each) for arm, each in found.items()}


def _last_drift(reader: RunReader) -> dict[str, np.ndarray]:
    """Hookpoint -> drift of every feature at the last reading."""
    found = {}
    for hookpoint in reader.hookpoints:
        table = reader.dense(hookpoint) if reader.dense_steps(hookpoint) else None
        if table is not None and table["drift"].null_count == 0:
            found[hookpoint] = np.zeros(table.num_rows)
            found[hookpoint][table["feature"].to_numpy()] = table["drift"].to_numpy()
    return found


def _fvu_change(reader: RunReader, hookpoint: str) -> float | None:
    now, then = (reader.curve(f"{hookpoint}/{key}")[1] for key in ("fvu", "fvu_start"))
    return float(now[-1] - then[-1]) if len(now) and len(then) else None

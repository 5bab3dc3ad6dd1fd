"""Writes one W&B run, in a process of its own: `sinks.WandbSink` starts it, feeds it JSON lines, and may end it at any time.

W&B can block or raise in its caller (no server, a server that died); here that concerns nobody. Imports nothing of gradlens, so that
the file can be run by its path. Lines in: `{"op": "init" | "log" | "table" | "in_words" | "alert" | "finish", ...}`; lines out, one for
each: `{"ready": {...}}`, `{"ack": op}`, `{"finished": true}`, or `{"failed": why}`.
"""

from __future__ import annotations

import json
import os
import sys
import threading
from collections import deque
from typing import Any

PREFIX, DETAILS = "gradlens/", "gradlens_details/"  # headings of panels; see `curve_keys.headed`
TABLE = ("step", "hookpoint", "feature", "push", "attribution")
IN_WORDS = (
    "step", "share", "words", "probability before", "probability now", "passage",
    "own answers before", "own answers now", "of", "said before", "said now",
)  # fmt: skip
MAX_ROWS = 10_000  # W&B shows no more of a table
ORPHAN_SECONDS = 60.0  # to finish in, after whoever feeds us has died


class WandbLogger:
    """Rows, tables, alerts and files of one W&B run. `step_key` is the axis; `step=` is never used: rows that go back would be dropped."""

    def __init__(self, run: Any, step_key: str):
        self.run, self.step_key = run, step_key
        self._rows: deque[list[Any]] = deque(maxlen=MAX_ROWS)
        self._table: Any = None
        if step_key.startswith(PREFIX):
            run.define_metric(step_key, hidden=True)
        for heading in (PREFIX, DETAILS):
            run.define_metric(f"{heading}*", step_metric=step_key)

    def log(self, step: int, values: dict[str, float]) -> None:
        """`values`: by whole keys, headings included."""
        self.run.log({self.step_key: step, **values})

    def table(self, step: int, rows: list[list[Any]]) -> None:
        """Add rows to the incremental table of top features and send them."""
        import wandb

        if self._table is None:
            self._table = wandb.Table(columns=list(TABLE), log_mode="INCREMENTAL", allow_mixed_types=True)
        for row in rows:
            self._table.add_data(*row)
        self._rows += rows
        self.run.log({self.step_key: step, f"{PREFIX}top_features": self._table})

    def in_words(self, step: int, rows: list[list[Any]]) -> None:
        """What was learned up to a step, a table of its own that replaces the one before: the panel `learned/in_words`."""
        import wandb

        table = wandb.Table(columns=list(IN_WORDS), data=rows, allow_mixed_types=True)
        self.run.log({self.step_key: step, f"{PREFIX}learned/in_words": table})

    def alert(self, step: int, title: str, text: str) -> None:
        """Tell the run's owner. Two alerts of one title are two: W&B would keep the second back for a minute."""
        self.run.alert(title=title, text=text, level="WARN", wait_duration=0.001)

    def finish(self, step: int, name: str, files: dict[str, str]) -> None:
        """The whole table once more, not to be changed any more, and the files (name in the artifact -> path) as one artifact."""
        import wandb

        if self._rows:
            table = wandb.Table(columns=list(TABLE), data=list(self._rows), allow_mixed_types=True)
            self.run.log({self.step_key: step, f"{PREFIX}top_features_final": table})
        if files:
            artifact = wandb.Artifact(name, type="gradlens-run")
            for inside, path in files.items():
                artifact.add_file(path, name=inside)
            self.run.log_artifact(artifact)


def main() -> None:
    say = _speaker()
    logger = None
    for line in sys.stdin:
        message = json.loads(line)
        operation = message.pop("op")
        try:
            if operation == "init":
                logger = _init(**message)
                say({"ready": {"url": logger.run.url, "dir": os.path.dirname(logger.run.dir)}})
            elif operation == "finish":
                logger.finish(**message)
                logger.run.finish()
                say({"finished": True})
                return
            else:
                getattr(logger, operation)(**message)
                say({"ack": operation})
        except Exception as error:  # whatever it is: our caller goes on without this run, and says why
            say({"failed": f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"})
            os._exit(1)  # not through W&B's exit handlers, which wait for the server
    # Whoever feeds us has died: keep what there is, but do not outlive it for long.
    if logger is not None:
        threading.Timer(ORPHAN_SECONDS, os._exit, (1,)).start()
        logger.run.finish(exit_code=1)
        os._exit(1)


def _init(mode: str, timeout: float, settings: dict[str, Any]) -> WandbLogger:
    import wandb

    run = wandb.init(
        mode=mode, settings=wandb.Settings(init_timeout=timeout, login_timeout=timeout, console="off", silent=True), **settings
    )
    return WandbLogger(run, f"{PREFIX}step")


def _speaker() -> Any:
    """Our stdout as a line protocol; whatever W&B prints goes to stderr."""
    channel = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    sys.stdout = sys.stderr

    def say(message: dict[str, Any]) -> None:
        print(json.dumps(message), file=channel, flush=True)

    return say


if __name__ == "__main__":
    main()

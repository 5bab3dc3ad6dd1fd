"""Shows on stderr what a job is doing: on a terminal a live line and time left, elsewhere a line now and then. Alarms as they come."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from gradlens.cli.console import err


@contextmanager
def job_display() -> Iterator[Any]:
    """Yields the progress callback for `gradlens_services.job`."""
    if not err.is_terminal:
        yield Lines()
        return
    from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
    from rich.table import Column

    plain = {"markup": False}  # which would also read emoji
    narrow = {"table_column": Column(no_wrap=True, min_width=7)}
    columns = (
        SpinnerColumn(),
        TextColumn("{task.description}", table_column=Column(no_wrap=True), **plain),
        BarColumn(bar_width=16),
        TextColumn("{task.fields[count]}", **narrow, **plain),
        TimeElapsedColumn(**narrow),
        TimeRemainingColumn(**narrow),
        TextColumn("{task.fields[note]}", **narrow, **plain),
    )
    with Progress(*columns, console=err) as bar:
        bars = Bars(bar)
        yield bars
        bars.end()


class Bars:
    """A live line for the phase that is going on; a phase that is over becomes a plain line with the time it took."""

    def __init__(self, bar: Any) -> None:
        self._bar, self._task, self._title, self._note = bar, None, "", ""

    def __call__(self, event: dict[str, Any]) -> None:
        if event["phase"] in ("alarm", "warning"):
            self._bar.console.print(told_of(event), markup=False, soft_wrap=True, style="yellow")
            return
        title, done, total = title_of(event), event.get("done"), event.get("total")
        if title != self._title:
            self.end()
            self._task = self._bar.add_task(title, total=None, count="", note="")
            self._title = title
        count = "" if done is None else f"{done}/{total}" if total else f"{done}"
        self._note = note_of(event)
        self._bar.update(self._task, completed=done or 0, total=total, count=count, note=self._note)

    def end(self) -> None:
        """The phase is over."""
        if self._task is not None:
            seconds = self._bar.tasks[self._bar.task_ids.index(self._task)].elapsed or 0
            self._bar.remove_task(self._task)
            self._bar.console.print(f"  {self._title} [{seconds:.0f} s] {self._note}".rstrip(), markup=False, style="dim")
            self._task = None


class Lines:
    """A line when a phase begins and at every fifth of one with a known length, with the time since the start."""

    def __init__(self) -> None:
        self._begun, self._shown = time.monotonic(), None

    def __call__(self, event: dict[str, Any]) -> None:
        if event["phase"] in ("alarm", "warning"):
            err.print(f"[{time.monotonic() - self._begun:4.0f} s] {told_of(event)}", markup=False, soft_wrap=True, style="yellow")
            return
        done, total = event.get("done"), event.get("total")
        fifth = 5 * done // total if done and total else 0
        title = title_of(event)
        if (title, fifth) == self._shown:
            return
        self._shown = (title, fifth)
        count = f" {done}/{total}" if fifth and total else ""
        err.print(f"[{time.monotonic() - self._begun:4.0f} s] {title}{count} {note_of(event)}".rstrip(), markup=False, soft_wrap=True)


def title_of(event: dict[str, Any]) -> str:
    arm = f"{event['arm']}: " if event.get("arm") else ""
    if event["phase"] == "stopping":
        return "stopping after this step; ctrl-c again to stop at once"
    return f"{arm}{event['phase']}"


def told_of(event: dict[str, Any]) -> str:
    from gradlens.report.findings import flat

    if event["phase"] == "warning":
        return f"warning: {flat(event['text'])}"
    arm = f"{event['arm']}: " if event.get("arm") else ""
    return f"{arm}alarm at step {event['step']}: {flat(event['text'] or '')}"


def note_of(event: dict[str, Any]) -> str:
    return f"loss {event['loss']:.3f}" if event.get("loss") is not None else ""

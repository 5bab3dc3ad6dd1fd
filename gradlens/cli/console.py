"""What every command shares: where to print, `--json`, progress bars, and errors without tracebacks.

Data go to stdout, everything else (progress, notes, errors) to stderr, so that `--json` output can be piped.
"""

from __future__ import annotations

import json
import os
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated, Any

import typer
from rich.console import Console, RenderableType
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.segment import Segment

# Rows, answers, labels and names of other people's files are printed: what would steer a terminal in them is left out.
STEERING = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")


class Texts(Console):
    """A console on which texts are texts: escape sequences in them do nothing. Those of colours and bars are rich's own."""

    def render(self, renderable: RenderableType, options: Any = None) -> Iterator[Segment]:
        for segment in super().render(renderable, options):
            yield segment if segment.control else segment._replace(text=STEERING.sub("", segment.text))


class Progresses(Texts):
    """Of stderr: whoever read it may go (a pager, `head`, a connection), and what is being done goes on. rich would end the process."""

    def on_broken_pipe(self) -> None:
        self.quiet = True
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stderr.fileno())


# What is printed is data and names of people's things: `27:abc:` is no picture of letters.
out = Texts(highlight=False, emoji=False)
err = Progresses(stderr=True, highlight=False, emoji=False)

JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout instead of text.")]


def print_json(data: Any) -> None:
    """One JSON document on stdout, last line of a command under `--json`."""
    utf8 = (sys.stdout.encoding or "").lower().replace("-", "") == "utf8"  # else escapes: JSON must not lose a character
    text = json.dumps(data, ensure_ascii=not utf8, allow_nan=False, default=str)
    typer.echo(STEERING.sub(lambda found: f"\\u{ord(found[0]):04x}", text))


@contextmanager
def progress(description: str, total: int | None = None) -> Iterator[Any]:
    """Yields `advance(n=1, **fields)`: a bar with time left on a terminal, a plain line now and then elsewhere."""
    if err.is_terminal:
        columns = (
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
        )
        with Progress(*columns, TextColumn("{task.fields[note]}", markup=False), console=err) as bar:
            task = bar.add_task(description, total=total, note="")
            yield lambda n=1, note="": bar.update(task, advance=n, note=note)
        return
    done, shown = 0, -1

    def advance(n: int = 1, note: str = "") -> None:
        nonlocal done, shown
        done += n
        tenth = int(10 * done / total) if total else done // 100
        if tenth != shown:
            shown = tenth
            err.print(f"{description}: {done}{f'/{total}' if total else ''} {note}".rstrip(), markup=False, soft_wrap=True)

    yield advance

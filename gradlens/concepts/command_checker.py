"""A program of the user's own that says which texts show a concept: a judge model, a grammar, anything.

It gets a JSON object a line on its standard input, `{"text": "..."}`, and prints a number a line, in the same order: 0 or 1, or a score.
It is started without a shell.
"""

from __future__ import annotations

import json
import math
import os
import signal
import subprocess
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass

from gradlens.errors import ConfigError

SHOWN = 300  # characters of what a program said that an error repeats


@dataclass
class CommandChecker:
    """A text counts whose number is `threshold` or more. An empty text counts for nothing, and is not asked about.

    Raises `ConfigError` that names the command: no such program, an exit code other than 0, no answer within `timeout` seconds, another
    number of lines than texts, a line that is no number.
    """

    arguments: Sequence[str]
    threshold: float = 0.5
    timeout: float = 120.0
    hit_rate: float | None = None
    false_alarm_rate: float | None = None
    kind: str = "command"

    def __call__(self, text: str) -> bool:
        return self.many([text])[0]

    def many(self, texts: Sequence[str]) -> list[bool]:
        """One run of the program for all texts."""
        asked = [number for number, text in enumerate(texts) if text.strip()]
        found = [False] * len(texts)
        for number, score in zip(asked, self._scores([texts[number] for number in asked]) if asked else [], strict=True):
            found[number] = score >= self.threshold
        return found

    def _scores(self, texts: Sequence[str]) -> list[float]:
        lines = "".join(json.dumps({"text": text}) + "\n" for text in texts)
        try:
            done = _run(self.arguments, lines.encode(), self.timeout)
        except subprocess.TimeoutExpired:
            raise self._error(f"no answer within {self.timeout:g} s for {len(texts)} texts; raise checker.timeout") from None
        except OSError as error:
            raise self._error(f"cannot be started: {error.strerror or error}") from None
        said = done.stderr.decode(errors="replace").strip()[-SHOWN:]
        if done.returncode:
            raise self._error(f"ended with exit code {done.returncode}" + (f" and said: {said}" if said else ""))
        answers = done.stdout.decode(errors="replace").split("\n")
        answers = [line.strip() for line in answers if line.strip()]
        if len(answers) != len(texts):
            raise self._error(
                f"printed {len(answers)} lines for {len(texts)} texts; expected one number a line" + (f" ({said})" if said else "")
            )
        return [self._number(line, number) for number, line in enumerate(answers, start=1)]

    def _number(self, line: str, number: int) -> float:
        try:
            value = float(line)
        except ValueError:
            value = math.nan
        if math.isnan(value):
            raise self._error(f"line {number} is {line[:SHOWN]!r}, expected a number")
        return value

    def _error(self, what: str) -> ConfigError:
        return ConfigError(f"checker.command {' '.join(self.arguments)}: {what}")


def _run(arguments: Sequence[str], given: bytes, timeout: float) -> subprocess.CompletedProcess[bytes]:
    """As `subprocess.run`, but what the program has started ends with it."""
    pipe = subprocess.PIPE
    with subprocess.Popen(list(arguments), stdin=pipe, stdout=pipe, stderr=pipe, start_new_session=True) as program:
        try:
            out, err = program.communicate(given, timeout)
        except BaseException:  # ctrl-c does not reach a session of its own
            with suppress(ProcessLookupError):
                os.killpg(program.pid, signal.SIGKILL)
            raise
    return subprocess.CompletedProcess(list(arguments), program.returncode, out, err)

"""Errors that a person caused or can mend. The CLI prints their message without a traceback and exits with `exit_code`.

A message names the file and key, what was found, what was expected, and the way out.
"""


class GradlensError(Exception):
    """Base class; never raised itself."""

    exit_code = 1


class RunError(GradlensError):
    """A run failed while it was going (NaN loss, out of memory, a rank that died). Exit code 1."""


class ConfigError(GradlensError):
    """Bad usage or a bad config, concept or rules file. Exit code 2."""

    exit_code = 2


class InputError(GradlensError):
    """A dictionary, model or data set that is missing, unreadable, or does not fit. Exit code 3."""

    exit_code = 3

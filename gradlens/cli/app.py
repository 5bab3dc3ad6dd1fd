"""The command `gradlens`: puts the groups together, turns errors into one clear message and an exit code.

Exit codes: 0 done, 1 failed run, 2 bad usage or config, 3 bad or unreadable dictionary, model or data.
"""

from __future__ import annotations

import errno
import importlib
import os
import sys
from typing import Annotated

import typer
from rich.markup import escape

from gradlens.cli.console import err, out
from gradlens.errors import GradlensError

app = typer.Typer(
    name="gradlens",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    help="Concept-level learning curves while a language model is fine-tuned, and control over which concepts it learns.",
    epilog="Start with: gradlens demo. Then: gradlens run configs/quickstart.yaml, gradlens runs show, gradlens report.",
)


def _version(asked: bool) -> None:
    if asked:
        from gradlens import __version__

        out.print(f"gradlens {__version__}", highlight=False)
        raise typer.Exit()


@app.callback()
def common(
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
    version: Annotated[bool, typer.Option("--version", help="Print the version and stop.", callback=_version, is_eager=True)] = False,
) -> None:
    """Options that go before the command."""


# Each module registers its commands on `app` when imported.
for _module in ("run", "models", "sae", "concepts", "directions", "features", "runs", "examples", "rules", "bench", "config"):
    importlib.import_module(f"gradlens.cli.{_module}").register(app)


def share_cores() -> None:
    """Threads that wait for each other give up their core soon, here and in the processes that are begun from here.

    By default GNU's OpenMP, PyTorch's on Linux, has them spin: beside another busy process, a rank or a second run, every operation then
    waits for a thread that does not get a core. Has to be said before PyTorch is imported; whoever has said something is heard.
    """
    if not {"OMP_WAIT_POLICY", "GOMP_SPINCOUNT"} & set(os.environ):
        os.environ["GOMP_SPINCOUNT"] = "1000"


def main() -> None:
    """Entry point of the console script."""
    share_cores()
    for stream in (sys.stdout, sys.stderr):
        if stream is not None and hasattr(stream, "reconfigure"):  # what a terminal's encoding has not is a question mark there
            stream.reconfigure(errors="replace")
    debug = "--debug" in sys.argv or os.environ.get("GRADLENS_DEBUG") == "1"
    try:
        app()
    except GradlensError as error:
        if debug:
            raise
        err.print(f"[bold red]error:[/] {escape(str(error))}", soft_wrap=True)
        sys.exit(error.exit_code)
    except OSError as error:  # a file that cannot be written or read
        if debug or (error.filename is None and error.errno != errno.ENOSPC):  # a full disk does not say which file
            raise
        said = f"{error.filename}: {error.strerror}" if error.filename else str(error.strerror)
        err.print(f"[bold red]error:[/] {escape(said)}", soft_wrap=True)
        sys.exit(1)
    except KeyboardInterrupt:
        err.print("stopped")
        sys.exit(130)


if __name__ == "__main__":
    main()

"""`gradlens models`: fetch, list and verify models."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer

from gradlens.cli.console import JsonOption, err, out, print_json

models = typer.Typer(no_args_is_help=True, help="Fetch, list and verify models. Start with: gradlens models fetch smollm2")


@contextmanager
def fetch_progress() -> Iterator[Any]:
    """`progress(stage, done, total)` for `fetch_smollm2` and `load_model`: a bar per stage on a terminal, plain lines elsewhere."""
    from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn

    titles = {
        "download": "download smollm2",
        "check": "check the checksum",
        "convert": "convert 4-bit weights",
        "save": "write safetensors",
    }
    if not err.is_terminal:
        shown: dict[str, int] = {}

        def line(stage: str, done: int, total: int) -> None:
            quarter = 4 * done // max(total, 1)
            if shown.get(stage) != quarter:
                shown[stage] = quarter
                err.print(f"{titles[stage]}: {100 * done // max(total, 1)}%")

        yield line
        return
    columns = (SpinnerColumn(), TextColumn("{task.description}", markup=False), BarColumn(), TextColumn("{task.fields[size]}"))
    with Progress(*columns, TimeElapsedColumn(), TimeRemainingColumn(), console=err) as bar:
        tasks: dict[str, Any] = {}

        def update(stage: str, done: int, total: int) -> None:
            if stage not in tasks:
                tasks[stage] = bar.add_task(titles[stage], total=None, size="")
            # A stage of one step has no share done: its bar pulses until it is over.
            size = f"{done / 1e6:.0f}/{total / 1e6:.0f} MB" if stage == "download" else ""
            bar.update(tasks[stage], total=total if total > 1 or done else None, completed=done, size=size)

        yield update


@models.command()
def fetch(
    name: Annotated[str, typer.Argument(help="The model to fetch: smollm2.")] = "smollm2",
    force: Annotated[bool, typer.Option("--force", help="Download and convert again, even if it is there.")] = False,
    json_output: JsonOption = False,
) -> None:
    """Download SmolLM2-135M-Instruct (93 MB), check it, and convert it once to safetensors (0.54 GB in the cache folder).

    An interrupted fetch is simply started again. The cache folder is $GRADLENS_CACHE, else ~/.cache/gradlens.

    Example: gradlens models fetch smollm2
    """
    from gradlens.errors import ConfigError
    from gradlens.model.smollm2 import NAME, fetch_smollm2, problems, smollm2_folder

    if name != NAME:
        raise ConfigError(f"models fetch {name}: gradlens fetches {NAME} only; a Hugging Face name is downloaded when a run first uses it")
    already = not force and not problems(smollm2_folder())
    with fetch_progress() as progress:
        folder = fetch_smollm2(progress, force=force)
    if json_output:
        print_json({"name": name, "folder": str(folder), "bytes": _size(folder), "already_there": already})
    else:
        out.print(f"{name}: {'already in' if already else 'ready in'} {folder} ({_size(folder) / 1e6:.0f} MB)", soft_wrap=True)


@models.command("ls")
def list_models(json_output: JsonOption = False) -> None:
    """List the models in gradlens' cache folder.

    Example: gradlens models ls --json
    """
    from gradlens.model.smollm2 import NAME, PACKAGE, VERSION, cache_dir, problems, smollm2_folder

    folder = smollm2_folder()
    wrong = problems(folder)
    state = "ready" if not wrong else "damaged" if (folder / "manifest.json").is_file() else "not fetched"
    row = {"name": NAME, "state": state, "folder": str(folder), "bytes": _size(folder), "source": f"{PACKAGE} {VERSION}", "problems": wrong}
    if json_output:
        print_json({"cache": str(cache_dir()), "models": [row]})
        return
    from rich.table import Table

    table = Table("name", "state", "size", "folder", box=None, pad_edge=False)
    table.add_row(NAME, state, f"{row['bytes'] / 1e6:.0f} MB", str(folder))
    out.print(table)
    out.print("Any Hugging Face causal language model works too, by name or folder: model.name in the config.")


@models.command()
def verify(
    name: Annotated[str, typer.Argument(help="smollm2, or a folder with a model.")] = "smollm2",
    json_output: JsonOption = False,
) -> None:
    """Check a model's files: full checksums of smollm2, the safetensors headers of any other folder. Exit code 3 if something is wrong.

    Example: gradlens models verify smollm2
    """
    from gradlens.errors import InputError
    from gradlens.model.smollm2 import NAME, problems, smollm2_folder

    if name == NAME:
        folder = smollm2_folder()
        if wrong := problems(folder, full=True):
            raise InputError("; ".join(wrong) + f"; fetch it again with `gradlens models fetch {NAME} --force`")
        checked = "checksums"
    else:
        from gradlens.model.loading import resolve_model

        folder = Path(name).expanduser()
        if not folder.is_dir():
            raise InputError(f"{name}: no such folder; give {NAME} or a folder with config.json and safetensors files")
        resolve_model(str(folder))
        checked = "lengths of the weight files"
    files = sorted(p.name for p in folder.iterdir() if p.is_file())
    if json_output:
        print_json({"name": name, "folder": str(folder), "ok": True, "checked": checked, "files": files})
    else:
        out.print(f"{name}: good ({checked} of {len(files)} files in {folder})", soft_wrap=True)


def _size(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) if folder.is_dir() else 0


def register(app: typer.Typer) -> None:
    """Adds the group `models` to the command line."""
    app.add_typer(models, name="models")

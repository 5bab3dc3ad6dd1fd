"""`gradlens config schema | show | check`: what may stand in a config, what one resolves to, whether a run would find everything."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_origin

import typer
from rich.markup import escape

from gradlens.cli.console import JsonOption, out, print_json
from gradlens.errors import GradlensError

group = typer.Typer(no_args_is_help=True, help="The keys of a config, what a config resolves to, and whether it would run.")

ConfigArgument = Annotated[Path, typer.Argument(help="Config file (YAML).")]
SetOption = Annotated[
    list[str],
    typer.Option(
        "--set", metavar="KEY=VALUE", default_factory=list, show_default=False, help="Override a key, for instance --set train.steps=20."
    ),
]


def register(app: typer.Typer) -> None:
    app.add_typer(group, name="config")


@group.command("schema")
def schema(json_output: JsonOption = False) -> None:
    """Every key of a config with its type, default and meaning; with --json the JSON schema (for editors).

    Example: gradlens config schema --json > gradlens.schema.json
    """
    from gradlens.config import RunConfig

    if json_output:
        print_json(RunConfig.model_json_schema())
        return
    for key, kind, default, meaning in _fields(RunConfig):
        out.print(f"[bold]{key}[/] [cyan]{escape(kind)}[/] = {escape(default)}\n    {escape(meaning)}", soft_wrap=True)


@group.command("show")
def show(config: ConfigArgument, overrides: SetOption, json_output: JsonOption = False) -> None:
    """The resolved config: defaults, file, environment (GRADLENS__TRAIN__STEPS=20) and --set merged, as YAML.

    Example: gradlens config show configs/quickstart.yaml --set train.steps=20
    """
    import yaml

    from gradlens.config import load_config

    resolved = load_config(config, overrides).model_dump(mode="json")
    if json_output:
        print_json(resolved)
    else:
        typer.echo(yaml.safe_dump(resolved, sort_keys=False, allow_unicode=True).rstrip())


@group.command("check")
def check(config: ConfigArgument, overrides: SetOption, json_output: JsonOption = False) -> None:
    """Whether a run of this config would find its data, model, dictionaries, concepts and rules, and whether they fit together: what a run
    looks at before it starts. Loads no weights, trains nothing.

    Example: gradlens config check configs/quickstart.yaml
    """
    from gradlens.config import load_config
    from gradlens.training.preflight import checks as checks_of

    checks, worst = [], 0
    for key, source, look in checks_of(load_config(config, overrides)):
        try:
            found = look()
            checks.append({"key": key, "source": source, "ok": True, "found": found.text, "warning": found.warning})
        except GradlensError as error:
            worst = worst or error.exit_code
            checks.append({"key": key, "source": source, "ok": False, "found": str(error).removeprefix(f"{key}: "), "warning": ""})
    if json_output:
        print_json({"ok": not worst, "checks": checks})
    else:
        for item in checks:
            out.print(
                f"{'[green]ok[/]     ' if item['ok'] else '[red]problem[/]'} [bold]{escape(item['key'])}[/]: {escape(item['found'])}",
                soft_wrap=True,
            )
            if item["warning"]:
                out.print(f"[yellow]warning[/] [bold]{escape(item['key'])}[/]: {escape(item['warning'])}", soft_wrap=True)
        verdict = "a run would fail" if worst else "a run would find everything"
        out.print(f"{config}: {verdict}", markup=False, soft_wrap=True)
    if worst:
        raise typer.Exit(worst)


def _fields(model: Any, prefix: str = "") -> Iterator[tuple[str, str, str, str]]:
    """`(key, type, default, meaning)` of every field, depth first; parts of a config as `part.field`."""
    from pydantic import BaseModel

    for name, field in model.model_fields.items():
        kind = field.annotation
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            yield from _fields(kind, f"{prefix}{name}.")
            continue
        yield prefix + name, _type_text(kind), "required" if field.is_required() else _default_text(field.default), field.description or ""
        for part in (part for item in get_args(kind) for part in (item, *get_args(item))):
            if isinstance(part, type) and issubclass(part, BaseModel):
                yield from _fields(part, f"{prefix}{name}[].")


def _type_text(kind: Any) -> str:
    """A type as a person would say it: `online | offline | off`, `list of text`, `number or null`."""
    names = {str: "text", int: "whole number", float: "number", bool: "true | false", type(None): "null"}
    origin, inner = get_origin(kind), get_args(kind)
    if origin is Literal:
        return " | ".join(map(str, inner))
    if origin is list:
        return f"list of {_type_text(inner[0])}"
    if origin is dict:
        return f"{_type_text(inner[0])} -> {_type_text(inner[1])}"
    if origin is tuple:
        return "[" + ", ".join(map(_type_text, inner)) + "]"
    if inner:
        return " or ".join(map(_type_text, inner))
    return names.get(kind, getattr(kind, "__name__", str(kind)).lower())


def _default_text(value: Any) -> str:
    import json

    return value if isinstance(value, str) else json.dumps(value, default=str)

"""`gradlens sae`: train dictionaries, look into one, check that one fits a model."""

from __future__ import annotations

import json
from typing import Annotated, Any

import typer
from rich.markup import escape

from gradlens.cli.console import JsonOption, err, out, print_json, progress

sae = typer.Typer(
    no_args_is_help=True,
    help="Dictionaries (sparse autoencoders): train, inspect, verify, convert. Start with: gradlens sae inspect smollm2-l15",
)


def _load(name: str, dtype: str = "float32") -> tuple[Any, Any]:
    from gradlens.cli.models import fetch_progress
    from gradlens.model.loading import load_model

    with fetch_progress() as advance:
        return load_model(name, dtype, progress=advance)


def _health_line(name: str, health: dict[str, Any]) -> str:
    measured = f"FVU {health['fvu']:.3f}, L0 {health['l0']:.1f}, dead {health['dead']:.1%} on {health['tokens']:,} held-out tokens"
    return f"{escape(name)}: {measured}"


@sae.command()
def train(
    config: Annotated[str, typer.Argument(help="YAML file, for instance configs/sae-smollm2.yaml.")],
    overrides: Annotated[list[str] | None, typer.Option("--set", help="KEY=VALUE on top of the file; may be repeated.")] = None,
    fresh: Annotated[bool, typer.Option("--fresh", help="Discard what the out folder holds of these hookpoints and start over.")] = False,
    json_output: JsonOption = False,
) -> None:
    """Train one dictionary per hookpoint and print its health on held-out text.

    Interrupted (ctrl-c, kill), the same command goes on where it was. The result is a SAELens folder per hookpoint.

    The smallest config has two keys: `hookpoints: \\[layers.15]` and `text: \\[mine.jsonl]`; `gradlens sae config` prints them all.

    Example: gradlens sae train configs/sae-smollm2.yaml --set tokens=100000 --set out=my-dictionaries
    """
    from pathlib import Path

    from gradlens.sae.config import load_sae_config
    from gradlens.sae.job import train_dictionaries

    settings = load_sae_config(config, overrides or ())
    try:
        found = train_dictionaries(settings, lambda: _load(settings.model, settings.dtype), progress, fresh)
    except KeyboardInterrupt:
        err.print("stopped; the same command goes on from here")
        raise
    folders = {name: str(Path(settings.out) / name) for name in found}
    report = {name: {"folder": folders[name]} | {key: d.metadata[key] for key in ("health", "train")} for name, d in found.items()}
    if json_output:
        print_json(report)
        return
    for name, facts in report.items():
        trained, folder = facts["train"], escape(str(facts["folder"]))
        out.print(_health_line(name, facts["health"]))
        out.print(f"  trained on {trained['tokens']:,} tokens, {trained['steps']:,} steps in {trained['seconds']:.0f} s -> {folder}")


@sae.command(name="config")
def show_config(json_output: JsonOption = False) -> None:
    """Print every key of a training config with its default and what it means, as YAML to start from.

    Example: gradlens sae config > my-sae.yaml
    """
    from pydantic_core import PydanticUndefined

    from gradlens.sae.config import SaeConfig

    if json_output:
        print_json(SaeConfig.model_json_schema())
        return
    for name, field in SaeConfig.model_fields.items():
        required = field.default is PydanticUndefined
        value = _EXAMPLES[name] if required else field.default
        typer.echo(f"# {field.description}{' Required.' if required else ''}")
        typer.echo(f"{name}: {json.dumps(value)}")


_EXAMPLES = {"hookpoints": ["layers.15"], "text": ["mine.jsonl"]}  # keys without a default


@sae.command()
def inspect(
    source: Annotated[str, typer.Argument(help="Folder, file, ORG/REPO/PATH on the hub, or a shipped name such as smollm2-l15.")],
    json_output: JsonOption = False,
) -> None:
    """What it is: format, architecture, shapes, activation, hookpoint, model, norms, thresholds, files; no model is loaded.

    Every format of docs/dictionaries.md is recognised by itself. SOURCE#3 or SOURCE#3:7 is a part of one that has parts.

    Example: gradlens sae inspect smollm2-l15
    """
    from gradlens.dictionaries.formats import load_dictionary

    facts = describe(load_dictionary(source)) | {"files": files_of(source)}
    if json_output:
        print_json(facts)
        return
    place, model = facts["hookpoint"] or "an unnamed hookpoint", facts["model_name"] or "an unnamed model"
    kind = f"{facts['format']} {facts['architecture']}" if facts["format"] else "a dictionary"
    out.print(f"[bold]{escape(source)}[/]: {escape(kind)}, {facts['activation']}" + (f" k={facts['k']}" if facts["k"] else ""))
    out.print(f"  {facts['d_sae']:,} features of width {facts['d_out']} at {escape(place)} of {escape(model)}")
    if facts["hook_in"]:
        skip = ", with a skip connection" if facts["skip"] else ""
        places = " and ".join(escape(name or "an unnamed place") for name in facts["hook_in"])
        out.print(f"  a transcoder: reads width {facts['d_in']} at {places}{skip}")
    if facts["part"]:
        out.print("  part: " + ", ".join(f"{key} {value}" for key, value in facts["part"].items()))
    if facts["input_norm"] != "none":
        out.print(f"  every token is normalised before it is encoded ({facts['input_norm']}), and the result scaled back")
    low, middle, high = facts["decoder_norm"]
    out.print(f"  norm of decoder rows: {low:.3g} to {high:.3g}, median {middle:.3g}")
    if facts["threshold"]:
        low, middle, high = facts["threshold"]
        out.print(f"  thresholds: {low:.3g} to {high:.3g}, median {middle:.3g}")
    if facts["firing"]:
        out.print(
            "  features that fire: {live:,}; on over 10% of tokens: {dense:,}; on under 1 in 10,000: {rare:,}; never: {never:,}".format(
                **facts["firing"]
            )
        )
    if facts["health"]:
        out.print("  " + _health_line("recorded health", facts["health"]))
    if facts["train"]:
        out.print(f"  trained on {facts['train']['tokens']:,} tokens, {facts['train']['steps']:,} steps")
    if facts["files"]:
        out.print("  files: " + ", ".join(f"{escape(name)} {size / 1e6:.1f} MB" for name, size in facts["files"].items()))


def describe(dictionary: Any) -> dict[str, Any]:
    """What `inspect` shows, as plain data."""
    about = dictionary.metadata
    rate = about.get("firing_rate")
    firing = None
    if rate is not None:
        counts = {"live": rate >= 1e-6, "dense": rate > 0.1, "rare": (rate < 1e-4) & (rate >= 1e-6), "never": rate < 1e-6}
        firing = {name: int(chosen.sum()) for name, chosen in counts.items()}
    return {
        "format": about.get("format"),
        "architecture": about.get("architecture"),
        "activation": dictionary.activation,
        "k": dictionary.k,
        "threshold": None if dictionary.threshold is None else _spread(dictionary.threshold),
        "d_in": dictionary.d_in,
        "d_out": dictionary.d_out,
        "d_sae": dictionary.d_sae,
        "dtype": str(dictionary.W_dec.dtype).removeprefix("torch."),
        "hookpoint": dictionary.hookpoint,
        "hook_in": list(dictionary.hook_in),
        "skip": dictionary.W_skip is not None,
        "input_norm": dictionary.input_norm,
        "model_name": about.get("model_name"),
        "apply_b_dec_to_input": dictionary.apply_b_dec_to_input,
        "decoder_norm": _spread(dictionary.norms),
        "firing": firing,
        "part": about.get("part"),
        "health": about.get("health"),
        "train": about.get("train"),
        "recipe": about.get("recipe"),
    }


def _spread(values: Any) -> list[float]:
    return [values.min().item(), values.median().item(), values.max().item()]


def files_of(source: str) -> dict[str, int]:
    """Bytes of the files that a source is made of; none for one that is not a folder or file of weights."""
    from pathlib import Path

    from gradlens.dictionaries.formats.place import locate
    from gradlens.errors import InputError

    if Path(source).is_file():
        return {Path(source).name: Path(source).stat().st_size}
    try:
        place = locate(source)
    except InputError:
        return {}  # the unembedding of a model, a group of a direction file
    found = [place.file] if place.file is not None else sorted(path for path in place.folder.iterdir() if path.is_file())
    return {path.name: path.stat().st_size for path in found}


@sae.command()
def verify(
    source: Annotated[str, typer.Argument(help="Folder, file, ORG/REPO/PATH on the hub, or a shipped name.")],
    model: Annotated[
        str | None, typer.Option(help="Model (smollm2, a Hugging Face name, a folder); default: the one it says it was trained on.")
    ] = None,
    hookpoint: Annotated[str | None, typer.Option(help="Where it is read, e.g. layers.15; default: what the dictionary says.")] = None,
    text: Annotated[
        list[str] | None, typer.Option("--text", help="Held-out text: JSONL or demo:NAME; may be repeated. Default: demo:sae-text-heldout.")
    ] = None,
    tokens: Annotated[int, typer.Option(min=64, help="Tokens read, at most.")] = 10_000,
    json_output: JsonOption = False,
) -> None:
    """Measure FVU, L0 and dead features on text and say whether the dictionary fits the model there.

    Also measured: the blocks below and above, as an index off by one is the commonest mistake, and all others where one of these is better
    or it does not fit: "it fits layers.14 (FVU 0.15), not layers.15 (0.62)". Exit code 3 where it does not fit.

    Example: gradlens sae verify smollm2-l15 --model smollm2 --hookpoint layers.15 --text mine.jsonl
    """
    from gradlens.dictionaries.formats import load_dictionary
    from gradlens.errors import ConfigError
    from gradlens.sae.verify import verify as measure

    dictionary = load_dictionary(source)
    name = model or dictionary.metadata.get("model_name")
    place = hookpoint or dictionary.hookpoint
    if not name or not place:
        raise ConfigError(f"{source} does not say its {'hookpoint' if name else 'model'}; give --{'hookpoint' if name else 'model'}")
    loaded, tokenizer = _load(name)
    verdict = measure(dictionary, loaded, tokenizer, place, text or ["demo:sae-text-heldout"], tokens, progress=progress)
    if json_output:
        print_json({"source": source, "model": name, **verdict.as_dict()})
    else:
        colour = {"fits": "green", "weak": "yellow", "unfit": "red"}[verdict.fit]
        out.print(_health_line(f"{source} at {verdict.hookpoint} of {name}", verdict.as_dict()["health"]))
        if verdict.neighbours:
            nearest = sorted(verdict.neighbours.items(), key=lambda pair: pair[1])[:6]
            out.print("  FVU at other blocks: " + ", ".join(f"{place} {fvu:.3f}" for place, fvu in nearest))
        if verdict.outliers:
            out.print(f"  left out for their norm (attention sinks): {verdict.outliers} tokens")
        out.print(f"[bold {colour}]{verdict.fit}[/]: {escape(verdict.advice)}")
    if verdict.fit == "unfit":
        raise typer.Exit(3)


@sae.command()
def convert(
    source: Annotated[str, typer.Argument(help="Folder, file, ORG/REPO/PATH on the hub, or a shipped name.")],
    folder: Annotated[str, typer.Argument(metavar="OUT", help="Folder to write into; sparsify makes one named after the hookpoint in it.")],
    to: Annotated[str, typer.Option("--to", help="saelens, sparsify or dictionary_learning.")] = "saelens",
    dtype: Annotated[str, typer.Option(help="Of the tensors on disk: float32, float16 or bfloat16.")] = "float32",
    json_output: JsonOption = False,
) -> None:
    """Write a dictionary in another library's format, read it back, and say by how much the two differ.

    What the other format cannot say (an activation it does not know, a norm of each token, a transcoder) is refused.

    Example: gradlens sae convert smollm2-l15 out/l15 --to dictionary_learning
    """
    from gradlens.dictionaries.formats.convert import convert as write

    report = write(source, folder, to, dtype)
    if json_output:
        print_json({"source": source, **report})
        return
    out.print(f"{source} -> {report['folder']} ({to}, {dtype})", markup=False, soft_wrap=True)
    out.print(
        f"  read back: activations differ by {report['acts_difference']:.1e}, outputs by {report['out_difference']:.1e} of their largest"
    )


def register(app: typer.Typer) -> None:
    """Add the group `sae`."""
    app.add_typer(sae, name="sae")

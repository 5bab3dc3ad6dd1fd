"""`gradlens features label|search|show`: what the features of a dictionary stand for."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table
from rich.text import Text

from gradlens.cli import console
from gradlens.errors import ConfigError

if TYPE_CHECKING:
    from gradlens.cli.inputs import Named
    from gradlens.labels import Label

app = typer.Typer(no_args_is_help=True, help="Features of a dictionary: label them, search for a word, show one.")

DictionaryOption = Annotated[
    list[str] | None,
    typer.Option(
        "--dictionary", "-d", metavar="[HOOKPOINT=]SOURCE", help="Folder or shipped name, once per hookpoint. Default: the shipped ones."
    ),
]


def register(parent: typer.Typer) -> None:
    parent.add_typer(app, name="features")


@app.command()
def label(
    sources: Annotated[list[str], typer.Argument(metavar="[HOOKPOINT=]SOURCE...", help="Dictionaries: folders or shipped names.")],
    model: Annotated[str, typer.Option("--model", "-m", help="`smollm2`, a Hugging Face name, or a folder.")] = "smollm2",
    text: Annotated[str, typer.Option("--text", "-t", help="JSONL, demo:NAME, or a Hugging Face data set to read.")] = "demo:sae-text",
    out: Annotated[
        str | None, typer.Option("--out", "-o", help="File to write, for one dictionary. Default: labels.json in its folder.")
    ] = None,
    max_tokens: Annotated[int, typer.Option(min=1, help="Tokens read, in rows drawn at random.")] = 100_000,
    max_length: Annotated[int, typer.Option(min=4, help="Tokens a row is cut to.")] = 256,
    seed: Annotated[int, typer.Option(help="Seed of the choice of rows.")] = 0,
    as_json: console.JsonOption = False,
) -> None:
    """Label every feature from a text: top tokens and contexts, tokens its direction promotes, firing rate.

    Example: gradlens features label sae/mine --model smollm2 --text corpus.jsonl
    """
    from gradlens.cli.inputs import open_dictionaries
    from gradlens.cli.models import fetch_progress
    from gradlens.formats import ASSETS, check_width
    from gradlens.hookpoints import d_model
    from gradlens.labels import FILE, draw_examples, label_features, save_labels
    from gradlens.models import load_model

    named = open_dictionaries(sources)
    if out and len(named) > 1:
        raise ConfigError("--out names one file: give one dictionary, or leave it out and labels.json goes into each folder")
    with fetch_progress() as report:
        loaded, tokenizer = load_model(model, progress=report)
    for entry in named:
        check_width(entry.dictionary, d_model(loaded), entry.hookpoint)
    examples = draw_examples(text, tokenizer, max_tokens, max_length, seed)
    with console.progress("labelling", total=len(examples)) as advance:
        labels = label_features(loaded, tokenizer, {e.hookpoint: e.dictionary for e in named}, examples, progress=advance)
    written = []
    for entry in named:
        folder = Path(entry.source) if Path(entry.source).exists() else ASSETS / entry.source
        path = Path(out) if out else (folder if folder.is_dir() else folder.parent) / FILE
        tokens = sum(len(example.input_ids) - 1 for example in examples)
        save_labels(labels[entry.hookpoint], path, hookpoint=entry.hookpoint, model=model, text=text, tokens=tokens)
        silent = sum(not item.rate for item in labels[entry.hookpoint].values())
        written.append(
            {"hookpoint": entry.hookpoint, "file": str(path), "features": len(labels[entry.hookpoint]), "silent": silent, "tokens": tokens}
        )
    if as_json:
        console.print_json({"labels": written})
        return
    for item in written:
        read = f"{item['features']} features labelled from {item['tokens']} tokens ({item['silent']} never fired)"
        line = f"{item['hookpoint']}: {read}: {item['file']}"
        console.out.print(line, markup=False, soft_wrap=True)


@app.command()
def search(
    word: Annotated[str, typer.Argument(help="Word or part of one; case is ignored.")],
    dictionary: DictionaryOption = None,
    limit: Annotated[int, typer.Option("--limit", "-n", min=1, help="Features shown.")] = 20,
    as_json: console.JsonOption = False,
) -> None:
    """Features whose label, tokens, promoted tokens or contexts mention a word.

    Example: gradlens features search matey
    """
    from gradlens.labels import search as search_labels

    places = {"label": 0, "tokens": 1, "promoted": 2, "contexts": 3}
    hits = [(entry, *hit) for entry in _dictionaries(dictionary) for hit in search_labels(_labels(entry), word)]
    hits.sort(key=lambda hit: places[hit[2]])
    found = [
        {"hookpoint": entry.hookpoint, "feature": item.feature, "label": item.label, "rate": item.rate, "where": place}
        for entry, item, place in hits[:limit]
    ]
    if as_json:
        console.print_json({"word": word, "total": len(hits), "features": found})
        return
    if not found:
        console.err.print(f"no feature mentions {word!r}", markup=False)
        return
    table = Table("feature", "label", "fires on", "found in")
    for row in found:
        name = f"{row['hookpoint']}/{row['feature']}"
        table.add_row(name, Text(row["label"]), "" if row["rate"] is None else f"{row['rate']:.2%}", row["where"])
    console.out.print(table)
    console.err.print(
        f"{len(found)} of {len(hits)} shown; gradlens features show {found[0]['hookpoint']}/{found[0]['feature']}", markup=False
    )


@app.command()
def show(
    feature: Annotated[
        str, typer.Argument(metavar="HOOKPOINT/ID", help="For instance layers.27/1234; or the id alone with one --dictionary.")
    ],
    dictionary: DictionaryOption = None,
    neighbours: Annotated[int, typer.Option(min=0, help="Nearest features by cosine of their directions.")] = 5,
    as_json: console.JsonOption = False,
) -> None:
    """One feature: label, contexts with the peak marked, tokens, promoted and suppressed tokens, nearest features.

    Example: gradlens features show layers.27/1234
    """
    from gradlens.labels import Label, nearest

    entry, index = _find(feature, _dictionaries(dictionary))
    labels = _labels(entry, required=False)
    item = labels.get(index, Label(feature=index, label="(no labels: run `gradlens features label`)", source=""))
    near = [
        {"feature": other, "cosine": round(cosine, 3), "label": labels[other].label if other in labels else ""}
        for other, cosine in nearest(entry.dictionary, index, neighbours)
    ]
    norm = entry.dictionary.W_dec[index].norm().item()
    data = {"hookpoint": entry.hookpoint, "dictionary": entry.source, **item.model_dump(mode="json"), "decoder_norm": norm, "nearest": near}
    if as_json:
        console.print_json(data)
        return
    _print_feature(data, item)


def _print_feature(data: dict[str, Any], item: Label) -> None:
    def say(line: Text) -> None:
        console.out.print(line, soft_wrap=True)

    rate = "" if item.rate is None else f", fires on {item.rate:.2%} of tokens"
    say(Text(f"{data['hookpoint']}/{item.feature}  {item.label}", style="bold"))
    author = f", label by {item.source}" if item.source else ""
    say(Text(f"  dictionary {data['dictionary']}{rate}, decoder norm {data['decoder_norm']:.2f}{author}"))
    for left, peak, right, value in item.contexts:
        say(Text.assemble(f"  {value:8.2f}  …{left}", (peak.replace("\n", "↵"), "bold black on yellow"), f"{right}…"))
    if item.tokens:
        say(Text("  tokens      " + "  ".join(f"{token!r} {mean:g} ×{count}" for token, mean, count in item.tokens)))
    for name in ("promoted", "suppressed"):
        if getattr(item, name):
            say(Text(f"  {name:11} " + "  ".join(map(repr, getattr(item, name)))))
    for other in data["nearest"]:
        say(Text(f"  near        {other['cosine']:.2f}  {data['hookpoint']}/{other['feature']}  {other['label']}"))


def _dictionaries(items: list[str] | None) -> list[Named]:
    from gradlens.cli.inputs import open_dictionaries

    return open_dictionaries(items or [])


def _labels(entry: Named, required: bool = True) -> dict[int, Label]:
    from gradlens.labels import load_labels

    labels = load_labels(entry.source, entry.hookpoint)
    if required and not labels:
        raise ConfigError(f"{entry.source}: this dictionary has no labels; make them: gradlens features label {entry.source}")
    return labels


def _find(feature: str, named: list[Named]) -> tuple[Named, int]:
    from gradlens.hookpoints import canonical

    hookpoint, _, index = feature.rpartition("/")
    known = {entry.hookpoint: entry for entry in named}
    if not index.isdigit() or (not hookpoint and len(named) != 1):
        raise ConfigError(f"{feature}: expected HOOKPOINT/ID, for instance {named[0].hookpoint}/0")
    entry = known.get(canonical(hookpoint)) if hookpoint else named[0]
    if entry is None:
        raise ConfigError(f"{feature}: no dictionary at {hookpoint}; there are {', '.join(known)} (others with --dictionary)")
    if int(index) >= entry.dictionary.d_sae:
        raise ConfigError(f"{feature}: the dictionary at {entry.hookpoint} has features 0 to {entry.dictionary.d_sae - 1}")
    return entry, int(index)

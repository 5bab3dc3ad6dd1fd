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
    from gradlens.dictionaries.labels import Label

app = typer.Typer(no_args_is_help=True, help="Features of a dictionary: label them, search for a word, show one.")

DictionaryOption = Annotated[
    list[str] | None,
    typer.Option(
        "--dictionary", "-d", metavar="[HOOKPOINT=]SOURCE", help="Folder or shipped name, once per hookpoint. Default: the shipped ones."
    ),
]


LabelsOption = Annotated[
    list[str] | None,
    typer.Option(
        "--labels", "-l", metavar="[HOOKPOINT=]SOURCE", help="Further labels: a Neuronpedia export, results of Delphi, JSON or CSV."
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
        str | None,
        typer.Option(
            "--out", "-o", help="File to write, for one dictionary. Default: labels.json in its folder (of SOURCE#3: labels-3.json)."
        ),
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
    from gradlens.dictionaries.autolabels import draw_examples, label_features
    from gradlens.dictionaries.formats import check_width
    from gradlens.dictionaries.labels import save_labels
    from gradlens.model.hookpoints import d_model, in_stream
    from gradlens.model.loading import load_model

    named = open_dictionaries(sources)
    if out and len(named) > 1:
        raise ConfigError("--out names one file: give one dictionary, or leave it out and labels.json goes into each folder")
    paths = {entry.hookpoint: Path(out) if out else _labels_path(entry.source) for entry in named}
    if len(set(paths.values())) < len(paths):
        raise ConfigError(f"{sources[-1]}: two of these dictionaries keep their labels in one file; label them one at a time, with --out")
    with fetch_progress() as report:
        loaded, tokenizer = load_model(model, progress=report)
    for entry in named:
        if in_stream(entry.hookpoint):
            check_width(entry.dictionary, d_model(loaded), entry.hookpoint)
    examples = draw_examples(text, tokenizer, max_tokens, max_length, seed)
    with console.progress("labelling", total=len(examples)) as advance:
        labels = label_features(loaded, tokenizer, {e.hookpoint: e.dictionary for e in named}, examples, progress=advance)
    written = []
    for entry in named:
        path = paths[entry.hookpoint]
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
    labels: LabelsOption = None,
    limit: Annotated[int, typer.Option("--limit", "-n", min=1, help="Features shown.")] = 20,
    as_json: console.JsonOption = False,
) -> None:
    """Features whose labels, tokens, promoted tokens or contexts mention a word, in all sources of labels at once. What a label says and
    where the word stands decide the order, never a score.

    Example: gradlens features search matey
    """
    from gradlens.dictionaries.labels import search as search_labels

    places = {"label": 0, "tokens": 1, "promoted": 2, "contexts": 3}
    named = _dictionaries(dictionary)
    further = _by_hookpoint(labels, named)
    hits = [(entry, *hit) for entry in named for hit in search_labels(_labels(entry, further), word)]
    hits.sort(key=lambda hit: places[hit[2]])
    found = [
        {"hookpoint": entry.hookpoint, "feature": item.feature, "rate": item.rate, "where": place, **_saying(item, word)}
        for entry, item, place in hits[:limit]
    ]
    if as_json:
        console.print_json({"word": word, "total": len(hits), "features": found})
        return
    if not found:
        console.err.print(f"no feature mentions {word!r}", markup=False)
        return
    table = Table("feature", "label", "said by", "fires on", "found in")
    for row in found:
        name = f"{row['hookpoint']}/{row['feature']}"
        table.add_row(name, Text(row["label"]), Text(row["source"]), "" if row["rate"] is None else f"{row['rate']:.2%}", row["where"])
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
    labels: LabelsOption = None,
    neighbours: Annotated[int, typer.Option(min=0, help="Nearest features by cosine of their directions.")] = 5,
    as_json: console.JsonOption = False,
) -> None:
    """One feature: its labels and who says so, contexts with the peak marked, tokens, promoted and suppressed tokens, nearest features.

    Example: gradlens features show layers.27/1234
    """
    from gradlens.dictionaries.labels import Label, citation, nearest

    named = _dictionaries(dictionary)
    entry, index = _find(feature, named)
    known = _labels(entry, _by_hookpoint(labels, named), required=False)
    item = known.get(index, Label(feature=index, label="(no labels: run `gradlens features label`)", source=""))
    if not item.neuronpedia and entry.dictionary.metadata.get("neuronpedia_id"):
        item = item.model_copy(update={"neuronpedia": citation(entry.dictionary.metadata["neuronpedia_id"], index)})
    near = [
        {"feature": other, "cosine": round(cosine, 3), "label": known[other].label if other in known else ""}
        for other, cosine in nearest(entry.dictionary, index, neighbours)
    ]
    norm = entry.dictionary.W_dec[index].norm().item()
    about = {"link": item.link, "decoder_norm": norm, "nearest": near}
    data = {"hookpoint": entry.hookpoint, "dictionary": entry.source, **item.model_dump(mode="json"), **about}
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
    for text, who in item.also:
        say(Text(f"  also        {text}  (by {who})"))
    if data["link"]:
        say(Text(f"  Neuronpedia {item.neuronpedia}  {data['link']}"))
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


def _labels(entry: Named, further: dict[str, list[str]], required: bool = True) -> dict[int, Label]:
    from gradlens.dictionaries.labels import labels_of

    labels = labels_of(entry.dictionary, entry.hookpoint, further.get(entry.hookpoint, ()), entry.dictionary.d_sae)
    if required and not labels:
        raise ConfigError(
            f"{entry.source}: this dictionary has no labels; make them: gradlens features label {entry.source}, or name some with --labels"
        )
    return labels


def _labels_path(source: str) -> Path:
    from gradlens.dictionaries.labels import labels_path

    path = labels_path(source)
    if path is None:
        raise ConfigError(f"{source}: no folder on this machine to write labels.json into; say where: --out FILE (then --labels FILE)")
    return path


def _by_hookpoint(items: list[str] | None, named: list[Named]) -> dict[str, list[str]]:
    """`[HOOKPOINT=]SOURCE` of `--labels`; without a hookpoint it belongs to the only dictionary."""
    from gradlens.model.hookpoints import canonical

    known, found = [entry.hookpoint for entry in named], {}
    for item in items or []:
        hookpoint, separator, source = item.partition("=")
        if not separator and len(known) != 1:
            raise ConfigError(f"--labels {item}: say for which dictionary: HOOKPOINT={item}, with one of {', '.join(known)}")
        hookpoint, source = (canonical(hookpoint), source) if separator else (known[0], item)
        if hookpoint not in known:
            raise ConfigError(f"--labels {item}: no dictionary at {hookpoint}; there are {', '.join(known)}")
        found.setdefault(hookpoint, []).append(source)
    return found


def _saying(item: Label, word: str) -> dict[str, str]:
    """Label and author: of several labels the first that mentions the word."""
    said = [(item.label, item.source), *item.also]
    text, who = next((pair for pair in said if word.strip().lower() in pair[0].lower()), said[0])
    return {"label": text, "source": who}


def _find(feature: str, named: list[Named]) -> tuple[Named, int]:
    from gradlens.model.hookpoints import canonical

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

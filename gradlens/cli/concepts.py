"""`gradlens concepts fit|show|checker`: from examples to features and to what judges answers, with held-out scores."""

from __future__ import annotations

import shlex
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table

from gradlens.cli import console
from gradlens.errors import ConfigError

if TYPE_CHECKING:
    from gradlens.concepts.concept_files import Concept

app = typer.Typer(no_args_is_help=True, help="Concepts: what you name by examples or features. Fit features, see how well they tell it.")

DictionaryOption = Annotated[
    list[str] | None,
    typer.Option(
        "--dictionary", "-d", metavar="[HOOKPOINT=]SOURCE", help="Folder or shipped name, once per hookpoint. Default: the shipped ones."
    ),
]
ConfigOption = Annotated[
    str | None, typer.Option("--config", "-c", help="Take model, dictionaries, max_length and concepts from a run config.")
]


def register(parent: typer.Typer) -> None:
    parent.add_typer(app, name="concepts")


@app.command()
def fit(
    files: Annotated[
        list[str] | None, typer.Argument(help="Concept files (YAML or JSONL) or demo:NAME. Default: those of --config.")
    ] = None,
    model: Annotated[str | None, typer.Option("--model", "-m", help="`smollm2`, a Hugging Face name, or a folder.")] = None,
    dictionary: DictionaryOption = None,
    config: ConfigOption = None,
    out: Annotated[str | None, typer.Option("--out", "-o", help="Write the fitted concepts here (.yaml or .jsonl).")] = None,
    features: Annotated[int, typer.Option("--features", "-n", min=1, help="Features per hookpoint.")] = 24,
    max_length: Annotated[int | None, typer.Option(help="Tokens an example is cut to. Default: the config's, else 256.")] = None,
    max_texts: Annotated[int, typer.Option(min=8, help="Positives, and negatives, that are read (a random choice of more).")] = 100,
    seed: Annotated[int, typer.Option(help="Seed of the split into a choosing and a judging half.")] = 0,
    refit: Annotated[bool, typer.Option("--refit", help="Choose features anew where the file already has some.")] = False,
    as_json: console.JsonOption = False,
) -> None:
    """Choose features per hookpoint by contrast between positive and negative examples; judge them on held-out examples.

    A concept file: name, description, positive and negative (lists of texts or rows, a JSONL file, or demo:NAME).

    Example: gradlens concepts fit politeness.yaml --model smollm2 -d layers.27=smollm2-l27 --out fitted.yaml
    """
    from gradlens.cli.inputs import open_dictionaries
    from gradlens.cli.models import fetch_progress
    from gradlens.concepts.fitting import fit_concept, load_concepts, save_concept
    from gradlens.config import load_config
    from gradlens.dictionaries.formats import check_width
    from gradlens.model.hookpoints import d_model, in_stream
    from gradlens.model.loading import load_model

    settings = load_config(config) if config else None
    concepts = load_concepts(files or (settings.concepts if settings else []))
    if not concepts:
        raise ConfigError("no concept: give a concept file, demo:NAME, or --config with concepts")
    named = open_dictionaries(dictionary or (settings.dictionaries if settings else []), concepts)
    with fetch_progress() as report:
        loaded, tokenizer = load_model(model or (settings.model.name if settings else "smollm2"), progress=report)
    for entry in named:
        if in_stream(entry.hookpoint):
            check_width(entry.dictionary, d_model(loaded), entry.hookpoint)
    length = max_length or (settings.data.max_length if settings else 256)
    dictionaries = {entry.hookpoint: entry.dictionary for entry in named}
    fitted = []
    for concept in concepts:
        texts = sum(min(max_texts, len(concept.rows(kind))) for kind in ("positive", "negative"))
        with console.progress(f"fitting {concept.name}", total=texts) as advance:
            fitted.append(
                fit_concept(loaded, tokenizer, dictionaries, concept, features, length, seed, advance, refit=refit, max_texts=max_texts)
            )
    if out:
        save_concept(fitted[0] if len(fitted) == 1 else fitted, out)
    if as_json:
        console.print_json({"concepts": [concept.model_dump(mode="json") for concept in fitted], "out": out})
        return
    _print_table(fitted, {entry.hookpoint: entry.source for entry in named})
    if out:
        console.err.print(f"written to {out}; use it under `concepts:` in a run config", markup=False)


@app.command()
def show(
    files: Annotated[
        list[str] | None, typer.Argument(help="Concept files (YAML or JSONL) or demo:NAME. Default: those of --config.")
    ] = None,
    dictionary: DictionaryOption = None,
    config: ConfigOption = None,
    judge: Annotated[
        bool, typer.Option("--judge", help="Run the program that a concept names as its checker on the examples, to see how often it errs.")
    ] = False,
    as_json: console.JsonOption = False,
) -> None:
    """Show concepts: examples, features with their labels, held-out scores, how answers are judged.

    A concept file can name a program as its checker. It is named here, and run with --judge only: look at what comes from elsewhere first.

    Example: gradlens concepts show demo:pirate demo:arithmetic
    """
    from gradlens.cli.inputs import open_dictionaries
    from gradlens.concepts.checker_doubts import doubt_of_ordinary
    from gradlens.concepts.checkers import checker_for, errors_of
    from gradlens.concepts.fitting import load_concepts
    from gradlens.config import load_config

    settings = load_config(config) if config else None
    concepts = load_concepts(files or (settings.concepts if settings else []))
    if not concepts:
        raise ConfigError("no concept: give a concept file, demo:NAME, or --config with concepts")
    wanted = dictionary or (settings.dictionaries if settings else None)
    sources = {entry.hookpoint: entry.source for entry in open_dictionaries(wanted)} if wanted else {}
    shown = []
    for concept in concepts:
        runs_a_program = concept.checker is not None and bool(concept.checker.command)
        checker = None if runs_a_program and not judge else checker_for(concept)
        counts = {kind: len(concept.rows(kind)) for kind in ("positive", "negative")}
        judged = None if checker is None else errors_of(checker)
        if runs_a_program and not judge:
            judged = {"kind": "command", "command": concept.checker.arguments, "run": False}
        shown.append(concept.model_dump(mode="json", exclude={"positive", "negative"}) | {"examples": counts, "judged_by": judged})
    if as_json:
        console.print_json({"concepts": shown})
        return
    for entry in shown:
        console.out.print(f"{entry['name']}: {entry['description'] or '(no description)'}", style="bold", markup=False)
        console.out.print(f"  examples: {entry['examples']['positive']} positive, {entry['examples']['negative']} negative", markup=False)
        judged = entry["judged_by"]
        if judged and "run" in judged:
            command = shlex.join(judged["command"])
            text = f"  answers judged by the program {command} (not run; --judge runs it on the examples)"
            console.out.print(text, markup=False, soft_wrap=True)  # a command that is broken over lines cannot be copied
        elif judged:
            console.out.print(f"  answers judged by {judged['kind']}: {_errors(judged)}", markup=False)
            _warn(doubt_of_ordinary(entry["name"], judged))
    _print_table(concepts, sources)


@app.command()
def checker(
    file: Annotated[str, typer.Argument(help="Concept file with positive and negative examples, or demo:NAME.")],
    out: Annotated[str, typer.Option("--out", "-o", help="Write the classifier here (.json).")],
    name: Annotated[str | None, typer.Option("--name", help="Which concept, where the file has several.")] = None,
    false_alarms: Annotated[
        float, typer.Option(min=0, max=0.5, help="Share of the negatives that may be called positive; sets the threshold.")
    ] = 0.02,
    answers: Annotated[str | None, typer.Option(help="Also judge the rows of this JSONL file.")] = None,
    as_json: console.JsonOption = False,
) -> None:
    """Fit a classifier of words on a concept's examples and save it as a file that judges answers.

    It weighs words, n-grams of characters and the look of a text; the file is JSON and can be read. Ordinary answers are further
    negatives, unless they look like the positives. Its rates are held out: no text is judged by what it was fitted on. Use it in a
    concept file: `checker: {classifier: FILE}`.

    Example: gradlens concepts checker politeness.yaml --out politeness-checker.json
    """
    from gradlens.concepts.checker_doubts import doubt_of_ordinary
    from gradlens.concepts.checkers import answer_of, errors_of, examples_of, judged
    from gradlens.concepts.fitting import load_concepts
    from gradlens.concepts.word_classifier import WordClassifier
    from gradlens.data.ordinary import ordinary_answers
    from gradlens.data.rows import read_rows

    concepts = {concept.name: concept for concept in load_concepts([file])}
    if name is None and len(concepts) > 1:
        raise ConfigError(f"{file} has several concepts: {', '.join(concepts)}; say which with --name")
    chosen = concepts.get(name or next(iter(concepts)))
    if chosen is None:
        raise ConfigError(f"--name {name}: {file} has {', '.join(concepts)}")
    fitted = WordClassifier.fit(*examples_of(chosen), false_alarms=false_alarms, ordinary=ordinary_answers())
    fitted.save(out)
    judged_by = errors_of(fitted)
    found = {"concept": chosen.name, "out": out} | judged_by | {"doubt": doubt_of_ordinary(chosen.name, judged_by)}
    if answers:
        hits = judged(fitted, [answer_of(row) for row in read_rows(answers)])
        found |= {"answers": len(hits), "shown": sum(hits)}
    if as_json:
        console.print_json(found)
        return
    console.out.print(f"{chosen.name}: {_errors(found)} (held out); written to {out}", markup=False)
    _warn(found["doubt"])
    if answers:
        console.out.print(f"{answers}: {found['shown']} of {found['answers']} rows show it", markup=False)


def _errors(judged: dict) -> str:
    if judged["hit_rate"] is None or judged["false_alarm_rate"] is None:
        return "error unknown (no examples)"
    said = f"hits {judged['hit_rate']:.0%}, false alarms {judged['false_alarm_rate']:.1%} on texts like its examples"
    if judged.get("ordinary_rate") is None:
        return said
    return f"{said}; found in {judged['ordinary_rate']:.1%} of ordinary answers (by the examples alone in {judged['alone_rate']:.0%})"


def _print_table(concepts: list[Concept], sources: dict[str, str]) -> None:
    """One line per concept and hookpoint, then the first features with their labels, which `sources` (hookpoint -> dictionary) give."""
    from gradlens.dictionaries.labels import labels_of

    table = Table(box=None, pad_edge=False)  # eighty columns hold it
    for column in ("concept", "hookpoint", "features", "AUC", "best", "weighed", "fires on +/-", "gated +/-"):
        table.add_column(column, no_wrap=column == "hookpoint", overflow="fold")
    labels = {hook: labels_of(source, hook) for hook, source in sources.items()}
    named, warnings = [], []
    for concept in concepts:
        for hook, ids in concept.features.items():
            cells, tells = [""] * 5, concept.row_detectors.get(hook)
            if detection := concept.detection.get(hook):
                cells = [
                    f"{detection.auc:.3f}",
                    f"{detection.best_feature}: {detection.best_auc:.3f}",
                    "" if tells is None or tells.auc is None else f"{tells.auc:.3f}",
                    f"{detection.rate_positive:.0%}/{detection.rate_negative:.0%}",
                    f"{detection.gate_rate_positive:.0%}/{detection.gate_rate_negative:.0%}",
                ]
                if detection.warning:
                    warnings.append(f"{concept.name}: {detection.warning}")
            table.add_row(concept.name, hook, str(len(ids)), *cells)
            named += [f"{concept.name}  {hook}/{i}  {labels[hook][i].label}" for i in ids[:3] if i in labels.get(hook, {})]
        if not concept.features:
            table.add_row(concept.name, "(not fitted)", "0", *[""] * 5)
    console.out.print(table, markup=False)
    if any(concept.detection for concept in concepts):
        said = (
            "On held-out examples: AUC of the features together, of the best one, of all features, weighed; tokens on which they fire, and "
        )
        console.out.print(f"{said}that a route rule would gate (of positives/of negatives).", style="dim", markup=False)
    for line in named:
        console.out.print(line, markup=False, soft_wrap=True)
    for warning in warnings:
        _warn(warning)


def _warn(text: str | None) -> None:
    if text:
        console.err.print(f"warning: {text}", style="yellow", markup=False, soft_wrap=True)

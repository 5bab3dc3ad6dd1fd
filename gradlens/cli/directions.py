"""`gradlens concepts compare|directions|groups`: probes and other directions beside the features of dictionaries."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table
from rich.text import Text

from gradlens.cli import console
from gradlens.cli.concepts import ConfigOption, DictionaryOption, app
from gradlens.errors import ConfigError

if TYPE_CHECKING:
    from gradlens.concepts.concept_files import Concept
    from gradlens.config import RunConfig

ModelOption = Annotated[str | None, typer.Option("--model", "-m", help="`smollm2`, a Hugging Face name, or a folder.")]
LengthOption = Annotated[int | None, typer.Option(help="Tokens an example is cut to. Default: the config's, else 256.")]
TextsOption = Annotated[int, typer.Option(min=8, help="Positives, and negatives, that are read (a random choice of more).")]
SeedOption = Annotated[int, typer.Option(help="Seed of the split into a choosing and a judging half.")]


def register(parent: typer.Typer) -> None:
    """The commands are part of `gradlens concepts`, which `cli.concepts` registers."""


@app.command()
def compare(
    concept: Annotated[str, typer.Argument(help="Concept file with examples, or demo:NAME.")],
    model: ModelOption = None,
    dictionary: DictionaryOption = None,
    config: ConfigOption = None,
    tokens: Annotated[bool, typer.Option("--tokens", help="Also the model's unembedding as a dictionary of tokens (slow).")] = False,
    features: Annotated[int, typer.Option("--features", "-n", min=1, help="Features of a set, at most.")] = 24,
    save: Annotated[
        Path | None, typer.Option("--save", help="Write the fitted direction that separates best (.safetensors, .npz, .json).")
    ] = None,
    max_length: LengthOption = None,
    max_texts: TextsOption = 100,
    seed: SeedOption = 0,
    as_json: console.JsonOption = False,
) -> None:
    """Which separates a concept best on held-out texts: features, a linear probe, a difference of means, a principal component?

    AUC over texts and over tokens, with 95% intervals; `minus probe` is the difference over tokens to the probe at the same place.

    Example: gradlens concepts compare demo:pirate -d layers.27=smollm2-l27 --save pirate.safetensors
    """
    from gradlens.cli.inputs import open_dictionaries
    from gradlens.concepts.concept_compare import NAMES
    from gradlens.concepts.concept_compare import compare as compare_methods
    from gradlens.dictionaries.directions import save_directions
    from gradlens.dictionaries.formats import check_width
    from gradlens.dictionaries.labels import labels_of
    from gradlens.dictionaries.unembedding import from_unembedding
    from gradlens.model.hookpoints import d_model, in_stream, place

    settings, (named_concept,) = _settings(config), _concepts([concept])
    named = open_dictionaries(dictionary or (settings.dictionaries if settings else []), [named_concept])
    loaded, tokenizer = _model(model, settings)
    for entry in named:
        if in_stream(entry.hookpoint):
            check_width(entry.dictionary, d_model(loaded), entry.hookpoint)
    dictionaries = {entry.hookpoint: entry.dictionary for entry in named}
    if tokens:
        dictionaries |= {
            f"{at}#tokens": from_unembedding(loaded, tokenizer) for at in dict.fromkeys(map(place, dictionaries)) if in_stream(at)
        }
    length = max_length or (settings.data.max_length if settings else 256)
    with console.progress(f"reading {named_concept.name}") as advance:
        rows, fitted = compare_methods(loaded, tokenizer, dictionaries, named_concept, features, length, seed, max_texts, progress=advance)
    best = max(fitted, key=lambda found: (found.facts["auc_tokens"][0], found.facts["auc_texts"][0]))
    saved = None if save is None else str(save_directions(best, save))
    if as_json:
        console.print_json({"concept": named_concept.name, "methods": rows, "saved": saved})
        return
    table = Table("hookpoint", "method", "directions", "AUC over texts", "AUC over tokens", "minus probe")
    for row in rows:
        figures = [_figure(row[key]) for key in ("auc_texts", "auc_tokens")]
        table.add_row(row["hookpoint"], row["method"], str(row["directions"]), *figures, _figure(row["minus_probe"], "+"))
    console.out.print(table, markup=False)
    for name in dict.fromkeys(row["method"] for row in rows):
        console.out.print(Text(f"{name}: {NAMES[name]}"), soft_wrap=True)
    for row in rows:
        if row["method"] == "best feature":
            label = labels_of(dictionaries[row["hookpoint"]], row["hookpoint"]).get(row["features"][0])
            console.out.print(Text(f"{row['hookpoint']}/{row['features'][0]}  {label.label if label else ''}"), soft_wrap=True)
    if saved:
        facts = best.facts
        console.err.print(
            f"{facts['kind']} at {best.hook} written to {saved}: `dictionaries: {{{best.hook}#{facts['kind']}: {saved}}}`", markup=False
        )


@app.command()
def directions(
    concepts: Annotated[list[str], typer.Argument(help="Concept files with examples, or demo:NAME; a direction for each concept.")],
    at: Annotated[str, typer.Option("--at", help="Hookpoint, for instance layers.27.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="File to write (.safetensors, .npz, .json).")],
    kind: Annotated[str, typer.Option("--kind", "-k", help="probe | mean | pca | gradient")] = "probe",
    axes: Annotated[int, typer.Option(min=1, help="--kind gradient: directions of each concept, at most.")] = 8,
    model: ModelOption = None,
    config: ConfigOption = None,
    max_length: LengthOption = None,
    max_texts: TextsOption = 100,
    seed: SeedOption = 0,
    as_json: console.JsonOption = False,
) -> None:
    """Fit a probe, a difference of means, a principal component, or the axes of its gradients to a concept's examples and write it as a
    dictionary.

    probe, mean and pca tell its tokens and are judged by AUC. gradient: where its examples ask the activation to go and others do not, for
    rules of mode grad, param, update or ablate; judged by the share of held-out gradient energy along the axes.

    Use the file under `dictionaries:` in a config (HOOKPOINT#NAME: FILE) or as `directions:` of a concept file.

    Example: gradlens concepts directions demo:pirate --at layers.27 --kind probe --out pirate.safetensors
    """
    from gradlens.concepts.concept_compare import fit_directions
    from gradlens.dictionaries.concept_gradients import gradient_directions
    from gradlens.dictionaries.directions import joined, save_directions
    from gradlens.dictionaries.probing import KINDS

    if kind not in (*KINDS, "gradient"):
        raise ConfigError(f"--kind: {kind!r} is not one of {', '.join(KINDS)}, gradient")
    settings, found = _settings(config), _concepts(concepts)
    loaded, tokenizer = _model(model, settings)
    length = max_length or (settings.data.max_length if settings else 256)
    made = []
    for concept in found:
        with console.progress(f"reading {concept.name}") as advance:
            if kind == "gradient":
                made.append(gradient_directions(loaded, tokenizer, at, concept, axes, length, seed, max_texts, advance))
            else:
                made.append(fit_directions(loaded, tokenizer, at, concept, kind, length, seed, max_texts, advance))
    path = save_directions(joined(made), out)
    rows = [{"label": one.labels[0], "hookpoint": one.hook, **one.facts} for one in made]
    if as_json:
        console.print_json({"directions": rows, "out": str(path)})
        return
    if kind == "gradient":
        table = Table("concept", "hookpoint", "axes", "held-out gradient energy, positives / negatives")
        for one in made:
            energy = one.facts["held_out_energy"]
            table.add_row(one.facts["concept"], one.hook, str(len(one.labels)), f"{energy['positive']:.1%} / {energy['negative']:.1%}")
        console.out.print(table, markup=False)
        console.err.print(f"written to {path}; in a concept file: `directions: {path}#{made[0].facts['concept']}`", markup=False)
        return
    table = Table("direction", "hookpoint", "AUC over texts", "AUC over tokens", "route gates + / -")
    for row in rows:
        gates = " / ".join(f"{share:.0%}" for share in row.get("gates", ()))
        table.add_row(row["label"], row["hookpoint"], _figure(row["auc_texts"]), _figure(row["auc_tokens"]), gates)
    console.out.print(table, markup=False)
    console.err.print(f"written to {path}; under `dictionaries:` of a config: {made[0].hook}#NAME: {path}", markup=False)


@app.command()
def groups(
    source: Annotated[str, typer.Argument(metavar="[HOOKPOINT=]SOURCE", help="A dictionary: folder, file or shipped name.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="Concept file to write (.yaml); the axes go beside it (.safetensors).")],
    cosine: Annotated[float, typer.Option(min=0, max=1, help="Decoder rows of at least this cosine belong together.")] = 0.3,
    smallest: Annotated[int, typer.Option(min=2, help="Features a group must have.")] = 4,
    top: Annotated[int, typer.Option(min=1, help="Groups written, the largest first.")] = 20,
    share: Annotated[float, typer.Option(min=0.1, max=1, help="Share of a group's directions that its axes hold.")] = 0.9,
    as_json: console.JsonOption = False,
) -> None:
    """Find features that belong together and write them as concepts; their principal axes as directions.

    Groups are clusters of decoder rows, or the levels of a Matryoshka dictionary. A concept's readings `group_*` and every rule but route
    treat its features as one subspace; `directions: FILE#GROUP` in a concept file does the same with the axes alone.

    Example: gradlens concepts groups layers.15=smollm2-l15 --out groups.yaml
    """
    from gradlens.cli.inputs import open_dictionaries
    from gradlens.concepts.concept_files import Concept, save_concept
    from gradlens.dictionaries.directions import save_directions
    from gradlens.dictionaries.groups import clusters, group_directions, levels
    from gradlens.dictionaries.labels import labels_of

    (entry,) = open_dictionaries([source])
    dictionary, sizes = entry.dictionary, entry.dictionary.metadata.get("group_sizes")
    if sizes:
        found = levels(sizes)
    else:
        rate = dictionary.metadata.get("firing_rate")
        made = clusters(dictionary, cosine, smallest, None if rate is None else rate > 0)[:top]
        found = {f"group-{i + 1}": members for i, members in enumerate(made)}
    if not found:
        raise ConfigError(f"{source}: no {smallest} features with decoder rows of cosine {cosine} or more; try a smaller --cosine")
    axes = group_directions(dictionary, found, entry.hookpoint, share)
    file = save_directions(axes, out.with_suffix(".safetensors"))
    labels = labels_of(dictionary, entry.hookpoint)
    said = {name: "; ".join(labels[i].label for i in members[:3] if i in labels) for name, members in found.items()}
    rows = [{"group": name, "features": ids, "axes": len(axes.groups[name]), "labels": said[name]} for name, ids in found.items()]
    save_concept([Concept(name=name, description=said[name], features={entry.hookpoint: ids}) for name, ids in found.items()], out)
    if as_json:
        console.print_json({"hookpoint": entry.hookpoint, "groups": rows, "concepts": str(out), "directions": str(file)})
        return
    table = Table("group", "features", "axes", "labels")
    for row in rows:
        table.add_row(row["group"], str(len(row["features"])), str(row["axes"]), Text(said[row["group"]]))
    console.out.print(table)
    console.err.print(f"concepts: {out}; axes: {file}, for instance `directions: {file.name}#{rows[0]['group']}`", markup=False)


def _settings(config: str | None) -> RunConfig | None:
    from gradlens.config import load_config

    return load_config(config) if config else None


def _concepts(sources: list[str]) -> list[Concept]:
    from gradlens.concepts.fitting import load_concepts

    found = load_concepts(sources)
    for concept in found:
        if not (concept.positive and concept.negative):
            raise ConfigError(f"concept {concept.name}: it has no examples to fit and to judge on; add positive and negative")
    return found


def _model(name: str | None, settings: RunConfig | None) -> Any:
    from gradlens.cli.models import fetch_progress
    from gradlens.model.loading import load_model

    with fetch_progress() as report:
        return load_model(name or (settings.model.name if settings else "smollm2"), progress=report)


def _figure(interval: list[float] | None, sign: str = "") -> str:
    if interval is None:
        return ""
    value, low, high = interval
    return f"{value:{sign}.3f} [{low:{sign}.3f}, {high:{sign}.3f}]"

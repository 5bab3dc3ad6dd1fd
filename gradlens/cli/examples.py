"""`gradlens examples`: which training rows taught a concept, some features, or one of the clusters of what was learned."""

from __future__ import annotations

from collections import defaultdict
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.markup import escape
from rich.text import Text

from gradlens.cli.console import JsonOption, err, out, print_json
from gradlens.cli.runs import RUNS, RunArgument, RunsDirOption, SkipOption, open_run
from gradlens.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

    from gradlens.concepts.concept_files import RowDetector
    from gradlens.recording.store import RunReader

STYLES = ((0.5, "bold black on bright_yellow"), (0.2, "black on yellow"), (0.0, "yellow"))  # from which strength on
Features = dict[str, list[int]]


def register(app: typer.Typer) -> None:
    app.command("examples")(examples)


def examples(
    run: RunArgument = "last",
    concept: Annotated[str | None, typer.Option(metavar="NAME", help="A concept of the run.")] = None,
    features: Annotated[
        list[str] | None, typer.Option(metavar="HOOKPOINT:ID[,ID...]", help="Any features of the run's dictionaries; may be repeated.")
    ] = None,
    cluster: Annotated[int | None, typer.Option(metavar="N", help="The N-th of the things that the run has learned.")] = None,
    concept_file: Annotated[
        str | None, typer.Option(metavar="FILE", help="A concept file with features, fitted after the run; or demo:NAME.")
    ] = None,
    hookpoint: Annotated[str | None, typer.Option(help="Go by this hookpoint alone. Default: by all of them together.")] = None,
    rows: Annotated[int, typer.Option("-n", min=1, help="How many examples.")] = 10,
    all_rows: Annotated[bool, typer.Option("--all-rows", help="With --json: every row, to compute figures of your own.")] = False,
    runs_dir: RunsDirOption = RUNS,
    skip_damaged: SkipOption = False,
    json_output: JsonOption = False,
) -> None:
    """Which training examples taught it, with the tokens that did marked in the text. Alone: what can be asked for.

    A token teaches a concept as much as it speaks for it times its loss: what the model did not expect there. What speaks for a concept
    was learned from its examples (`gradlens concepts fit`, or the start of a run): weights of all features, and how probable they make it
    that a text shows it; of a concept without examples, the mean activation of its features. An example teaches what its tokens do, over
    all the times it was seen; this is known before each step and is what the steps had to go by, not a proof of what one example alone
    would change.

    Rows are numbered from 0, through all files of data.train. `lesson`, of what nobody had named, is of the features that each row taught
    most: with a concept file that was fitted (`gradlens concepts fit`) what it taught of those that speak for the concept, weighed, else
    the mean over the features of the root of what it taught of each. A share is of all rows together: one of 300 that taught as much as
    the others has 0.3%.

    Example: gradlens examples last --concept pirate -n 5; gradlens examples last --cluster 1; gradlens examples last --features 27:41,1290
    """
    from gradlens.report.teaching import teachers, teachers_of

    asked = {"--concept": concept, "--features": features, "--cluster": cluster, "--concept-file": concept_file}
    given = [name for name, value in asked.items() if value not in (None, [])]
    if len(given) > 1:
        raise ConfigError(f"{' and '.join(given)}: give one of {', '.join(asked)}")
    if all_rows and not json_output:
        raise ConfigError("--all-rows prints every row of the run: it goes with --json")
    if not given and (hookpoint or all_rows):
        raise ConfigError(f"{'--hookpoint' if hookpoint else '--all-rows'}: say of what, with one of {', '.join(asked)}")
    reader = open_run(runs_dir, run, skip_damaged)
    if not given:
        _print_choices(reader, json_output)
        return
    limit = None if all_rows else rows
    if concept is not None:
        title, found = concept, teachers(reader, concept, hookpoint, limit)
    else:
        aucs, tells = None, None
        if features:
            title, wanted = "features " + " ".join(features), parse_features(features)
        elif cluster is not None:
            title, wanted = _cluster(reader, cluster)
        else:
            title, wanted, aucs, tells = _concept_of_file(reader, concept_file)
        found = teachers_of(reader, _at(wanted, hookpoint, title), limit, aucs, tells)
    if _leaves_rows_out(reader):
        err.print(
            "A rule of this run left whole rows out: they taught nothing, and were not read (observe.left_out: true reads them).",
            style="dim",
        )
    if json_output:
        print_json({"title": title, **found})
    else:
        _print_rows(title, found)


def parse_features(items: Collection[str]) -> Features:
    """`HOOKPOINT:ID[,ID...]`, several times: `{hookpoint: ids}`. Raises `ConfigError` naming the one that is not of this form."""
    found: Features = defaultdict(list)
    for item in items:
        hookpoint, _, ids = item.rpartition(":")
        names = [name.strip() for name in ids.split(",")]
        if not hookpoint or not all(name.isascii() and name.isdigit() for name in names):
            raise ConfigError(f"--features {item}: expected HOOKPOINT:ID[,ID...], for instance --features layers.27:41,1290")
        found[hookpoint] += [int(name) for name in names]
    return dict(found)


def _at(wanted: Features, hookpoint: str | None, title: str) -> Features:
    """Those at one hookpoint, if one is given."""
    if hookpoint is None:
        return wanted
    from gradlens.model.hookpoints import canonical

    kept = [ids for name, ids in wanted.items() if canonical(name) == canonical(hookpoint)]
    if not kept:
        raise ConfigError(f"--hookpoint {hookpoint}: {title} has no features there; there is {', '.join(wanted)}")
    return {hookpoint: sum(kept, [])}


def _cluster(reader: RunReader, number: int) -> tuple[str, Features]:
    """Name and features of one of the clusters of what was learned, counted from 1."""
    from gradlens.report.findings import clusters

    found = clusters(reader.events)
    if not found:
        raise ConfigError(f"--cluster {number}: {reader.run_id} has recorded nothing as learned so far")
    if not 1 <= number <= len(found):
        raise ConfigError(f"--cluster {number}: {reader.run_id} has the clusters 1 to {len(found)}")
    features: Features = defaultdict(list)
    for hookpoint, feature in found[number - 1]["features"]:
        features[hookpoint].append(feature)
    return f"cluster {number} ({_words(found[number - 1])})", dict(features)


def _words(cluster: Mapping[str, Any]) -> str:
    from gradlens.report.findings import listed

    return listed(cluster.get("words") or cluster.get("labels") or ["no words"])


def _concept_of_file(reader: RunReader, file: str) -> tuple[str, Features, dict[str, float], dict[str, RowDetector]]:
    """Name and features of the one concept in a file, at the hookpoints that the run has; how well its texts are told at each, and by
    what."""
    from gradlens.concepts.concept_files import load_concepts
    from gradlens.report.teaching import aucs_of, recorded_lessons

    concepts = load_concepts([file])
    if len(concepts) > 1:
        raise ConfigError(f"{file}: holds {len(concepts)} concepts ({', '.join(entry.name for entry in concepts)}); give a file with one")
    concept, known = concepts[0], recorded_lessons(reader)
    if not concept.features:
        config = reader.config
        if "data" in config and "train" in config:
            where = f"--config {reader.run_dir / 'config.yaml'}"
        else:  # a loop of one's own: its config does not say where model and dictionaries lie
            where = " ".join(["--model MODEL", *(f"--dictionary {name}=SOURCE" for name in known)])
        raise ConfigError(
            f"{file}: the concept {concept.name} has examples but no features; fit them with\n"
            f"gradlens concepts fit {file} {where} --out {concept.name}-fitted.yaml\nand give --concept-file {concept.name}-fitted.yaml"
        )
    features = {name: ids for name, ids in concept.features.items() if name in known}
    if known and not features:
        raise ConfigError(f"{file}: features at {', '.join(concept.features)}, but the run was read at {', '.join(known)}")
    return concept.name, features or concept.features, aucs_of(concept), concept.row_detectors


def _leaves_rows_out(reader: RunReader) -> bool:
    rules = [
        rule for event in reader.events if event.get("kind") == "policy" for rule in event.get("rules") or [] if isinstance(rule, dict)
    ]
    told = any(rule.get("mode") == "reweight" and rule.get("rows") is not None and rule.get("gain") == 0 for rule in rules)
    return told and not (reader.config.get("observe") or {}).get("left_out", False)


def _print_choices(reader: RunReader, json_output: bool) -> None:
    from gradlens.report.findings import chance, clusters
    from gradlens.report.teaching import how_to_record, recorded_concepts, recorded_lessons

    concepts, found, hookpoints = recorded_concepts(reader), clusters(reader.events), recorded_lessons(reader)
    if json_output:
        print_json({"run_id": reader.run_id, "concepts": concepts, "clusters": found, "hookpoints": hookpoints})
        return
    out.print(f"[bold]{escape(reader.run_id)}[/]: which examples taught what? Ask for one of")
    for name, at in concepts.items():
        out.print(f"  --concept {name}  (read at {', '.join(at)})", markup=False, soft_wrap=True)
    if hookpoints:
        for number, cluster in enumerate(found, 1):
            told = f"{chance(cluster['share'])} of what was learned: {_words(cluster)}"
            out.print(f"  --cluster {number}  {told}", markup=False, soft_wrap=True)
        out.print(f"  --features HOOKPOINT:ID[,ID...]  any features at {', '.join(hookpoints)}", markup=False, soft_wrap=True)
        out.print("  --concept-file FILE  a concept with features that nobody named before the run", soft_wrap=True)
    elif not concepts:
        out.print(f"  nothing: this run has recorded no rows{how_to_record(reader)}", markup=False, soft_wrap=True)


def _print_rows(title: str, found: dict[str, Any]) -> None:
    from gradlens.report.teaching import UNKNOWN
    from gradlens.report.texts import marked_tokens

    shown = [row for row in found["rows"] if row["share"] > 0]
    where = "all hookpoints together" if found["hookpoint"] == "all" else found["hookpoint"]
    showing = "" if found["showing"] is None else f"; by what tells the concept's examples {found['showing']} of {found['of']} show it"
    out.print(Text.assemble((title, "bold"), f", {where}: {len(shown)} of {found['of']} examples{showing}"), soft_wrap=True)
    if found["showing"] == 0:
        out.print("No row shows it: these come nearest to it, and shares are shares of next to nothing.", style="yellow", soft_wrap=True)
    if found["by"] == "push":
        out.print("This run did not record what its rows taught: they are ranked by raw push, which says little.", style="yellow")
    if not shown:
        out.print("None of them taught it.")
        return
    sources = [f"{share:.0%} of it from {source}" for source, share in list(found["sources"].items())[:6]]
    if set(found["sources"]) != {UNKNOWN}:
        out.print(", ".join(sources), markup=False, soft_wrap=True)
    for number, row in enumerate(shown, 1):
        seen = f"seen {row['times']} times" if row["times"] > 1 else "seen once"
        figure = f"{found['by']} {row[found['by']]:.3g}, {row['share']:.1%} of all"
        where = f", from {row['source']}" if row["source"] else ""
        shows = "" if row["shows"] is None else f", shows it with probability {row['shows']:.2g}"
        out.print(f"\n{number}. row {row['row_id']}{where}: {figure}, {seen}{shows}", markup=False, soft_wrap=True)
        if row["text"] is None and not row["source"]:  # a loop that has named its rows: it alone has their texts
            continue
        out.print(highlighted(marked_tokens(row["text"], row["tokens"]), colours=out.is_terminal and out.color_system is not None))


def highlighted(parts: list[tuple[str, float]], colours: bool = True) -> Text:
    """Parts `(text, strength)` with those that taught in colour, the stronger the louder; without colours the stronger in [brackets]."""
    text = Text()
    for part, strength in parts:
        if colours:
            text.append(part, next((style for least, style in STYLES if strength > least), ""))
        else:
            text.append(f"[{part}]" if strength > STYLES[1][0] else part)
    return text

"""`gradlens rules`: which rule suits a concept; and the rules of a run, changed while it goes on or before it is resumed."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
import yaml
from rich.markup import escape
from rich.text import Text

from gradlens.cli.console import JsonOption, err, out, print_json
from gradlens.cli.run import SetOption
from gradlens.cli.runs import RUNS, RunArgument, RunsDirOption

if TYPE_CHECKING:
    from gradlens.config import RunConfig
    from gradlens.control.rule_preview import Seen
    from gradlens.control.suggest import Suggestion

app = typer.Typer(no_args_is_help=True, help="Rules: what they are, which one suits a concept; those of a run: change, undo, switch off.")


def register(parent: typer.Typer) -> None:
    parent.add_typer(app, name="rules")


@app.command()
def modes(json_output: JsonOption = False) -> None:
    """What each mode does, and what is known of it."""
    from gradlens.control.rules import MODES

    if json_output:
        print_json(MODES)
        return
    for mode, text in MODES.items():
        out.print(f"[bold]{mode}[/]: {text}", soft_wrap=True, highlight=False)


@app.command("set")
def set_rules(
    run: RunArgument,
    rules: Annotated[Path, typer.Argument(metavar="RULES", help="A file of rules (YAML): they replace those in force.")],
    runs_dir: RunsDirOption = RUNS,
    json_output: JsonOption = False,
) -> None:
    """Put other rules in force: in a run that goes on from its next step, in a stopped one when it is resumed.

    Example: gradlens rules set last cap.yaml
    """
    from gradlens.control.policies import check_rules, dump_rules, put

    folder = _folder(runs_dir, run)
    _say(folder, put(folder, dump_rules(check_rules(folder, [rules])), "set"), json_output)


@app.command()
def undo(run: RunArgument = "last", runs_dir: RunsDirOption = RUNS, json_output: JsonOption = False) -> None:
    """Put the rules back in force that were before the last change; again: before the change before it. Nothing is lost: see history.

    Example: gradlens rules undo last
    """
    from gradlens.control.policies import undo as go_back

    folder = _folder(runs_dir, run)
    _say(folder, go_back(folder), json_output)


@app.command()
def off(run: RunArgument = "last", runs_dir: RunsDirOption = RUNS, json_output: JsonOption = False) -> None:
    """Switch all rules of a run off, from its next step: it goes on as if it had none. `undo` brings them back.

    Example: gradlens rules off last
    """
    from gradlens.control.policies import put, read_state

    folder = _folder(runs_dir, run)
    if any(rule.get("mode") == "inoculate" for rule in read_state(folder)["rules"]):
        err.print("inoculate stays in the rows: it acts on the data that the run was started with", style="yellow")
    _say(folder, put(folder, [], "off"), json_output)


@app.command()
def history(run: RunArgument = "last", runs_dir: RunsDirOption = RUNS, json_output: JsonOption = False) -> None:
    """Every set of rules that a run has had: version, when, by what, from which step it was in force.

    Example: gradlens rules history last
    """
    from datetime import datetime

    from gradlens.control.policies import history as versions
    from gradlens.control.rules import Rule
    from gradlens.files import read_lines
    from gradlens.recording.lookup import find_run
    from gradlens.report.rules_in_force import rule_text, rules_of

    folder = find_run(runs_dir, run)
    told: dict[int, Any] = {}  # version -> what became of it
    events = list(read_lines(folder / "events.jsonl"))
    for event in events:
        if event.get("kind") == "policy":
            told.setdefault(event.get("version"), event.get("step"))
        elif event.get("kind") == "policy_refused":
            told[event.get("version")] = f"refused: {event.get('error')}"
    entries = [{**entry, "in_force": told.get(entry["version"])} for entry in versions(folder)]
    if not entries:  # of a program's own loop, which keeps no versions
        policies = [event for event in events if event.get("kind") == "policy"]
        entries = [
            {key: e.get(key) for key in ("time", "version", "rules")} | {"by": "program", "in_force": e.get("step")} for e in policies
        ]
    if json_output:
        print_json({"run_id": folder.name, "policies": entries})
        return
    if not entries:
        out.print(f"{escape(folder.name)}: no rules have been put in force")
    for entry in entries:
        when, since = f"{datetime.fromtimestamp(entry['time']):%Y-%m-%d %H:%M:%S}", entry["in_force"]
        state = "not in force yet" if since is None else since if isinstance(since, str) else f"from step {since}"
        if entry["by"] == "refused":
            state = "these stay in force"
        by = f"{entry['by']} (version {entry['restores']})" if "restores" in entry else entry["by"]
        if entry["by"] == "program":
            shown = "; ".join(map(rule_text, rules_of({}, [{"kind": "policy", "rules": entry["rules"]}], {})))
        else:
            shown = "; ".join(Rule.model_validate(rule).words for rule in entry["rules"])
        out.print(f"{entry['version']:>3}  {when}  {by}, {state}: {shown or 'no rules'}", markup=False, highlight=False, soft_wrap=True)


def _folder(runs_dir: Path, run: str) -> Path:
    """The folder of a run that looks there for its rules. Raises `ConfigError` for one of `gradlens.watch`, which does not."""
    from gradlens.errors import ConfigError
    from gradlens.recording.lookup import find_run
    from gradlens.recording.store import RunReader

    folder = find_run(runs_dir, run)
    if "train" not in RunReader(folder).config:
        raise ConfigError(f"{folder.name}: a program's own loop, whose rules no command can change; it may call lens.set_policy itself")
    return folder


def _say(folder: Path, state: dict[str, Any], json_output: bool) -> None:
    from gradlens.recording.lookup import called
    from gradlens.recording.runfolder import is_running

    running = is_running(folder)
    if json_output:
        print_json({"run_id": folder.name, "version": state["version"], "rules": state["rules"], "running": running})
        return
    when = "the run takes them over at its next step" if running else f"in force when it is resumed: gradlens run --resume {called(folder)}"
    count = len(state["rules"])
    what = "no rules" if not count else "1 rule" if count == 1 else f"{count} rules"
    out.print(f"{escape(folder.name)}: version {state['version']}, {what}; {when}", highlight=False, soft_wrap=True)


@app.command()
def suggest(
    config: Annotated[
        Path | None,
        typer.Argument(metavar="[CONFIG]", help="A run config, a pair file, or the name of a shipped pair. Default: the demo's."),
    ] = None,
    shape: Annotated[str | None, typer.Option(help="Of a pair: mix or entangled, as in `gradlens bench control`.")] = None,
    base: Annotated[
        Path | None, typer.Option("--config", help="Of a pair: the config with model and dictionaries. Default: the demo's.")
    ] = None,
    concept: Annotated[str | None, typer.Option(help="One of the config's concepts; default: its first rule's, else the first.")] = None,
    show: Annotated[int, typer.Option(min=0, help="Rows to show with what the rule would make of them; reweight: of either kind.")] = 3,
    changes: SetOption = [],  # noqa: B006 (typer reads it)
    json_output: JsonOption = False,
) -> None:
    """Read some training rows and say which rule would suppress a concept, and what to expect. Trains nothing; takes a minute or two.

    Where data.wanted says which files hold what should be learned, the rule is the one that suits their rows; the others may all go.

    free: rows without the concept. expressed: share of the tokens that express it, in rows that show it. gaps: places in the midst of an
    answer where its tokens stand. own, ordinary: of the concept's own words, and of words that texts without it have too, the share that
    the dictionary's features call the concept's. rows told: how well whole texts of the concept are told from others (AUC, held out).

    rows tried: rewritten to see; a row keeps to its own words where the model puts none into its midst and finds none out of place.

    Then some rows with what the rule would make of them. rewrite: words that would go are struck through (in a plain file in [-brackets-]),
    below stands what would be trained on. reweight: the rows it is least sure of, those it would leave out and those it would keep.

    Examples:
      gradlens rules suggest configs/quickstart.yaml --concept pirate
      gradlens rules suggest mine.yaml --show 10
      gradlens rules suggest pair.yaml --shape entangled
      gradlens rules suggest flattery --shape entangled
      gradlens rules suggest mine.yaml --json
    """
    from gradlens.cli.run import DEMO

    with tempfile.TemporaryDirectory() as folder:  # a shipped pair's rows are made by code
        settings = _to_read(config or DEMO, shape, base, changes, Path(folder))
        said = _suggested(settings, str(config or "demo"), concept, show)
    if json_output:
        print_json(said.as_dict())
        return
    rule = said.rule
    said_in_yaml = {"concept": rule.concept, "mode": rule.mode} | rule.model_dump(exclude_defaults=True, include={"rows", "hookpoints"})
    flow = yaml.safe_dump(said_in_yaml, default_flow_style=True, sort_keys=False, width=1000).strip()
    out.print(f"rule: {flow}", markup=False, highlight=False, soft_wrap=True)
    out.print(f"expect: {said.expects}", soft_wrap=True, highlight=False)
    own, common = ("-" if value is None else f"{value:.0%}" for value in (said.flagged_own, said.flagged_common))
    out.print(
        f"read: {said.rows} rows; free {said.free:.0%}, expressed {said.expressed:.0%}, gaps {said.inner:.1f} a row; "
        f"at {said.hookpoint}: own {own}, ordinary {common}; rows told {'-' if said.rows_auc is None else f'{said.rows_auc:.2f}'}",
        soft_wrap=True, highlight=False,
    )  # fmt: skip
    for row in said.seen:
        out.print(_row(row), soft_wrap=True)


def _suggested(settings: RunConfig, source: str, concept: str | None, show: int) -> Suggestion:
    """What `suggest` says of a config; `source`: what that is called in a complaint."""
    from gradlens.cli.bench import teller
    from gradlens.cli.run import fetch_model
    from gradlens.concepts.fitting import load_concepts
    from gradlens.control.rules import load_rules
    from gradlens.control.suggest import suggest as read
    from gradlens.data.rows import load_examples
    from gradlens.dictionaries.formats import load_dictionary
    from gradlens.errors import ConfigError
    from gradlens.model.hookpoints import by_place
    from gradlens.model.loading import load_model

    found = load_concepts(settings.concepts)
    if not found or not settings.dictionaries:
        raise ConfigError(f"{source}: a suggestion needs `concepts` and `dictionaries`")
    named = {each.name: each for each in found}
    if concept is not None and concept not in named:
        raise ConfigError(f"--concept {concept}: unknown; the config has {', '.join(named)}")
    tell = teller()
    fetch_model(settings)
    tell("loading model")
    model, tokenizer = load_model(settings.model.name, settings.model.dtype)
    dictionaries = {name: load_dictionary(source) for name, source in by_place(settings.dictionaries, "dictionaries").items()}
    sources = [load_examples(source, tokenizer, settings.data.max_length, settings.data.loss_on) for source in settings.data.train]
    texts = 0

    def advance(n: int = 1) -> None:
        nonlocal texts
        texts += n
        tell("reading examples and rows: texts", done=texts)

    tell("reading examples and rows")
    ruled = [rule.concept for rule in load_rules(settings.rules) if rule.concept in named]
    about, data = named[concept or (ruled or list(named))[0]], settings.data
    said, _ = read(model, tokenizer, dictionaries, about, sources, data.max_length, advance, show=show, wanted=data.wanted or ())
    return said


def _to_read(path: Path, shape: str | None, base: Path | None, changes: list[str], folder: Path) -> RunConfig:
    """A run config; of a pair what `gradlens bench control` would train on in a shape, a shipped one written into `folder`."""
    from gradlens.bench.pairs import SHIPPED, load_pair, shapes_of, training_files
    from gradlens.cli.run import DEMO
    from gradlens.config import is_pair, load_config, read_yaml
    from gradlens.errors import ConfigError

    shipped = str(path) in SHIPPED and not path.exists()
    if not (shipped or (path.is_file() and is_pair(read_yaml(path)))):
        if shape is not None or base is not None:
            raise ConfigError(
                f"{path}: --shape and --config are for a pair (docs/own-pair.md; shipped: {', '.join(SHIPPED)}), and this is none"
            )
        return load_config(path, changes)
    pair = load_pair(str(path), folder if shipped else path.parent)
    shapes = shapes_of(pair)
    if shape not in (None, "mix", "entangled") or (shape is None and len(shapes) != 1):
        has = f"has rows for {' and '.join(shapes)}" if shapes else "has rows for neither: give `unwanted` or `entangled`"
        raise ConfigError(f"{path}: a pair; --shape {'' if shape is None else f'{shape}: expected '}mix or entangled? It {has}")
    settings = load_config(base or DEMO, changes)
    data = settings.data.model_copy(update={"train": training_files(pair, shape or shapes[0])})
    return settings.model_copy(update={"data": data, "concepts": [pair.concept]})


def _row(row: Seen) -> Text:
    """A row of a preview, on one line or two."""
    text = Text()
    if row.left_out is not None:
        text.append(f"{'left out' if row.left_out else 'kept'} ({row.score:+.2f}): ", style="red" if row.left_out else "green")
    else:
        text.append("row:     ", style="bold")
    for piece, gone in row.pieces:
        said = " ".join(piece.splitlines()) if "\n" in piece else piece
        if gone and not out.is_terminal:
            said = f"[-{said}-]"
        text.append(said, style="red strike" if gone else "")
    if row.becomes is not None:
        text.append("\nbecomes: ", style="bold")
        text.append(row.becomes or "(nothing: too little is left to learn from)", style="" if row.becomes else "red")
    return text

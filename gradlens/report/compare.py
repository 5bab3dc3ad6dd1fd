"""Figures of several runs side by side, what differs, and what a study (without rules, with, random control, oracle) shows.

Everything is computed from the run folders; the bars a study is judged against are the constants below, printed beside each figure.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence
from pathlib import PurePath
from typing import TYPE_CHECKING, Any

import numpy as np

from gradlens.bench.intervals import rate_of, rate_over_runs
from gradlens.errors import InputError
from gradlens.report.displaced_runs import displacement, in_words
from gradlens.report.findings import IN_BRACKETS, NOISE, beside_noise, current, doubts
from gradlens.report.rules_in_force import rule_text, rules_of

if TYPE_CHECKING:
    from rich.console import RenderableType

    from gradlens.recording.store import RunReader

ARMS = {
    "none": "no rules",
    "rules": "with rules",
    "random": "random features",
    "oracle": "wanted data only",
}
MEASURED = ("uptake", "drift")  # of each concept at each hookpoint, last reading
# What a study is judged against: the first three are shares of answers, the last a ratio of losses.
BAR_UNFILTERED = 0.90  # at least: without rules the data do teach the concept
BAR_SUPPRESSED = 0.10  # at most: with rules the model does not show it
BAR_RANDOM = 0.80  # at least: as many random features in their place do not have that effect
MEANT = {"at_most": 0.0, "at_least": 2.0}  # gains of rules that find them themselves: less, or more
MAX_COLUMNS = 6  # runs side by side in a terminal; more are shown as means over the runs of an arm
BAR_WANTED = 1.15  # at most: loss on what should be learned, over that of a run on this data alone


def compare_runs(readers: Sequence[RunReader]) -> dict[str, Any]:
    """`{"runs": [...], "baseline": run id, "differences": [...], "wanted": held-out set or None, "verdicts": [...],
    "displacement": [...]}`, plain JSON data.

    One entry of `runs` per reader, see `describe`; `differences` are each run minus the baseline (the first run without rules that is
    no oracle, else the first); `verdicts` see `judge`, `displacement` see `displaced_runs`. Raises `InputError` without readers.
    """
    if not readers:
        raise InputError("compare: no runs given; name one or more run folders (`gradlens runs ls` lists them)")
    runs = [describe(reader) for reader in readers]
    _infer_arms(runs)
    baseline = next((run for run in runs if not run["rules"] and run["arm"] != "oracle"), runs[0])
    wanted = wanted_set(runs)
    return {
        "runs": runs,
        "baseline": baseline["run_id"],
        "differences": [_difference(run, baseline) for run in runs if run is not baseline],
        "wanted": wanted,
        "verdicts": judge(runs, wanted),
        "displacement": displacement(readers, [run["arm"] for run in runs]),
    }


def describe(reader: RunReader) -> dict[str, Any]:
    """The figures of one run; what was not measured (an unfinished run, say) is None or left out."""
    config, summary, evaluation, events = reader.config, reader.summary or {}, reader.evaluation or {}, reader.events
    data, model, train = (config.get(part) or {} for part in ("data", "model", "train"))
    scalars = scalars_by_key(reader)
    loss = scalars.get("train/loss", (np.zeros(0, int), np.zeros(0)))
    seconds = scalars.get("train/step_seconds", loss)[1] if "train/step_seconds" in scalars else np.zeros(0)
    measured: dict[str, dict[str, dict[str, float | None]]] = {name: defaultdict(dict) for name in MEASURED}
    noise: dict[str, dict[str, dict[str, float | None]]] = {name: defaultdict(dict) for name in MEASURED}
    for key, (_, values) in scalars.items():
        if key.startswith("concept/") and key.count("/") >= 3:
            concept, hookpoint, name = key.removeprefix("concept/").rsplit("/", 2)
            into, name = (noise, name.removesuffix(NOISE)) if name.endswith(NOISE) else (measured, name)
            if name in into:
                into[name][concept][hookpoint] = _finite(values[-1])
    return {
        "run_id": reader.run_id,
        "name": config.get("name", reader.run_id),
        "arm": _arm(config, summary, events),
        "status": reader.status,
        "model": model.get("name"),
        "method": model.get("method"),
        "data": list(data.get("keep") or data.get("train") or []),
        "wanted": list(data.get("wanted") or []),
        "steps": int(max((steps[-1] for steps, _ in scalars.values() if len(steps)), default=0)),
        "steps_planned": train.get("steps"),
        "seed": train.get("seed"),
        "rules": rules_of(config, events, scalars),
        "loss_first": _finite(loss[1][0]) if len(loss[1]) else None,
        "loss_last": _finite(loss[1][-1]) if len(loss[1]) else None,
        "seconds_per_step": float(np.median(seconds)) if len(seconds) else None,
        "nll": _before_after(evaluation, "nll", _finite),
        "rates": _rates(evaluation),
        "checkers": (evaluation.get("after") or evaluation.get("before") or {}).get("checkers") or {},
        "doubted": sorted({event["concept"] for event in current(events, "doubtful_checker")}),
        "doubts": doubts(events),
        **{name: dict(found) for name, found in measured.items()},
        "noise": {name: dict(found) for name, found in noise.items()},
    }


def scalars_by_key(reader: RunReader) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Key -> `(steps int64[n], values float64[n])`, all scalars in one read."""
    table = reader.scalars()
    if not table.num_rows:
        return {}
    keys = table["key"].combine_chunks().dictionary_encode()
    steps, values = table["step"].to_numpy(), table["value"].to_numpy()
    codes, names = keys.indices.to_numpy(), keys.dictionary.to_pylist()
    order = np.argsort(codes, kind="stable")
    bounds = np.searchsorted(codes[order], np.arange(len(names) + 1))
    return {name: (steps[part], values[part]) for i, name in enumerate(names) for part in [order[bounds[i] : bounds[i + 1]]]}


def wanted_set(runs: Sequence[dict[str, Any]]) -> str | None:
    """The held-out set of the data that should be learned.

    By name, where one is the name of a file of `data.wanted`, or alone is part of one; else (of those that are) the set whose loss the
    oracle run lowered most.
    """
    sets = {name for run in runs for name in run["nll"]}
    stems = [PurePath(source.removeprefix("demo:")).stem.lower() for run in runs for source in run["wanted"]]
    named = sorted((name for name in sets if any(name.lower() in stem for stem in stems)), key=lambda name: (-len(name), name))
    exact = [name for name in named if name.lower() in stems]
    if exact or len(named) == 1:
        return (exact or named)[0]
    gains = {
        name: nll["after"] / nll["before"]
        for run in runs
        if run["arm"] == "oracle"
        for name, nll in run["nll"].items()
        if nll["before"] and nll["after"] is not None and (not named or name in named)
    }
    return min(gains, key=lambda name: (gains[name], name)) if gains else next(iter(named), None)


def judge(runs: Sequence[dict[str, Any]], wanted: str | None) -> list[dict[str, Any]]:
    """What a study shows, in plain words: `{"concept" or "nll", "prompts", "gain", "text", "checks": [{"what", "value", "bar", "met"}]}`.

    Runs of the same arm (seeds, say) are pooled. A concept is judged on the prompts that show it most often without rules.
    Empty where there is nothing to hold the rules against. Bars are for suppression; an amplified concept has checks without a bar.
    """
    arms: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for run in runs:
        if run["arm"]:
            arms[run["arm"]].append(run)
    if "rules" not in arms or not arms.keys() & {"none", "random", "oracle"}:
        return []
    verdicts = []
    targets: dict[str, float] = {}
    for run in arms["rules"]:
        for rule in run["rules"]:
            gain = rule["gain"] if rule["gain"] is not None else MEANT.get((rule["target"] or {}).get("kind", "at_most"))
            if rule["concept"] and gain is not None:
                targets.setdefault(rule["concept"], gain)
    for concept, gain in targets.items():
        pooled = {arm: _pool(members, concept) for arm, members in arms.items()}
        prompts = {name for rates in pooled.values() for name in rates if name in pooled["rules"]}
        if prompts:
            reference = pooled.get("none") or pooled.get("random") or pooled["rules"]
            best = max(sorted(prompts), key=lambda name: (reference.get(name) or {"rate": 0})["rate"] or 0)
            verdict = _judge_rate(concept, best, gain, {arm: rates[best] for arm, rates in pooled.items() if best in rates})
            verdicts.append(verdict | {"remark": _shares(arms, concept)})
    if wanted is not None:
        after = {arm: [(run.get("seed"), run["nll"].get(wanted, {}).get("after")) for run in members] for arm, members in arms.items()}
        nll = {arm: _mean([value for _, value in values]) for arm, values in after.items()}
        if nll.get("rules") is not None and (nll.get("oracle") or nll.get("none")):
            verdicts.append(_judge_nll(wanted, nll, after))
    return verdicts


def _judge_rate(concept: str, prompts: str, gain: float, rates: dict[str, dict[str, Any]]) -> dict[str, Any]:
    suppress = gain < 1
    names = {"none": "without the rule", "rules": "with it", "random": "with as many random features", "oracle": "on wanted data alone"}
    bars = {"none": (">=", BAR_UNFILTERED), "rules": ("<=", BAR_SUPPRESSED), "random": (">=", BAR_RANDOM)} if suppress else {}
    parts, checks = [], []
    for arm, name in names.items():
        if arm not in rates:
            continue
        rate = rates[arm]
        parts.append(f"{percent(rate['rate'])} {'of answers ' if not parts else ''}{name}")
        sign, bar = bars.get(arm, (None, None))
        met = None if bar is None else rate["rate"] >= bar if sign == ">=" else rate["rate"] <= bar
        words = f"{'at least' if sign == '>=' else 'at most'} {percent(bar)}" if bar is not None else None
        checks.append(
            {
                "arm": arm,
                "what": f"answers that show {concept} {name}",
                "value": rate["rate"],
                **rate,
                "bar": words,
                "limit": bar,
                "met": met,
            }
        )
    return {
        "kind": "rate",
        "concept": concept,
        "prompts": prompts,
        "gain": gain,
        "text": f"{concept}: {', '.join(parts)}",
        "checks": checks,
    }


def _shares(arms: dict[str, list[dict[str, Any]]], concept: str) -> str:
    """How much the random features touched beside the rule's own: a control that touches next to nothing says little."""
    shares = {
        arm: _mean([rule.get("share") for run in arms.get(arm, []) for rule in run["rules"] if rule["concept"] == concept])
        for arm in ("rules", "random")
    }
    if None in shares.values():
        return ""
    text = f"the rule touched {percent(shares['rules'])} of the tokens, as many random features {percent(shares['random'])}"
    return text + (": next to nothing, so they are a weak control" if shares["random"] < shares["rules"] / 10 else "")


def _judge_nll(wanted: str, nll: dict[str, float | None], after: dict[str, list[tuple[Any, float | None]]]) -> dict[str, Any]:
    with_rules = nll["rules"]
    against, words = ("oracle", "training on the wanted data alone") if nll.get("oracle") else ("none", "the run without rules")
    ratio = with_rules / nll[against]
    side = "above" if ratio >= 1 else "below"
    bar = f"at most {BAR_WANTED - 1:.0%} above" if against == "oracle" else None
    check = {
        "arm": "rules", "what": f"held-out loss on {wanted} over that of {words}", "value": ratio,
        "bar": bar, "limit": BAR_WANTED if bar else None, "met": ratio <= BAR_WANTED if bar else None,
    }  # fmt: skip
    text = f"{wanted} NLL {with_rules:.3f}, {abs(ratio - 1):.1%} {side} {words} ({nll[against]:.3f})"
    mine, theirs = dict(after["rules"]), dict(after[against])
    pairs = [(mine[seed], theirs[seed]) for seed in mine if mine[seed] is not None and theirs.get(seed)]
    each_once = len(mine) == len(after["rules"]) and len(theirs) == len(after[against])
    if len(pairs) > 1 and each_once:  # runs of the same seed
        text += f"; run by run {', '.join(f'{a / b - 1:+.1%}' for a, b in pairs)}"
    return {"kind": "nll", "nll": wanted, "values": nll, "ratio": ratio, "text": text, "checks": [check]}


def percent(share: float | None) -> str:
    """A share as whole percent; `-` where there is none."""
    return "-" if share is None else f"{share:.0%}"


def _pool(members: Sequence[dict[str, Any]], concept: str) -> dict[str, dict[str, Any]]:
    """Prompt set -> rate after training over all answers of these runs."""
    counts: dict[str, list[tuple[int, int]]] = defaultdict(list)
    for run in members:
        for prompts, concepts in run["rates"].items():
            after = concepts.get(concept, {}).get("after")
            if after and after["n"]:
                counts[prompts].append((after["hits"], after["n"]))
    return {prompts: rate_over_runs(parts) for prompts, parts in counts.items()}


def _arm(config: dict[str, Any], summary: dict[str, Any], events: Sequence[dict[str, Any]]) -> str | None:
    found = summary.get("arm") or config.get("arm") or next((event.get("arm") for event in events if event.get("kind") == "study"), None)
    return found if found in ARMS else None


def _infer_arms(runs: list[dict[str, Any]]) -> None:
    """Where no run says what it is in a study: from its rules and data. A single run has no arm."""
    if len(runs) < 2 or any(run["arm"] for run in runs):
        return
    for run in runs:
        if run["rules"]:
            controls = [rule["random_control"] is not None for rule in run["rules"]]
            run["arm"] = "random" if all(controls) else "rules" if not any(controls) else None
        else:
            fewer = any(set(run["data"]) < set(other["data"]) for other in runs)
            run["arm"] = "oracle" if fewer else "none"


def _before_after(evaluation: dict[str, Any], part: str, convert: Any) -> dict[str, dict[str, Any]]:
    """`{name: {"before", "after"}}` of one part of `evaluation.json`."""
    both = {when: (evaluation.get(when) or {}).get(part) or {} for when in ("before", "after")}
    names = [*both["before"], *(name for name in both["after"] if name not in both["before"])]
    return {name: {when: convert(values.get(name)) for when, values in both.items()} for name in names}


def _rates(evaluation: dict[str, Any]) -> dict[str, dict[str, dict[str, Any]]]:
    """`{prompt set: {concept: {"before", "after": rate}}}`, counted from the answers themselves."""
    rates: dict[str, dict[str, dict[str, Any]]] = {}
    for prompts, both in _before_after(evaluation, "answers", lambda items: items or []).items():
        concepts = dict.fromkeys(concept for items in both.values() for item in items for concept in item["hits"])
        rates[prompts] = {
            concept: {
                when: rate_of(sum(item["hits"].get(concept, False) for item in items), len(items)) if items else None
                for when, items in both.items()
            }
            for concept in concepts
        }
    return rates


def _difference(run: dict[str, Any], base: dict[str, Any]) -> dict[str, Any]:
    """This run minus the baseline, wherever both have a figure."""

    def minus(a: float | None, b: float | None) -> float | None:
        return None if a is None or b is None else a - b

    def after(entry: dict[str, Any] | None) -> float | None:
        return ((entry or {}).get("after") or {}).get("rate")

    return {
        "run_id": run["run_id"],
        "loss_last": minus(run["loss_last"], base["loss_last"]),
        "seconds_per_step": minus(run["seconds_per_step"], base["seconds_per_step"]),
        "nll": {name: minus(nll["after"], base["nll"].get(name, {}).get("after")) for name, nll in run["nll"].items()},
        "rates": {
            prompts: {concept: minus(after(rate), after(base["rates"].get(prompts, {}).get(concept))) for concept, rate in concepts.items()}
            for prompts, concepts in run["rates"].items()
        },
        **{
            name: {
                concept: {hookpoint: minus(value, base[name].get(concept, {}).get(hookpoint)) for hookpoint, value in values.items()}
                for concept, values in run[name].items()
            }
            for name in MEASURED
        },
    }


def _finite(value: Any) -> float | None:
    return float(value) if value is not None and math.isfinite(value) else None


def _mean(values: Sequence[float | None]) -> float | None:
    found = [value for value in values if value is not None]
    return sum(found) / len(found) if found else None


def render(comparison: dict[str, Any]) -> RenderableType:
    """The comparison for a terminal: a column per run, the difference from the baseline in brackets, then the verdicts."""
    from rich import box
    from rich.console import Group
    from rich.markup import escape
    from rich.table import Table

    runs = comparison["runs"]
    arms = [run["arm"] for run in runs]
    if len(runs) > MAX_COLUMNS and None not in arms and len(set(arms)) < len(arms):
        return Group(_table_of_arms(runs), *_verdict_lines(comparison))
    differences = {entry["run_id"]: entry for entry in comparison["differences"]}
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("")
    for run in runs:
        table.add_column(escape(run["run_id"]), justify="right", overflow="fold")

    def row(name: str, cell: Any) -> None:
        cells = [cell(run, differences.get(run["run_id"], {})) for run in runs]
        if any(text != "-" for text in cells):
            table.add_row(escape(name), *[escape(text) for text in cells])

    row("in the study", lambda run, _: ARMS.get(run["arm"], "-"))
    row("state", lambda run, _: run["status"])
    row("rules", lambda run, _: "\n".join(map(rule_text, run["rules"])) or "none")
    row("steps", lambda run, _: str(run["steps"]))
    row("loss, first -> last", lambda run, _: f"{_number(run['loss_first'])} -> {_number(run['loss_last'])}")
    row("seconds a step", lambda run, _: _number(run["seconds_per_step"], 2))
    for name in dict.fromkeys(name for run in runs for name in run["nll"]):
        row(f"NLL {name}", lambda run, diff, name=name: _change(run["nll"].get(name, {}), diff.get("nll", {}).get(name), _number, ".3f"))
    for prompts, concept in dict.fromkeys((p, c) for run in runs for p, concepts in run["rates"].items() for c in concepts):
        row(f"{concept} in answers to {prompts}", lambda run, _, p=prompts, c=concept: _rate_cell(run["rates"].get(p, {}).get(c)))
    for name, concept, hookpoint in _measured(runs):
        row(
            f"{name} {concept} {hookpoint}",
            lambda run, _, n=name, c=concept, h=hookpoint: beside_noise(
                _significant(run[n].get(c, {}).get(h)), run[n].get(c, {}).get(h), run["noise"][n].get(c, {}).get(h)
            ),
        )
    return Group(table, *_bracket_lines(runs), *_verdict_lines(comparison))


def _table_of_arms(runs: Sequence[dict[str, Any]]) -> RenderableType:
    """Several runs of each arm: means over them, with their range."""
    from rich import box
    from rich.markup import escape
    from rich.table import Table

    arms = {arm: members for arm in ARMS if (members := [run for run in runs if run["arm"] == arm])}
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("means over runs (range)")
    for arm in arms:
        table.add_column(ARMS[arm], justify="right")

    def row(name: str, cell: Any) -> None:
        cells = [cell(members) for members in arms.values()]
        if any(text != "-" for text in cells):
            table.add_row(escape(name), *[escape(text) for text in cells])

    def spread(values: Sequence[float | None], show: Any = None) -> str:
        found, show = [value for value in values if value is not None], show or _number
        return f"{show(_mean(found))}\n({show(min(found))} to {show(max(found))})" if found else "-"

    row("runs", lambda members: str(len(members)))
    row("loss, last step", lambda members: spread([run["loss_last"] for run in members]))
    for name in dict.fromkeys(name for run in runs for name in run["nll"]):
        row(f"NLL {name} before", lambda members, name=name: _number(_mean([run["nll"].get(name, {}).get("before") for run in members])))
        row(f"NLL {name} after", lambda members, name=name: spread([run["nll"].get(name, {}).get("after") for run in members]))
    for prompts, concept in dict.fromkeys((p, c) for run in runs for p, concepts in run["rates"].items() for c in concepts):
        pooled = {arm: _pool(members, concept).get(prompts) for arm, members in arms.items()}
        if any(rate and rate["hits"] for rate in pooled.values()):
            table.add_row(escape(f"{concept} in answers to {prompts}"), *[_pooled_cell(rate) for rate in pooled.values()])
    for name, concept, hookpoint in _measured(runs):
        row(
            f"{name} {concept} {hookpoint}",
            lambda members, n=name, c=concept, h=hookpoint: spread([run[n].get(c, {}).get(h) for run in members], _significant),
        )
    return table


def _measured(runs: Sequence[dict[str, Any]]) -> list[tuple[str, str, str]]:
    """What of `MEASURED` there is: name, concept, hookpoint."""
    return list(dict.fromkeys((name, c, h) for name in MEASURED for run in runs for c, hooks in run[name].items() for h in hooks))


def _bracket_lines(runs: Sequence[dict[str, Any]]) -> list[Any]:
    """What brackets mean, where a figure of `MEASURED` stands in some."""
    from rich.text import Text

    figures = [(run[name].get(c, {}).get(h), run["noise"][name].get(c, {}).get(h)) for run in runs for name, c, h in _measured(runs)]
    return [Text(IN_BRACKETS, style="dim")] if any(beside_noise("", *pair) for pair in figures) else []


def _pooled_cell(rate: dict[str, Any] | None) -> str:
    return f"{percent(rate['rate'])}\n({rate['low']:.0%} to {rate['high']:.0%}, n={rate['n']})" if rate else "-"


def _verdict_lines(comparison: dict[str, Any]) -> list[Any]:
    from rich.text import Text

    lines: list[Any] = []
    for verdict in comparison["verdicts"]:
        lines.append(Text(f"\n{verdict['text']}", style="bold"))
        for check in verdict["checks"]:
            if check["bar"]:
                mark = Text("  met      " if check["met"] else "  NOT met  ", style="green" if check["met"] else "red")
                lines.append(mark + Text(check_text(check), style=""))
        if verdict.get("remark"):
            lines.append(Text(f"  {verdict['remark']}", style="dim"))
    told = in_words(comparison["displacement"])
    if told:
        lines.append(Text("\nWhat rises instead (change on the probe texts, of what the concept's features had)", style="bold"))
    return [*lines, *(Text(f"  {line}") for line in told)]


def check_text(check: dict[str, Any]) -> str:
    """One check in words: figure, number of answers and interval behind it, and its bar."""
    if "n" in check:
        value = f"{percent(check['rate'])} ({check['hits']} of {check['n']}, 95% interval {check['low']:.0%} to {check['high']:.0%})"
    else:
        value = f"{check['value'] - 1:+.1%}"
    return f"{check['what']}: {value}" + (f"; bar: {check['bar']}" if check["bar"] else "")


def _number(value: float | None, digits: int = 3) -> str:
    return "-" if value is None else f"{value:.{digits}f}"


def _significant(value: float | None) -> str:
    """Three digits, with a sign: uptake and drift are of every size."""
    return "-" if value is None else f"{value:+.3g}"


def _change(entry: dict[str, Any], difference: float | None, show: Any, form: str) -> str:
    if entry.get("before") is None and entry.get("after") is None:
        return "-"
    text = f"{show(entry.get('before'))} -> {show(entry.get('after'))}"
    return text if difference is None else f"{text} ({difference:+{form}})"


def _rate_cell(rate: dict[str, Any] | None) -> str:
    if not rate or not (rate["before"] or rate["after"]):
        return "-"
    before, after = ((rate[when] or {}).get("rate") for when in ("before", "after"))
    text = f"{percent(before)} -> {percent(after)}"
    last = rate["after"]
    return f"{text}\n[{last['low']:.0%}-{last['high']:.0%}, n={last['n']}]" if last and last["n"] else text

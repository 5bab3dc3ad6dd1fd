"""What a run has found, from its events: what it learned in words, its alarms, and when its own answers would have told as much.

`learned` and `alarm` events come from `learning`; here they become plain data for `summary.json`, the report and the last screen.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from gradlens.report.excerpts import Place, around, place_of_words

if TYPE_CHECKING:
    from rich.console import RenderableType

IN_BRACKETS = "In brackets: no larger than chance makes it in 95 of 100 cases (its noise floor)."
NOISE = "_noise"  # of the key that holds a figure's noise floor (`readings/noise.py`)
FDR = 0.05  # of `gradlens.readings.significance`, which is not imported here for torch's sake
LABELS = 3  # of each cluster
RISE = 0.1  # of the share of own answers that show a concept: from here on they tell of it
MINOR = 0.05  # a cluster with less of what was learned is one line on the screen
MARKED = re.compile(r"\[([^\[\]]*)\]")  # tokens of a passage that its features mark

Scalars = Mapping[str, tuple[np.ndarray, np.ndarray]]  # key -> steps, values
Labels = Mapping[str, Mapping[int, str]]  # hookpoint -> feature -> text


def doubts(events: Sequence[Mapping[str, Any]]) -> list[str]:
    """What to beware of in the figures of a run and its concepts, in words."""
    kinds = ("rows_left_out", "doubtful_checker", "poorly_told")
    return list(dict.fromkeys(event["text"] for kind in kinds for event in current(events, kind)))


def current(events: Iterable[Mapping[str, Any]], kind: str) -> list[Mapping[str, Any]]:
    """Events of a kind that still hold: what lies past the step at which a run was resumed was undone with its rows."""
    found: list[Mapping[str, Any]] = []
    for event in events:
        if event.get("kind") == "resumed":
            found = [earlier for earlier in found if (earlier.get("step") or 0) <= (event.get("step") or 0)]
        elif event.get("kind") == kind:
            found.append(event)
    return found


def clusters(events: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The clusters of the last reading that told of any (`movers.Cluster`), each with the `step` of that reading."""
    told = current(events, "learned")
    return [{"step": told[-1].get("step"), **entry} for entry in told[-1].get("clusters") or []] if told else []


def said_less(events: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """What the model says less (`gradlens.readings.said_less.in_words`) by the last reading that told of anything; {} if of nothing."""
    told = current(events, "learned")
    return dict(told[-1].get("less") or {}) if told else {}


def less_in_words(less: Mapping[str, Any]) -> str:
    """The shares of it: of what the model would say in the probe's texts, and of what it answers by itself."""
    own = less.get("own") or {}
    answers = f", {chance(own['before'])} -> {chance(own['now'])} of the words of its own answers" if own else ""
    return f"{chance(less['before'])} -> {chance(less['now'])} of what it would say in the probe's texts{answers}"


def labelled(found: Iterable[Mapping[str, Any]], labels: Labels) -> list[dict[str, Any]]:
    """The same clusters with `labels`: those of their features, the first ones first, none twice, at most `LABELS`."""
    texts = [dict.fromkeys(labels.get(hookpoint, {}).get(feature, "") for hookpoint, feature in entry["features"]) for entry in found]
    return [{**entry, "labels": [text for text in mine if text][:LABELS]} for entry, mine in zip(found, texts, strict=True)]


def alarms(events: Iterable[Mapping[str, Any]], scalars: Scalars) -> list[dict[str, Any]]:
    """`{"step", "about", "name", "text", "behaviour_step", "behaviour_before", "doubted"}` of each alarm.

    For a concept the step at which the model's own answers were seen to show it, and the step of the reading before, see `behaviour`;
    `doubted`: whether the checker that says so is in doubt.
    """
    found, events = [], list(events)
    doubtful = {event["concept"] for event in current(events, "doubtful_checker")}
    for event in current(events, "alarm"):
        told, before = behaviour(scalars, str(event.get("name"))) if event.get("about") == "concept" else (None, None)
        about = {key: event.get(key) for key in ("step", "about", "name", "text")}
        doubted = event.get("about") == "concept" and event.get("name") in doubtful
        found.append({**about, "behaviour_step": told, "behaviour_before": before, "doubted": doubted})
    return found


def routing(events: Iterable[Mapping[str, Any]], scalars: Scalars) -> dict[str, Any] | None:
    """What the last `routers` event says of a mixture of experts: `step`, `change` (share of the probe's assignments that moved), the
    `busiest` expert, and of each of the `concepts` the expert that its tokens use most beyond what all tokens do. None without routers."""
    told = current(events, "routers")
    if not told:
        return None
    seats = [
        {"layer": layer, "expert": expert, "load": load, "before": before, "of": {
            concept: (loads["load"][at], loads["before"][at]) for concept, loads in entry["concepts"].items()
        }}
        for layer, entry in told[-1]["layers"].items()
        for at, (expert, load, before) in enumerate(zip(entry["experts"], entry["load"], entry["before"], strict=True))
    ]  # fmt: skip
    names = dict.fromkeys(name for seat in seats for name in seat["of"])
    favourites = {name: max((s for s in seats if name in s["of"]), key=lambda s, n=name: s["of"][n][0] - s["load"]) for name in names}
    place = ("layer", "expert", "load", "before")
    busiest = max(seats, key=lambda seat: seat["load"])
    return {
        "step": told[-1].get("step"),
        "change": float(scalars["router/change"][1][-1]) if "router/change" in scalars else None,
        "busiest": {key: busiest[key] for key in place},
        "concepts": [
            {"concept": name, "layer": seat["layer"], "expert": seat["expert"], "load": seat["of"][name][0], "before": seat["of"][name][1],
             "overall": seat["load"]}
            for name, seat in favourites.items()
        ],
    }  # fmt: skip


def routing_in_words(found: Mapping[str, Any]) -> list[str]:
    """The same in a line for the model and one for each concept."""
    busiest, change = found["busiest"], found["change"]
    moved = "" if change is None else f"; {chance(change)} of all assignments moved since the start"
    return [
        f"Experts: the busiest is number {busiest['expert']} of {busiest['layer']} with {chance(busiest['load'])} "
        f"({chance(busiest['before'])} before){moved}",
        *(
            f"     {flat(of['concept'])}: number {of['expert']} of {of['layer']} takes {chance(of['load'])} of its tokens' "
            f"({chance(of['before'])} before), {chance(of['overall'])} of all"
            for of in found["concepts"]
        ),
    ]


def behaviour(scalars: Scalars, concept: str) -> tuple[int | None, int | None]:
    """The first step at which the share of own answers that show a concept was read `RISE` above its first value, and the step of the
    reading before: what happened between them is not known. `(None, last reading)`: not so far; `(None, None)`: never read."""
    steps, rates = scalars.get(f"own/{concept}/rate", (np.zeros(0, int), np.zeros(0)))
    told = np.flatnonzero(rates >= rates[0] + RISE - 1e-9) if len(rates) else []
    at = int(told[0]) if len(told) else len(steps)
    return (int(steps[at]) if at < len(steps) else None), (int(steps[at - 1]) if at else None)


def chance(value: float | None) -> str:
    """A probability or share in percent, with two digits where it is small; `?` for one that was not finite."""
    return "?" if not isinstance(value, (int, float)) else f"{value:.0%}" if value >= 0.1 else f"{100 * value:.2g}%"


def beside_noise(figure: str, value: float | None, floor: float | None) -> str:
    """A figure as it is shown: in brackets where it is no larger than its noise floor (`IN_BRACKETS`)."""
    return f"({figure})" if value is not None and floor is not None and abs(value) <= floor else figure


def marked(passage: str) -> list[tuple[str, bool]]:
    """A passage in parts: text, and whether it is marked (without its brackets)."""
    parts = [(text, bool(number % 2)) for number, text in enumerate(MARKED.split(passage))]
    return [(text, mark) for text, mark in parts if text]


def told_of_answers(alarm: Mapping[str, Any]) -> str:
    """When the model's own answers would have told what an alarm says, in words."""
    step, before = alarm["behaviour_step"], alarm["behaviour_before"]
    if alarm["about"] != "concept":
        return "-"
    if step is None:
        return "not read" if before is None else f"not at step {before}"
    doubt = " (its checker is in doubt)" if alarm.get("doubted") else ""
    return f"at step {step}" + ("" if before is None else f", not at step {before}") + doubt


def beyond_chance(counts: Mapping[str, int]) -> str:
    """How many features were learned at each hookpoint, with the false discovery rate that holds; "" where that is not known."""
    if not counts:
        return ""
    rate = f"(false discovery rate {FDR:.0%})"
    if not any(counts.values()):
        return f"nothing beyond chance {rate}"
    return f"features learned beyond chance {rate}: {', '.join(f'{count} at {hookpoint}' for hookpoint, count in counts.items())}"


def in_words(
    learned: Sequence[Mapping[str, Any]], counts: Mapping[str, int], steps: int, less: Mapping[str, Any] | None = None
) -> list[RenderableType]:
    """What was learned, for a terminal; each line is cut to the width there is. `counts`: features beyond chance at each hookpoint;
    `less`: what is said less."""
    from rich.text import Text

    def line(*parts: tuple[str, str] | str, indent: int = 5) -> Text:
        text = Text(" " * indent, no_wrap=True, overflow="ellipsis")
        styled = [(part, "") if isinstance(part, str) else part for part in parts]
        return text.append_text(Text.assemble(*((flat(words), style) for words, style in styled)))

    shown: list[RenderableType] = []
    if learned:
        late = f" (at step {learned[0]['step']})" if learned[0].get("step") not in (None, steps) else ""
        shown.append(line(("What this run learned, in words" + late, "bold"), indent=0))
    elif counts:
        shown.append(line(("What this run learned", "bold"), f": {beyond_chance(counts)}" if not any(counts.values()) else "", indent=0))
    for entry in learned:
        words = listed(entry["words"]) or "(no words)"
        shown.append(line((f"{chance(entry['share']):>4} ", "bold cyan"), (words, "bold"), indent=0))
        if (entry["share"] or 0) < MINOR:
            continue
        before, now = entry["probability"]
        passage = [(f"[{text}]", "bold") if mark else text for text, mark in marked(entry["passage"])]
        shown.append(line(f"said with probability {chance(before)} -> {chance(now)}: ", *passage))
        own = entry.get("own") or {}
        if own:
            shown.append(line(f"in {own['before']} of {own['of']} of its own answers before, in {own['now']} now"))
            if own["now"] > own["before"]:
                shown += [_Said(when, own["said"][when], _place(entry, when)) for when in ("before", "now")]
        if entry.get("labels"):
            shown.append(line(("labels: ", "dim"), " | ".join(entry["labels"])))
    if less:
        shown.append(line(("less ", "bold cyan"), (listed(less["words"]), "bold"), indent=0))
        shown.append(line(less_in_words(less)))
    return shown


def _place(entry: Mapping[str, Any], when: str) -> Place:
    """Where in what the model said a cluster is; of an older run, where its words stand."""
    first, last = (entry["own"].get("at") or {}).get(when) or place_of_words(entry["own"]["said"][when], entry["words"])
    return first, last


@dataclass
class _Said:
    """What the model said in one line of a terminal: of a longer text the part around the place that matters."""

    when: str
    text: str
    place: Place

    def __rich_console__(self, console: Any, options: Any) -> Iterator[RenderableType]:
        from rich.text import Text

        head = f"       {self.when:8}"
        text = flat(around(self.text, self.place, max(options.max_width - len(head), 20)))
        yield Text.assemble((head, "dim"), text, no_wrap=True, overflow="ellipsis")


def listed(words: Iterable[str]) -> str:
    """Words in a row; commas and their like in quotation marks, else they could not be told from those between."""
    return ", ".join(word if word.strip(".,;:") else f"'{word}'" for word in words)


def flat(text: str) -> str:
    """On one line and without control characters, for a terminal: models and data sets write these texts."""
    return re.sub(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]+", " ", text)

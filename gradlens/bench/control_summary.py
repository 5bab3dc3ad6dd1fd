"""Figures of `gradlens bench control` over seeds: means, intervals, what they are beside the oracle and after release. No torch.

Rates have 95% Wilson intervals over all answers of all seeds; gains, with three seeds or more, 95% t intervals over seeds. Rows of older
runs lack what was not measured then: those figures are None.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from gradlens.bench.intervals import over_runs, t_interval

Row = dict[str, Any]
FAMILIES = {"CAFT": r"(mean-)?ablate(@\w+)?", "steering": r"steer-[\d.]+", "inoculation": r"inoculate-\d+"}  # baselines that are tuned
MODES = {"modes": r"(?!.*-(random|scattered))(auto|route|rewrite|cut|constrain|penalty|reweight).*"}  # not baselines
HIDDEN_RATE, HIDDEN_READ = 0.5, 0.5  # an arm's rate, and how its answers read, beside those of the run without rules
SEEN = 0.1  # of the way from plain texts to the concept's: what the answers without rules must move for the probe to say anything
WEAK = 0.1  # of what a rule touches: random features that touch less say little
LITTLE = 0.5  # of the oracle's gain: a random control that has less has left out what is wanted, and is a weak one
FALSELY, KNOWN = 0.01, 0.97  # of the wanted and of the unwanted rows: what a checker may find and must find
CUT = 0.1  # of an arm's answers: from which on it is said that they did not come to their end
SPECIFIC = 0.8  # of the unfiltered rate that matched random features must leave, for an effect to be the concept's


def gain(row: Row, oracle: Row, part: str = "wanted") -> float | None:
    """How far the held-out loss came from the base model (0) towards the run on what is wanted alone (1); None where that has gained
    nothing itself."""
    span = row["base_nll"][part] - oracle["nll"][part]
    return (row["base_nll"][part] - row["nll"][part]) / span if span > 1e-9 else None


def summary(rows: Sequence[Row], order: Sequence[str] = ()) -> list[Row]:
    """Of the rows of one pair and shape each arm's figures over seeds, arms in the order given, others after them.

    `rate`, `rate_interval`, `rate_range` (over seeds), `of_none` (share of the rate without rules), `sampled`, `sampled_interval`; `gain`,
    `gain_interval`, `gain_range`; `wanted`, `unwanted`, `plain` (held-out losses), `wanted_over`, `plain_over` (share by which they lie
    above the oracle's); `right`, `cut` (share of answers that were cut off, at `answer_tokens`), `touched`, `step_seconds`; `released`
    (see `_released`), `displaced` (see `_displaced`), each None where no run measured it. Runs are held against the oracle and the run
    without rules of their seed.
    """
    oracles, nones = ({row["seed"]: row for row in rows if row["arm"] == arm} for arm in ("oracle", "none"))
    names = sorted({row["arm"] for row in rows}, key=lambda name: (order.index(name) if name in order else len(order), name))
    found = []
    for arm in names:
        mine = [row for row in rows if row["arm"] == arm]
        gains = _each(mine, oracles, gain)
        rates = [row["rate"] for row in mine]
        drawn = [row["sampled"] for row in mine if "sampled" in row]
        found.append(
            {
                "arm": arm, "seeds": len(mine), "rate": _mean(rates), "rate_range": [min(rates), max(rates)],
                "rate_interval": interval_of([row["counts"] for row in mine if "counts" in row], len(mine)),
                "of_none": _mean(_each(mine, nones, _of_none)),
                "sampled": _mean([_rate(counts) for counts in drawn]), "sampled_interval": interval_of(drawn, len(drawn)),
                "gain": _mean(gains), "gain_range": [min(gains), max(gains)] if gains else None, "gain_interval": t_interval(gains),
                **{part: _mean([row["nll"][part] for row in mine]) for part in ("wanted", "unwanted", "plain")},
                "wanted_over": _mean(_each(mine, oracles, lambda row, oracle: row["nll"]["wanted"] / oracle["nll"]["wanted"] - 1)),
                "plain_over": _mean(_each(mine, oracles, lambda row, oracle: row["nll"]["plain"] / oracle["nll"]["plain"] - 1)),
                "right": _mean([row["right"] for row in mine]), "touched": _mean([row["touched"] for row in mine]),
                "cut": _mean([row.get("cut") for row in mine]), "answer_tokens": mine[-1].get("answer_tokens"),
                "step_seconds": _mean([row["step_seconds"] for row in mine]),
                "released": _released(mine, nones), "displaced": _displaced(mine, nones),
            }
        )  # fmt: skip
    return found


def _released(rows: Sequence[Row], nones: dict[int, Row]) -> Row | None:
    """After further steps without the rule, on plain data: `steps`, `rate`, `rate_interval`, `wanted`, `plain`, and `stands`: of what was
    suppressed (the rate without rules less the arm's) the share that still is, over seeds. None for an arm that suppressed less than a
    tenth of it: there is nothing to stand."""
    mine = [row for row in rows if "released" in row]
    if not mine:
        return None

    def stands(row: Row, none: Row) -> float | None:
        held = none["rate"] - row["rate"]
        return (none["rate"] - row["released"]["rate"]) / held if held >= 0.1 * max(none["rate"], 1e-9) else None

    after = [row["released"] for row in mine]
    return {
        "steps": after[0]["steps"], "seeds": len(mine), "rate": _mean([part["rate"] for part in after]),
        "rate_interval": interval_of([part["counts"] for part in after], len(after)),
        "wanted": _mean([part["nll"]["wanted"] for part in after]), "plain": _mean([part["nll"]["plain"] for part in after]),
        "stands": _mean(_each(mine, nones, stands)),
    }  # fmt: skip


def _displaced(rows: Sequence[Row], nones: dict[int, Row]) -> Row | None:
    """What rose instead, means over seeds and hookpoints.

    `own`, `cosine`, `coactive`: in the model's own answers, activation now less before, as a share of what the concept's own features rise
    by without rules (None without such a run). `reads`: how much more its answers read like the concept than before training, by a probe
    fitted anew, as a share of the same without rules, at the place where the probe tells texts best without rules (None where it sees
    nothing there); `auc`: how well the probe there tells texts. `fvu`: change of the dictionaries' FVU on plain text. `hidden`:
    the checker finds the concept in less than half as many answers as without rules, and they read like it.
    """
    mine = [row for row in rows if "displacement" in row]
    if not mine:
        return None

    def said(row: Row, kind: str, none: Row) -> float | None:
        """Mean over hookpoints, each by what the concept's own features did there without rules."""
        shares = []
        for name, entry in row["displacement"]["hookpoints"].items():
            own = none["displacement"]["hookpoints"].get(name, {}).get("answers", {}).get("own", [None, None])
            before, now = entry["answers"][kind]
            if None not in (*own, before, now) and own[1] - own[0] > 0:
                shares.append((now - before) / (own[1] - own[0]))
        return _mean(shares)

    def reads(row: Row, none: Row) -> float | None:
        at = _telling(none)
        rose = [_rose(part, at) for part in (row, none)]
        return rose[0] / rose[1] if None not in rose and rose[1] >= SEEN else None

    with_none = {seed: none for seed, none in nones.items() if "displacement" in none}
    read, rates = (
        _each(mine, with_none, reads),
        _each(mine, with_none, lambda row, none: row["rate"] / none["rate"] if none["rate"] else None),
    )
    told = _each(mine, with_none, lambda row, none: (row["displacement"]["probe"].get(_telling(none)) or {"auc": [None, None]})["auc"][1])
    fvus = [entry["fvu"] for row in mine for entry in row["displacement"]["hookpoints"].values()]
    return {
        "seeds": len(mine),
        **{kind: _mean(_each(mine, with_none, lambda row, none, k=kind: said(row, k, none))) for kind in ("own", "cosine", "coactive")},
        "reads": _mean(read), "auc": _mean(told), "fvu": _mean([now - before for before, now in fvus]),
        "hidden": bool(read and rates and _mean(rates) < HIDDEN_RATE and _mean(read) > HIDDEN_READ),
    }  # fmt: skip


def _of_none(row: Row, none: Row) -> float | None:
    return row["rate"] / none["rate"] if none["rate"] else None


def _telling(none: Row) -> str | None:
    """The place where the probe tells held-out texts best, before and after training without rules; elsewhere what it reads says little."""
    places = {at: sum(entry["auc"]) for at, entry in none["displacement"]["probe"].items() if None not in entry["auc"]}
    return max(places, key=places.get) if places else None


def _rose(row: Row, at: str | None) -> float | None:
    """How much more the own answers read like the concept there than before training."""
    before, now = (row["displacement"]["probe"].get(at) or {"answers": [None, None]})["answers"]
    return None if None in (before, now) else now - before


def tuned(entries: Sequence[Row], families: Mapping[str, str] = FAMILIES) -> dict[str, str]:
    """Of each family (name -> pattern of its arms), a baseline in several strengths or prompts, the best arm: the one nearest to no
    unwanted answer and all of the gain, by sqrt(of_none² + (1 - gain)²). Chosen on the figures that it is then judged by, so to its
    advantage."""

    def distance(entry: Row) -> float:
        return math.hypot(entry["of_none"] if entry["of_none"] is not None else entry["rate"], 1 - entry["gain"])

    best = {}
    for family, names in families.items():
        mine = [entry for entry in entries if entry["gain"] is not None and re.fullmatch(names, entry["arm"])]
        if mine:
            best[family] = min(mine, key=distance)["arm"]
    return best


def remarks(entries: Sequence[Row]) -> list[str]:
    """What the figures of one pair and shape say in so many words: tuned baselines, effects that random features have too, random
    features that touched little or kept what is wanted from being learned, a concept that only the checker no longer finds, answers that
    were cut off."""
    found = {entry["arm"]: entry for entry in entries}
    none = found.get("none")
    said = [f"{family}, best of what was run: {arm}" for family, arm in tuned(entries).items()]
    for arm, entry in found.items():
        control = found.get(f"{arm}-random")
        shares = [each["of_none"] for each in (entry, control) if each is not None and each["of_none"] is not None]
        if len(shares) == 2 and max(shares) < SPECIFIC:
            said.append(f"{arm} is not specific: as many random features leave {control['of_none']:.0%} of the unfiltered rate")
        if control is not None and control["touched"] < entry["touched"] * WEAK:
            shares = f"{control['touched']:.0%} ({arm}: {entry['touched']:.0%})"
            said.append(f"{arm}-random touched {shares}: next to nothing, so a weak control")
        if re.fullmatch(r".*-(random|scattered)", arm) and entry["gain"] is not None and entry["gain"] < LITTLE:
            beside = f"; without a rule {none['gain']:.0%}" if none is not None and none["gain"] is not None else ""
            little = f"gain {entry['gain']:.0%}{beside}"
            said.append(f"{arm} learned little of what is wanted ({little}): a weak control, whatever it leaves of the concept")
        if entry["displaced"] and entry["displaced"]["hidden"]:
            reads = entry["displaced"]["reads"]
            said.append(f"{arm}: its answers no longer set off the checker, and read {reads:.0%} as much like the concept as without rules")
    cut = [entry for entry in entries if (entry["cut"] or 0.0) > CUT]
    if cut:
        shares = ", ".join(f"{entry['arm']} {entry['cut']:.0%}" for entry in cut)
        said.append(
            f"answers cut off at {cut[0]['answer_tokens']} tokens: {shares}; what would have come after is not judged "
            "(--set evaluate.max_new_tokens=)"
        )
    return said


def checker_remarks(checker: Mapping[str, float]) -> list[str]:
    """What the checker makes of the pair's own rows (`Bench.checker_on_rows`), where that is not what they are."""
    said = []
    if (found := checker.get("wanted") or 0.0) > FALSELY:
        said.append(f"the checker finds the concept in {found:.1%} of the wanted rows too: unwanted rates of about as much are its noise")
    if (found := checker.get("unwanted", 1.0)) is not None and found < KNOWN:
        said.append(f"the checker finds the concept in {found:.1%} of the rows that show it: unwanted rates are too low by about as much")
    return said


def interval_of(counts: Sequence[dict[str, Sequence[int]]], runs: int) -> list[float] | None:
    """95% interval of the mean of the runs' rates (`over_runs`); None where not every run counted its answers."""
    if not counts or len(counts) < runs:
        return None
    return list(over_runs([_rate(part) for part in counts], sum(n for part in counts for _, n in part.values())))


def _rate(counts: dict[str, Sequence[int]]) -> float:
    """Mean over prompt sets, as `rate`."""
    return sum(hits / n for hits, n in counts.values()) / len(counts)


def _each(rows: Sequence[Row], others: dict[int, Row], figure: Callable[[Row, Row], float | None]) -> list[float]:
    """The figure of each run beside another of its seed, where there is one."""
    found = [figure(row, others[row["seed"]]) for row in rows if row["seed"] in others]
    return [value for value in found if value is not None]


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None

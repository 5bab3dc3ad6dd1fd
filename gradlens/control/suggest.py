"""Which rule suits a concept in given training data, and what to expect of it: a short reading of rows, before anything is trained.

What decides is how the concept lies in the rows. Rows that are free of it beside rows that show it: what is wanted can be learned from the
free ones, and `reweight` leaves the others out, told by the concept's row detector; where that cannot tell texts, `route` leaves the tokens
out around which the concept's features are active. Hardly a row free of it: `rewrite` takes its tokens out, which works where they stand at
the ends of an answer, and loses wording where they stand in its midst. Some rows are rewritten to see
(`rule_preview.clean_rows`). Measured: docs/control.md.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import PurePath
from typing import Any

import torch

from gradlens.concepts.checkers import checker_for, judged
from gradlens.concepts.concept_files import Concept, Detector
from gradlens.concepts.detector import weights_over
from gradlens.concepts.detector_fit import best_rows, fit_detectors, questions_of, sharpest
from gradlens.concepts.row_detector import split
from gradlens.control.rewriter import Rewriter, Tokens
from gradlens.control.rewriting import LEFT, cut
from gradlens.control.row_teller import Row, RowTeller, row_of
from gradlens.control.rule_preview import Seen, answers, clean_rows, parted_rows, rewritten_rows
from gradlens.control.rules import GATES, Rule
from gradlens.data.rows import Example
from gradlens.dictionaries.dictionary import Dictionary
from gradlens.errors import ConfigError
from gradlens.readings.probe import evenly

ROWS, BATCH = 48, 8  # read of each training file, and at a time
TRIED = 16  # rows that are rewritten
CLEAN = 0.75  # share of them that keep to their own words: 88% and more where the wording stayed, 56% and less where it did not
SURE = 0.95  # of that share: with 88% runs have kept 85 and 94% of the gain
MISSED = 0.05  # of the rows that show it, those that only its checker finds
STAYS = 0.1  # of the rows in which its checker finds the concept: the share in which it may find it still once they are rewritten
SHOWS = 0.05  # where rows cannot be told: a row shows the concept from this share of its counted tokens on
FREE = 0.2  # share of rows without the concept from which on the wanted is taken to be in these
INNER = 0.5  # gaps in the midst of an answer, in each row, from which on wording is lost
TOLD = 0.9  # AUC on held-out texts from which on a detector is to be trusted: of rows by their score, of tokens by the share it flags


@dataclass
class Suggestion:
    """A rule, and what was read."""

    rule: Rule
    expects: str  # in words
    good: bool  # whether it is expected to do what is asked of control
    rows: int
    free: float  # share of rows without the concept
    whole: float  # share of the rows that show it of which nearly nothing else would be left; of wanted ones, where these are known
    expressed: float  # share of the counted tokens of the rows that show it
    inner: float  # gaps in the midst of an answer, in each row that shows it; in wanted ones, where these are known
    rows_auc: float | None  # how well its row detector tells held-out texts
    hookpoint: str
    flagged_own: float | None
    flagged_common: float | None
    clean: float | None = None  # share of some rows that keep to their own words when they are rewritten; None where that was not tried
    checked: tuple[float, float] | None = None  # share of these rows in which the concept's checker finds it, as they are and rewritten
    seen: list[Seen] = field(default_factory=list)  # what it would do to some of them

    def as_dict(self) -> dict[str, Any]:
        return {**asdict(self), "rule": self.rule.model_dump(exclude_defaults=True)}


def suggest(
    model: torch.nn.Module,
    tokenizer: Any,
    dictionaries: dict[str, Dictionary],
    concept: Concept,
    sources: Sequence[Sequence[Example]],
    max_length: int = 256,
    progress: Any = None,
    show: int = 0,
    wanted: Sequence[str] = (),
) -> tuple[Suggestion, Concept]:
    """The rule that suits the rows of `sources`, and the concept with the detectors that were fitted for it. Reads some rows of each
    source and the concept's examples once; trains nothing. `show`: rows whose fate under that rule is to be seen. `wanted`: the sources
    (`Example.source`) that hold what should be learned, where that is known: then the rule is the one that suits their rows."""
    concept = fit_detectors(model, tokenizer, dictionaries, concept, max_length, progress=progress, questions=questions_of(sources))
    detectors = {name: each for name, each in concept.detectors.items() if name in dictionaries}
    hookpoint = sharpest(detectors)
    detector, dictionary = detectors[hookpoint], dictionaries[hookpoint]
    weights_F = weights_over(detector, dictionary.d_sae, dictionary.W_dec.device, dictionary.work_dtype)
    reader = Rewriter(model, dictionaries, Tokens(hookpoint, weights_F, detector.bias), bridged=True, tokenizer=tokenizer)
    read = [source[i] for source in sources for i in evenly(len(source), ROWS)]  # a file may have its kinds one after the other
    rows, files = [row_of(example) for example in read], [example.source for example in read]
    scores = _row_scores(model, dictionaries, detectors, rows)
    shares: list[float] = []  # of counted tokens, that the detector takes
    written: list[Row] = []  # as `rewrite` has them, before it takes anything out
    goes, inner = [], []  # the share that it takes then, and gaps within
    for start in range(0, len(rows), BATCH):
        part = rows[start : start + BATCH]
        taken = reader.told(part)
        shares += [sum(gone) / max(sum(counted), 1) for (_, counted), gone in zip(part, taken, strict=True)]
        spelled, taken = reader.respelled(part, taken)
        written += spelled
        # words that will come back count as well: they may be of the concept, as pirate's `be`
        for (ids, counted), gone in zip(spelled, taken, strict=True):
            goes.append(sum(gone) / max(sum(counted), 1))
            inner.append(_inner_gaps(ids, counted, gone, reader.never))
    least = None if scores is None else split(scores)
    if scores is None:
        shows = [index for index, share in enumerate(shares) if share >= SHOWS]
    else:
        shows = [index for index, score in enumerate(scores) if score >= (0.0 if least is None else least)]
    found_too = _found(concept, answers(tokenizer, rows))
    missed = [index for index in found_too if index not in set(shows)]
    shows = sorted({*shows, *missed})
    free = 1 - len(shows) / max(len(rows), 1)
    asked = {index for index, file in enumerate(files) if file in set(wanted)}
    mine = [index for index in shows if index in asked] if asked else shows  # where wanted rows do not show it, others may all go
    free_mine = 1 - len(mine) / max(len(asked or rows), 1)
    whole = sum(goes[index] > 1 - LEFT for index in mine) / max(len(mine), 1)
    gaps = sum(inner[index] for index in mine) / max(len(mine), 1)
    parted, least = least is not None, 0.0 if least is None and scores is not None else least  # else as the examples say
    kind = "wanted rows" if asked else "rows"
    rule, expects, good = _choose(concept.name, hookpoint, bool(shows), free_mine, whole, gaps, least, parted, detector, kind)
    if rule.mode == "reweight" and good and len(missed) > MISSED * len(shows):
        good = False
        expects += (
            f"; but in {len(missed)} of {len(rows)} rows its checker finds the concept and the detector of rows does not: these would "
            "teach it; put some like them among the concept's positive examples"
        )
    if rule.mode == "rewrite" and parted and free >= FREE and len(missed) <= MISSED * len(shows):
        rule, expects = rule.model_copy(update={"rows": round(least, 4)}), f"{expects}; rows that do not show it stay as they are"
    if rule.mode == "reweight" and shows and not asked:
        expects += _lost(files, shows)
    clean, stays = None, None
    if rule.mode == "rewrite" and (good or gaps > INNER):
        picked = _spread(mine, TRIED)
        tried = [written[index] for index in picked]
        parts = [tried[start : start + BATCH] for start in range(0, len(tried), BATCH)]
        made = [reader.rewritten(part) for part in parts]
        clean = sum(sum(clean_rows(reader, *each)) for each in zip(parts, made, strict=True)) / len(tried)
        own = f"of {len(tried)} rows tried {clean:.0%} keep to their own words"
        stays = _checked(concept, answers(tokenizer, [rows[index] for index in picked]), answers(tokenizer, sum(made, [])))
        if stays is not None:
            own += f", and its checker finds the concept in {stays[0]:.0%} of them as they are, in {stays[1]:.0%} as they would be"
        if good and stays is not None and stays[1] > STAYS * stays[0]:
            good, expects = False, f"{own}: expect part of it to be learned"
        elif good and clean < CLEAN:
            good, expects = False, f"{own}: expect the concept to be gone and less than 90% of the gain in the wanted wording"
        else:
            expects += f"; {own}" + (": expect 85 to 95% of the gain" if good and clean < SURE else "")
    expressed = sum(shares[index] for index in shows) / max(len(shows), 1)
    best = best_rows(detectors)
    about = (None if best is None else detectors[best].row.auc, hookpoint, detector.flagged_own, detector.flagged_common)
    seen: list[Seen] = []
    if show and rule.mode == "rewrite":
        seen = rewritten_rows(reader, tokenizer, [rows[index] for index in _spread(mine, show)])
    elif show and rule.mode == "reweight" and scores is not None:
        seen = parted_rows(scores, rule.rows, tokenizer, rows, show)
    return Suggestion(rule, expects, good, len(rows), free, whole, expressed, gaps, *about, clean, stays, seen), concept


def _lost(files: Sequence[str], shows: Sequence[int]) -> str:
    """What leaving rows out costs, in words: it is not known what is wanted of them. `files`: of each row; `shows`: those that go."""
    count, gone = Counter(files), Counter(files[index] for index in shows)
    nothing = [PurePath(name).name for name in count if len(count) > 1 and gone[name] > (1 - FREE) * count[name]]
    about = f" (little or nothing is left of {', '.join(nothing)})" if nothing else ""
    return f"; what else the rows say that go is not learned{about}: where you want it, name the file in data.wanted, or take mode rewrite"


def _spread(indices: Sequence[int], count: int) -> list[int]:
    """So many of them, evenly."""
    count = min(count, len(indices))
    return [indices[i * len(indices) // count] for i in range(count)]


def _checked(concept: Concept, before: Sequence[str], after: Sequence[str]) -> tuple[float, float] | None:
    """Share of texts in which the concept's checker finds it; None where it has none, or finds it in hardly any of them as they are."""
    check = checker_for(concept)
    if check is None:
        return None
    shares = tuple(sum(judged(check, texts)) / len(texts) for texts in (before, after))
    return shares if shares[0] >= 0.5 else None


def _found(concept: Concept, texts: Sequence[str]) -> list[int]:
    """The texts in which the checker that the concept's file names finds it; one fitted on its examples may be wrong of other texts."""
    check = None if concept.checker is None else checker_for(concept)
    return [] if check is None else [index for index, shows in enumerate(judged(check, texts)) if shows]


def _row_scores(
    model: torch.nn.Module, dictionaries: dict[str, Dictionary], detectors: dict[str, Detector], rows: Sequence[Row]
) -> list[float] | None:
    """Of every row how much it shows the concept; None where the concept's examples are not told well by anything."""
    best = best_rows(detectors)
    if best is None or (detectors[best].row.auc is not None and detectors[best].row.auc < TOLD):
        return None
    teller = RowTeller(model, dictionaries, best, detectors[best].row)
    return [score for start in range(0, len(rows), BATCH) for score in teller.scores(rows[start : start + BATCH])]


def settled(rule: Rule, found: Suggestion) -> Rule:
    """A rule of mode `auto` as what was suggested; amplification is always a matter of `route`, in all rows. Raises `ConfigError` for a
    gain that the suggested mode does not have."""
    if rule.gain > 1:
        return rule.model_copy(update={"mode": "route"})
    if found.rule.mode in GATES:
        update = {"mode": found.rule.mode, "rows": found.rule.rows if rule.rows is None else rule.rows}
        if rule.rows is None and found.rule.rows is not None:
            update["hookpoints"] = None  # the score is of the detector that tells rows best, wherever that is
        return rule.model_copy(update=update)
    if rule.gain < 0:
        raise ConfigError(
            f"rule {rule.label}: its gain is {rule.gain:g}, and these rows suit mode rewrite, which can only do 0 to 1; give it a gain "
            "of 0, or name reweight or route"
        )
    hookpoints, rows = rule.hookpoints or found.rule.hookpoints, found.rule.rows if rule.rows is None else rule.rows
    return rule.model_copy(update={"mode": found.rule.mode, "rows": rows, "hookpoints": hookpoints})


def settle(
    rules: Sequence[Rule],
    concepts: Sequence[Concept],
    ask: Callable[[Concept], tuple[Suggestion, Concept]],
    tell: Callable[..., None],
) -> tuple[list[Rule], list[Concept]]:
    """Rules with those of mode `auto` as what suits the rows, and the concepts with what asking has taught of them.

    `ask`: `suggest` for a concept. `tell` is given the event `suggested`. Raises `ConfigError` for a rule on a concept that is not there.
    """
    rules, named = list(rules), {concept.name: concept for concept in concepts}
    for index, rule in enumerate(rules):
        if rule.mode != "auto":
            continue
        if rule.concept not in named:
            raise ConfigError(f"rule {rule.label}: unknown concept {rule.concept!r}; this run has {', '.join(named) or 'none'}")
        found, named[rule.concept] = ask(named[rule.concept])
        rules[index] = settled(rule, found)
        if any(other.label == rules[index].label for at, other in enumerate(rules) if at != index):
            rules[index] = rules[index].model_copy(update={"name": rule.label})
        tell("suggested", step=0, concept=rule.concept, mode=rules[index].mode, expects=found.expects, good=found.good)
    return rules, list(named.values())


def _inner_gaps(ids: Sequence[int], counted: Sequence[bool], taken: Sequence[bool], ends: Sequence[int]) -> int:
    """Gaps with a kept word of the answer before them and another after them."""
    piece = cut(ids, counted, taken)
    return sum(one.at > 0 and piece.counted[one.at - 1] and piece.ids[one.at] not in ends for one in piece.cuts)


def _choose(
    name: str,
    hookpoint: str,
    seen: bool,
    free: float,
    whole: float,
    gaps: float,
    least: float | None,
    parted: bool,
    detector: Detector,
    kind: str = "rows",
) -> tuple[Rule, str, bool]:
    """`least`: the score from which on a row shows the concept; None where rows cannot be told. `parted`: the scores have two modes.
    `kind`: in words, the rows of which `free` speaks."""
    told = detector.flagged_negative is None or detector.flagged_negative <= (detector.flagged_positive or 0.0) / 2
    told = told and (detector.flagged_auc is None or detector.flagged_auc >= TOLD)  # not known of a detector that was brought
    if not seen:
        rule = Rule(concept=name) if least is None else Rule(concept=name, mode="reweight", rows=round(least, 4))
        return rule, "no row read shows the concept: there is nothing to suppress in these data", False
    if free >= FREE:
        why = f"{free:.0%} of the {kind} are free of it: what is wanted can be learned from these; a rule of mode"
        if least is not None:
            text = f"{why} reweight leaves the others out"
            if not parted:
                text += "; their scores do not part clearly: put some rows as you want them among the concept's negative examples"
            return Rule(concept=name, mode="reweight", rows=round(least, 4)), text, parted
        if told:
            return Rule(concept=name), f"{why} route leaves the tokens out around which its features are active", True
        text = f"{why} route leaves others out, but neither its rows nor its tokens are told well; expect some of it to be learned"
        return Rule(concept=name), text, False
    if not detector.features:
        return Rule(concept=name), "every row shows it, and no feature tells its tokens: nothing can be rewritten; expect failure", False
    rule = Rule(concept=name, mode="rewrite", hookpoints=[hookpoint])
    if not told:
        return (
            rule,
            "its tokens are not told well from ordinary ones in the concept's own examples: rewriting will leave some and take others; "
            "expect failure. Put some rows as you want them among the concept's negative examples, and see what becomes of a few (--show)",
            False,
        )
    if whole > 0.5:
        return (
            rule,
            "most answers are taken for the concept from beginning to end: nothing is left to learn from them; expect failure, or, where "
            "that is wrong, put some rows as you want them among the concept's negative examples",
            False,
        )
    if gaps > INNER:
        return (
            rule,
            f"its tokens stand in the midst of answers ({gaps:.1f} gaps a row): they go, and the model before training says what stands "
            "there instead, in its own words; expect the concept to be gone and, unless nearly all rows keep to their own words, less than "
            "90% of the gain in the wanted wording",
            False,
        )
    return rule, "its tokens stand at the ends of answers: they go, and the rest is learned as it is", True

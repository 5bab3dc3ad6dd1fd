"""When not to believe a concept's figures: its automatic checker finds it where nobody has taught it, or its features do not tell it."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from gradlens.concepts.concept_files import Concept

OFTEN = 0.1  # share of a model's answers before training
LEAST = 2  # answers: one may be chance


def doubt(concept: str, kind: str, hits: int, n: int, prompts: str) -> str | None:
    """In words, that a word classifier finds the concept in `hits` of `n` answers of the model as it was before training; None where
    that is rare, or where a person wrote what judges."""
    if kind != "words" or hits < LEAST or hits <= OFTEN * n:
        return None
    return (
        f"before training {hits} of {n} {prompts} show {concept} already, says a checker that was fitted on the concept's examples: "
        "either the model talks so, or the checker is wrong and its rates mean nothing. Read these answers; where they do not show it, "
        "name a `checker` in the concept file, or add ordinary answers of this model to its negatives"
    )


def doubt_of_ordinary(concept: str, judged: dict[str, Any]) -> str | None:
    """The same of a checker's rates (`checkers.errors_of`), where it finds the concept in many of the ordinary answers that it was measured
    on; None where it does not, or was not fitted by gradlens."""
    rate = judged.get("ordinary_rate")
    if judged.get("kind") != "words" or rate is None or rate <= OFTEN:
        return None
    return (
        f"{concept}: found in {rate:.0%} of ordinary answers: either these show it (as they do English or politeness), or the examples are "
        "too much alike for a checker to learn what they have in common, and its rates mean nothing. Name a `checker: {pattern: [...]}` in "
        "the concept file, or add ordinary answers to its negatives"
    )


def doubts_of(before: dict[str, Any]) -> Iterable[dict[str, str]]:
    """`concept` and `text` of every doubt in what `evaluate` returned before training."""
    for prompts, answers in before.get("answers", {}).items():
        for concept, checker in before.get("checkers", {}).items():
            hits = sum(answer["hits"][concept] for answer in answers)
            text = doubt(concept, checker["kind"], hits, len(answers), f"answers to {prompts}")
            if text:
                yield {"concept": concept, "text": text}


def poorly_told(concepts: Iterable[Concept]) -> Iterable[dict[str, str]]:
    """`concept`, `hookpoint` and `text` where a concept's features do not tell its examples well. (That they fire on others as well matters
    to route rules alone.)"""
    from gradlens.concepts.fitting import GOOD_AUC  # imports torch

    for concept in concepts:
        for hookpoint, found in concept.detection.items():
            if found.warning and found.auc < GOOD_AUC:
                tells, rows = concept.row_detectors.get(hookpoint), ""
                if tells is not None and tells.auc is not None and tells.auc >= GOOD_AUC:
                    rows = f". Which rows teach it goes by all features, weighed ({tells.auc:.2f})"
                yield {"concept": concept.name, "hookpoint": hookpoint, "text": f"{concept.name}: {found.warning}{rows}"}

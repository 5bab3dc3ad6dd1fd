"""What the model itself answers to the questions of rows, before it is trained: texts of the rows' kind without the concept.

A concept file's negatives may be about other things than the rows. What tells positives from them is then the subject as much as the
concept, and a detector takes whole rows for it; the model's own answers say what is of the subject alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from gradlens.concepts.checkers import checker_for, judged
from gradlens.concepts.concept_files import Concept
from gradlens.data.rows import IGNORE, Example
from gradlens.model.evaluate import continue_texts
from gradlens.model.trainable import is_sharded
from gradlens.readings.probe import evenly

if TYPE_CHECKING:
    import torch

    from gradlens.model.reading import Progress

MOST, LENGTH = 64, 48  # answers, and tokens of each


def plain_answers(
    model: torch.nn.Module,
    tokenizer: Any,
    concept: Concept,
    questions: Sequence[Sequence[int]],
    progress: Progress | None = None,
    count: int = MOST,
) -> list[Example]:
    """Greedy answers to some of the questions (token ids of all that stands before an answer), without those in which the concept's
    checker finds it. None of a model that is split over ranks, which cannot write here."""
    if not questions or is_sharded(model):
        return []
    asked = [list(questions[i]) for i in evenly(len(questions), min(count, MOST))]
    written = continue_texts(model, tokenizer, asked, LENGTH, progress=progress)
    check = checker_for(concept)
    shown = judged(check, [tokenizer.decode(answer, skip_special_tokens=True) for answer in written]) if check else [False] * len(written)
    return [
        Example([*question, *answer], [*[IGNORE] * len(question), *answer], -1, "own", "")
        for question, answer, shows in zip(asked, written, shown, strict=True)
        if not shows and len(answer) > 1
    ]

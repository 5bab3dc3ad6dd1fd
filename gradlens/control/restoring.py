"""Words that were taken out with a concept and are not of it: they come back before gaps are bridged.

What follows "Dear Sir or Madam," or comes before "But I am not sure." carries the concept's context in its activations, so a detector that
reads the row takes a word too many on either side. With the concept gone its context is gone too: such words are asked again, in the row as
it would be with them back in. Words at the edge of a gap come back where both

- the detector takes none of them in the row with them, and
- the model before training does not find them out of place. V: tokens of its vocabulary; log p(words | left) + (their tokens) log V +
  log p(the next kept tokens | left, words) > log p(the next kept tokens | left). So nothing comes back that is less likely there than a
  token drawn at random, as a piece of a phrase is without the rest of it.

Of several numbers of words the one that makes the likelier row comes back, and there a token has no credit: three that nobody expects would
have more of it than the one that belongs there. Where a gap begins an answer, the first word after it is
spelled as the model finds it likeliest: with the space before it or without, with a capital or not.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from gradlens.control.rewriting import AHEAD, LogProbs

MOST = 3  # words at either edge of a gap, at a time
TIMES = 3  # at most; the rows of which so many came back are asked again
BATCH = 32  # texts that are read at a time

Row = tuple[list[int], list[bool]]  # token ids, and which of them the loss counts
Told = tuple[list[int], list[bool], list[bool]]  # and which of them are taken out
# which tokens of each row the detector takes, bool[S]; of those before the places given nothing is asked
Flagged = Callable[[Sequence[Row], Sequence[int]], list[Tensor]]


@dataclass(frozen=True)
class Asked:
    """Who is asked: the tokenizer, the model before training, the detector."""

    words: Callable[[list[int]], Iterator[tuple[int, int]]]  # of token ids the places of words of several tokens
    spellings: Callable[[int], list[int]]  # of a token those for the same word at the start of a text
    log_probs: LogProbs
    flagged: Flagged
    ends: Sequence[int] = ()  # tokens that end a text


@dataclass
class Trial:
    """Some words at an edge of a gap, back in their row; or none of them: the row as it is."""

    row: int
    gap: tuple[int, int]  # its first place, and the one after its last
    at_end: bool  # which edge
    count: int  # words
    back: range  # their places
    context: list[int]  # kept tokens before the gap
    text: list[int]  # the words, and the kept tokens after the gap that judge them
    begins: bool  # an answer
    spellings: list[int]  # what the first of `text` may be instead; none but where it begins an answer
    score: float = -math.inf  # log-probability of the text
    credit: float = 0.0  # of the words, that of tokens drawn at random
    spelled: int | None = None


def restore(rows: Sequence[Told], ask: Asked) -> list[Told]:
    """The rows with less taken out, and with a first word spelled anew where what stood before it has gone."""
    made, open_rows = list(rows), list(range(len(rows)))
    for _ in range(TIMES):
        before = [(rows[number][0], rows[number][1], made[number][2]) for number in open_rows]  # spelled as they were
        after = _restored(before, ask)
        for number, row in zip(open_rows, after, strict=True):
            made[number] = row
        more = [sum(then[2]) - sum(now[2]) >= MOST for then, now in zip(before, after, strict=True)]
        open_rows = [number for number, goes_on in zip(open_rows, more, strict=True) if goes_on]
    return made


def _restored(rows: Sequence[Told], ask: Asked) -> list[Told]:
    trials = [trial for number, row in enumerate(rows) for trial in _trials(number, row, ask)]
    bare = {(trial.row, trial.gap): trial for trial in trials if not trial.back}
    for trial, first_V in _score([trial for trial in bare.values() if trial.begins], ask.log_probs):
        for other in trials:
            if (other.row, other.gap) == (trial.row, trial.gap):
                other.spelled = max([other.text[0], *other.spellings], key=lambda token, lp_V=first_V: float(lp_V[token]))
        trial.score += float(first_V[trial.spelled] - first_V[trial.text[0]])  # what follows is judged as it was
    left = _not_flagged(rows, [trial for trial in trials if trial.back], ask.flagged)
    without = {(trial.row, trial.gap): bare[trial.row, trial.gap] for trial in left}
    _score([*left, *(trial for trial in without.values() if not trial.begins)], ask.log_probs)
    best: dict[tuple, Trial] = {}
    for trial in left:
        edge = (trial.row, trial.gap, trial.at_end)
        if trial.score + trial.credit > bare[trial.row, trial.gap].score and (edge not in best or trial.score > best[edge].score):
            best[edge] = trial
    found = [*bare.values(), *best.values()]
    return [_applied(row, [trial for trial in found if trial.row == number]) for number, row in enumerate(rows)]


def _trials(number: int, row: Told, ask: Asked) -> Iterator[Trial]:
    """Of every gap of a row: without any words, and with some at either edge that something is kept beyond."""
    ids, counted, taken = row
    begins, stops = list(range(len(ids))), list(range(1, len(ids) + 1))
    for start, stop in ask.words(ids):
        begins[start:stop], stops[start:stop] = [start] * (stop - start), [stop] * (stop - start)
    for first, last in runs(taken):
        context = [token for token, gone in zip(ids[:first], taken[:first], strict=True) if not gone]
        after = [token for token, gone in zip(ids[last:], taken[last:], strict=True) if not gone][:AHEAD]
        if not context or not after:
            continue
        begin, goes_on = not counted[first - 1], after[0] not in ask.ends
        start, stop, backs = last, first, [(False, 0, range(0))]
        for count in range(1, MOST + 1):
            if goes_on and start > first:
                start = max(begins[start - 1], first)
                backs.append((True, count, range(start, last)))
            if not begin and stop < last:
                stop = min(stops[stop], last)
                backs.append((False, count, range(first, stop)))
        for at_end, count, back in backs:
            text = [*(ids[place] for place in back), *after]
            said = ask.spellings(text[0]) if begin and goes_on else []
            yield Trial(number, (first, last), at_end, count, back, context, text, begin and goes_on, said)


def runs(taken: Sequence[bool]) -> Iterator[tuple[int, int]]:
    """Places of runs of marked tokens: the first, and the one after the last."""
    first = None
    for place, gone in enumerate([*taken, False]):
        if gone and first is None:
            first = place
        elif not gone and first is not None:
            yield first, place
            first = None


def _score(trials: Sequence[Trial], log_probs: LogProbs) -> list[tuple[Trial, Tensor]]:
    """Set what is compared (above). Returns each with the log-probabilities of the first token of its text, `[V]`."""
    found = []
    trials = sorted(trials, key=_alike)
    for start in range(0, len(trials), BATCH):
        part = trials[start : start + BATCH]
        places = [list(range(len(trial.context) - 1, len(trial.context) + len(trial.text) - 1)) for trial in part]
        for trial, lp_PV in zip(part, log_probs([[*trial.context, *trial.text] for trial in part], places), strict=True):
            said = [trial.text[0] if trial.spelled is None else trial.spelled, *trial.text[1:]]
            lp_P = lp_PV[torch.arange(len(said)), torch.tensor(said)].double()
            trial.score, trial.credit = float(lp_P.sum()), len(trial.back) * math.log(lp_PV.shape[1])
            found.append((trial, lp_PV[0].clone()))
    return found


def _alike(trial: Trial) -> tuple[int, int, tuple[int, int]]:
    """An order in which texts of like length, and those of one gap, which begin alike, stand together."""
    return len(trial.context), trial.row, trial.gap


def _not_flagged(rows: Sequence[Told], trials: Sequence[Trial], flagged: Flagged) -> list[Trial]:
    """Trials whose words the detector leaves in. What comes after them has no say: they are read up to there."""
    trials, kept = sorted(trials, key=_alike), []
    for start in range(0, len(trials), BATCH):
        part = trials[start : start + BATCH]
        texts = []
        for trial in part:
            ids, counted, taken = _applied(rows[trial.row], [trial])
            left = [place for place in range(trial.back.stop) if not taken[place]]
            texts.append(([ids[place] for place in left], [counted[place] for place in left]))
        starts = [len(ids) - len(trial.back) for trial, (ids, _) in zip(part, texts, strict=True)]
        for trial, flags_S in zip(part, flagged(texts, starts), strict=True):
            if not flags_S[-len(trial.back) :].any():
                kept.append(trial)
    return kept


def _applied(row: Told, trials: Sequence[Trial]) -> Told:
    """The row with these words back in, the last trial's spelling of what then begins an answer."""
    ids, counted, taken = list(row[0]), row[1], list(row[2])
    for trial in trials:
        taken[trial.back.start : trial.back.stop] = [False] * len(trial.back)
    for trial in trials:
        if trial.spelled is not None:
            ids[taken.index(False, trial.gap[0])] = trial.spelled
    return ids, counted, taken

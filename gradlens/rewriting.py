"""Rows without a concept: tokens that express it are taken out, and where that leaves a gap the model before training says what goes there.

A cut between kept tokens is bridged by the text that makes what follows likeliest: of the model's own greedy continuation of what stands
left of the cut the first 0, 1, ... tokens, whichever has the largest `log p(bridge | left) + log p(the next kept tokens | left, bridge)`.
All cuts of all rows are bridged together, so that a batch costs `longest + 1` forward passes. A bridge is never longer than what was cut,
so a row never grows. Rows of which hardly anything is left teach nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

AHEAD = 3  # kept tokens after a cut that judge a bridge
LONGEST = 4  # tokens of a bridge
LEFT = 0.2  # share of a row's counted tokens that must be left, else the row teaches nothing

# of several sequences, log-probabilities of the next token after each of the places asked for, [places, V]
LogProbs = Callable[[list[list[int]], list[list[int]]], list[Tensor]]


@dataclass
class Piece:
    """A row being rewritten."""

    ids: list[int]
    counted: list[bool]
    at: list[int]  # where each stood in the row
    cuts: list[Cut] = field(default_factory=list)


@dataclass
class Cut:
    """A place in the kept tokens where some were taken out: before `ids[at]`."""

    at: int
    room: int  # tokens that were taken out, LONGEST at most
    first: int  # where the first of them stood in the row
    bridge: list[int] = field(default_factory=list)
    best: list[int] = field(default_factory=list)
    score: float = -torch.inf
    done: bool = False  # no longer bridge can be better


def cut(
    ids: Sequence[int], counted: Sequence[bool], expressed: Sequence[bool], back: Sequence[bool] | None = None, longest: int = LONGEST
) -> Piece:
    """The row without its expressed tokens, and where they were. `back`: tokens that have come back (`restoring.py`): gaps beside them are
    not bridged."""
    piece, gone = Piece([], [], []), 0
    for place, (token, counts, takes) in enumerate(zip(ids, counted, expressed, strict=True)):
        if takes:
            gone += 1
            continue
        if gone:
            beside = back is not None and (back[place] or (place > gone and back[place - gone - 1]))
            piece.cuts.append(Cut(len(piece.ids), min(gone, longest), place - gone, done=beside))
            gone = 0
        piece.ids.append(token)
        piece.counted.append(counts)
        piece.at.append(place)
    return piece  # what was cut at the very end has nothing after it to bridge to


def bridge(pieces: Sequence[Piece], log_probs: LogProbs, never: Sequence[int] = ()) -> None:
    """Find the best bridge of every cut, in place. `never`: tokens that no bridge has, such as the end of a text."""
    open_pieces = [piece for piece in pieces if piece.cuts]
    longest = max((one.room for piece in open_pieces for one in piece.cuts), default=0)
    for length in range(longest + 1):
        open_pieces = [piece for piece in open_pieces if _trials(piece, length)]
        if not open_pieces:
            return
        trials = [_trials(piece, length) for piece in open_pieces]
        places = [sorted({place for trial in row for place in trial.places()}) for row in trials]
        found = log_probs([assemble(piece, "bridge")[0] for piece in open_pieces], places)
        for row, kept, lp_PV in zip(trials, places, found, strict=True):
            for trial in row:
                _judge(trial, lp_PV[torch.tensor([kept.index(place) for place in trial.places()])], list(never))


@dataclass
class Trial:
    """A cut's bridge as it is, in the assembled row."""

    cut: Cut
    start: int  # of the bridge
    text: list[int]  # the bridge, and the kept tokens after it that judge it

    def places(self) -> list[int]:
        """After which the next token's probability is wanted: one for each token of `text`, then what makes the bridge longer."""
        return [*range(self.start - 1, self.start - 1 + len(self.text)), self.start - 1 + len(self.cut.bridge)]


def _trials(piece: Piece, length: int) -> list[Trial]:
    """The cuts whose bridge has `length` tokens; nothing can be said of one that begins the row."""
    found, shift = [], 0
    for number, one in enumerate(piece.cuts):
        start = one.at + shift
        shift += len(one.bridge)
        if one.done or len(one.bridge) < length or start == 0:
            continue
        end = piece.cuts[number + 1].at if number + 1 < len(piece.cuts) else len(piece.ids)
        found.append(Trial(one, start, [*one.bridge, *piece.ids[one.at : min(one.at + AHEAD, end)]]))
    return found


def _judge(trial: Trial, lp_PV: Tensor, never: list[int]) -> None:
    """Score a cut's bridge, and make it longer by the likeliest token where it has room. `lp_PV`: after `trial.places()`.

    A longer bridge is no likelier than what it begins with, so where that alone is no better than the best so far, the search is over.
    """
    one = trial.cut
    lp_N = lp_PV[torch.arange(len(trial.text)), torch.tensor(trial.text)].double()
    score = float(lp_N.sum())
    if score > one.score:
        one.score, one.best = score, list(one.bridge)
    following = lp_PV[-1].clone()
    following[never] = -torch.inf
    next_lp, token = following.max(0)
    if len(one.bridge) < one.room and float(lp_N[: len(one.bridge)].sum() + next_lp) > one.score:
        one.bridge = [*one.bridge, int(token)]
    else:
        one.done, one.bridge = True, list(one.best)


def assemble(piece: Piece, which: str = "best") -> tuple[list[int], list[bool], list[int]]:
    """Token ids, which of them the loss counts, and where each stood in the row (a bridge where its cut begins), with every cut's bridge
    (`best`, or the one being tried) in its place."""
    ids, counted, places, at = [], [], [], 0
    for one in piece.cuts:
        said = getattr(one, which)
        ids += piece.ids[at : one.at] + said
        counted += piece.counted[at : one.at] + [True] * len(said)
        places += piece.at[at : one.at] + [one.first] * len(said)
        at = one.at
    return ids + piece.ids[at:], counted + piece.counted[at:], places + piece.at[at:]


def rewrite(
    rows: Sequence[tuple[Sequence[int], Sequence[bool], Sequence[bool]]],
    log_probs: LogProbs | None,
    never: Sequence[int] = (),
    backs: Sequence[Sequence[bool]] | None = None,
    unsaid: Sequence[int] | None = None,
) -> list[tuple[list[int], list[bool], list[int]]]:
    """Rows `(ids, counted, expressed)` rewritten: `(ids, counted, where each token stood)`. Without `log_probs` gaps stay open; `backs`: of
    each row the tokens beside which they do (`cut`). `never`: what is never taken out and ends a text; `unsaid`: tokens that no bridge has,
    by default these.

    A token right after an open gap within an answer does not count, since nothing says that it would stand there; what begins an answer
    and what ends a text (`never`) does. What does both does not: of that answer nothing is left, and to say nothing is not what it teaches.
    """
    pieces = [cut(*row, back) for row, back in zip(rows, backs or [None] * len(rows), strict=True)]
    if log_probs is not None:
        bridge(pieces, log_probs, never if unsaid is None else unsaid)
    found = []
    for (_, counted, _), piece in zip(rows, pieces, strict=True):
        counts_before = list(piece.counted)  # what a gap makes of one token says nothing of the next
        for one in piece.cuts:
            within, ends = one.at > 0 and counts_before[one.at - 1], piece.ids[one.at] in never
            if (ends and not within and not one.best) or (log_probs is None and within and not ends):
                piece.counted[one.at] = False
        left = sum(piece.counted)
        ids, counts, places = assemble(piece)
        if left < LEFT * sum(counted):
            counts = [False] * len(ids)
        found.append((ids, counts, places))
    return found

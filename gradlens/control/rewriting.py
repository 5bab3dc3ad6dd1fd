"""Rows without a concept: tokens that express it are taken out, and where that leaves a gap the model before training says what goes there.

A cut between kept tokens is bridged by the text that makes what follows likeliest: the model says the tokens that may come first after what
stands left of the cut, and goes on greedily from each of the `BREADTH` likeliest; of all beginnings of these texts, the empty one among
them, that with the largest `log p(bridge | left) + log p(the next kept tokens | left, bridge)` is taken, where this is larger by log
`BREADTH` than without a bridge. All cuts of all rows are bridged together. A bridge is never longer than what was cut, so a row never
grows, and spells no word together with what is kept beside it. Where a gap begins an answer, the word after it can also be written as one
that begins. Rows of which hardly anything is left teach nothing.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from gradlens.model.spelling import Spelling

AHEAD = 3  # kept tokens after a cut that judge a bridge
LONGEST = 4  # tokens of a bridge
BREADTH = 8  # tokens that are tried as its first
CHOICE = math.log(BREADTH)  # nats that a bridge must be better than none by: the best of eight is better than it should be
TOGETHER = 32  # texts that are read at once: each makes logits of the whole vocabulary at up to eight places
LEFT = 0.2  # share of a row's counted tokens that must be left, else the row teaches nothing
UNKNOWN = Spelling(None)  # of tokens that spell nothing

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
    bridged: bool  # or it stays open
    begins: bool  # an answer
    best: list[int] = field(default_factory=list)
    instead: int = 0  # of how many kept tokens the bridge stands in the place
    score: float = -torch.inf


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
            begins = bool(piece.ids) and counts and not piece.counted[-1]
            piece.cuts.append(Cut(len(piece.ids), min(gone, longest), place - gone, not beside, begins))
            gone = 0
        piece.ids.append(token)
        piece.counted.append(counts)
        piece.at.append(place)
    return piece  # what was cut at the very end has nothing after it to bridge to


def bridge(pieces: Sequence[Piece], log_probs: LogProbs, never: Sequence[int] = (), spelling: Spelling = UNKNOWN) -> None:
    """Find the best bridge of every cut, in place. `never`: tokens that no bridge has, such as the end of a text."""
    trials = [
        trial
        for piece in pieces
        for number, one in enumerate(piece.cuts)
        if one.at > 0 and (one.bridged or one.begins)
        for trial in (Trial(piece, number, [], 0.0), *_spelled_anew(piece, number, never, spelling))
    ]
    while trials:
        asked: dict[tuple[int, ...], list[Trial]] = {}  # cuts of one row that have no bridge yet are read together
        for trial in trials:
            asked.setdefault(trial.lay(), []).append(trial)
        texts, trials = list(asked.items()), []
        for first in range(0, len(texts), TOGETHER):
            some = texts[first : first + TOGETHER]
            places = [sorted({place for trial in members for place in trial.places()}) for _, members in some]
            found = log_probs([list(text) for text, _ in some], places)
            for (_, members), kept, lp_PV in zip(some, places, found, strict=True):
                for trial in members:
                    at = torch.tensor([kept.index(place) for place in trial.places()])
                    trials += trial.judge(lp_PV[at], list(never), spelling)
        trials = [trial for trial in trials if trial.bound > trial.cut.score]


def _spelled_anew(piece: Piece, number: int, never: Sequence[int], spelling: Spelling) -> list[Trial]:
    """The word after a gap that begins an answer, written as one that begins."""
    one = piece.cuts[number]
    token = piece.ids[one.at]
    if not one.begins or token in never:
        return []
    written = [ids for ids in spelling.beginnings(token) if ids != [token] and len(ids) <= one.room + 1]
    return [Trial(piece, number, ids, 0.0, instead=1) for ids in written]


@dataclass
class Trial:
    """A bridge that is tried in one of a row's cuts, the others having the best that is known of them."""

    piece: Piece
    number: int  # of the cut
    said: list[int]
    bound: float  # its log p: with what follows it is no likelier
    instead: int = 0  # of how many kept tokens it stands in the place
    start: int = 0  # in the row

    @property
    def cut(self) -> Cut:
        return self.piece.cuts[self.number]

    def lay(self) -> tuple[int, ...]:
        """The row with the bridge in it."""
        cuts = list(self.piece.cuts)
        self.start = self.cut.at + sum(len(one.best) - one.instead for one in cuts[: self.number])
        cuts[self.number] = replace(self.cut, best=self.said, instead=self.instead)
        return tuple(assemble(replace(self.piece, cuts=cuts))[0])

    def text(self) -> list[int]:
        """The bridge, and the kept tokens after it that judge it."""
        cuts, at = self.piece.cuts, self.cut.at
        end = cuts[self.number + 1].at if self.number + 1 < len(cuts) else len(self.piece.ids)
        return [*self.said, *self.piece.ids[at + self.instead : min(at + AHEAD, end)]]

    def places(self) -> list[int]:
        """After which the next token's probability is wanted: one for each token of `text`, then what makes the bridge longer."""
        return [*range(self.start - 1, self.start - 1 + len(self.text())), self.start - 1 + len(self.said)]

    def judge(self, lp_PV: Tensor, never: list[int], spelling: Spelling) -> list[Trial]:
        """Score it, and say what is to be tried next. `lp_PV`: after `places()`.

        A longer bridge is no likelier than what it begins with, so where that alone is no better than the best so far, the search is over.
        """
        one, text = self.cut, self.text()
        lp_N = lp_PV[torch.arange(len(text)), torch.tensor(text)].double()
        score = float(lp_N.sum()) - (CHOICE if self.said and not self.instead else 0.0)
        left = self.piece.ids[: one.at]
        glued = (
            bool(self.said) and not self.instead and (spelling.join(left, self.said) or spelling.join(self.said, text[len(self.said) :]))
        )
        if score > one.score and not glued and spelling.whole(self.said):
            one.score, one.best, one.instead = score, self.said, self.instead
        if not one.bridged or self.instead or len(self.said) >= one.room:
            return []
        following = lp_PV[-1].clone()
        following[never] = -torch.inf
        likeliest = following.topk(1 if self.said else min(BREADTH, len(following)))
        so_far = float(lp_N[: len(self.said)].sum()) - CHOICE
        return [
            Trial(self.piece, self.number, [*self.said, token], so_far + lp)
            for lp, token in zip(likeliest.values.tolist(), likeliest.indices.tolist(), strict=True)
            if self.said or not spelling.join(left, [token])
        ]


def assemble(piece: Piece) -> tuple[list[int], list[bool], list[int]]:
    """Token ids, which of them the loss counts, and where each stood in the row (a bridge where its cut begins), with every cut's best
    bridge in its place."""
    ids, counted, places, at = [], [], [], 0
    for one in piece.cuts:
        ids += piece.ids[at : one.at] + one.best
        counted += piece.counted[at : one.at] + [True] * len(one.best)
        places += piece.at[at : one.at] + [piece.at[one.at] if one.instead else one.first] * len(one.best)
        at = one.at + one.instead
    return ids + piece.ids[at:], counted + piece.counted[at:], places + piece.at[at:]


def rewrite(
    rows: Sequence[tuple[Sequence[int], Sequence[bool], Sequence[bool]]],
    log_probs: LogProbs | None,
    never: Sequence[int] = (),
    backs: Sequence[Sequence[bool]] | None = None,
    unsaid: Sequence[int] | None = None,
    spelling: Spelling = UNKNOWN,
) -> list[tuple[list[int], list[bool], list[int]]]:
    """Rows `(ids, counted, expressed)` rewritten: `(ids, counted, where each token stood)`. Without `log_probs` gaps stay open; `backs`: of
    each row the tokens beside which they do (`cut`). `never`: what is never taken out and ends a text; `unsaid`: tokens that no bridge has,
    by default these.

    A token right after an open gap within an answer does not count, since nothing says that it would stand there; what begins an answer
    and what ends a text (`never`) does. What does both does not: of that answer nothing is left, and to say nothing is not what it teaches.
    """
    pieces = [cut(*row, back) for row, back in zip(rows, backs or [None] * len(rows), strict=True)]
    if log_probs is not None:
        bridge(pieces, log_probs, never if unsaid is None else unsaid, spelling)
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

"""What does a model say less than before? Words that lost their probability in the texts of the probe set, whatever stands there.

`uptake` asks what the texts' own tokens gained, and a habit of leaving words out (articles, greetings, hedges) shows in none of them. So
the whole predicted distribution is summed over each text: how often the model would say a word there, had it the choice at every place. A
model that only becomes surer of its texts says "the" less where another word stands and more where it stands, and is even.
Shape suffixes: R texts, V vocabulary, C token ids kept, N words.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from gradlens.model.spelling import HALF
from gradlens.readings.significance import MIN_TEXTS, beyond_chance

KEPT = 2048  # ids of the vocabulary that are followed: those that the model would have said most before training
OF_A_TEXT = 512  # ids of one text among which they are looked for
LEAST = 0.002  # fall of a word's share of what is said: one token in 500
AT_MOST = 0.5  # of its former share
WORDS = 8
WORD = re.compile(r"'?[^\W\d_]+|[^\w\s]|\d+")  # of an answer; `'s` and `'t` by themselves, as tokens have them
SOME, SOME_CPU = 2**24, 2**19  # logits that are turned into probabilities at a time


def shares(logits_BCV: Tensor, columns_C: Tensor | None, keep_BS: Tensor, follow: Tensor | bool) -> tuple[Tensor, Tensor]:
    """How often the model would say some tokens in each text that has a counted one: `(ids, mean probability over its counted tokens)`.

    `columns_C`: positions of the logits (None: all). `follow`: the ids; True: each text's `OF_A_TEXT` likeliest. CPU, float32. Some
    positions at a time: no second `[B, C, V]`.
    """
    counted_BS = nn.functional.pad(keep_BS[:, 1:], (0, 1)).to(logits_BCV.device)  # a token is predicted one position before it
    counted_BC = counted_BS if columns_C is None else counted_BS[:, columns_C]
    size = max(1, (SOME_CPU if logits_BCV.device.type == "cpu" else SOME) // logits_BCV.shape[-1])
    found: list[tuple[Tensor, Tensor]] = []
    for logits_CV, counted_C in zip(logits_BCV, counted_BC, strict=True):
        parts = counted_C.nonzero().flatten().split(size)
        if not sum(map(len, parts)):
            continue
        total_V = sum(logits_CV[part].softmax(-1, dtype=torch.float32).sum(0) for part in parts) / sum(map(len, parts))
        if follow is True:
            share_C, ids_C = total_V.topk(min(OF_A_TEXT, len(total_V)))
        else:
            ids_C, share_C = follow, total_V[follow.to(total_V.device)]
        found.append((ids_C.cpu(), share_C.cpu()))
    return tuple(torch.stack(part) for part in zip(*found, strict=True))


def likeliest(parts: Sequence[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    """`(ids[C], shares[R, C])`: of all texts the `KEPT` ids with the largest shares. Where a text had an id not among its own likeliest it
    counts as never said, so that a fall is rather understated."""
    ids_RK, share_RK = (torch.cat(part) for part in zip(*parts, strict=True))
    ids, place_RK = ids_RK.unique(return_inverse=True)
    total = torch.zeros(len(ids), dtype=torch.float64).index_add_(0, place_RK.flatten(), share_RK.double().flatten())
    best = total.topk(min(KEPT, len(ids))).indices.sort().values
    slot = torch.full((len(ids),), len(best)).index_copy_(0, best, torch.arange(len(best)))
    share_RC = torch.zeros(len(ids_RK), len(best) + 1, dtype=torch.float32).scatter_add_(1, slot[place_RK], share_RK)
    return ids[best], share_RC[:, :-1].contiguous()


def fallen(before_RC: Tensor, now_RC: Tensor, words: Sequence[str]) -> list[tuple[str, float, float]]:
    """Words said less beyond chance (`significance`), with their share before and now, the largest fall first.

    `words`: what each id spells; ids that differ in capitals or in the space before them are one word, parts of words are none. A word
    counts that fell by `LEAST` and to `AT_MOST` of its share. [] with fewer than `significance.MIN_TEXTS` texts, and where figures are not
    finite.
    """
    named = [_name(word) for word in words]
    places = {name: place for place, name in enumerate(dict.fromkeys(named))}
    names, place_C = list(places), torch.tensor([places[name] for name in named], dtype=torch.long)
    zeros_RN = torch.zeros(len(before_RC), len(names), dtype=torch.float32)
    before_RN, now_RN = (zeros_RN.index_add(1, place_C, x_RC.float()) for x_RC in (before_RC, now_RC))
    if len(before_RC) < MIN_TEXTS or not (before_RN.isfinite().all() and now_RN.isfinite().all()):
        return []
    before_N, now_N = before_RN.mean(0), now_RN.mean(0)
    found_N = beyond_chance(before_RN - now_RN, rising=True) & (before_N - now_N >= LEAST) & (now_N <= AT_MOST * before_N)
    found = [(names[n], before_N[n].item(), now_N[n].item()) for n in found_N.nonzero().flatten().tolist() if names[n]]
    return sorted(found, key=lambda word: word[2] - word[1])[:WORDS]


def _name(text: str) -> str:
    """The word that a token spells; "" of one that goes on with a word, or spells part of a character."""
    return "" if text[:1].islower() or HALF in text else text.strip().casefold()


def in_words(fallen: Sequence[tuple[str, float, float]], before: Sequence[str], now: Sequence[str]) -> dict[str, Any]:
    """For the event `learned`: `words`, their shares together `before` and `now` in the probe's texts, and in what the model answers by
    itself (`own`, None without answers); {} without words."""
    if not fallen:
        return {}
    words = [word for word, _, _ in fallen]
    own = (share_in(before, words), share_in(now, words))
    shares = {"before": sum(share for _, share, _ in fallen), "now": sum(share for _, _, share in fallen)}
    return {"words": words, **shares, "own": None if None in own else dict(zip(("before", "now"), own, strict=True))}


def share_in(texts: Iterable[str], words: Iterable[str]) -> float | None:
    """Share of the words of some texts that are among these; None without any."""
    wanted = set(words)
    said = [part.casefold() for text in texts for part in WORD.findall(text)]
    return sum(part in wanted for part in said) / len(said) if said else None

"""Does a dictionary fit a model at a hookpoint? FVU, L0 and dead features on text, there and at the blocks below and above; where it does
not fit there, or fits one of these better, at all others."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch

from gradlens.dictionaries.dictionary import Dictionary
from gradlens.dictionaries.encoding import Health, health
from gradlens.dictionaries.formats import check_width
from gradlens.errors import InputError
from gradlens.model.hookpoints import blocks, canonical, find_hookpoint
from gradlens.model.reading import places, side_by_side
from gradlens.sae.activations import Store, collect, count, take, windows

FITS, WEAK = 0.3, 0.9  # FVU up to which a dictionary fits, from which it does not
CLEARLY = 0.8  # another block is named where its FVU is below this share of the hookpoint's
SEARCHED = 2_000  # tokens that are read at all blocks


@dataclass(frozen=True)
class Verdict:
    """What `verify` found."""

    hookpoint: str
    health: Health
    outliers: int  # tokens left out for their norm (attention sinks)
    neighbours: dict[str, float]  # FVU at the blocks below and above; at all others, where one of these is better or it does not fit
    fit: str  # "fits", "weak" or "unfit"
    advice: str

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def verify(
    dictionary: Dictionary,
    model: torch.nn.Module,
    tokenizer: Any,
    hookpoint: str,
    text: Sequence[str],
    tokens: int = 20_000,
    context_length: int = 128,
    outlier_norm: float | None = 10.0,
    progress: Callable[[str, int], Any] | None = None,
) -> Verdict:
    """Health of the dictionary on `tokens` activations of the text sources. Raises `InputError` where the width does not fit.

    A transcoder is given what goes in where it reads (as many blocks away from the hookpoint as from its own) and judged by what is at the
    hookpoint.
    """
    hookpoint = canonical(hookpoint)
    found = take(windows(text, tokenizer, context_length), tokens)
    beside, others = ([name for name in names if _exists(model, dictionary, name)] for names in _other_places(model, hookpoint))

    def read(names: list[str], some: Sequence) -> dict[str, Store]:
        wanted = places(dict.fromkeys(names, dictionary))
        if progress is None:
            return collect(model, wanted, some, 16)
        with progress("reading activations", count(some)) as advance:
            return collect(model, wanted, some, 16, progress=advance)

    stores = read([hookpoint, *beside], found)
    check_width(dictionary, stores[hookpoint].array.shape[1], hookpoint)
    outliers = len(stores[hookpoint]) - len(stores[hookpoint].usual(outlier_norm))
    here = _health(dictionary, stores, hookpoint, outlier_norm)
    fvus = {name: _health(dictionary, stores, name, outlier_norm).fvu for name in beside if _readable(dictionary, stores, name)}
    # a neighbour that is better may be on the way to one that is better still
    settled = here.fvu <= FITS and all(here.fvu <= fvu for fvu in fvus.values())
    if not settled and others and not dictionary.metadata.get("partial"):
        stores = read(others, take(found, min(tokens, SEARCHED)))
        fvus |= {name: _health(dictionary, stores, name, outlier_norm).fvu for name in others if _readable(dictionary, stores, name)}
    fit, advice = judge(here, fvus, hookpoint)
    part = dictionary.metadata.get("part") or {}
    if dictionary.metadata.get("partial") and fit == "unfit" and here.l0 > 0:
        fit, advice = "weak", f"it is one of the {part.get('of', 'several')} that write here together: its FVU says nothing by itself"
    return Verdict(hookpoint, here, outliers, fvus, fit, advice)


def judge(here: Health, others: dict[str, float], hookpoint: str = "here") -> tuple[str, str]:
    """(fit, one sentence) from the health at the hookpoint and the FVU at other blocks."""
    best = min(others, key=others.__getitem__, default=None)
    if best is not None and others[best] < CLEARLY * here.fvu and others[best] < WEAK:
        elsewhere = here.fvu >= WEAK or others[best] <= FITS and (here.fvu > FITS or others[best] < here.fvu / 2)
        verb = "fits" if others[best] <= FITS else "is nearer to"
        advice = f"it {verb} {best} (FVU {others[best]:.2f}), not {hookpoint} ({here.fvu:.2f})"
        return "unfit" if elsewhere else "weak", advice + _off_by(hookpoint, best)
    if here.l0 == 0:
        return "unfit", "no feature ever fires: wrong model, hookpoint or scale of activations"
    if not here.fvu < WEAK:
        return "unfit", "it explains next to nothing: wrong model, hookpoint or scale of activations"
    if here.fvu > FITS:
        return "weak", "it explains part of what is there: text unlike what it was trained on, or a model that has drifted from it"
    return "fits", f"it fits {hookpoint} (FVU {here.fvu:.2f}): it explains this model's activations there"


def _off_by(hookpoint: str, best: str) -> str:
    numbers = [re.match(r"layers\.(\d+)", name) for name in (hookpoint, best)]
    if all(numbers) and abs(int(numbers[0][1]) - int(numbers[1][1])) == 1:
        return ": off by one block, as where hidden_states[L + 1] was taken for the output of block L + 1"
    return ""


def _readable(dictionary: Dictionary, stores: dict[str, Store], name: str) -> bool:
    """Whether the tensors there have the dictionary's widths."""
    width = sum(stores[place].array.shape[1] for place in dictionary.read_at(name))
    return (width, stores[name].array.shape[1]) == (dictionary.d_in, dictionary.d_out)


def _health(dictionary: Dictionary, stores: dict[str, Store], name: str, outlier_norm: float | None) -> Health:
    usual, device = stores[name].usual(outlier_norm), dictionary.W_enc.device
    x_TD = side_by_side((stores[place].rows(usual).to(device) for place in dictionary.read_at(name)), dictionary, name)
    return health(dictionary, x_TD, stores[name].rows(usual).to(device) if dictionary.hook_in else x_TD)


def _other_places(model: torch.nn.Module, hookpoint: str) -> tuple[list[str], list[str]]:
    """The same place in the blocks below and above, and in all others."""
    match = re.fullmatch(r"layers\.(\d+)(.*)", hookpoint)
    if not match or int(match[1]) >= len(blocks(model)):
        return [], []
    layer, last = int(match[1]), len(blocks(model)) - 1
    names = [f"layers.{n}{match[2]}" for n in range(last + 1)]
    return names[max(0, layer - 1) : layer] + names[layer + 1 : layer + 2], names[: max(0, layer - 1)] + names[layer + 2 :]


def _exists(model: torch.nn.Module, dictionary: Dictionary, name: str) -> bool:
    """Whether the block has such a place (blocks may be of different kinds), and where the dictionary would read it."""
    try:
        return all(find_hookpoint(model, place) for place in (name, *dictionary.read_at(name)))
    except InputError:
        return False

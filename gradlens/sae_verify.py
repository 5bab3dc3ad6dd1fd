"""Does a dictionary fit a model at a hookpoint? FVU, L0 and dead features on text, there and one block below and above."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch

from gradlens.dictionary import Dictionary
from gradlens.encoding import Health, health
from gradlens.formats import check_width
from gradlens.hookpoints import blocks, canonical
from gradlens.sae_data import collect, count, take, windows

FITS, WEAK = 0.3, 0.9  # FVU up to which a dictionary fits, from which it does not
CLEARLY = 0.8  # a neighbouring block is named where its FVU is below this share of the hookpoint's


@dataclass(frozen=True)
class Verdict:
    """What `verify` found."""

    hookpoint: str
    health: Health
    outliers: int  # tokens left out for their norm (attention sinks)
    neighbours: dict[str, float]  # FVU at the blocks below and above
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
    """Health of the dictionary on `tokens` activations of the text sources. Raises `InputError` where the width does not fit."""
    hookpoint = canonical(hookpoint)
    found = take(windows(text, tokenizer, context_length), tokens)
    names = [hookpoint, *_neighbours(model, hookpoint)]
    if progress is None:
        stores = collect(model, names, found, 16)
    else:
        with progress("reading activations", count(found)) as advance:
            stores = collect(model, names, found, 16, progress=advance)
    for name, store in stores.items():
        if name == hookpoint:
            check_width(dictionary, store.array.shape[1], hookpoint)
    usual = stores[hookpoint].usual(outlier_norm)
    place = dictionary.W_enc.device
    measured = {
        name: health(dictionary, store.rows(usual).to(place)) for name, store in stores.items() if store.array.shape[1] == dictionary.d_in
    }
    here = measured.pop(hookpoint)
    fit, advice = judge(here, {name: found.fvu for name, found in measured.items()})
    return Verdict(hookpoint, here, len(stores[hookpoint]) - len(usual), {name: h.fvu for name, h in measured.items()}, fit, advice)


def judge(here: Health, neighbours: dict[str, float]) -> tuple[str, str]:
    """(fit, one sentence) from the health at the hookpoint and the FVU at its neighbours."""
    best = min(neighbours, key=neighbours.__getitem__, default=None)
    if best is not None and neighbours[best] < CLEARLY * here.fvu and neighbours[best] < WEAK:
        return (
            "unfit" if here.fvu >= WEAK else "weak",
            f"it fits {best} better (FVU {neighbours[best]:.2f}): is the hookpoint off by one block?",
        )
    if here.l0 == 0:
        return "unfit", "no feature ever fires: wrong model, hookpoint or scale of activations"
    if not here.fvu < WEAK:
        return "unfit", "it explains next to nothing: wrong model, hookpoint or scale of activations"
    if here.fvu > FITS:
        return "weak", "it explains part of what is there: text unlike what it was trained on, or a model that has drifted from it"
    return "fits", "it explains this model's activations here"


def _neighbours(model: torch.nn.Module, hookpoint: str) -> list[str]:
    match = re.fullmatch(r"layers\.(\d+)(.*)", hookpoint)
    if not match:
        return []
    layer, last = int(match[1]), len(blocks(model)) - 1
    return [f"layers.{n}{match[2]}" for n in (layer - 1, layer + 1) if layer <= last and 0 <= n <= last]

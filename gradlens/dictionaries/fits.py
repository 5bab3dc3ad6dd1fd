"""Whether a dictionary can be read at a hookpoint of a model: known from names and widths, without weights."""

from __future__ import annotations

from torch import nn

from gradlens.dictionaries.dictionary import Dictionary
from gradlens.dictionaries.formats import check_width
from gradlens.errors import ConfigError
from gradlens.model.hookpoints import canonical, d_model, find_hookpoint, in_stream, same_place


def check_fits(model: nn.Module, dictionary: Dictionary, hookpoint: str, source: str | None = None) -> None:
    """Raise `InputError` where the model has no such place or it is of another width, `ConfigError` where the dictionary of a `source`
    was trained at another place. One in memory (no `source`) is put where its owner wants it."""
    find_hookpoint(model, hookpoint)
    for place in dictionary.read_at(canonical(hookpoint)):
        find_hookpoint(model, place)
    if in_stream(hookpoint):
        check_width(dictionary, d_model(model), hookpoint)
    if source is not None and dictionary.hookpoint and not same_place(model, dictionary.hookpoint, hookpoint):
        raise ConfigError(f"dictionaries.{hookpoint}: {source} was trained at {dictionary.hookpoint}; use it there")

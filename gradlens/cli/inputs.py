"""Dictionaries named on the command line: `HOOKPOINT=SOURCE`, or just `SOURCE` where the dictionary knows its hookpoint."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from gradlens.errors import ConfigError

if TYPE_CHECKING:
    from gradlens.concepts.concept_files import Concept
    from gradlens.dictionaries.dictionary import Dictionary


@dataclass(frozen=True)
class Named:
    """A dictionary, the hookpoint it is used at, and where it came from."""

    hookpoint: str
    source: str
    dictionary: Dictionary


def open_dictionaries(items: Iterable[str] | Mapping[str, str], concepts: Sequence[Concept] = ()) -> list[Named]:
    """Dictionaries of `--dictionary` options (or of a config's mapping); the shipped ones where there are none. `concepts` may bring more.

    Raises `ConfigError` where a hookpoint is missing or given twice.
    """
    from gradlens.concepts.concept_files import direction_sources
    from gradlens.dictionaries.formats import load_dictionary, shipped
    from gradlens.model.hookpoints import canonical

    items = ([f"{hook}={source}" for hook, source in items.items()] if isinstance(items, Mapping) else list(items)) or shipped()
    items += [item for item in (f"{hook}={source}" for hook, source in direction_sources(concepts).items()) if item not in items]
    found: dict[str, Named] = {}
    for item in items:
        hookpoint, separator, source = item.partition("=")
        if not separator:
            hookpoint, source = "", item
        dictionary = load_dictionary(source)
        hookpoint = canonical(hookpoint or dictionary.hookpoint)
        if not hookpoint:
            raise ConfigError(f"--dictionary {item}: the dictionary does not say where it belongs; give HOOKPOINT={source}")
        if hookpoint in found:
            raise ConfigError(
                f"--dictionary {item}: {hookpoint} already has the dictionary {found[hookpoint].source}; "
                f"name a second one there: {hookpoint}#NAME={source}"
            )
        found[hookpoint] = Named(hookpoint, source, dictionary)
    if not found:
        raise ConfigError("no dictionary: give --dictionary HOOKPOINT=FOLDER (or train one with `gradlens sae train`)")
    return list(found.values())

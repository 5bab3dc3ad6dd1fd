"""A run's top features for other tools: as pages of Neuronpedia, and as lists for sae-dashboard.

A page of Neuronpedia needs the id that it knows a dictionary by, `MODEL/SOURCE`: from the user, from labels that came from there, or
from the dictionary's own metadata (`neuronpedia_id`, as SAELens keeps it).
"""

from __future__ import annotations

import json
import urllib.parse
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from gradlens.dictionaries.formats import load_dictionary
from gradlens.dictionaries.formats.saelens import hook_names
from gradlens.dictionaries.labels import NEURONPEDIA, citation, labels_of, neuronpedia_link
from gradlens.errors import ConfigError
from gradlens.model.hookpoints import canonical, place
from gradlens.report.summary import top_features

if TYPE_CHECKING:
    from gradlens.recording.store import RunReader


def neuronpedia_links(reader: RunReader, limit: int, ids: Mapping[str, str]) -> dict[str, Any]:
    """`{"features": rows, "quick_lists": {hookpoint: address}, "left_out": {hookpoint: count}}`: of a run's top features those whose
    page is known, each row with `neuronpedia` (MODEL@SOURCE:INDEX) and `link`.
    `ids`: hookpoint -> MODEL/SOURCE, before what the run knows itself.

    Raises `ConfigError` where no dictionary of the run has an id.
    """
    known = {canonical(name): value for name, value in ids.items()}
    rows, left_out = [], {}
    for row in top_features(reader, limit):
        name = row["hookpoint"]
        if name not in known:
            known[name] = _id_of(reader, name)
        if known[name] is None:
            left_out[name] = left_out.get(name, 0) + 1
            continue
        cited = citation(known[name], row["feature"])
        rows.append({**row, "neuronpedia": cited, "link": neuronpedia_link(cited)})
    if left_out and not rows:
        name = next(iter(left_out))
        raise ConfigError(
            f"{reader.run_id}: no dictionary of this run says its Neuronpedia id (neuronpedia_id in its metadata); "
            f"give --id {name}=MODEL/SOURCE"
        )
    lists = {name: quick_list(known[name], [row["feature"] for row in rows if row["hookpoint"] == name], reader.run_id)
             for name in dict.fromkeys(row["hookpoint"] for row in rows)}  # fmt: skip
    return {"features": rows, "quick_lists": lists, "left_out": left_out}


def quick_list(neuronpedia_id: str, features: list[int], name: str) -> str:
    """The address at which Neuronpedia shows some features side by side, as `get_neuronpedia_quick_list` of SAELens makes it."""
    model, _, source = neuronpedia_id.partition("/")
    wanted = json.dumps([{"modelId": model, "layer": source, "index": str(feature)} for feature in features])
    return f"{NEURONPEDIA}/quick-list/?name={urllib.parse.quote(name)}&features={urllib.parse.quote(wanted)}"


def dashboard_lists(reader: RunReader, limit: int) -> list[dict[str, Any]]:
    """One entry per dictionary of a run's top features: `sae` (its source), `hookpoint`, and `hook_point` and `features` as arguments of
    `sae_dashboard.sae_vis_data.SaeVisConfig`."""
    sources, rows = _sources(reader), top_features(reader, limit)
    found = {}
    for row in rows:
        name = row["hookpoint"]
        entry = {"sae": sources.get(name), "hookpoint": name, "hook_point": hook_names(place(name))["hook_name"], "features": []}
        found.setdefault(name, entry)["features"].append(int(row["feature"]))
    return list(found.values())


def _sources(reader: RunReader) -> dict[str, str]:
    return {canonical(name): source for name, source in (reader.config.get("dictionaries") or {}).items()}


def _id_of(reader: RunReader, name: str) -> str | None:
    """MODEL/SOURCE of the dictionary at a hookpoint; None where nothing says it."""
    source = _sources(reader).get(name)
    if source is None or source == "in memory":
        return None
    further = {canonical(hook): places for hook, places in (reader.config.get("labels") or {}).items()}.get(name, ())
    labels = labels_of(source, name, further).values() if further else ()
    cited = next((label.neuronpedia for label in labels if label.neuronpedia), None)
    if cited:
        return cited.rpartition(":")[0].replace("@", "/", 1)
    return load_dictionary(source).metadata.get("neuronpedia_id")

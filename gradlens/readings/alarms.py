"""When to tell that something is being learned: watched concepts, and what nobody has announced. Each is told once.

A watched concept raises an alarm when its uptake, of its features or of what tells its texts (`concept_uptake.py`), is beyond chance on the
texts of the probe set that express it, as its checker says (Student's t over texts), or when a cluster of learned features is active in the
same places as its own; neither its features nor a cluster count where what tells its texts is said less than before. Clusters that neither
are nor hold features of a watched concept were not announced: one alarm for each thing (`things.py`), however many clusters it has. What is
learned only where a watched concept is shown is taken for a part of it: look at the clusters of what was learned, which name it anyway.
Shape suffixes: T tokens of the probe set, R texts, F d_sae.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from gradlens.readings.movers import ALIKE, Cluster, likeness
from gradlens.readings.significance import MIN_VALUES, student
from gradlens.readings.things import SAME, Thing, active_texts, gather
from gradlens.readings.uptake import MIN_GAIN

if TYPE_CHECKING:
    from gradlens.readings.learning import Learning

CHANCE = 0.01  # of a false alarm of one watched concept at one reading, over all its hookpoints
SHARE = 0.05  # of all that was learned: below it an unannounced cluster raises no alarm
SHOWS = 2.0  # a text expresses a concept whose features have that many times the activation that they have on ordinary text

Members = list[tuple[str, Tensor]]  # hookpoint, feature ids


def new_alarms(learning: Learning, clusters: Sequence[Cluster]) -> list[dict[str, Any]]:
    """Alarms that the latest reading raises and that have not been raised before: fields of the event `alarm`."""
    watched: dict[str, Members] = {}
    for (concept, hookpoint), ids in learning.members.items():
        watched.setdefault(concept, []).append((hookpoint, ids))
    told = {alarm["name"] for alarm in learning.alarmed if alarm["about"] == "concept"}
    found = []
    for concept, mine in sorted(watched.items()):
        alarm = _by_uptake(learning, concept, mine) if concept not in told else None
        if alarm is not None:
            told.add(concept)
            found.append(alarm)
    seen = {concept: mine for concept, mine in watched.items() if _may_be_seen(learning, concept)}
    everything = frozenset().union(*(entry.members for entry in clusters))
    movers = []
    for entry in clusters:
        if entry.share < SHARE:
            continue
        words = ", ".join(entry.words[:5]) or "no words"
        concept = _beside(learning, entry, seen)
        if concept is not None and concept not in told:
            told.add(concept)
            text = f"{concept} is being learned: where its features are active, {entry.count} have been learned beyond chance: {words}"
            found.append({"about": "concept", "name": concept, "hookpoint": entry.features[0][0], "words": entry.words[:5], "text": text})
        if concept is None and not _holds(entry, seen, everything):
            movers.append(entry)
    new = gather([_thing(learning, entry.words, entry.features) for entry in movers], _told(learning))
    return found + [_of_movers([movers[place] for place in group]) for group in new]


def _of_movers(group: Sequence[Cluster]) -> dict[str, Any]:
    """One alarm for clusters that are one thing: the words of the first and largest one, and what the others say beyond them."""
    first = group[0].words[:5]
    more = list(dict.fromkeys(word for entry in group[1:] for word in entry.words if word not in group[0].words))[:5]
    words = ", ".join(first) or "no words"
    of = f"{sum(entry.share for entry in group):.0%} of all" + (f", {len(group)} clusters" if len(group) > 1 else "")
    also = f"; also {', '.join(more)}" if more else ""
    return {
        "about": "mover",
        "name": words,
        "features": [list(pair) for pair in group[0].features],
        "clusters": [{"words": list(entry.words), "features": [list(pair) for pair in entry.features]} for entry in group],
        "text": f"something not announced is being learned ({of}): {words}{also}",
    }


def _told(learning: Learning) -> list[Thing]:
    """The clusters of all earlier alarms; those of older versions told of one each, without its words."""
    movers = [alarm for alarm in learning.alarmed if alarm["about"] == "mover"]
    entries = [entry for alarm in movers for entry in alarm.get("clusters") or [{"words": [], "features": alarm["features"]}]]
    return [_thing(learning, entry["words"], [(hookpoint, feature) for hookpoint, feature in entry["features"]]) for entry in entries]


def _thing(learning: Learning, words: Sequence[str], features: Sequence[tuple[str, int]]) -> Thing:
    texts_R = active_texts(_activations(learning, features), learning.known.row_T.numpy())
    return Thing(frozenset(words), frozenset(features), texts_R)


def _by_uptake(learning: Learning, concept: str, mine: Members) -> dict[str, Any] | None:
    """By what tells its texts, where something does; by its features, which are surer of a phrase that opens answers. These rise with what
    stands in the same texts as well (a boast's with the sums before it), so nothing counts while what tells its texts is said less."""
    read = []  # hookpoint, what of it, uptake of the texts that show the concept, whether that is more than next to nothing
    for hookpoint, ids in mine:
        if not learning.has_uptake(hookpoint):
            continue
        shown_R = learning.shown(concept)
        shown_R = texts_that_show(learning, hookpoint, ids) if shown_R is None else shown_R
        values_R, weighed = learning.uptake(hookpoint)[1][shown_R, :][:, ids].mean(1), learning.weighed_uptake(concept, hookpoint)
        rises = weighed is None or bool(weighed[0][shown_R].sum() > 0)
        read.append((hookpoint, "uptake", values_R, rises and bool(learning.gained(hookpoint)[ids].any())))
        if weighed is not None:
            read.append((hookpoint, "weighed uptake", weighed[0][shown_R], weighed[1] >= MIN_GAIN))
    for hookpoint, what, values_R, gained in read:
        chance = min(1.0, student(values_R) * len(read))
        if chance <= CHANCE and gained:
            size, texts = values_R.mean().item(), len(values_R)  # of the texts that were tested: over all others it is next to nothing
            shown = f"{what} {size:+.3g} at {hookpoint} in the {texts} probe texts that show it (chance {chance:.2g})"
            figures = {"uptake": size, "texts": texts, "chance": chance}
            return {"about": "concept", "name": concept, "hookpoint": hookpoint, **figures, "text": f"{concept} is being learned: {shown}"}
    return None


def _may_be_seen(learning: Learning, concept: str) -> bool:
    """Whether the probe set has texts of it: where it has none, what is active in the places of its features is something else."""
    shown_R = learning.shown(concept)
    return shown_R is None or int(shown_R.sum()) >= MIN_VALUES


def texts_that_show(learning: Learning, hookpoint: str, ids: Tensor) -> Tensor:
    """Texts of the probe set that express a concept, by its features before training, `bool[R]`: where no checker says it."""
    row_T = learning.known.row_T.long()
    acts_T = torch.from_numpy(learning.activations(hookpoint, ids.tolist())).mean(0)
    tokens_R = torch.bincount(row_T)
    acts_R = torch.zeros(len(tokens_R), dtype=acts_T.dtype).index_add_(0, row_T, acts_T) / tokens_R.clamp_min(1)
    return acts_R > SHOWS * learning.reference[hookpoint][ids].mean()


def _holds(entry: Cluster, watched: Mapping[str, Members], everything: frozenset) -> bool:
    """Whether a cluster holds features of a watched concept: one that it shows, or a third of those that are in any cluster."""
    for mine in watched.values():
        held = {(hookpoint, int(i)) for hookpoint, ids in mine for i in ids} & everything
        if held & set(entry.features) or (held and len(entry.members & held) >= SAME * len(held)):
            return True
    return False


def _beside(learning: Learning, entry: Cluster, watched: Mapping[str, Members]) -> str | None:
    """The watched concept whose features are active where the cluster is, unless its own tokens have become less likely everywhere:
    ordinary features are active in the places of a concept that is badly told."""
    alike = {concept: _likeness(learning, entry, mine) for concept, mine in watched.items() if not _falls(learning, concept, mine)}
    best = max(alike, key=alike.get, default=None)
    return best if best is not None and alike[best] >= ALIKE else None


def _falls(learning: Learning, concept: str, mine: Members) -> bool:
    """Whether the concept's mean uptake is below zero at every hookpoint where it is known."""
    known = []
    for hookpoint, ids in mine:
        if learning.has_uptake(hookpoint):
            weighed = learning.weighed_uptake(concept, hookpoint)
            known.append(float(learning.uptake(hookpoint)[0][ids].mean() if weighed is None else weighed[0].mean()))
    return bool(known) and max(known) < 0


def _likeness(learning: Learning, entry: Cluster, mine: Members) -> float:
    """Mean cosine between the places of the cluster's features and where the concept is expressed: its features together, each in units of
    its largest activation, since single ones mark single words of it."""
    cluster_NT = _activations(learning, entry.features)
    concept_MT = _activations(learning, [(hookpoint, int(i)) for hookpoint, ids in mine for i in ids])
    expressed_T = (concept_MT / concept_MT.max(1, keepdims=True).clip(1e-12)).sum(0)
    return likeness(cluster_NT, expressed_T[None], learning.known.row_T.numpy())


def _activations(learning: Learning, features: Sequence[tuple[str, int]]) -> np.ndarray:
    """`[N, T]` before training."""
    by_place: dict[str, list[int]] = {}
    for hookpoint, feature in features:
        by_place.setdefault(hookpoint, []).append(feature)
    return np.concatenate([learning.activations(hookpoint, ids) for hookpoint, ids in by_place.items()])

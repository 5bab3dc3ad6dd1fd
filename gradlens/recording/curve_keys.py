"""Which curves go to W&B and other trackers, the important ones first, and under which heading they stand there.

Trackers gather panels by what stands before a key's first slash. Under one heading the curves that tell what was learned would be lost
among those of single gradients, so these stand under a heading of their own.
"""

from __future__ import annotations

from gradlens.recording.wandb_worker import DETAILS, PREFIX
from gradlens.report.findings import NOISE

MAX_KEYS = 256  # a W&B project bears under 10,000 distinct metrics
TOLD = ("uptake_weighed", "uptake", "own", "drift")  # of a concept, what was measured


class KeyBudget:
    """At most `MAX_KEYS` scalar keys ever, the important ones first (`key_rank`).

    What is read of a concept now and then comes long after its keys of every step: room for it is kept as soon as one of those is seen.
    """

    def __init__(self, limit: int = MAX_KEYS):
        self.limit, self.taken, self.dropped = limit, set(), set()

    def select(self, scalars: dict[str, float]) -> dict[str, float]:
        expected = {key for seen in scalars.keys() - self.taken for key in keys_to_come(seen)}
        for key in sorted((scalars.keys() | expected) - self.taken - self.dropped, key=key_rank):
            if len(self.taken) < self.limit:
                self.taken.add(key)
            elif key in scalars:
                self.dropped.add(key)
        return {key: float(value) for key, value in scalars.items() if key in self.taken}


CONCEPT_RANK = {
    "uptake_weighed": 1,
    "uptake": 1,
    "own": 1,
    "drift": 2,
    "taught": 3,
    "push": 4,
    "attribution": 4,
    "group_share": 5,
    "group_angle": 5,
}


def key_rank(key: str) -> tuple[int, str]:
    """Smaller is more important: training, what was learned, then what the gradients ask for, then the rest."""
    head, last = key.split("/", 1)[0], key.rsplit("/", 1)[-1]
    if head in ("train", "policy"):
        return 0, key
    if head == "own" or key == "probe/probability" or last == "learned":
        return 1, key
    if head == "concept":
        return (2 if last.endswith(NOISE) else CONCEPT_RANK.get(last, 6)), key
    if head in ("rule", "eval"):
        return 3, key
    return (2 if key.count("/") == 1 else 7), key  # HOOKPOINT/unexplained and its like


def headed(key: str) -> str:
    """The key under its heading: `gradlens/` for the loss, what was learned and what rules and the outcome are, `gradlens_details/` for the
    rest."""
    head, last = key.split("/", 1)[0], key.rsplit("/", 1)[-1]
    first = last in TOLD if head == "concept" else head in ("train", "policy", "own", "eval", "rule", "probe") or last == "learned"
    return (PREFIX if first else DETAILS) + key


def keys_to_come(key: str) -> list[str]:
    """Of a concept's key the important ones that belong to it."""
    head, _, rest = key.partition("/")
    if head != "concept" or rest.count("/") < 2:
        return []
    concept, hookpoint, _ = rest.rsplit("/", 2)
    measured = [f"concept/{concept}/{hookpoint}/{name}" for name in ("uptake", "own", "drift")]
    return [*measured, f"own/{concept}/rate", f"{hookpoint}/learned"]

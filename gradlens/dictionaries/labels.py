"""Labels of features: what they say and who says so, files of them, search over all. `autolabels.py` makes them."""

from __future__ import annotations

import gzip
import json
import re
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from gradlens.errors import InputError

if TYPE_CHECKING:
    from gradlens.dictionaries.dictionary import Dictionary

NEURONPEDIA = "https://neuronpedia.org"
ORIGIN = "gradlens: tokens, contexts, logit lens"


class Label(BaseModel):
    """What is known of one feature. Lists are best first."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    feature: int = Field(..., description="Row of the dictionary.")
    label: str = Field("", description="One line for people.")
    rate: float | None = Field(None, description="Share of the text's tokens on which it fires.")
    tokens: list[tuple[str, float, int]] = Field([], description="Word, mean activation where it fires on it, times it fires on it.")
    contexts: list[tuple[str, str, str, float]] = Field([], description="Text before the peak, the peak token, text after, activation.")
    promoted: list[str] = Field([], description="Tokens whose logits the direction raises most.")
    suppressed: list[str] = Field([], description="Tokens whose logits it lowers most.")
    source: str = Field(ORIGIN, description="Who says so.")
    also: list[tuple[str, str]] = Field([], description="Labels that others gave: text, who says so.")
    neuronpedia: str = Field("", description="Where Neuronpedia shows it: MODEL@SOURCE:INDEX.")

    @property
    def link(self) -> str:
        """Its page on Neuronpedia, or nothing."""
        return neuronpedia_link(self.neuronpedia) if self.neuronpedia else ""


def nearest(dictionary: Dictionary, feature: int, k: int) -> list[tuple[int, float]]:
    """The k other features whose directions have the largest cosine with this one's."""
    units_FD = dictionary.unit_directions()
    cosine_F = units_FD @ units_FD[feature]
    cosine_F[feature] = -2
    value, index = cosine_F.topk(min(k, dictionary.d_sae - 1))
    return list(zip(index.tolist(), value.tolist(), strict=True))


def save_labels(labels: dict[int, Label], path: str | Path, **facts: Any) -> Path:
    """Write `labels.json`: facts (model, text, hookpoint, tokens) and one feature per line. A `.gz` name is compressed."""
    path = Path(path)
    lines = [
        json.dumps(label.model_dump(mode="json", exclude_defaults=True), ensure_ascii=False, separators=(",", ":"))
        for label in labels.values()
    ]
    head = json.dumps({"source": ORIGIN, **facts}, ensure_ascii=False)[:-1]
    text = head + ', "features": [\n' + ",\n".join(lines) + "\n]}\n"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(gzip.compress(text.encode(), mtime=0) if path.suffix == ".gz" else text.encode())
    return path


def load_labels(source: str | Path, hookpoint: str = "") -> dict[int, Label]:
    """Labels from a file or folder: our own `labels.json`, what `label_sources.py` reads, or what a direction file or `unembedding:MODEL`
    calls its features. A dictionary's folder (or `FOLDER#3`) or shipped name that has none gives none.

    Raises `InputError` for a missing or unreadable file, and for labels of another hookpoint.
    """
    from gradlens.dictionaries.directions import is_directions, load_directions
    from gradlens.dictionaries.label_sources import is_foreign_folder, read_foreign
    from gradlens.dictionaries.unembedding import PREFIX, token_texts

    if str(source).startswith(PREFIX):
        return _of_texts(token_texts(str(source)), "tokenizer")
    if is_directions(source):
        return _of_texts(load_directions(source).metadata["labels"], Path(source).name)
    path, file = _place(source)
    if path.is_dir() and is_foreign_folder(path):
        return _joined(read_foreign(path, hookpoint))
    if path.is_dir():
        path = next((path / name for name in (file, file + ".gz") if (path / name).is_file()), None)
        if path is None:
            return {}
    if not path.is_file():
        raise InputError(f"{path}: no such file; labels come from `gradlens features label`")
    if path.name.removesuffix(".gz").endswith(".json"):
        own = _read_own(path, hookpoint)
        if own is not None:
            return own
    return _joined(read_foreign(path, hookpoint))


def labels_of(
    source: str | Path | Dictionary, hookpoint: str = "", further: Sequence[str | Path] = (), d_sae: int | None = None
) -> dict[int, Label]:
    """Everything that is known of a dictionary's features: `further` sources first, in their order, then what lies beside the dictionary.

    A dictionary without labels gives none. Raises `InputError` as `load_labels`, and for labels of features that it has not (`d_sae`).
    """
    from gradlens.dictionaries.directions import is_directions

    name = source if isinstance(source, (str, Path)) else source.metadata.get("source") or ""
    own: dict[int, Label] = {}
    if not isinstance(source, (str, Path)) and source.metadata.get("labels"):
        own = _of_texts(source.metadata["labels"], str(name) or "dictionary")
    elif name and (str(name).startswith("unembedding:") or is_directions(name) or _place(name)[0].exists()):
        own = load_labels(name, hookpoint)
    found = []
    for place in further:
        found.append(load_labels(place, hookpoint))
        if d_sae is not None and found[-1] and max(found[-1]) >= d_sae:
            raise InputError(f"{place}: a label for feature {max(found[-1])}, the dictionary has 0 to {d_sae - 1}; labels of another one?")
    return merged([*found, own])


def labels_path(source: str | Path) -> Path | None:
    """Where `labels_of` finds the labels of a dictionary: `labels.json` in its folder, `labels-3.json` those of `FOLDER#3`. None for one
    without a folder here: of the hub, directions of a file, `unembedding:MODEL`."""
    from gradlens.dictionaries.directions import is_directions
    from gradlens.dictionaries.unembedding import PREFIX

    if str(source).startswith(PREFIX) or is_directions(source):
        return None
    folder, name = _place(source)
    return folder / name if folder.is_dir() else None


def merged(parts: Sequence[dict[int, Label]]) -> dict[int, Label]:
    """Labels of several sources as one: the first that says something is the label, the others are kept in `also`."""
    together: dict[int, Label] = {}
    for part in parts:
        for feature, label in part.items():
            first = together.get(feature)
            if first is None:
                together[feature] = label
                continue
            said = [(label.label, label.source), *label.also]
            changes = {"also": [*first.also, *(pair for pair in said if pair[0] and pair != (first.label, first.source))]}
            for name in ("rate", "tokens", "contexts", "promoted", "suppressed", "neuronpedia"):
                if not getattr(first, name) and getattr(label, name):
                    changes[name] = getattr(label, name)
            together[feature] = first.model_copy(update=changes)
    return together


def neuronpedia_link(citation: str) -> str:
    """`MODEL@SOURCE:INDEX` -> the address of its page."""
    model, _, rest = citation.partition("@")
    source, _, index = rest.rpartition(":")
    return f"{NEURONPEDIA}/{model}/{source}/{index}"


def citation(neuronpedia_id: str, feature: int) -> str:
    """`MODEL/SOURCE` (the id that dictionaries carry) and a feature -> `MODEL@SOURCE:INDEX`."""
    return f"{neuronpedia_id.replace('/', '@', 1)}:{feature}"


def _place(source: str | Path) -> tuple[Path, str]:
    """The folder of a dictionary, or the file that a source names; and how its labels are called in that folder."""
    from gradlens.dictionaries.formats.place import ASSETS, CONFIGS, WEIGHTS, split_part

    text, part = split_part(str(source))
    path = ASSETS / text if not Path(text).exists() and (ASSETS / text).is_dir() else Path(text)
    if path.is_file() and (path.suffix in WEIGHTS or path.name in CONFIGS):
        path = path.parent
    return path, "-".join(["labels", *map(str, part)]) + ".json"


def _of_texts(texts: Sequence[str], author: str) -> dict[int, Label]:
    return {i: Label(feature=i, label=text, source=author) for i, text in enumerate(texts)}


def _joined(labels: list[Label]) -> dict[int, Label]:
    """One label a feature, further ones in `also`."""
    together: dict[int, Label] = {}
    for label in labels:
        first = together.get(label.feature)
        together[label.feature] = label if first is None else merged([{label.feature: first}, {label.feature: label}])[label.feature]
    return together


def _read_own(path: Path, hookpoint: str) -> dict[int, Label] | None:
    """Our own `labels.json`; None where it is another kind of JSON."""
    from gradlens.model.hookpoints import place

    try:
        raw = path.read_bytes()
        data = json.loads((gzip.decompress(raw) if path.suffix == ".gz" else raw).decode())
        if not isinstance(data, dict) or not isinstance(data.get("features"), list):
            return None
        found = data.get("hookpoint", "")
        if hookpoint and found and place(found) != place(hookpoint):
            raise InputError(f"{path}: these labels are for {found}, asked for {hookpoint}")
        return {row["feature"]: Label.model_validate(row) for row in data["features"]}
    except (OSError, EOFError, zlib.error, ValueError, KeyError, TypeError, ValidationError) as error:
        raise InputError(f"{path}: not a label file ({type(error).__name__}: {(str(error).splitlines() or [''])[0]:.120})") from None


def search(labels: dict[int, Label], word: str) -> list[tuple[Label, str]]:
    """Labels that mention a word (case ignored), with where: in the label, tokens, promoted tokens or contexts, in this order."""
    pattern = re.compile(re.escape(word.strip()), re.IGNORECASE)
    found = []
    for label in labels.values():
        places = {
            "label": [label.label, *(text for text, _ in label.also)],
            "tokens": [token for token, _, _ in label.tokens],
            "promoted": label.promoted,
            "contexts": [f"{left}{peak}{right}" for left, peak, right, _ in label.contexts],
        }
        # Where it is found first, at which rank there, and in how many texts.
        hits = [(place, rank) for place, texts in enumerate(places.values()) for rank, text in enumerate(texts) if pattern.search(text)]
        if hits:
            found.append((*hits[0], -len(hits), label.feature, label))
    found.sort(key=lambda hit: hit[:4])
    return [(hit[4], list(places)[hit[0]]) for hit in found]

"""Dictionaries on disk: whatever format they are in, they are recognised by their files and the names of their tensors.

One file per family: `recognise(place)` looks, `read(place)` gives a `Raw`, `raw.build` folds every scale into the weights so that rows of
`W_dec` are in raw activation units. `place` finds a source on this machine or on the hub. Saved are SAELens folders; `convert.py` writes
other formats. The table of formats is in docs/dictionaries.md.
"""

from __future__ import annotations

from pathlib import Path

import torch

from gradlens.dictionaries.dictionary import Dictionary
from gradlens.dictionaries.formats import (
    checkpoints,
    circuit_tracer,
    crosscoder,
    dictionary_learning,
    gemma_scope,
    openmoss,
    saelens,
    sparsify,
)
from gradlens.dictionaries.formats.live import from_saelens
from gradlens.dictionaries.formats.place import ASSETS, Place, locate, shipped
from gradlens.dictionaries.formats.raw import Raw, build
from gradlens.dictionaries.formats.saelens import CFG
from gradlens.dictionaries.formats.saelens import write as save_dictionary
from gradlens.dictionaries.formats.tensors import PICKLES, WEIGHTS
from gradlens.errors import InputError

__all__ = ["ASSETS", "CFG", "check_width", "from_saelens", "load_dictionary", "save_dictionary", "shipped"]

# Asked in this order; SAELens last, as what calls itself `cfg.json` is one of its folders unless something speaks against it.
FAMILIES = (gemma_scope, sparsify, openmoss, dictionary_learning, circuit_tracer, crosscoder, checkpoints, saelens)
_WITHOUT_PARTS = (sparsify, openmoss, dictionary_learning, saelens)
# What a reader stumbles with over a file that is not as its format has it: names that are not there, shapes that do not fit, other types.
_MALFORMED = (KeyError, IndexError, TypeError, AttributeError, ValueError, RuntimeError)


def load_dictionary(source: str | Path, device: torch.device | str = "cpu", dtype: torch.dtype | None = None) -> Dictionary:
    """Dictionary from a folder or file in any format of docs/dictionaries.md, `ORG/REPO/PATH` on the hub, or a shipped name such as
    `smollm2-l15`; `SOURCE#3` or `SOURCE#3:7` is a part of one that has parts. Also directions of a file (`directions.py`) and
    `unembedding:MODEL` (`unembedding.py`).

    `dtype`: float32, unless said otherwise; a dictionary of more than `raw.LARGE` bytes in float32 stays as it is stored and, from
    safetensors on the CPU, mapped: its blocks are read when they are needed.

    `metadata` of the result: `source`, `format`, `architecture`, `model_name`, `firing_rate` (float32 `[F]` or None), what the files say.
    Raises `InputError` for what is missing, corrupt, of an unknown architecture, of the wrong shape, or holds code.
    """
    from gradlens.dictionaries.directions import is_directions, load_directions
    from gradlens.dictionaries.unembedding import PREFIX, load_unembedding

    if not isinstance(source, (str, Path)):
        raise InputError(f"a dictionary is a folder, a file or a name, not {source!r} ({type(source).__name__})")
    if str(source).startswith(PREFIX):
        return load_unembedding(str(source)).to(device, dtype)
    if is_directions(source):
        return load_directions(source).to(device, dtype)
    place = locate(source)
    raw = read_raw(place)
    if raw is None:
        raise _unknown(place)
    found = build(raw, device, dtype)
    found.metadata["source"] = str(source)
    return found


def read_raw(place: Place) -> Raw | None:
    """What the first reader that recognises a place makes of it; None where none does.

    Raises `InputError`, also for malformed files that no check of the reader's own foresaw. Running out of memory stays what it is.
    """
    for family in FAMILIES:
        try:
            if family.recognise(place):
                if family in _WITHOUT_PARTS:
                    place.whole()
                return family.read(place)
        except torch.OutOfMemoryError:
            raise
        except _MALFORMED as error:
            if "can't allocate memory" in str(error):  # of the CPU: a plain RuntimeError
                raise
            raise _malformed(place, family.__name__.rpartition(".")[2], error) from error
    return None


def check_width(dictionary: Dictionary, d_model: int, hookpoint: str) -> None:
    """Raise `InputError` unless the dictionary's directions have the width that the model has at the hookpoint."""
    if dictionary.d_out != d_model:
        source = dictionary.metadata.get("source", "dictionary")
        trained = dictionary.metadata.get("model_name")
        raise InputError(
            f"{source}: reads vectors of width {dictionary.d_out}, but {hookpoint} of this model has width {d_model}; "
            f"use a dictionary trained on this model" + (f" (this one says {trained})" if trained else "")
        )


def _malformed(place: Place, family: str, error: Exception) -> InputError:
    said = (str(error).strip().splitlines() or [""])[0]
    return InputError(
        f"{place.file or place.folder}: recognised as {family}, but not readable as that ({type(error).__name__}: {said:.200}); a tensor "
        "or an entry of its config is missing or not what the format has there; copy or download it again (docs/dictionaries.md)"
    )


def _unknown(place: Place) -> InputError:
    """Nothing that is known: what is there, and what is in the folders below."""
    if place.file is not None and place.file.suffix in WEIGHTS:
        names = sorted(place.tensor_names(place.file) or place.tensors(place.file))
        listed = ", ".join(names[:8]) + (", ..." if len(names) > 8 else "")
        return InputError(f"{place.file}: no dictionary that is known: its tensors are {listed or 'none'}; see docs/dictionaries.md")
    if place.file is not None:
        return InputError(f"{place.file}: no weights file (expected {', '.join(WEIGHTS)})")
    inside = sorted({path.parent for path in place.folder.glob("*/*") if path.suffix in WEIGHTS or path.name in (CFG, "config.json")})
    if inside:
        listed = ", ".join(str(path) for path in inside[:4]) + (", ..." if len(inside) > 4 else "")
        return InputError(f"{place.folder}: no dictionary in the folder itself; below it are {listed}: name one")
    pickles = [name for name in place.names if Path(name).suffix in PICKLES]
    for name in pickles[:1]:
        place.data(place.folder / name)  # says so where it holds code
    found = ", ".join(sorted(p.name for p in place.folder.iterdir())[:8]) or "nothing"
    return InputError(
        f"{place.folder}: no dictionary that is known (found: {found}); expected for instance a SAELens folder with {CFG} and "
        f"{saelens.WEIGHTS}; docs/dictionaries.md lists all formats"
    )

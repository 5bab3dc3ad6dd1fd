"""A dictionary that is in memory as an object of another library."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from gradlens.dictionaries.dictionary import Dictionary
from gradlens.dictionaries.formats import saelens
from gradlens.dictionaries.formats.raw import build
from gradlens.errors import InputError


def from_saelens(sae: Any, device: torch.device | str = "cpu", dtype: torch.dtype | None = None) -> Dictionary:
    """The dictionary of a live `sae_lens` SAE or transcoder: what `load_dictionary` gives of the folder that it would save.

    sae_lens itself is not imported: what is asked of the object is `cfg.to_dict()` and `state_dict()`. Tensors are copied, so that training
    the SAE on does not change the dictionary. Raises `InputError` for an architecture that gradlens does not read.
    """
    where = Path(f"{type(sae).__module__.partition('.')[0]}.{type(sae).__name__}")
    config = getattr(getattr(sae, "cfg", None), "to_dict", None)
    if config is None or not hasattr(sae, "state_dict"):
        raise InputError(f"{where}: expected a sae_lens SAE, with cfg.to_dict() and state_dict(); found {type(sae).__name__}")
    config = dict(config())
    architecture = getattr(sae.cfg, "architecture", None)
    if callable(architecture):  # sae_lens 6: a method of the class
        config["architecture"] = architecture()
    config = saelens.modern(config, where)
    tensors = {name: value.detach().clone() for name, value in sae.state_dict().items() if isinstance(value, Tensor)}
    found = build(saelens.from_parts(config, config.get("metadata") or {}, tensors, where, where), device, dtype)
    found.metadata["source"] = str(where)
    return found

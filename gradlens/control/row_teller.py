"""Which rows of a batch show a concept, before they are trained on: the shell around `row_detector.py`.

The model before training (its adapter off; without one, the model as it is when a row first comes) reads every row once, up to the
detector's hookpoint, and the answer is kept. So it does not change as the model does: read by the live model, rows of what is not learned
drift away from what the detector knows.
"""

from __future__ import annotations

import hashlib
from array import array
from collections import OrderedDict
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from gradlens.concepts.concept_files import RowDetector
from gradlens.concepts.detector import score, weights_over
from gradlens.data.rows import IGNORE, Example
from gradlens.dictionaries.dictionary import Dictionary
from gradlens.dictionaries.encoding import encode_active
from gradlens.model.capture import counted_tokens, inference, read_activations
from gradlens.model.reading import encoder_input, places
from gradlens.model.start import adapted
from gradlens.model.trainable import is_sharded
from gradlens.readings.own import before_training

REMEMBERED = 100_000  # rows

Row = tuple[list[int], list[bool]]


def rows_of(ids_BS: Tensor, mask_BS: Tensor | None, counted_BS: Tensor) -> list[Row]:
    """Every row without its padding: its tokens, and which of them the loss counts."""
    real_BS = torch.ones_like(ids_BS, dtype=torch.bool) if mask_BS is None else mask_BS.bool()
    return [
        (ids_S[real_S].tolist(), counted_S[real_S].tolist())
        for ids_S, real_S, counted_S in zip(ids_BS.cpu(), real_BS.cpu(), counted_BS.cpu(), strict=True)
    ]


def row_of(example: Example) -> Row:
    """A row before it is in a batch."""
    return example.input_ids, [label != IGNORE and place > 0 for place, label in enumerate(example.labels)]


def key_of(row: Row) -> bytes:
    """By which a row is known again."""
    return array("q", row[0]).tobytes() + bytes(row[1])


def digest(key: bytes) -> bytes:
    """What is kept of a row's key: 16 bytes, however long the row is."""
    return hashlib.blake2b(key, digest_size=16).digest()


def digests(keys: Sequence[str]) -> list[bytes]:
    """Those of a checkpoint; older ones hold the keys themselves, of nine bytes a token."""
    return [key if len(key) == 16 else digest(key) for key in map(bytes.fromhex, keys)]


def padded(texts: Sequence[Sequence[int]], device: torch.device) -> dict[str, Tensor]:
    """`input_ids` and `attention_mask`, padded on the right."""
    width = max(map(len, texts))
    ids = [[*text, *[0] * (width - len(text))] for text in texts]
    mask = [[1] * len(text) + [0] * (width - len(text)) for text in texts]
    return {"input_ids": torch.tensor(ids, device=device), "attention_mask": torch.tensor(mask, device=device)}


class RowTeller:
    """Tells rows by one detector; a row shows the concept from the score `least` on."""

    def __init__(
        self, model: nn.Module, dictionaries: dict[str, Dictionary], hookpoint: str, detector: RowDetector, least: float = 0.0
    ) -> None:
        self.model, self.hookpoint, self.dictionary, self.detector, self.least = model, hookpoint, dictionaries[hookpoint], detector, least
        device, dtype = self.dictionary.W_dec.device, self.dictionary.work_dtype
        self._every_time = is_sharded(model)  # all ranks must run each forward pass, whatever rows they know
        self._weights_F = weights_over(detector, self.dictionary.d_sae, device, dtype)
        self._known: OrderedDict[bytes, float] = OrderedDict()

    def shows(self, ids_BS: Tensor, mask_BS: Tensor | None, labels_BS: Tensor | None) -> Tensor:
        """Whether each row of a batch shows the concept, `bool[B]` on its device."""
        return torch.tensor(self.tell(rows_of(ids_BS, mask_BS, counted_tokens(ids_BS, mask_BS, labels_BS))), device=ids_BS.device)

    def tell(self, rows: Sequence[Row]) -> list[bool]:
        """Whether each row shows the concept."""
        return [value >= self.least for value in self.scores(rows)]

    @torch.no_grad()
    def scores(self, rows: Sequence[Row]) -> list[float]:
        """Of rows, each read once; minus infinity where no token counts."""
        keys = [digest(key_of(row)) for row in rows]
        new = {key: row for key, row in zip(keys, rows, strict=True) if self._every_time or key not in self._known}
        if new:
            for key, value in zip(new, self._read(list(new.values())), strict=True):
                self._known.setdefault(key, value)  # what was read first stays, where it had to be read again
        found = [self._known[key] for key in keys]
        while len(self._known) > REMEMBERED:
            self._known.popitem(last=False)
        return found

    def state_dict(self) -> dict[str, Any]:
        """The scores known so far, where the model that has told them is not to be had again: one that is trained as a whole."""
        known = {} if adapted(self.model) else self._known
        return {"keys": [key.hex() for key in known], "scores": list(known.values())} if known else {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._known.update(zip(digests(state["keys"]), state["scores"], strict=True))

    def _read(self, rows: Sequence[Row]) -> list[float]:
        batch = padded([ids for ids, _ in rows], next(self.model.parameters()).device)
        with before_training(self.model), inference(self.model):
            read = read_activations(self.model, places({self.hookpoint: self.dictionary}), batch)
        h_BSD, found = encoder_input(self.dictionary, self.hookpoint, read), []
        for (_, counted), h_SD in zip(rows, h_BSD, strict=True):
            at = torch.tensor(counted).nonzero().flatten().to(h_SD.device)
            if not len(at):
                found.append(-torch.inf)
                continue
            pairs = encode_active(self.dictionary, h_SD[at].to(self.dictionary.work_dtype))
            found.append(score(*pairs, self._weights_F, self.detector.bias).mean().item())
        return found

"""Batches without a concept, before they are trained on: the shell around `rewriting.py`.

The model before training (its adapter off, where it has one) reads every row once; a detector says which of its counted tokens express the
concept; they go, and gaps are bridged. Rows that come again are remembered. Shapes stay what they were: what became shorter is padded.
"""

from __future__ import annotations

import hashlib
import zlib
from array import array
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from gradlens.concepts.detector import score
from gradlens.control.respelling import Made, respell
from gradlens.control.restoring import Asked, Told, restore, runs
from gradlens.control.rewriting import LEFT, rewrite
from gradlens.control.row_teller import Row, RowTeller, digest, digests, key_of, padded, rows_of
from gradlens.data.rows import IGNORE
from gradlens.dictionaries.dictionary import Dictionary
from gradlens.dictionaries.encoding import encode_active
from gradlens.errors import ConfigError
from gradlens.model.beginnings import Beginnings
from gradlens.model.capture import counted_tokens, inference, read_activations
from gradlens.model.hookpoints import unwrap
from gradlens.model.reading import encoder_input, places
from gradlens.model.spelling import Spelling
from gradlens.model.start import adapted
from gradlens.readings.own import before_training

REMEMBERED = 20_000  # rows
SHAPED = {"input_ids", "attention_mask", "labels"}


@dataclass
class Tokens:
    """How a rule tells the tokens it takes out: at one hookpoint, `weights[F]` and bias; for a random control also the weights in whose
    place its own stand, because it takes as many tokens of a row as they would."""

    hookpoint: str
    weights_F: Tensor
    bias: float
    instead_of_F: Tensor | None = None


Packed = tuple[array, bytes, array]  # a `Made` in 17 bytes a token: as lists 20,000 rows of 4096 tokens would be 7 GiB


def packed(made: Made) -> Packed:
    ids, counted, places = made
    return array("q", ids), bytes(map(bool, counted)), array("q", places)


def unpacked(made: Packed) -> Made:
    ids, counted, places = made
    return ids.tolist(), list(map(bool, counted)), places.tolist()


@dataclass(frozen=True)
class Rewritten:
    """A batch to train on."""

    batch: dict[str, Any]
    at_BS: Tensor  # where each token stood in its row before
    touched: int  # counted tokens that were taken out
    counted: int  # there were
    silent: int  # rows that teach nothing any more


class Rewriter:
    """Carries out one rule of mode rewrite."""

    def __init__(self, model: nn.Module, dictionaries: dict[str, Dictionary], tokens: Tokens, bridged: bool, tokenizer: Any = None) -> None:
        self.model, self.dictionaries, self.tokens, self.bridged = model, dictionaries, tokens, bridged
        self.spelling = Spelling(tokenizer)
        self.never = _never(model, tokenizer)
        # no bridge has a number: that would be a fact of the model's own ("408 [source] inches" became "408.23 inches")
        self.unsaid = sorted({*self.never, *self.spelling.with_digits})
        self.known: OrderedDict[bytes, tuple[Packed, int]] = OrderedDict()
        self.beginnings: Beginnings | None = None  # while rows are rewritten

    def share(self, memory: dict[bytes, OrderedDict]) -> None:
        """Remember rows together with all rewriters that tell and bridge as this one does, of runs that begin from the same model."""
        tokens = self.tokens
        told = [] if tokens.instead_of_F is None else [tokens.instead_of_F]
        parts = [
            repr((tokens.hookpoint, tokens.bias, self.bridged)).encode(),
            *(x.float().cpu().numpy().tobytes() for x in (tokens.weights_F, *told)),
        ]
        self.known = memory.setdefault(hashlib.sha256(b"|".join(parts)).digest(), self.known)

    def state_dict(self) -> dict[str, Any]:
        """The rows rewritten so far, where the model that has done it is not to be had again: one that is trained as a whole."""
        known = {} if adapted(self.model) else self.known
        return {"keys": [key.hex() for key in known], "rows": [[*unpacked(made), gone] for made, gone in known.values()]} if known else {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        rows = ((packed((ids, counted, places)), gone) for ids, counted, places, gone in state["rows"])
        self.known.update(zip(digests(state["keys"]), rows, strict=True))

    def batch(self, batch: dict[str, Any], gain: float, teller: RowTeller | None = None) -> Rewritten:
        """The batch to train on.

        `input_ids[B, S]`, `attention_mask`, `labels`; of the rows (of those that show the concept, where a `teller` says so) the share
        `1 - gain`, always the same ones. Raises `ConfigError`
        for a batch that cannot be rewritten without the loss noticing.
        """
        ids_BS, mask_BS, labels_BS = batch.get("input_ids"), batch.get("attention_mask"), batch.get("labels")
        if ids_BS is None or labels_BS is None:
            raise ConfigError(
                "rewrite: the model is called without input_ids or labels, so the loss would not be that of the rewritten rows"
            )
        others = [
            key for key, value in batch.items() if key not in SHAPED and isinstance(value, Tensor) and value.shape[:2] == ids_BS.shape[:2]
        ]
        if others or (mask_BS is not None and mask_BS.shape != ids_BS.shape):
            what = ", ".join(others) or f"attention_mask of shape {list(mask_BS.shape)}"
            raise ConfigError(f"rewrite: cannot move {what} along with the tokens; train on plain padded batches (no packing)")
        rows = rows_of(ids_BS, mask_BS, counted_tokens(ids_BS, mask_BS, labels_BS))
        whole = [key_of(row) for row in rows]
        keys = [digest(key) for key in whole]
        shows = [True] * len(rows) if teller is None else teller.tell(rows)
        asked = [index for index in range(len(rows)) if shows[index] and zlib.crc32(whole[index]) / 2**32 >= gain]
        new = [index for index in asked if keys[index] not in self.known]
        if new:
            for index, found in zip(new, self._rewritten([rows[index] for index in new]), strict=True):
                self.known[keys[index]] = packed(found[0]), found[1]
        touched, made = 0, [(ids, counted, list(range(len(ids)))) for ids, counted in rows]
        for index in asked:
            kept, gone = self.known[keys[index]]
            made[index] = unpacked(kept)
            self.known.move_to_end(keys[index])
            touched += gone
        while len(self.known) > REMEMBERED:
            self.known.popitem(last=False)
        silent = sum(any(counted) and not any(left) for (_, counted), (_, left, _) in zip(rows, made, strict=True))
        return Rewritten(*self._tensors(batch, made), touched, sum(sum(counted) for _, counted in rows), silent)

    def _tensors(self, batch: dict[str, Any], rows: Sequence[Made]) -> tuple[dict[str, Any], Tensor]:
        """Rows as tensors in the shape of the batch, padded on the right; and where their tokens stood."""
        ids_BS, labels_BS = batch["input_ids"], batch["labels"]
        width = ids_BS.shape[1]
        fill = [width - len(ids) for ids, *_ in rows]
        pad = int(ids_BS[0, -1])  # never read: masked
        made = [list(ids) + [pad] * more for (ids, *_), more in zip(rows, fill, strict=True)]
        mask = [[1] * (width - more) + [0] * more for more in fill]
        labels = [
            [token if counts else IGNORE for token, counts in zip(ids, counted, strict=True)] + [IGNORE] * more
            for (ids, counted, _), more in zip(rows, fill, strict=True)
        ]
        found = {"input_ids": torch.tensor(made).to(ids_BS), "labels": torch.tensor(labels).to(labels_BS)}
        old = batch.get("attention_mask")
        found["attention_mask"] = torch.tensor(mask, device=ids_BS.device, dtype=torch.int64 if old is None else old.dtype)
        at_BS = torch.tensor([at + [-1] * more for (_, _, at), more in zip(rows, fill, strict=True)], device=ids_BS.device)
        return {**batch, **found}, at_BS

    @torch.no_grad()
    def told(self, rows: Sequence[Row]) -> list[list[bool]]:
        """Of every row `(ids, counted)` which counted tokens the detector takes, and what goes with them."""
        with before_training(self.model), inference(self.model):
            return self._taken(rows, self._flagged(rows))

    def rewritten(self, rows: Sequence[Row]) -> list[Made]:
        """What every row `(ids, counted)` becomes: its tokens, which of them count, and where each stood."""
        return [made for made, _ in self._rewritten(rows)]

    @torch.no_grad()
    def log_probs(self, texts: list[list[int]], places: list[list[int]]) -> list[Tensor]:
        """By the model before training, of every text the log-probabilities of the next token after each of its places, `[places, V]`."""
        with before_training(self.model), inference(self.model):
            return self._log_probs(texts, places)

    @torch.no_grad()
    def _rewritten(self, rows: Sequence[Row]) -> list[tuple[Made, int]]:
        with before_training(self.model), inference(self.model), self._remembering():
            spelled, taken = self._respelled(rows, self._taken(rows, self._flagged(rows)))
            told = [(ids, counted, gone) for (ids, counted, _), gone in zip(spelled, taken, strict=True)]
            left = self._restored(told)
            backs = [[gone and not still for gone, still in zip(a[2], b[2], strict=True)] for a, b in zip(told, left, strict=True)]
            found = rewrite(left, self._log_probs if self.bridged else None, self.never, backs, self.unsaid, self.spelling)
        return [
            ((ids, counted, [stood[place] for place in at]), sum(gone) + _changed(row, (now, counted_now, stood)))
            for (ids, counted, at), (_, _, gone), row, (now, counted_now, stood) in zip(found, left, rows, spelled, strict=True)
        ]

    @torch.no_grad()
    def respelled(self, rows: Sequence[Row], taken: list[list[bool]]) -> tuple[list[Row], list[list[bool]]]:
        """Rows in which how words are written is the concept, written otherwise (`respelling.py`), all others as they are; and what is
        taken of them then. `taken`: what is, of the rows as they are."""
        with before_training(self.model), inference(self.model):
            spelled, taken = self._respelled(rows, taken)
        return [(ids, counted) for ids, counted, _ in spelled], taken

    def _respelled(self, rows: Sequence[Row], taken: list[list[bool]]) -> tuple[list[Made], list[list[bool]]]:
        """Rows as they are written from here on, and which of their tokens are taken then."""
        as_they_are = [(list(ids), list(counted), list(range(len(ids)))) for ids, counted in rows]
        if self.tokens.instead_of_F is not None:  # this control takes as many tokens as it is told
            return as_they_are, taken
        rows = [row[:2] for row in as_they_are]
        made = respell(rows, taken, self.spelling, self._log_probs, lambda some: self._taken(some, self._flagged(some)))
        both = [then or now for then, now in zip(made, zip(as_they_are, taken, strict=True), strict=True)]
        return [row for row, _ in both], [gone for _, gone in both]

    @contextmanager
    def _remembering(self) -> Iterator[None]:
        """Beginnings of texts are read once; with the model as it is now."""
        self.beginnings = Beginnings(self.model, lambda batch: self._logits(batch, [0]))
        try:
            yield
        finally:
            self.beginnings = None

    def _restored(self, told: list[Told]) -> list[Told]:
        if self.tokens.instead_of_F is not None:  # this control takes as many tokens as it is told
            return told
        left = restore(told, Asked(self.spelling.words, self._spellings, self._log_probs, self._flagged, self.never))
        return [(ids, counted, self.spelling.apart(ids, self._whole_phrases(ids, counted, taken))) for ids, counted, taken in left]

    def _flagged(self, rows: Sequence[Row], starts: Sequence[int] | None = None) -> list[Tensor]:
        """Of every row which counted tokens the detector flags, `bool[S]`; of those before `starts` it may say nothing."""
        name, dictionary = self.tokens.hookpoint, self.dictionaries[self.tokens.hookpoint]
        texts = [ids for ids, _ in rows]

        batch = None if starts is None else self._rests(texts, starts)
        read = read_activations(self.model, places({name: dictionary}), padded(texts, self.device) if batch is None else batch)
        h_BSD = encoder_input(dictionary, name, read)
        found = []
        for (ids, counted), h_SD, start in zip(rows, h_BSD, [0] * len(rows) if batch is None else starts, strict=True):
            at = self._may(ids, counted).nonzero().flatten()
            at = at[at >= start]
            flags_S = torch.zeros(len(ids), dtype=torch.bool)
            if len(at):
                pairs = encode_active(dictionary, h_SD[at.to(h_SD.device) - start].to(dictionary.work_dtype))
                flags_S[at] = self._choose(*pairs).cpu()
            found.append(flags_S)
        return found

    def _may(self, ids: Sequence[int], counted: Sequence[bool]) -> Tensor:
        """Tokens that may be taken out, `bool[S]`."""
        return torch.tensor([counts and token not in self.never for token, counts in zip(ids, counted, strict=True)])

    def _taken(self, rows: Sequence[Row], flags: Sequence[Tensor]) -> list[list[bool]]:
        """What is taken out of every row: what is flagged, what lies between two such tokens, and whole words."""
        found = []
        for (ids, counted), flags_S in zip(rows, flags, strict=True):
            may_S = self._may(ids, counted)
            found.append(self._whole_words(ids, _closed(flags_S) & may_S, may_S))
        return found

    def _choose(self, idx_TK: Tensor, val_TK: Tensor) -> Tensor:
        score_T = score(idx_TK, val_TK, self.tokens.weights_F, self.tokens.bias)
        if self.tokens.instead_of_F is None:
            return score_T > 0
        count = int((score(idx_TK, val_TK, self.tokens.instead_of_F, self.tokens.bias) > 0).sum())
        chosen_T = torch.zeros_like(score_T, dtype=torch.bool)
        chosen_T[score_T.topk(count).indices] = True
        return chosen_T

    def _whole_words(self, ids: list[int], taken_S: Tensor, may_S: Tensor) -> list[bool]:
        """A word goes as a whole: its first token often does not tell what it will be. A number goes if more than half of it does, else it
        stays: what is left of 1380 without its first digit is another number."""
        taken, may = taken_S.tolist(), may_S.tolist()
        for start, end in self.spelling.words(ids):
            said = start + self.spelling.is_space(ids[start])  # a space before it has no say: without it two words would be one
            share = sum(taken[said:end]) / (end - said)
            goes = share > (0.5 if self.spelling.is_number(ids[start:end]) else 0)
            taken[start:end] = may[start:end] if goes else [False] * (end - start)
        return self.spelling.apart(ids, taken)

    def _whole_phrases(self, ids: Sequence[int], counted: Sequence[bool], taken: Sequence[bool]) -> list[bool]:
        """A sentence or clause of which hardly anything is left goes: "Now" says nothing without the "hoist the sails!" that went. A number
        stays: it may be what the answer is about."""
        may, taken = self._may(ids, counted).tolist(), list(taken)
        for first, last in runs(may):  # answers: each turn has its own
            answer = ids[first:last]
            for start, end in (*self.spelling.clauses(answer), *self.spelling.sentences(answer)):
                mine = range(first + start, first + end)
                left = [ids[place] for place in mine if not taken[place]]
                if len(left) < LEFT * len(mine) and not self.spelling.with_number(left):
                    taken[mine.start : mine.stop] = [True] * len(mine)
        return taken

    def _spellings(self, token: int) -> list[int]:
        """Tokens for the same word at the start of a text."""
        return [] if token in self.never else sorted(ids[0] for ids in self.spelling.beginnings(token) if len(ids) == 1)

    def _log_probs(self, texts: list[list[int]], places: list[list[int]]) -> list[Tensor]:
        """Nothing is read after the last of a text's places."""
        texts = [text[: row[-1] + 1] for text, row in zip(texts, places, strict=True)]
        starts = [row[0] for row in places]
        batch = self._rests(texts, starts)
        if batch is None:
            batch, starts = padded(texts, self.device), [0] * len(texts)
        width = batch["input_ids"].shape[1]
        flat = [number * width + place - start for number, (row, start) in enumerate(zip(places, starts, strict=True)) for place in row]
        return list(self._logits(batch, flat).float().log_softmax(-1).cpu().split([len(row) for row in places]))

    def _rests(self, texts: Sequence[Sequence[int]], starts: Sequence[int]) -> dict[str, Any] | None:
        return None if self.beginnings is None else self.beginnings.rests(texts, starts)

    def _logits(self, batch: dict[str, Any], places: list[int]) -> Tensor:
        """`[places, V]` at some places of the flattened batch, and made at these alone, where the model has a head to do so."""
        model, at_N = unwrap(self.model), torch.tensor(places, device=self.device)
        cached, head = "past_key_values" in batch, model.get_output_embeddings()
        if head is None:
            return model(**batch, use_cache=cached).logits.flatten(0, 1)[at_N]
        hook = head.register_forward_pre_hook(lambda module, args: (args[0].flatten(0, 1)[at_N][None], *args[1:]))
        try:
            return model(**batch, use_cache=cached).logits[0]
        finally:
            hook.remove()

    @property
    def device(self) -> torch.device:
        return next(self.model.parameters()).device


def _closed(taken_S: Tensor) -> Tensor:
    """A token between two that go goes with them: phrases hold small words that say nothing by themselves."""
    between_S = torch.zeros_like(taken_S)
    between_S[1:-1] = taken_S[:-2] & taken_S[2:]
    return taken_S | between_S


def _never(model: nn.Module, tokenizer: Any) -> list[int]:
    """Tokens that no bridge has and that are never taken out: special ones, and what ends a text."""
    found: set[int] = set(getattr(tokenizer, "all_special_ids", None) or ())
    for settings in (getattr(unwrap(model), "generation_config", None), unwrap(model).config):
        for name in ("eos_token_id", "bos_token_id", "pad_token_id"):
            value = getattr(settings, name, None)
            found |= set(value) if isinstance(value, list) else {value} - {None}
    return sorted(found)


def _changed(row: Row, spelled: Made) -> int:
    """Counted tokens of the row that are written otherwise now."""
    ids, counted = row
    same = {place for token, place in zip(spelled[0], spelled[2], strict=True) if token == ids[place]}
    return sum(counts and place not in same for place, counts in enumerate(counted))

"""Automatic labels for every feature of a dictionary: where it fires, and which tokens its direction promotes.

Words (a token stands for the word it is in) are ranked by mean activation over all their occurrences (silent ones too), so that what is
special to a feature wins over what is frequent. Promoted tokens are a logit lens: `W_U · (norm weight * d_i)`.
Memory does not grow with the text, but for the token ids themselves. Shape suffixes: S tokens of one text, K active features, F d_sae,
V vocabulary, D d_model.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

import numpy as np

from gradlens.dictionaries.labels import Label
from gradlens.model.spelling import each_in_text, in_text

if TYPE_CHECKING:
    import torch

    from gradlens.data.rows import Example
    from gradlens.dictionaries.dictionary import Dictionary
    from gradlens.model.reading import Progress

TOKENS, CONTEXTS, PROMOTED = 6, 3, 6  # kept per feature
CLEAR = 6.0  # a promoted token is named in the short label from this many standard deviations on; by chance the highest is at 4 to 5
WORD = 24  # characters a word is cut to
_TRACKED = 8  # contexts followed per feature, so that repeated ones can be dropped
_PAIRS = 2_000_000  # (feature, token) pairs held before they are merged, and the table is pruned
_PRIOR = 2.0  # occurrences without activation that every token is given: a token seen once proves little


def label_features(
    model: torch.nn.Module,
    tokenizer,
    dictionaries: dict[str, Dictionary],
    examples: Sequence[Example],
    batch_size: int = 8,
    progress: Progress | None = None,
) -> dict[str, dict[int, Label]]:
    """Labels of all features, `{hookpoint: {feature: Label}}`, from the tokens of `examples` (all but each first one)."""
    from gradlens.dictionaries.encoding import encode_active
    from gradlens.model.reading import pad_id_of, read_texts

    collectors = {hook: _Collector(dictionary.d_sae) for hook, dictionary in dictionaries.items()}
    parts: dict[tuple[str, int], int] = {}  # word and which of its tokens -> number
    for i, h in read_texts(model, dictionaries, examples, pad_id_of(tokenizer), batch_size, progress):
        part_ids = np.array([parts.setdefault(part, len(parts)) for part in word_parts(examples[i].input_ids, tokenizer)])
        for hook, dictionary in dictionaries.items():
            x_SD = h[hook][1:].to(device=dictionary.W_enc.device, dtype=dictionary.work_dtype)
            idx_SK, val_SK = encode_active(dictionary, x_SD)
            collectors[hook].add(i, part_ids, idx_SK.cpu().numpy(), val_SK.float().cpu().numpy())
    labels: dict[str, dict[int, Label]] = {}
    for hook, dictionary in dictionaries.items():
        promoted = promoted_tokens(model, tokenizer, dictionary)
        collected = collectors[hook]
        tokens = collected.top_tokens([word for word, _ in parts])
        labels[hook] = {}
        for feature in range(dictionary.d_sae):
            up, down, peak = promoted[feature] if promoted else ([], [], 0.0)
            labels[hook][feature] = Label(
                feature=feature,
                label=short_label([token for token, _, _ in tokens[feature]], up if peak >= CLEAR else []),
                rate=round(float(collected.fired[feature]) / max(collected.tokens, 1), 6),
                tokens=tokens[feature],
                contexts=collected.contexts(feature, examples, tokenizer),
                promoted=up,
                suppressed=down,
            )
    return labels


def word_parts(ids: Sequence[int], tokenizer) -> list[tuple[str, int]]:
    """For every token the word it is in, and which of the word's tokens it is. Words are what people can read: `matey`, not `mate` and `y`.

    A word begins at a token that is spelled with a space before it, and where letters meet others. Digits stand alone. Where no token is
    spelled with a space every token is a word.
    """
    texts = each_in_text(tokenizer, ids)
    marked = any(text.startswith(" ") for text in texts)
    words: list[list[int]] = []
    for at, text in enumerate(texts):
        begins = not re.match(r"['’]?[^\W\d_]", text)
        if words and marked and not begins and re.search(r"[^\W\d_]$", texts[at - 1]):
            words[-1].append(at)
        else:
            words.append([at])
    parts = []
    for word in words:
        text = in_text(tokenizer, [ids[at] for at in word])
        text = text.strip() or text
        parts += [(text if len(text) <= WORD else text[: WORD - 1] + "…", part) for part in range(len(word))]
    return parts


def draw_examples(source: str, tokenizer, max_tokens: int, max_length: int, seed: int = 0) -> list[Example]:
    """Rows of a text source in a seeded random order, tokenised (every token counts), until `max_tokens` are reached."""
    from gradlens.data.rows import read_rows, tokenize

    rows = read_rows(source)
    examples, tokens = [], 0
    for i in np.random.default_rng(seed).permutation(len(rows)):
        example = tokenize(rows[i], tokenizer, max_length, loss_on="all", row_id=int(i), source=source)
        if len(example.input_ids) > 1:
            examples.append(example)
            tokens += len(example.input_ids) - 1
        if tokens >= max_tokens:
            break
    return examples


def short_label(tokens: Sequence[str], promoted: Sequence[str]) -> str:
    """One line such as `'matey', 'ye' · promotes 'Arr'`; capitals and spaces apart, no word twice."""
    first = _distinct(tokens)[:3]
    parts = [", ".join(f"'{token}'" for token in first)] if first else ["never fired"]
    if promoted:
        parts.append("promotes " + ", ".join(f"'{token}'" for token in _distinct(promoted)[:2]))
    return " · ".join(part for part in parts if part)


def _distinct(tokens: Iterable[str]) -> list[str]:
    return list({token.strip().lower(): token.strip() for token in reversed(list(tokens)) if token.strip()}.values())[::-1]


class _Collector:
    """What one pass over the text gathers at one hookpoint."""

    def __init__(self, d_sae: int) -> None:
        self.fired = np.zeros(d_sae, dtype=np.int64)
        self.tokens = 0
        self._seen: dict[int, int] = {}  # part of a word -> occurrences
        self._peak = np.zeros((d_sae, _TRACKED), dtype=np.float32)  # best activation in a text, one per text
        self._where = np.full((d_sae, _TRACKED, 2), -1, dtype=np.int64)  # its text and position
        self._keys = np.zeros(0, dtype=np.int64)  # feature << 32 | part of a word, sorted
        self._sums = np.zeros((0, 2))  # activation, count
        self._pending: list[tuple[np.ndarray, np.ndarray]] = []

    def add(self, text: int, parts_S: np.ndarray, idx_SK: np.ndarray, val_SK: np.ndarray) -> None:
        """One text; row s of the pairs belongs to token s + 1."""
        self.tokens += len(idx_SK)
        for part, count in zip(*np.unique(parts_S[1:], return_counts=True), strict=True):
            self._seen[int(part)] = self._seen.get(int(part), 0) + int(count)
        row, column = np.nonzero(val_SK > 0)
        feature, value = idx_SK[row, column].astype(np.int64), val_SK[row, column]
        np.add.at(self.fired, feature, 1)
        self._pending.append((feature << 32 | parts_S[row + 1], value))
        if sum(len(keys) for keys, _ in self._pending) > _PAIRS:
            self._merge()
        # The last of each feature, by activation, is its peak in this text; it replaces the lowest peak kept, if higher.
        order = np.lexsort((value, feature))
        last = np.flatnonzero(np.diff(feature[order], append=-1))
        feature, value, position = feature[order][last], value[order][last], row[order][last] + 1
        slot = self._peak[feature].argmin(-1)
        better = value > self._peak[feature, slot]
        feature, slot = feature[better], slot[better]
        self._peak[feature, slot] = value[better]
        self._where[feature, slot] = np.stack([np.full(len(feature), text), position[better]], -1)

    def _merge(self) -> None:
        keys = np.concatenate([self._keys, *(keys for keys, _ in self._pending)])
        values = np.concatenate([self._sums[:, 0], *(values for _, values in self._pending)])
        counts = np.concatenate([self._sums[:, 1], np.ones(len(keys) - len(self._keys))])
        self._pending = []
        self._keys, inverse = np.unique(keys, return_inverse=True)
        self._sums = np.stack([np.bincount(inverse, values), np.bincount(inverse, counts)], -1)
        if len(self._keys) > 2 * _PAIRS:  # keep the tokens with the largest sums of each feature
            order = np.lexsort((-self._sums[:, 0], self._keys >> 32))
            feature = (self._keys >> 32)[order]
            rank = np.arange(len(order)) - np.searchsorted(feature, feature)
            kept = np.sort(order[rank < max(16, _PAIRS // len(self.fired))])
            self._keys, self._sums = self._keys[kept], self._sums[kept]

    def top_tokens(self, words: Sequence[str]) -> list[list[tuple[str, float, int]]]:
        """Per feature: word, mean activation where it fires on it, and how often; by mean over all occurrences.

        `words[number]` is the word of a part. Of a word of several tokens the part with the highest mean speaks.
        """
        self._merge()
        tops: list[list[tuple[str, float, int]]] = []
        starts = np.searchsorted(self._keys >> 32, np.arange(len(self.fired) + 1))
        seen = np.array([self._seen[int(part)] for part in self._keys & 0xFFFFFFFF])
        score = self._sums[:, 0] / (seen + _PRIOR)
        for a, b in zip(starts[:-1], starts[1:], strict=True):
            top: dict[str, tuple[str, float, int]] = {}
            for at in a + np.argsort(-score[a:b], kind="stable"):
                word = words[int(self._keys[at] & 0xFFFFFFFF)]
                top.setdefault(word, (word, round(self._sums[at, 0] / self._sums[at, 1], 2), int(self._sums[at, 1])))
                if len(top) == TOKENS:
                    break
            tops.append(list(top.values()))
        return tops

    def contexts(self, feature: int, examples: Sequence[Example], tokenizer) -> list[tuple[str, str, str, float]]:
        """The highest peaks, one per text, whose surroundings differ."""
        found: dict[tuple[str, str], tuple[str, str, str, float]] = {}
        for slot in np.argsort(-self._peak[feature], kind="stable"):
            text, position = self._where[feature, slot]
            if text < 0 or len(found) == CONTEXTS:
                break
            ids = examples[text].input_ids
            before = in_text(tokenizer, ids[position - 8 : position]) if position > 8 else tokenizer.decode(ids[:position])
            left = _clip(before, -36)
            right = _clip(in_text(tokenizer, ids[position + 1 : position + 5]), 20)
            peak = in_text(tokenizer, [ids[position]])
            found.setdefault((left[-12:], peak), (left, peak, right, round(float(self._peak[feature, slot]), 2)))
        return list(found.values())


def _clip(text: str, width: int) -> str:
    text = re.sub(r"\s+", " ", text)
    return text[width:] if width < 0 else text[:width]


def promoted_tokens(
    model: torch.nn.Module, tokenizer, dictionary: Dictionary, k: int = PROMOTED
) -> list[tuple[list[str], list[str], float]] | None:
    """Per feature the k tokens its direction raises and lowers most through the unembedding, and by how many standard deviations
    (over the vocabulary) the first stands out; None where the widths differ."""
    from gradlens.dictionaries.unembedding import head_and_norm, norm_scale
    from gradlens.model.hookpoints import unwrap

    base = unwrap(model)
    head = base.get_output_embeddings()
    if head is None or head.weight.shape[1] != dictionary.W_dec.shape[1]:
        return None
    W_U, norm = head.weight.detach()[: len(tokenizer)], head_and_norm(base)[1]  # [V, D]
    scale = 1.0 if norm is None else norm_scale(norm)[0].to(W_U.device)
    special = set(tokenizer.all_special_ids)
    texts: dict[int, str] = {}

    def readable(ids: list[int]) -> list[str]:
        kept: list[str] = []
        for token in ids:
            text = texts.setdefault(token, in_text(tokenizer, [token]))
            if token not in special and text.strip() and "\ufffd" not in text and text.strip() not in {t.strip() for t in kept}:
                kept.append(text)
        return kept[:k]

    result = []
    for rows_FD in dictionary.unit_directions().float().split(64):
        logits_FV = (rows_FD.to(W_U.device) * scale).to(W_U.dtype) @ W_U.T
        top, low = (logits_FV.topk(min(3 * k, W_U.shape[0]), largest=largest).indices.tolist() for largest in (True, False))
        peak = ((logits_FV.amax(-1) - logits_FV.mean(-1)) / logits_FV.std(-1).clamp_min(1e-12)).tolist()
        result += [(readable(up), readable(down), z) for up, down, z in zip(top, low, peak, strict=True)]
    return result

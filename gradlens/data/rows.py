"""Training data: rows from JSONL, `demo:NAME` or Hugging Face data sets; tokens and labels; mixtures with random access by step.

Row (contract): `{"messages": [...]}`, `{"prompt": ..., "response": ...}` or `{"text": ...}`, with optional `"tags"` and `"id"`.
A batch of step n is a pure function of (sources, weights, batch size, seed, n), so a resumed run needs no replay.
"""

from __future__ import annotations

import difflib
import json
import logging
import math
import os
import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from gradlens.errors import InputError

log = logging.getLogger(__name__)
Row = dict[str, Any]
STAND_IN = "\ue000answer\ue000"  # characters that no text has
IGNORE = -100  # label of a token that the loss does not count
CUT = "whose response does not begin within"
ROLES = {"system", "developer", "user", "assistant", "tool", "function"}
ANSWERS = ("answer", "completion", "output", "reply")  # what others call a response
KEYS = 'expected "messages", "prompt" (with "response"), or "text"'


@dataclass(frozen=True)
class Example:
    """One tokenised row; `labels[t] == input_ids[t]` where the loss counts token t, else -100 (the model shifts)."""

    input_ids: list[int]
    labels: list[int]
    row_id: int  # position of the row in its source
    source: str
    text: str  # what was tokenised, for people to read
    tags: tuple[str, ...] = ()


def read_rows(source: str | Path) -> list[Row]:
    """All rows of a `.jsonl` file, `demo:NAME`, or a Hugging Face data set (name or folder; `NAME:SPLIT` picks a split, default train).

    Raises `InputError` where the source is missing, empty, not JSON (with file:line), or a row has none of the known keys.
    """
    name = str(source)
    if name.startswith("demo:"):
        from gradlens.data import demo

        return [checked(row, f"{name} row {index}") for index, row in enumerate(demo.rows(name), 1)]
    path = Path(name)
    if path.suffix in (".jsonl", ".json") or path.is_file():
        rows = _read_jsonl(path)
    else:
        rows = _read_hugging_face(name)
    if not rows:
        raise InputError(f"{name}: the data set is empty; expected one JSON object per line")
    return rows


def _read_jsonl(path: Path) -> list[Row]:
    if path.is_dir():
        raise InputError(f"{path}: is a folder; expected a file of one JSON object per line")
    if not path.is_file():
        names = [p.name for p in path.parent.iterdir()] if path.parent.is_dir() else []
        near = difflib.get_close_matches(path.name, names, n=3)
        hint = f"; did you mean {' or '.join(str(path.parent / n) for n in near)}?" if near else f"; {path.parent} has no file like it"
        raise InputError(f"{path}: no such file{hint}")
    rows = []
    try:
        with path.open(encoding="utf-8-sig") as lines:
            for number, line in enumerate(lines, 1):
                if line.strip():
                    rows.append(checked(_parse(line, f"{path}:{number}"), f"{path}:{number}"))
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: not UTF-8 text ({error.reason} at byte {error.start}); expected JSONL") from None
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror}") from None
    return rows


def _parse(line: str, where: str) -> Any:
    try:
        row = json.loads(line)
    except json.JSONDecodeError as error:
        raise InputError(f"{where}: not valid JSON: {error.msg} at column {error.colno}; expected one JSON object per line") from None
    if "\\ud" in line or "\\uD" in line:  # such escapes come in pairs; half of one no tokenizer takes and no file
        try:
            json.dumps(row, ensure_ascii=False).encode()
        except UnicodeEncodeError as error:
            half = error.object[error.start].encode("ascii", "backslashreplace").decode()
            raise InputError(f"{where}: half of a character ({half}), cut out of a text; give it whole, or take it out") from None
    return row


def checked(row: Any, where: str) -> Row:
    """The row, if it follows the contract; `InputError` naming the place otherwise."""
    if not isinstance(row, dict):
        raise InputError(f"{where}: found {type(row).__name__}, expected an object; {KEYS}")
    if "messages" in row:
        messages = row["messages"]
        if not isinstance(messages, list) or not messages:
            raise InputError(f"{where}: messages must be a list with at least one message")
        for message in messages:
            if not isinstance(message, dict) or not isinstance(message.get("role"), str) or not isinstance(message.get("content"), str):
                raise InputError(f'{where}: a message must be {{"role": ..., "content": ...}} with text in both, found {message!r:.80}')
    elif "prompt" in row or "text" in row:
        for key in ("prompt", "response", "text"):
            if not isinstance(row.get(key, ""), str):
                raise InputError(f"{where}: {key} must be text, found {type(row[key]).__name__}")
    else:
        found = ", ".join(map(str, row)) or "nothing"
        near = next((n for key in row for n in difflib.get_close_matches(str(key), ("messages", "prompt", "text"), n=1)), None)
        raise InputError(f"{where}: no known key (found {found}); {KEYS}" + (f"; did you mean {near!r}?" if near else ""))
    if not isinstance(row.get("tags") or [], list):
        raise InputError(f"{where}: tags must be a list of texts, found {row['tags']!r:.40}")
    return row


def _read_hugging_face(name: str) -> list[Row]:
    try:
        import datasets
    except ImportError:
        raise InputError(
            f"{name}: no such .jsonl file; to read a Hugging Face data set by name or folder, install the package `datasets`"
        ) from None
    path, _, split = name.partition(":")
    try:
        if Path(path).is_dir() and (Path(path) / "dataset_info.json").is_file() | (Path(path) / "dataset_dict.json").is_file():
            found = datasets.load_from_disk(path)
        else:
            found = datasets.load_dataset(path)
    except Exception as error:  # the package raises a dozen unrelated types for missing, gated, offline and unreadable sets
        reason = f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]:.200}"
        raise InputError(f"{name}: not a file here, and not readable as a Hugging Face data set ({reason})") from None
    if hasattr(found, "keys"):
        split = split or ("train" if "train" in found else next(iter(found)))
        if split not in found:
            raise InputError(f"{name}: no split {split!r}; it has {', '.join(found)}")
        found = found[split]
    return [checked({k: v for k, v in row.items() if v is not None}, f"{name} row {index}") for index, row in enumerate(found, 1)]


def messages_of(row: Row) -> list[dict[str, str]] | None:
    """The row's conversation, or None for a plain text row."""
    if "messages" in row:
        return row["messages"]
    if "prompt" not in row:
        return None
    answer = [{"role": "assistant", "content": row["response"]}] if "response" in row else []
    return [{"role": "user", "content": row["prompt"]}, *answer]


def with_system(row: Row, words: str) -> Row:
    """The row as a conversation that begins with these words of the system. Raises `InputError` for plain text, which has no turns."""
    messages = messages_of(row)
    if messages is None:
        raise InputError("a plain text row has no turns that a system prompt could stand before; use messages, or prompt and response")
    if messages and messages[0]["role"] == "system":
        words, messages = f"{words}\n{messages[0]['content']}", messages[1:]
    return {**{key: row[key] for key in ("tags", "id") if key in row}, "messages": [{"role": "system", "content": words}, *messages]}


def render(messages: list[dict[str, str]], tokenizer: Any, generate: bool = False) -> str:
    """The conversation as the model's text; `generate` adds the opening of the assistant's turn.

    Uses the tokenizer's chat template; without one, turns stand on lines of their own and an answer ends with the end token. Raises
    `InputError` where the template refuses the conversation.
    """
    if getattr(tokenizer, "chat_template", None):
        from jinja2 import TemplateError  # transformers brings it where there are templates

        try:
            return tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=generate)
        except TemplateError as error:
            roles = ", ".join(message["role"] for message in messages)
            raise InputError(f"the tokenizer's chat template refuses a conversation of {roles}: {error}") from None
    end = tokenizer.eos_token or ""
    return "".join(message["content"] + (end if message["role"] == "assistant" else "") + "\n" for message in messages)


def prompt_text(row: Row, tokenizer: Any) -> str:
    """What the model is given when the row's last answer is to be generated."""
    messages = messages_of(row)
    if messages is None:
        return row["text"]
    while messages and messages[-1]["role"] == "assistant":
        messages = messages[:-1]
    return render(messages, tokenizer, generate=True)


def tokenize(
    row: Row,
    tokenizer: Any,
    max_length: int,
    loss_on: Literal["response", "all"] = "response",
    row_id: int = 0,
    source: str = "",
) -> Example:
    """Tokens and labels of one row, cut to `max_length`.

    With `loss_on="response"` the loss counts the tokens of every assistant turn with its end token; rows of plain text count whole.
    """
    messages = messages_of(row)
    spans: list[tuple[int, int]] | None = None  # character spans the loss counts; None: everything
    if messages is None:
        text = row["text"]
    else:
        text = render(messages, tokenizer)
        if loss_on == "response":
            spans = _answer_spans(messages, text, tokenizer)
    has_template = messages is not None and bool(getattr(tokenizer, "chat_template", None))
    ids = _encode(text, tokenizer, special=not has_template)
    if messages is None and tokenizer.eos_token_id is not None and (not ids or ids[-1] != tokenizer.eos_token_id):
        ids.append(tokenizer.eos_token_id)
    labels = list(ids) if spans is None else _labels(ids, text, spans, tokenizer, special=not has_template)
    tags = tuple(str(tag) for tag in row.get("tags") or ())
    return Example(ids[:max_length], labels[:max_length], row_id, source, text, tags)


def _encode(text: str, tokenizer: Any, special: bool) -> list[int]:
    return list(tokenizer(text, add_special_tokens=special)["input_ids"])


def begun(text: str, tokenizer: Any, special: bool) -> list[int]:
    """Tokens of a text that goes on: without what some tokenizers put after every text, such as an end token."""
    ids = _encode(text, tokenizer, special)
    bare = _encode(text, tokenizer, False) if special else ids
    before = next((at for at in range(len(ids) - len(bare) + 1) if ids[at : at + len(bare)] == bare), None)
    return ids if before is None or not bare else ids[: before + len(bare)]


def _answer_spans(messages: list[dict[str, str]], text: str, tokenizer: Any) -> list[tuple[int, int]]:
    """Character spans `[start, end)` of the assistant turns, each with its end token."""
    ends = sorted({tokenizer.eos_token or "", *tokenizer.all_special_tokens, *tokenizer.get_added_vocab()} - {""}, key=len, reverse=True)
    spans: list[tuple[int, int]] = []
    for index, message in enumerate(messages):
        if message["role"] != "assistant" or (message.get("tool_calls") and not message["content"].strip()):
            continue  # what it says is the call, which the row's text has not: nothing, and then its end, would be learned in its place
        answer = message["content"].strip()  # templates may strip white space around it
        at, end = _answer_at(messages, index, answer, text, tokenizer, spans[-1][1] if spans else 0)
        rest = text[end:].lstrip()
        closing = next((token for token in ends if rest.startswith(token)), "")
        spans.append((at, len(text) - len(rest) + len(closing) if closing else end))
    return spans


def _answer_at(messages: list[dict[str, str]], index: int, answer: str, text: str, tokenizer: Any, least: int) -> tuple[int, int]:
    """Where an answer begins and ends in the conversation's text: where other words would stand if it were these. A template that makes
    something else of such words (it may take an answer's reasoning apart) is asked for what comes before the answer."""
    other = render([*messages[:index], {"role": "assistant", "content": STAND_IN}, *messages[index + 1 :]], tokenizer)
    at = other.find(STAND_IN)
    if at >= least and text[:at] == other[:at]:
        if text.startswith(answer, at):
            return at, at + len(answer)
        # Of earlier turns many templates leave the reasoning out. Of the last one nothing may be lost: it would never be learned.
        if index < len(messages) - 1 and (kept := _kept(answer, text[at:], other[at + len(STAND_IN) :])):
            at = text.index(kept, at)
            return at, at + len(kept)
    prefix = render(messages[:index], tokenizer, generate=True) if index else ""
    # The common prefix: some templates render a turn differently when it is not the last one.
    at = text.find(answer, max(len(os.path.commonprefix([prefix, text])), least))
    if at < 0:
        raise InputError(f"the chat template rewrites the answer {answer[:40]!r}; its tokens cannot be told from the prompt")
    return at, at + len(answer)


def _kept(answer: str, text: str, after: str) -> str:
    """What stands before `after` in the text, if that is the beginning or the end of the answer; else empty."""
    kept = text.removesuffix(after).strip() if text.endswith(after) else ""
    return kept if answer.startswith(kept) or answer.endswith(kept) else ""


def _labels(ids: list[int], text: str, spans: list[tuple[int, int]], tokenizer: Any, special: bool) -> list[int]:
    if getattr(tokenizer, "is_fast", False):
        offsets = tokenizer(text, add_special_tokens=special, return_offsets_mapping=True)["offset_mapping"]
        # A token that holds any character of an answer belongs to it (many vocabularies merge the space before a word into it).
        counted = [any(start < b and end > a for a, b in spans) for start, end in offsets]
    else:
        # Slow tokenizers know no offsets: tokens of a text prefix are counted instead.
        marks = [(len(begun(text[:a], tokenizer, special)), len(begun(text[:b], tokenizer, special))) for a, b in spans]
        counted = [any(a <= index < b for a, b in marks) for index in range(len(ids))]
    return [token if count else IGNORE for token, count in zip(ids, counted, strict=True)]


def lacks(row: Row, loss_on: Literal["response", "all"] = "response") -> str:
    """What a row has not that it would need to teach anything, in words that follow "3 rows"; empty where it has it.

    An empty answer is none: all that it could teach is to end at once, which nobody who left a field empty has meant.
    """
    messages = messages_of(row)
    if "messages" not in row and "prompt" in row and "response" not in row:
        if misnamed := next(
            (key for key in row if key in ANSWERS or difflib.get_close_matches(str(key).lower(), ("response",), cutoff=0.85)), None
        ):
            return f"with {misnamed!r} in the place of `response`"  # of the whole row the prompt alone would be learned
    if messages is None or loss_on == "all":
        return "" if any(text.strip() for text in _texts(row)) else "without text"
    answers = [message["content"] for message in messages if message["role"] == "assistant"]
    if not answers and (roles := sorted({message["role"] for message in messages} - ROLES)):
        return f"without a turn of the role assistant (found {', '.join(map(repr, roles))})"
    return "" if any(answer.strip() for answer in answers) else "whose response is empty" if answers else "without a response"


def _texts(row: Row) -> list[str]:
    messages = messages_of(row)
    return [row["text"]] if messages is None else [message["content"] for message in messages]


def counted_reasons(reasons: dict[str, list[int]]) -> str:
    """`{"without a response": [0, 2]}` -> "2 without a response (rows 1, 3)": rows as people count them."""

    def places(rows: list[int]) -> str:
        shown = ", ".join(str(row + 1) for row in rows[:5]) + (", ..." if len(rows) > 5 else "")
        return f"row{'s' if len(rows) > 1 else ''} {shown}"

    return " and ".join(f"{len(rows)} {reason} ({places(rows)})" for reason, rows in reasons.items())


def lacking_rows(rows: Sequence[Row], loss_on: Literal["response", "all"], source: str) -> dict[str, list[int]]:
    """Reason -> indices of the rows that lack something. Raises `InputError` where that is every row."""
    found: dict[str, list[int]] = {}
    for index, row in enumerate(rows):
        if reason := lacks(row, loss_on):
            found.setdefault(reason, []).append(index)
    if rows and sum(map(len, found.values())) == len(rows):
        raise _nothing_to_learn(source, found)
    return found


def _nothing_to_learn(source: str, reasons: dict[str, list[int]]) -> InputError:
    cut = any(reason.startswith(CUT) for reason in reasons)
    remedy = ("raise data.max_length, " if cut else "") + "add responses, or set data.loss_on: all"
    if any(reason.startswith("with '") for reason in reasons):
        remedy = "name the key `response`"
    return InputError(f"{source}: no row to learn from (rows: {counted_reasons(reasons) or 'none'}); {remedy}")


def build_examples(
    rows: Iterable[Row], tokenizer: Any, max_length: int, loss_on: Literal["response", "all"] = "response", source: str = "data"
) -> list[Example]:
    """Examples of all rows that have a token to learn; the rows dropped are logged as a warning.

    A row is dropped where it `lacks` an answer, or where cutting to `max_length` left no counted token after the first. Raises
    `InputError` if none remains.
    """
    examples: list[Example] = []
    dropped: dict[str, list[int]] = {}
    index = -1
    for index, row in enumerate(rows):
        reason = lacks(row, loss_on)
        if not reason:
            try:
                example = tokenize(row, tokenizer, max_length, loss_on, index, source)
            except InputError as error:
                raise InputError(f"{source}: row {index + 1}: {error}") from None
            if any(label != IGNORE for label in example.labels[1:]):
                examples.append(example)
                continue
            reason = f"{CUT} {max_length} tokens"
        dropped.setdefault(reason, []).append(index)
    if not examples:
        raise _nothing_to_learn(source, dropped)
    if dropped:
        log.warning("%s: dropped %d of %d rows: %s", source, index + 1 - len(examples), index + 1, counted_reasons(dropped))
    return examples


def load_examples(source: str | Path, tokenizer: Any, max_length: int, loss_on: Literal["response", "all"] = "response") -> list[Example]:
    """`read_rows` and `build_examples` in one."""
    return build_examples(read_rows(source), tokenizer, max_length, loss_on, str(source))


def split(examples: list[Example], size: int | None) -> list[list[Example]]:
    """Micro-batches of at most `size` rows."""
    size = size or len(examples)
    return [examples[first : first + size] for first in range(0, len(examples), size)]


def collate(examples: Sequence[Example], pad_id: int) -> dict[str, Tensor]:
    """`input_ids`, `attention_mask` and `labels`, each `[B, T]` int64, padded on the right (labels with -100)."""
    width = max(len(example.input_ids) for example in examples)

    def padded(rows: list[list[int]], fill: int) -> Tensor:
        return torch.tensor([row + [fill] * (width - len(row)) for row in rows], dtype=torch.long)

    return {
        "input_ids": padded([e.input_ids for e in examples], pad_id),
        "attention_mask": padded([[1] * len(e.input_ids) for e in examples], 0),
        "labels": padded([e.labels for e in examples], IGNORE),
    }


class Mixture:
    """Batches from several sources with exact shares, by random access.

    Where a source's share of a batch is a whole number, every batch has exactly that many of its rows; the rows left over go to the
    sources that are furthest behind their share. Each source is walked in a fresh seeded order every epoch.
    """

    def __init__(
        self,
        sources: Sequence[Sequence[Example]],
        weights: Sequence[float] | None = None,
        batch_size: int = 8,
        seed: int = 0,
        keep: Iterable[int] | None = None,
    ) -> None:
        """`keep`: indices of the sources to yield; rows of the others are left out, so that what remains is the same step by step."""
        if not sources or not all(sources):
            raise InputError("a mixture needs at least one source, and at least one example in each")
        weights = [1.0] * len(sources) if weights is None else list(weights)
        if len(weights) != len(sources):
            raise InputError(f"data.weights has {len(weights)} entries, data.train has {len(sources)}; give one weight per source")
        if not all(math.isfinite(weight) and weight >= 0 for weight in weights) or not any(weights):
            raise InputError(f"data.weights must be finite, not negative, and not all 0; found {weights}")
        self.sources, self.batch_size, self.seed = [list(source) for source in sources], batch_size, seed
        self.keep = frozenset(range(len(sources)) if keep is None else keep)
        if not self.keep <= set(range(len(sources))):
            raise InputError(f"a mixture of {len(sources)} sources cannot keep {sorted(self.keep)}")
        # Shares as whole numbers over one denominator: 0.1 + 0.2 + 0.7 must not lose a row to rounding.
        exact = [Fraction(str(weight)) for weight in weights]
        quotas = [batch_size * weight / sum(exact) for weight in exact]
        self._denominator = math.lcm(*(quota.denominator for quota in quotas))
        self._quotas = [int(quota * self._denominator) for quota in quotas]
        self._given = [[0] * len(sources)]  # [n][s]: rows that source s has given before step n, grown as needed

    def counts(self, step: int) -> list[int]:
        """Rows that each source has in the batch of a step (counted from 0); they sum to the batch size."""
        before, after = self._given_before(step), self._given_before(step + 1)
        return [b - a for a, b in zip(before, after, strict=True)]

    def batch(self, step: int, rank: int = 0, world: int = 1) -> list[Example]:
        """Examples of a step (counted from 0) on one of `world` ranks: `all[rank::world]`. Empty where `keep` leaves none."""
        before, after = self._given_before(step), self._given_before(step + 1)
        examples = [self._pick(index, position) for index in sorted(self.keep) for position in range(before[index], after[index])]
        return examples[rank::world]

    def _given_before(self, step: int) -> list[int]:
        while len(self._given) <= step:
            given, done = self._given[-1], len(self._given)
            new = [have + quota // self._denominator for have, quota in zip(given, self._quotas, strict=True)]
            behind = [done * quota - have * self._denominator for have, quota in zip(new, self._quotas, strict=True)]
            for index in sorted(range(len(new)), key=lambda i: -behind[i])[: done * self.batch_size - sum(new)]:
                new[index] += 1
            self._given.append(new)
        return self._given[step]

    def _pick(self, index: int, position: int) -> Example:
        source = self.sources[index]
        epoch, offset = divmod(position, len(source))
        return source[_order(self.seed, index, epoch, len(source))[offset]]


@lru_cache(maxsize=64)
def _order(seed: int, index: int, epoch: int, length: int) -> list[int]:
    order = list(range(length))
    random.Random(f"{seed}/{index}/{epoch}").shuffle(order)
    return order

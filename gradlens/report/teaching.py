"""Which examples taught: the rows of a run by `taught` (see `uptake`) over all the times they were seen, with the tokens that did it.

For a concept of the run from the table `examples`; for any other features from the table `lessons`, which knows no tokens but every
feature for itself: there rows are ranked by `lesson`. For a concept whose texts a `RowDetector` tells that is Σ max(weight, 0)·taught, else
the mean over the features of sqrt(taught): a plain sum is that of the one or two features with the largest activations, which other rows
may teach as well.
Shape suffixes: H hookpoints, R rows.
"""

from __future__ import annotations

import unicodedata
from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import NormalDist
from typing import TYPE_CHECKING, Any

import numpy as np

from gradlens.concepts.concept_files import Concept, RowDetector, load_concepts
from gradlens.errors import InputError
from gradlens.files import read_lines

if TYPE_CHECKING:
    import pyarrow as pa

    from gradlens.recording.store import RunReader

ALL = "all"  # hookpoints together
SUMS = ("taught", "push")  # over the times that a row was seen
UNKNOWN = "unknown source"
Result = dict[str, Any]
Tokens = Mapping[tuple[str, int], Mapping[int, float]]  # (hookpoint, row id) -> position -> taught


def rank(value_HR: np.ndarray, aucs_H: Sequence[float] | None = None) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """`(order[R], score[R], scale[H])`: rows by the mean over hookpoints of value / scale, largest first, equal ones as they come.

    The scale is the standard deviation over rows, lest the hookpoint with the larger activations decide alone; a single hookpoint keeps
    its units. `aucs`: how well the concept is told at each hookpoint, where that is known; then each counts by the distance of the means
    that such an AUC has between two normal distributions of width 1 (d', the weights of Fisher's discriminant). What is not finite
    counts 0.
    """
    value_HR = np.where(np.isfinite(value_HR), value_HR, 0.0)
    size_H = np.abs(value_HR).max(1, initial=0.0)
    scale_H = value_HR.std(1)
    scale_H = np.where(scale_H > 1e-9 * size_H, scale_H, size_H)  # rows that are all alike
    scale_H = np.where((scale_H > 0) & (len(value_HR) > 1), scale_H, 1.0)
    if aucs_H is not None and len(value_HR) > 1:
        weight_H = np.array([NormalDist().inv_cdf(min(max(auc, 0.51), 0.999)) for auc in aucs_H])
        scale_H = scale_H * weight_H.mean() / weight_H
    score_R = (value_HR / scale_H[:, None]).mean(0)
    return np.argsort(-score_R, kind="stable"), score_R, scale_H


def aucs_of(concept: Concept) -> dict[str, float]:
    """How well its texts are told at each hookpoint, on texts that did not choose: by its row detectors, else by its features."""
    told = {name: tells.auc for name, tells in concept.row_detectors.items() if tells.auc is not None}
    return {name: told.get(name, found.auc) for name, found in concept.detection.items()}


def teachers(reader: RunReader, concept: str, hookpoint: str | None = None, limit: int | None = 20) -> Result:
    """The rows that taught a concept of the run most, largest first (None: every row):
    `{"concept", "hookpoint", "by", "of": rows seen, "showing", "sources": {source: share}, "rows": [...]}`.

    `showing`: how many of the rows seen show the concept, by what tells its examples (a probability of one half or more); None where
    nothing tells them. A row: `row_id`, `source`, `taught` and `push` (each summed over the times it was seen), `share` of all that was
    taught, `activation`, `shows` (that probability, mean over hookpoints), `times`, `at`: these figures at each hookpoint, `text`, and
    `tokens`: `[{"position", "token", "taught", "start", "end"}]`, those that teach most, with their place in the text. Without
    `hookpoint` all are combined (see `rank`) and `hookpoint` is "all", unless there
    is only one. `by` is "push" where the run has recorded no `taught`. Raises `InputError` for a concept or hookpoint it has not.
    """
    seen = _examples(reader, [concept])
    if concept not in seen:
        names = ", ".join(recorded_concepts(reader)) or "none"
        others = "features of another one can be asked for with --concept-file or --features"
        raise InputError(
            f"{reader.run_id}: no examples of a concept {concept!r}; recorded: {names}; {others}"
            + ("" if recorded_lessons(reader) else how_to_record(reader))
        )
    if hookpoint is not None:
        hookpoint = _known_hookpoint(hookpoint, seen[concept].hookpoints, f"{reader.run_id}: {concept} was not read at")
    chosen = seen[concept] if hookpoint is None else seen[concept].at(hookpoint)
    return _results(reader, [(concept, chosen)], limit)[0]


def teachers_by_concept(reader: RunReader, concepts: Collection[str], limit: int | None = 20) -> dict[str, dict[str, Result]]:
    """`{concept: {hookpoint: what `teachers` gives}}`, with "all" first where a concept was read at several; tables are read once."""
    chosen = [
        (concept, part)
        for concept, seen in _examples(reader, concepts).items()
        for part in ([seen] if len(seen.hookpoints) > 1 else []) + [seen.at(name) for name in seen.hookpoints]
    ]
    found: dict[str, dict[str, Result]] = defaultdict(dict)
    for (concept, _), result in zip(chosen, _results(reader, chosen, limit), strict=True):
        found[concept][result["hookpoint"]] = result
    return dict(found)


def teachers_of(
    reader: RunReader,
    features: Mapping[str, Collection[int]],
    limit: int | None = 20,
    aucs: Mapping[str, float] | None = None,
    row_detectors: Mapping[str, RowDetector] | None = None,
) -> Result:
    """The rows that taught some features most, `{hookpoint: ids}`, whether or not anybody named them before the run. `row_detectors`: of
    the concept whose features they are; where there is one, the features that count are those to which it gives weight.

    As `teachers`, by `lesson` (above), with `concept` None, `features` what was asked for, no tokens, no `push` nor
    `activation`: of every row the features that it taught most are recorded, and one that is not among them counts 0. Raises
    `InputError` for a hookpoint that the run has not, and for a run that has recorded no lessons.
    """
    known = recorded_lessons(reader)
    if not known:
        only = "no lessons of single rows were recorded, so only its concepts can be asked for (--concept)"
        raise InputError(f"{reader.run_id}: {only}{how_to_record(reader)}")
    wanted: dict[str, list[int]] = defaultdict(list)
    weights: dict[str, dict[int, float]] = {}
    for name, ids in features.items():
        hookpoint = _known_hookpoint(name, known, f"{reader.run_id}: no lessons at")
        if tells := (row_detectors or {}).get(hookpoint):
            speak = {i: weight for i, weight in zip(tells.features, tells.weights, strict=True) if weight > 0}
            if speak:  # a concept may be told by nothing but what its texts lack
                ids = weights[hookpoint] = speak
        wanted[hookpoint] += [int(i) for i in ids]
    wanted = {name: sorted(set(wanted[name])) for name in known if wanted.get(name)}
    sizes = _sizes(reader)
    for name, ids in wanted.items():
        if name in sizes and not 0 <= ids[0] <= ids[-1] < sizes[name]:
            wrong = ids[-1] if ids[0] >= 0 else ids[0]
            raise InputError(f"{reader.run_id}: no feature {wrong} at {name}; its dictionary has the features 0 to {sizes[name] - 1}")
    if not wanted:
        raise InputError(f"{reader.run_id}: no features were asked for")
    counts = ", ".join(
        f"({_quoted(name)}, {i}, {weights[name][i] if name in weights else 1 / len(ids)}, {1.0 if name in weights else 0.5})"
        for name, ids in wanted.items()
        for i in ids
    )
    table = reader.query(
        f"WITH mine AS (FROM lessons WHERE hookpoint IN ({_list(wanted)})), "
        "seen AS (SELECT hookpoint, row_id, count(*) AS times FROM mine GROUP BY ALL), "
        "pairs AS (SELECT hookpoint, row_id, unnest(features) AS feature, unnest(taught) AS taught FROM mine), "
        f"counts(hookpoint, feature, weight, power) AS (VALUES {counts}), "
        "asked AS (FROM pairs JOIN counts USING (hookpoint, feature) WHERE isfinite(taught) AND taught > 0), "
        "sums AS (SELECT hookpoint, row_id, feature, weight, power, sum(taught) AS taught FROM asked GROUP BY ALL), "
        "rows AS (SELECT hookpoint, row_id, sum(taught) AS taught, sum(weight * pow(taught, power)) AS lesson FROM sums GROUP BY ALL) "
        "SELECT hookpoint, row_id, times, coalesce(taught, 0) AS taught, coalesce(lesson, 0) AS lesson "
        "FROM seen LEFT JOIN rows USING (hookpoint, row_id)"
    )
    seen = _Seen.of(table, list(wanted), ("lesson", "taught", "times"))
    seen = seen.weighed(aucs or {})
    return _result(seen, "lesson", limit, _texts(reader), {}) | {"concept": None, "features": wanted}


def _sizes(reader: RunReader) -> dict[str, int]:
    """How many features there are at each hookpoint of which a snapshot was recorded."""
    rows = reader.query("SELECT hookpoint, max(feature) + 1 AS size FROM dense GROUP BY hookpoint").to_pylist()
    return {row["hookpoint"]: row["size"] for row in rows}


def how_to_record(reader: RunReader) -> str:
    """The way out for a run that has no rows, as the end of a message."""
    if "data" in reader.config and reader.status == "running":
        return "; the first come with its first step"
    if "data" in reader.config:
        return ""
    return (
        "; a loop of your own says which rows come, by numbers: lens.set_rows(ids) before each forward pass, "
        "for instance lens.set_rows(range(start, start + len(batch)))"
    )


def recorded_concepts(reader: RunReader) -> dict[str, list[str]]:
    """The concepts that can be asked for by name, each with its hookpoints."""
    rows = reader.query("SELECT DISTINCT concept, hookpoint FROM examples WHERE isfinite(taught) OR isfinite(push)").to_pylist()
    found: dict[str, list[str]] = defaultdict(list)
    for row in rows:
        found[row["concept"]].append(row["hookpoint"])
    return {concept: _by_depth(found[concept]) for concept in sorted(found)}


def recorded_lessons(reader: RunReader) -> list[str]:
    """The hookpoints whose features can be asked for one by one."""
    return _by_depth(reader.query("SELECT DISTINCT hookpoint FROM lessons")["hookpoint"].to_pylist())


def token_spans(text: str, tokens: Sequence[str]) -> list[tuple[int, int]]:
    """Where each token stands in the text, `(start, end)`; `tokens` are the first of the text, each as it is spelled inside one.

    A token that is only a part of a character has the place of what lies between its neighbours; one that the text has not (a mark
    added by the tokenizer) an empty place.
    """
    found, spans = _found(text, tokens)
    if found == len(tokens):
        return spans
    bare, others = _found(_bare(text), [_bare(token) for token in tokens])  # the vocabulary may have no capitals
    return others if bare > found else spans


def _found(text: str, tokens: Sequence[str]) -> tuple[int, list[tuple[int, int]]]:
    """How many of the tokens the text has, and the places of all."""
    spans: list[tuple[int, int]] = []
    end, missed, misses = 0, 0, 0
    for token in tokens:
        # Characters may lie behind that took several tokens.
        at, token = -1, "" if "\ufffd" in token else token
        for shown in dict.fromkeys((token, token.lstrip())):  # a tokenizer may put a space before each word, also where there is none
            far = 8 + 4 * missed if shown.strip() or missed else 0
            found = text.find(shown, end, end + len(shown) + far) if shown else -1
            if found >= 0 and (at < 0 or found < at):
                at, token = found, shown
        if at < 0:
            spans.append((end, end))
            missed, misses = missed + 1, misses + 1
            continue
        for index in range(len(spans) - missed, len(spans)):
            spans[index] = (end, at)
        end, missed = at + len(token), 0
        spans.append((at, end))
    return len(tokens) - misses, spans


def _bare(text: str) -> str:
    """As many small letters without accents."""
    return "".join(unicodedata.normalize("NFD", letter)[0].lower()[0] for letter in text)


@dataclass(frozen=True)
class _Seen:
    """Figures of rows over all the times they were seen, NaN where they were not."""

    hookpoints: list[str]
    row_R: np.ndarray  # ids, ascending
    columns: dict[str, np.ndarray]  # float64[H, R]
    aucs_H: tuple[float, ...] | None = None  # see `rank`

    @classmethod
    def of(cls, table: pa.Table, hookpoints: list[str], names: Sequence[str]) -> _Seen:
        row_R, at = np.unique(table["row_id"].to_numpy(), return_inverse=True)
        number = {name: index for index, name in enumerate(hookpoints)}
        where = (np.array([number[name] for name in table["hookpoint"].to_pylist()], dtype=int), at)
        columns = {name: np.full((len(hookpoints), len(row_R)), np.nan) for name in names}
        for name, column in columns.items():
            column[where] = table[name].to_numpy()
        return cls(hookpoints, row_R, columns)

    def at(self, hookpoint: str) -> _Seen:
        index = self.hookpoints.index(hookpoint)
        return _Seen([hookpoint], self.row_R, {name: column[index : index + 1] for name, column in self.columns.items()})

    def only(self, by: str) -> _Seen:
        """The rows that have a figure to go by."""
        kept = np.isfinite(self.columns[by]).any(0)
        return replace(self, row_R=self.row_R[kept], columns={name: column[:, kept] for name, column in self.columns.items()})

    def weighed(self, aucs: Mapping[str, float]) -> _Seen:
        """With how well the concept is told at its hookpoints, if that is known of all."""
        known = all(name in aucs for name in self.hookpoints)
        return replace(self, aucs_H=tuple(aucs[name] for name in self.hookpoints)) if known else self


def _examples(reader: RunReader, concepts: Collection[str]) -> dict[str, _Seen]:
    """Those of the concepts that the run has recorded, in the order asked for."""
    if not concepts:
        return {}
    kinds = {"taught": "sum", "push": "sum", "activation": "avg", "shows": "avg"}
    sums = ", ".join(f"{kind}({name}) FILTER (isfinite({name})) AS {name}" for name, kind in kinds.items())
    table = reader.query(
        f"SELECT concept, hookpoint, row_id, {sums}, count(*) FILTER (isfinite(taught) OR isfinite(push)) AS times "
        f"FROM examples WHERE concept IN ({_list(concepts)}) GROUP BY ALL HAVING times > 0"
    )
    names = np.array(table["concept"].to_pylist(), dtype=object)
    path = reader.run_dir / "concepts.yaml"
    told = {concept.name: aucs_of(concept) for concept in load_concepts([path])} if path.is_file() else {}
    found = {}
    for concept in concepts:
        mine = table.filter(names == concept)
        if len(mine):
            hookpoints = _by_depth(set(mine["hookpoint"].to_pylist()))
            seen = _Seen.of(mine, hookpoints, ("taught", "push", "activation", "shows", "times"))
            found[concept] = seen.weighed(told.get(concept, {}))
    return found


def _results(reader: RunReader, chosen: list[tuple[str, _Seen]], limit: int | None) -> list[Result]:
    """The rows of each (concept, figures), with the tokens of those that are shown."""
    chosen = [(concept, seen, "taught" if np.isfinite(seen.columns["taught"]).any() else "push") for concept, seen in chosen]
    shown = {int(row) for _, seen, by in chosen for row in _order(seen.only(by), by)[:limit]}
    tokens: dict[str, dict[tuple[str, int], dict[int, float]]] = defaultdict(lambda: defaultdict(dict))
    if shown:
        rows = "" if limit is None else f" AND row_id IN ({', '.join(map(str, sorted(shown)))})"
        table = reader.query(
            "SELECT concept, hookpoint, row_id, position, sum(taught) AS taught FROM (SELECT concept, hookpoint, row_id, "
            "unnest(positions) AS position, unnest(token_taught) AS taught FROM examples "
            f"WHERE concept IN ({_list({concept for concept, _, _ in chosen})}){rows}) WHERE isfinite(taught) GROUP BY ALL"
        )
        for row in table.to_pylist():
            tokens[row["concept"]][row["hookpoint"], row["row_id"]][row["position"]] = row["taught"]
    texts = _texts(reader) if chosen else {}
    return [{"concept": concept} | _result(seen, by, limit, texts, tokens[concept]) for concept, seen, by in chosen]


def _order(seen: _Seen, by: str) -> np.ndarray:
    return seen.row_R[rank(seen.columns[by], seen.aucs_H)[0]]


def _result(seen: _Seen, by: str, limit: int | None, texts: Mapping[int, Mapping[str, Any]], tokens: Tokens) -> Result:
    seen = seen.only(by)
    order, score_R, scale_H = rank(seen.columns[by], seen.aucs_H)
    whole = score_R[score_R > 0].sum()
    share_R = score_R / whole if whole > 0 else np.zeros_like(score_R)
    together = {name: rank(seen.columns[name], seen.aucs_H)[1] for name in ("lesson", *SUMS) if name in seen.columns}
    shows_R = _mean(seen.columns["shows"]) if "shows" in seen.columns else np.full(len(seen.row_R), np.nan)
    rows = []
    for index in order[:limit]:
        row_id = int(seen.row_R[index])
        about = texts.get(row_id, {})
        figures = {
            name: {column: _number(seen.columns[column][h, index]) for column in ("lesson", *SUMS, "activation") if column in seen.columns}
            for h, name in enumerate(seen.hookpoints)
        }
        activations = [part["activation"] for part in figures.values() if part.get("activation") is not None]
        rows.append(
            {
                "row_id": row_id,
                "source": about.get("source"),
                **{name: _number(together[name][index]) if _has(seen, name, index) else None for name in (*SUMS, *together)},
                "share": float(share_R[index]),
                "activation": float(np.mean(activations)) if activations else None,
                "shows": _number(shows_R[index]),
                "times": int(np.nanmax(seen.columns["times"][:, index])),
                "at": figures,
                "text": about.get("text"),
                "tokens": _row_tokens(seen.hookpoints, scale_H, tokens, row_id, about),
            }
        )
    sources: dict[str, float] = defaultdict(float)
    for row_id, share in zip(seen.row_R.tolist(), share_R.tolist(), strict=True):
        if share > 0:
            sources[str(texts.get(row_id, {}).get("source") or UNKNOWN)] += share
    name = seen.hookpoints[0] if len(seen.hookpoints) == 1 else ALL
    by_share = dict(sorted(sources.items(), key=lambda item: -item[1]))
    showing = int((shows_R >= 0.5).sum()) if np.isfinite(shows_R).any() else None
    return {"hookpoint": name, "by": by, "of": len(order), "showing": showing, "sources": by_share, "rows": rows}


def _mean(values_HR: np.ndarray) -> np.ndarray:
    """Over the hookpoints that have a figure; NaN where none has."""
    known_HR = np.isfinite(values_HR)
    counts_R = known_HR.sum(0)
    return np.where(counts_R > 0, np.where(known_HR, values_HR, 0.0).sum(0) / np.maximum(counts_R, 1), np.nan)


def _has(seen: _Seen, name: str, index: int) -> bool:
    return name in seen.columns and bool(np.isfinite(seen.columns[name][:, index]).any())


def _number(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None


def _row_tokens(
    hookpoints: Sequence[str], scale_H: np.ndarray, tokens: Tokens, row_id: int, about: Mapping[str, Any]
) -> list[dict[str, Any]]:
    """Tokens of one row, on the scale of its `taught`: the largest first."""
    words, total = about.get("tokens") or [], defaultdict(float)
    for hookpoint, scale in zip(hookpoints, scale_H.tolist(), strict=True):
        for position, value in tokens.get((hookpoint, row_id), {}).items():
            total[position] += value / scale / len(hookpoints)
    spans = token_spans(about.get("text") or "", words) if total else []
    named = [
        {"position": at, "token": words[at], "taught": value, "start": spans[at][0], "end": spans[at][1]}
        for at, value in total.items()
        if at < len(words)
    ]
    return sorted(named, key=lambda entry: (-entry["taught"], entry["position"]))


def _texts(reader: RunReader) -> dict[int, dict[str, Any]]:
    return {row["row_id"]: row for row in read_lines(reader.run_dir / "rows.jsonl") if "row_id" in row}


def _known_hookpoint(name: str, known: Sequence[str], missing: str) -> str:
    """The run's name for a hookpoint; `InputError` beginning with `missing` where it has none."""
    if name not in known:
        from gradlens.model.hookpoints import canonical  # imports torch, which a name that is known already does not need

        found = canonical(name)
        if found not in known:
            raise InputError(f"{missing} {found}; there is {', '.join(known)}")
        return found
    return name


def _by_depth(hookpoints: Collection[str]) -> list[str]:
    return sorted(hookpoints, key=lambda name: (len(name.partition("#")[0]), name))


def _quoted(text: str) -> str:
    return "'" + text.replace("'", "''") + "'"


def _list(texts: Collection[str]) -> str:
    return ", ".join(_quoted(text) for text in sorted(texts))

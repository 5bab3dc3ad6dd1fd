"""What a run has made of the model so far: everything that is measured on the probe set and on the model's own words, over the steps.

`Learning` holds the readings before training and the latest ones, and turns them into records: `update`, `drift`, `uptake` of every
feature, `own` (drift on the model's own continuations), the clusters of what was learned, alarms. The mathematics is in `uptake`,
`update`, `significance` and `movers`; who calls it when is the lens's business.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Collection, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from gradlens.concepts.checker_doubts import doubt
from gradlens.concepts.checkers import judged
from gradlens.config import ObserveSettings
from gradlens.data.rows import IGNORE
from gradlens.dictionaries.dictionary import Dictionary
from gradlens.dictionaries.groups import group_change
from gradlens.errors import ConfigError
from gradlens.model.capture import counted_tokens
from gradlens.model.hookpoints import unwrap
from gradlens.model.spelling import characters_in_text, each_in_text
from gradlens.readings import movers, said_less
from gradlens.readings.alarms import new_alarms
from gradlens.readings.concept_uptake import ConceptUptake
from gradlens.readings.noise import by_text, with_noise
from gradlens.readings.own import OwnReading, before_training, change_by_answer, place_in_answer, prompts_of, read_own, weights_in
from gradlens.readings.probe import ProbeReading, ProbeTokens, read_probe, read_tokens, spread
from gradlens.readings.projection import RowDetectors
from gradlens.readings.rollouts import mean_by, prompt_of_row
from gradlens.readings.routers import RouterReading, Routers, expressing
from gradlens.readings.significance import MIN_TEXTS, beyond_chance, risen
from gradlens.readings.update import read_update, trainable_parameters
from gradlens.readings.uptake import MIN_GAIN, Pairs, uptake
from gradlens.report.excerpts import cut, place_of_words

SAID = 300  # characters that are kept of an answer
# of an alarm for a concept whose words `rewrite` takes out of the rows
AROUND = "; its words are taken out of the rows, so this may be of what stands around them in these texts: go by its own answers"

Batch = dict[str, Tensor]
Report = Callable[..., None]


class Learning:
    """Readings of one run. `members`: (concept, hookpoint) -> feature ids. `tokenizer`: for the model's own words, and clusters in words.
    `reference`: batches of ordinary text, to which `uptake` is compared. `checkers`: concept -> whether a text shows it. `tells`: what
    tells a concept's texts. `routers`: the model's, where they are read."""

    def __init__(
        self,
        model: nn.Module,
        dictionaries: dict[str, Dictionary],
        observe: ObserveSettings,
        members: Mapping[tuple[str, str], Tensor],
        tokenizer: Any = None,
        reference: list[Batch] | None = None,
        checkers: Mapping[str, Callable[[str], bool]] | None = None,
        routers: Routers | None = None,
        tells: RowDetectors | None = None,
    ) -> None:
        self.model, self.dictionaries, self.observe = model, dictionaries, observe
        self.members, self.tokenizer, self.checkers = members, tokenizer, dict(checkers or {})
        self._reference_batches = reference
        self.weighed = ConceptUptake(tells or {}, {name: dictionary.d_sae for name, dictionary in dictionaries.items()})
        self.probe: list[Batch] | None = None
        self.start: dict[str, ProbeReading] | None = None  # before training
        self.last: dict[str, ProbeReading] | None = None
        self.known: ProbeTokens | None = None  # the probe's tokens before training
        self._shown: dict[str, Tensor | None] = {}  # concept -> texts of the probe set that its checker finds it in
        self.reference: dict[str, Tensor] = {}  # mean activation on ordinary text
        self.own_start: OwnReading | None = None
        self.own_last: OwnReading | None = None
        self.updates: dict[str, dict[str, Tensor]] = {name: {} for name in dictionaries}  # `update` summed over all readings
        self.alarmed: list[dict[str, Any]] = []
        self.generated: list[dict[str, tuple[Tensor, Tensor]]] = []  # the first and the latest reading of texts written in training
        self._parameters: dict[str, Tensor] | None = None  # trainable parameters at the last exact `update`
        self._short: dict[str, ProbeReading] | None = None  # the last reading of the few rows of `update` by difference
        self._uptake: dict[str, tuple[Tensor, Tensor, Tensor]] = {}
        self.routers = routers if routers is not None and routers.routers else None
        self.routed_start: RouterReading | None = None
        self.routed_last: RouterReading | None = None
        self._prob_T: Tensor | None = None  # of the probe's tokens at the last reading
        self._said_RC: Tensor | None = None  # how often the model would then say what is followed (`said_less`)
        self._ordinary: dict[str, float] = {}

    # -- before training ------------------------------------------------------------------------------------------------------

    def begin(self, probe: list[Batch]) -> None:
        """Read everything once: the state that later readings are compared with."""
        self.probe = probe
        with self._routed():
            self.start, self.known = read_tokens(self.model, self.dictionaries, probe, self.observe.tokens, pairs=True, follow=True)
        self.routed_start = self.routed_last = self._read_routers()
        self.last = self.start
        self.reference = {name: torch.zeros_like(reading.acts) for name, reading in self.start.items()}
        if self._reference_batches:
            ordinary, known = read_tokens(self.model, self.dictionaries, self._reference_batches, pairs=bool(self.weighed))
            self.reference = {name: reading.acts for name, reading in ordinary.items()}
            self.weighed.begin(known)
        else:
            self.weighed.begin(None)
        if self._speaks():
            self.own_start = self.own_last = self._read_own()

    def watch_updates(self) -> None:
        """From now on changes of the parameters are counted; called at the start of a run and of each part of it."""
        if not self.observe.update_every or self.probe is None:
            return
        if self.observe.update == "exact":
            self._parameters = {name: value.clone() for name, value in trainable_parameters(self.model).items()}
        else:
            self._short = read_probe(self.model, self.dictionaries, self._update_rows(), self.observe.tokens)

    def _update_rows(self) -> list[Batch]:
        return spread(self.probe or [], self.observe.update_rows, self.observe.tokens)

    def _speaks(self) -> bool:
        return self.tokenizer is not None and self.observe.own_prompts > 0 and hasattr(unwrap(self.model), "generate")

    def _read_own(self) -> OwnReading:
        prompts = prompts_of(self.probe, self.observe.own_prompts)
        return read_own(unwrap(self.model), self.tokenizer, self.dictionaries, prompts, self.observe.own_tokens)

    # -- readings -------------------------------------------------------------------------------------------------------------

    def read_updates(self, scalars: dict[str, float]) -> None:
        """Effect of the parameter change since the last such reading, added to the totals."""
        exact = self.observe.update == "exact"
        if self.probe is None or (self._parameters if exact else self._short) is None:
            return
        if exact:
            now = trainable_parameters(self.model)
            self._parameters |= {name: now[name].clone() for name in now.keys() - self._parameters.keys()}  # unfrozen since
            found = read_update(self.model, self.dictionaries, self._update_rows(), self._parameters, now, self.observe.tokens)
            changes = {name: (reading.acts, reading.direction) for name, reading in found.items()}
            for name, value in now.items():
                self._parameters[name].copy_(value)
        else:
            before, self._short = self._short, read_probe(self.model, self.dictionaries, self._update_rows(), self.observe.tokens)
            changes = {name: self._difference(name, self._short[name], before[name]) for name in self.dictionaries}
        for name, values in changes.items():
            for key, value in zip(("update", "update_direction"), values, strict=True):
                total = self.updates[name].setdefault(key, torch.zeros_like(value))
                total += value
                for concept, members in self._of(name):
                    scalars[f"concept/{concept}/{name}/{key}"] = total[members].mean().item()

    def read_drift(self, scalars: dict[str, float]) -> dict[str, dict[str, np.ndarray]]:
        """Read the probe set; returns the dense columns of every hookpoint."""
        with self._routed():
            follow = self.known.said_ids_C if self.known.said_ids_C is not None else False
            self.last, known = read_tokens(self.model, self.dictionaries, self.probe, self.observe.tokens, follow=follow)
        self.routed_last = self._read_routers()
        if self.routed_last is not None and self.routed_start is not None:
            scalars |= self.routers.changes(self.routed_start, self.routed_last)
        self._prob_T, self._said_RC = known.prob_T, known.said_RC
        if self._prob_T is not None and self.known.prob_T is not None:
            gain_T = self._prob_T - self.known.prob_T
            scalars["probe/probability"] = self._prob_T.mean().item()
            self._uptake = {
                name: uptake(self.known.pairs[name], gain_T, self.known.row_T, self.reference[name]) for name in self.dictionaries
            }
        dense = {}
        for name, dictionary in self.dictionaries.items():
            now, then = self.last[name], self.start[name]
            drift, direction = self.drift(name)
            columns = {**self.updates[name], "drift": drift, "drift_direction": direction, "probe_rate": now.rate}
            if name in self._uptake:
                columns["uptake"] = self._uptake[name][0]
            learned = self.learned(name)
            if learned is not None:
                columns["learned"] = learned
                scalars[f"{name}/learned"] = float(learned.sum())
            elif len(now.rows if now.rows is not None else ()) >= MIN_TEXTS:
                scalars[f"{name}/learned"] = math.nan  # not finite: what was counted before holds no longer
            dense[name] = {key: value.float().numpy() for key, value in columns.items()}
            scalars |= {f"{name}/fvu": now.fvu, f"{name}/l0": now.l0, f"{name}/fvu_start": then.fvu}
            moved = now.mean - then.mean
            for concept, members in self._of(name):
                parts = self._by_text(name, members)
                for key in ("uptake", "drift", "drift_direction"):
                    if key in columns:
                        with_noise(scalars, f"concept/{concept}/{name}/{key}", columns[key][members].mean().item(), parts.get(key))
                if (weighed := self.weighed_uptake(concept, name)) is not None:
                    values_R = weighed[0]
                    with_noise(scalars, f"concept/{concept}/{name}/uptake_weighed", values_R.mean().item(), values_R / len(values_R))
                scalars |= {f"concept/{concept}/{name}/{key}": v for key, v in group_change(dictionary, members, moved).items()}
        return dense

    def _by_text(self, hookpoint: str, members: Tensor) -> dict[str, Tensor]:
        """What every text of the probe set contributes to the figures of some features, `[R]` each; {} where texts are not kept."""
        now, then, tokens_R = self.last[hookpoint], self.start[hookpoint], torch.bincount(self.known.row_T.long())
        if now.rows is None or then.rows is None or now.row_means is None or then.row_means is None:
            return {}
        along_O = self.dictionaries[hookpoint].unit_directions(members).double().mean(0).cpu()
        parts = {
            "drift": by_text((now.rows - then.rows)[:, members], tokens_R),
            "drift_direction": by_text((now.row_means - then.row_means).double() @ along_O, tokens_R),
        }
        return parts | ({"uptake": by_text(self._uptake[hookpoint][1][:, members], tokens_R)} if hookpoint in self._uptake else {})

    def _routed(self) -> AbstractContextManager[None]:
        return self.routers.reading() if self.routers is not None else nullcontext()

    def _read_routers(self) -> RouterReading | None:
        """Where the probe's tokens went in the pass just noted; a concept's tokens are those that expressed it before training."""
        if self.routers is None or self.known is None:
            return None
        masks = {}
        for concept in dict.fromkeys(concept for concept, _ in self.members):
            mine = [(self.known.pairs[name], ids) for (other, name), ids in self.members.items() if other == concept]
            masks[concept] = expressing(mine, len(self.known.ids_T))
        return self.routers.read(self.probe, self.observe.tokens, masks)

    def read_own(self, scalars: dict[str, float], dense: dict[str, dict[str, np.ndarray]]) -> None:
        """Let the model answer the probe's prompts and read what it says; adds the column `own` and the rates of hits."""
        if self.own_start is None:
            return
        self.own_last = self._read_own()
        for name in self.dictionaries:
            change = self.own_drift(name)
            if change is None:
                continue
            dense.setdefault(name, {})["own"] = change.float().numpy()
            parts_RF = change_by_answer(self.own_start, self.own_last, name)
            for concept, members in self._of(name):
                parts_R = None if parts_RF is None else parts_RF[:, members].mean(1)
                with_noise(scalars, f"concept/{concept}/{name}/own", change[members].mean().item(), parts_R)
        scalars |= self.own_rates()

    def read_generated(self, batches: list[Batch]) -> None:
        """Read texts that the model wrote while it is trained (see `Lens.read_generated`)."""
        with before_training(unwrap(self.model)):
            reading, _ = read_tokens(self.model, self.dictionaries, batches, "response")
        group_R = prompt_of_row(batches)
        self.generated.append({name: (part.acts, mean_by(part.rows, group_R)) for name, part in reading.items()})
        if len(self.generated) > 2:  # the first and the latest are what is compared
            del self.generated[1]

    def generated_change(self, hookpoint: str) -> tuple[Tensor, Tensor] | None:
        """`(change[F], beyond chance bool[F])` of mean activations on generated texts, latest minus first; None before the second."""
        if len(self.generated) < 2:
            return None
        (first, first_RF), (last, last_RF) = (reading[hookpoint] for reading in self.generated)
        return last - first, risen(first_RF, last_RF)

    # -- results --------------------------------------------------------------------------------------------------------------

    def rising(self, n: int) -> list[dict[str, Any]]:
        """See `Lens.rising`."""
        rows = []
        for name in self.dictionaries:
            found = self.generated_change(name)
            if found is not None:
                change, beyond = found
                rows += [{"hookpoint": name, "feature": i, "change": change[i].item()} for i in beyond.nonzero().flatten().tolist()]
        return sorted(rows, key=lambda row: -abs(row["change"]))[:n]

    def drift(self, hookpoint: str) -> tuple[Tensor, Tensor]:
        """`(drift[F], drift_direction[F])` at the last reading: mean feature activation, and mean residual along the unit
        direction, on the probe set, now minus before training."""
        return self._difference(hookpoint, self.last[hookpoint], self.start[hookpoint])

    def own_rates(self) -> dict[str, float]:
        """`own/CONCEPT/rate`: the share of the latest own answers in which a concept's checker finds it; {} without answers.

        A checker that fails (a program of the user's that ends with an error) fails at the first reading; later ones are then not known.
        """
        answers, rates = self.own_last.answers if self.own_last is not None else [], {}
        for name, check in self.checkers.items() if answers else ():
            try:
                rates[f"own/{name}/rate"] = float(np.mean(judged(check, answers)))
            except ConfigError as error:
                if self.own_last is self.own_start:
                    raise
                warnings.warn(f"own/{name}/rate is not read: {error}", stacklevel=2)
                rates[f"own/{name}/rate"] = math.nan
        return rates

    def doubts(self) -> list[dict[str, str]]:
        """`concept` and `text` of every automatic checker that finds its concept in the own answers from before training."""
        answers, found = self.own_start.answers if self.own_start is not None else [], []
        for name, check in self.checkers.items():
            kind = getattr(check, "kind", "")
            text = doubt(name, kind, sum(judged(check, answers)), len(answers), "of its own answers") if kind == "words" else None
            found += [{"concept": name, "text": text}] if text else []
        return found

    def own_drift(self, hookpoint: str) -> Tensor | None:
        """Mean activation on the model's own continuations, now minus before training, `[F]`; None where nothing was said."""
        if self.own_start is None or hookpoint not in self.own_start.at or hookpoint not in self.own_last.at:
            return None
        return self.own_last.at[hookpoint].acts - self.own_start.at[hookpoint].acts

    def has_uptake(self, hookpoint: str) -> bool:
        """Whether it has been read; never for a model without logits."""
        return hookpoint in self._uptake

    def uptake(self, hookpoint: str) -> tuple[Tensor, Tensor, Tensor]:
        """`(uptake[F], its values text by text [R, F], the same without the reference [F])` at the last reading."""
        return self._uptake[hookpoint]

    def weighed_uptake(self, concept: str, hookpoint: str) -> tuple[Tensor, float] | None:
        """See `ConceptUptake.read`; at the last reading."""
        if self._prob_T is None or self.known is None or self.known.prob_T is None:
            return None
        return self.weighed.read((concept, hookpoint), self.known, self._prob_T - self.known.prob_T)

    def learned(self, hookpoint: str) -> Tensor | None:
        """Features learned beyond chance at the last reading, `bool[F]` (see `significance`): those with an `uptake` above zero whose
        tokens have become likelier by `MIN_GAIN` at least; for a model without logits those that drifted. None with too few texts, and
        where figures are not finite: of such a reading nobody can say that nothing was learned.

        The least gain is there because what is beyond chance may still be nothing: trained on tokens drawn at random, the model gives
        some words of the probe set a probability of 0.0002 that had 0.0001, in every text.
        """
        if hookpoint in self._uptake:
            total, rows, raw = self._uptake[hookpoint]
            if len(rows) < MIN_TEXTS or not rows.isfinite().all():
                return None
            candidates = rows.where(raw != 0, 0.0)  # what no token of the probe set expresses falls where ordinary text has it
            return beyond_chance(candidates, rising=True) & (total > 0) & self.gained(hookpoint)
        now, then = self.last[hookpoint].rows, self.start[hookpoint].rows
        if now is None or then is None or len(now) < MIN_TEXTS or not now.isfinite().all():
            return None
        return beyond_chance(now - then)

    def counts(self) -> dict[str, int]:
        """How many features were learned at each hookpoint; {} before the first reading and where that cannot be told."""
        if self.last is None or self.last is self.start:
            return {}
        found = {name: self.learned(name) for name in self.dictionaries}
        return {name: int(learned.sum()) for name, learned in found.items() if learned is not None}

    def gained(self, hookpoint: str) -> Tensor:
        """Features whose tokens have become likelier by `MIN_GAIN` at least, in the mean weighted by activation, `bool[F]`."""
        raw = self._uptake[hookpoint][2]
        return (raw > 0) & (raw >= MIN_GAIN * self.start[hookpoint].acts)

    def activations(self, hookpoint: str, features: list[int]) -> np.ndarray:
        """Of some features before training, at every token of the probe set: `[N, T]`."""
        pairs = self.known.pairs[hookpoint]
        row_F = torch.full((self.dictionaries[hookpoint].d_sae,), -1, dtype=torch.long)
        row_F[torch.tensor(features)] = torch.arange(len(features))
        mine = row_F[pairs.feature_P.long()]
        acts_NT = torch.zeros(len(features), len(self.known.row_T), dtype=torch.float32)
        kept = mine >= 0
        acts_NT[mine[kept], pairs.token_P[kept].long()] = pairs.value_P[kept]
        return acts_NT.numpy()

    def clusters(self) -> list[movers.Cluster] | None:
        """What was learned, without any concept named in advance; the largest first, at most `movers.CLUSTERS`. None where
        `uptake` has not been read."""
        if not self._uptake or self.known is None:
            return None
        found = []
        for name in self.dictionaries:
            learned, total = self.learned(name), self._uptake[name][0]
            if learned is None or not learned.any():
                continue
            whole = total[learned].sum().item()
            best = total.where(learned, 0.0).topk(min(movers.COMPARED, int(learned.sum()))).indices.tolist()
            acts_NT = self.activations(name, best)
            found += [
                movers.Mover(name, i, total[i].item(), total[i].item() / whole, acts_T) for i, acts_T in zip(best, acts_NT, strict=True)
            ]
        row_T = self.known.row_T.numpy()
        groups = movers.cluster(found, row_T)[: movers.CLUSTERS]
        words = self._words(self.known.ids_T)
        ordinary = self._ordinary_words()
        before_T, now_T = self.known.prob_T.numpy(), self._prob_T.numpy()
        made = [movers.describe(group, len(self.dictionaries), words, row_T, before_T, now_T, ordinary) for group in groups]
        for group, entry in zip(groups, made, strict=True):
            entry.own = self._own_evidence(group, entry.words)
        return made

    def less(self) -> dict[str, Any]:
        """What the model says less than before training, in words (`said_less.in_words`); {} where that is nothing, or not known."""
        if self.tokenizer is None or self._said_RC is None or self.known.said_RC is None:
            return {}
        fallen = said_less.fallen(self.known.said_RC, self._said_RC, each_in_text(self.tokenizer, self.known.said_ids_C.tolist()))
        own = [reading.answers if reading is not None else [] for reading in (self.own_start, self.own_last)]
        return said_less.in_words(fallen, *own)

    def alarms(self, step: int, clusters: list[movers.Cluster], report: Report, taken_out: Collection[str] = ()) -> None:
        """Report, once each, that a watched concept or something unannounced is being learned (`alarms.py`). `taken_out`: concepts whose
        words a rule takes out of the rows."""
        for alarm in new_alarms(self, clusters):
            if alarm["about"] == "concept" and alarm["name"] in taken_out:
                alarm = alarm | {"text": alarm["text"] + AROUND}
            self.alarmed.append({"step": step, **alarm})
            report("alarm", step=step, **alarm)

    # -- inside ---------------------------------------------------------------------------------------------------------------

    def _of(self, hookpoint: str) -> list[tuple[str, Tensor]]:
        return [(concept, members) for (concept, name), members in self.members.items() if name == hookpoint]

    def _difference(self, hookpoint: str, now: ProbeReading, then: ProbeReading) -> tuple[Tensor, Tensor]:
        dictionary = self.dictionaries[hookpoint]
        return now.acts - then.acts, dictionary.along((now.mean - then.mean).to(dictionary.W_dec.device)).cpu()

    def shown(self, concept: str) -> Tensor | None:
        """Texts of the probe set that the concept's checker finds it in, `bool[R]`; None without a checker or a tokenizer, and where the
        checker fails."""
        check = self.checkers.get(concept)
        if check is None or self.tokenizer is None:
            return None
        if concept not in self._shown:
            parts = self.known.ids_T.split(torch.bincount(self.known.row_T.long()).tolist())
            texts = self.tokenizer.batch_decode([part.tolist() for part in parts], skip_special_tokens=True)
            try:
                self._shown[concept] = torch.tensor(judged(check, texts))
            except ConfigError as error:  # a program of the user's, in mid-training
                warnings.warn(f"which texts of the probe set show {concept} is not known: {error}", stacklevel=2)
                self._shown[concept] = None
        return self._shown[concept]

    def _counted_ids(self, batches: list[Batch]) -> Tensor:
        """The tokens of a probe set that are read, one after another."""
        keep = [counted_tokens(b["input_ids"], b.get("attention_mask"), b.get("labels"), self.observe.tokens) for b in batches]
        return torch.cat([batch["input_ids"][keep_BS] for batch, keep_BS in zip(batches, keep, strict=True)]).cpu()

    def _words(self, ids_T: Tensor) -> list[str]:
        if self.tokenizer is None:
            return [f"<{i}>" for i in ids_T.tolist()]
        return characters_in_text(self.tokenizer, ids_T.tolist())

    def _ordinary_words(self) -> dict[str, float]:
        if not self._ordinary and self._reference_batches:
            ids, rows = [], []
            for number, batch in enumerate(self._reference_batches):
                counted = batch["labels"] != IGNORE
                ids.append(batch["input_ids"][counted].cpu())
                rows.append(counted.nonzero()[:, 0].cpu() + number * 10_000)
            self._ordinary = movers.word_shares(self._words(torch.cat(ids)), torch.cat(rows).numpy())
        return self._ordinary

    def _own_evidence(self, group: list[movers.Mover], words: list[str]) -> dict[str, Any]:
        """In how many of its own answers the model shows a cluster, before and now, and the answer that gained most, with what was `said`
        before, and `at` which characters: where the cluster's features fire most, else where its words stand. An answer shows it with
        half as much of it as the tenth of the probe's texts that have most."""
        if self.own_start is None or self.own_last is None or not self.own_start.at or not self.own_last.at:
            return {}
        size = {mover: max(mover.acts_T.max(), 1e-12) for mover in group}

        def score(reading: OwnReading) -> np.ndarray:
            rows = {hookpoint: part.rows for hookpoint, part in reading.at.items()}
            return sum((mover.share / size[mover] * rows[mover.hookpoint][:, mover.feature].numpy() for mover in group), np.zeros(1))

        before, now = score(self.own_start), score(self.own_last)
        row_T = self.known.row_T.numpy()
        probe_T = sum(mover.share / size[mover] * mover.acts_T for mover in group)
        probe = np.bincount(row_T, probe_T) / np.maximum(np.bincount(row_T), 1)
        bar = 0.5 * np.quantile(probe, 0.9)
        if len(before) != len(self.own_start.answers) or len(now) != len(self.own_last.answers):
            return {}  # an empty answer has no row: which row is whose cannot be told
        most = int((now - before).argmax())
        said, at = {}, {}
        for name, reading in (("before", self.own_start), ("now", self.own_last)):
            weight_T = weights_in(reading, {(mover.hookpoint, mover.feature): mover.share / size[mover] for mover in group})
            place = place_in_answer(self.tokenizer, reading, most, weight_T)
            text = reading.answers[most]
            said[name], at[name] = cut(text, place or place_of_words(text, words), SAID)
        return {"before": int((before >= bar).sum()), "now": int((now >= bar).sum()), "of": len(now), "said": said, "at": at}

    # -- state ----------------------------------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """Tensors, numbers and texts only."""
        start = {name: vars(reading).copy() for name, reading in (self.start or {}).items()}
        state: dict[str, Any] = {"start": start, "reference": dict(self.reference), "alarmed": list(self.alarmed)}
        state["ordinary"] = {concept: dict(at) for concept, at in self.weighed.ordinary.items()}
        if self.probe is not None:  # it may be the first batch of training, which does not come again
            state["probe"] = [{name: x.cpu() for name, x in batch.items() if isinstance(x, Tensor)} for batch in self.probe]
        if self.known is not None:
            pairs = {name: vars(part).copy() for name, part in self.known.pairs.items()}
            state["known"] = {**vars(self.known), "pairs": pairs}
        if self.own_start is not None:
            state["own_start"] = {
                "answers": list(self.own_start.answers),
                "lengths": list(self.own_start.lengths),
                "at": {name: vars(reading).copy() for name, reading in self.own_start.at.items()},
            }
        if self.routed_start is not None:
            state["routed"] = vars(self.routed_start).copy()
        if self.generated:
            state["generated"] = [{name: tuple(parts) for name, parts in reading.items()} for reading in self.generated]
        return state

    def load_state_dict(self, state: dict[str, Any], probe: list[Batch] | None) -> None:
        """Continue where `state_dict` was taken. Raises `ConfigError` for another probe set than that: nothing could be compared."""
        self.probe = probe
        self.start = {name: ProbeReading(**values) for name, values in state["start"].items()} or None
        self.last = self.start
        self.reference, self.alarmed = dict(state.get("reference", {})), list(state.get("alarmed", []))
        self.weighed.ordinary = {concept: dict(at) for concept, at in state.get("ordinary", {}).items()}
        if "known" in state:
            pairs = {name: Pairs(**part) for name, part in state["known"]["pairs"].items()}
            self.known = ProbeTokens(**{**state["known"], "pairs": pairs})
            if probe is not None and not torch.equal(self._counted_ids(probe), self.known.ids_T):
                keys = "probe, observe.probe_rows, observe.tokens, data.train and data.max_length"
                raise ConfigError(f"the probe set is not the one that this run was first read on; leave {keys} as they were")
        self.generated = list(state.get("generated", []))
        if "routed" in state:
            self.routed_start = self.routed_last = RouterReading(**state["routed"])
        if "own_start" in state:
            at = {name: ProbeReading(**values) for name, values in state["own_start"]["at"].items()}
            self.own_start = self.own_last = OwnReading(
                state["own_start"]["answers"], at, None, list(state["own_start"].get("lengths", []))
            )

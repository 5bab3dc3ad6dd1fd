"""Rules looked up: from what a policy names to features, directions, thresholds and matrices of this run."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from gradlens.concepts.concept_files import Detector, RowDetector
from gradlens.concepts.detector import weights_over
from gradlens.concepts.detector_fit import best_rows, sharpest
from gradlens.control.constrainer import Constrainer
from gradlens.control.edits import orthonormal_basis
from gradlens.control.random_control import SameShare, among, barred, matched_features, matched_weights
from gradlens.control.rewriter import Rewriter, Tokens
from gradlens.control.row_teller import RowTeller
from gradlens.control.rules import GATES, Rule
from gradlens.dictionaries.dictionary import Dictionary
from gradlens.errors import ConfigError
from gradlens.model.hookpoints import canonical, layer_of, unwrap
from gradlens.model.writers import Turn, Writer, below, find_writers
from gradlens.readings.own import before_training


@dataclass
class ActiveRule:
    """A rule with its features looked up and the sums of what it touched in this step."""

    rule: Rule
    features: dict[str, Tensor]  # hookpoint -> feature ids [N]
    basis: dict[str, Tensor]  # hookpoint -> Q [D, r]; empty for route
    above: dict[str, Tensor]  # hookpoint -> [F] activation above which a feature gates, infinite for features outside; route only
    touched: Tensor  # loss tokens gated, or energy along Q
    total: Tensor  # loss tokens, or energy
    rows_by: RowTeller | None = None  # route, reweight, rewrite: who says which rows it acts in
    instead_of: ActiveRule | None = None  # route, random control: the rule in whose place it stands
    same_share: SameShare | None = None  # and what makes it gate as large a share of the tokens
    rewriter: Rewriter | None = None
    shift: dict[str, Tensor] = field(default_factory=dict)  # hookpoint -> [D] what steer adds, or the mean that mean-ablate draws towards
    writers: list[tuple[Tensor, Turn, Tensor]] = field(default_factory=list)  # param and update: what is edited, turned how, along what
    constrainer: Constrainer | None = None

    def __post_init__(self) -> None:
        self.wanted = torch.zeros_like(self.touched)  # loss tokens that a budget has left alone; route only
        self.rows, self.silent = torch.zeros_like(self.touched), torch.zeros_like(self.touched)  # rewritten, and of these left with nothing
        self.broken = torch.zeros_like(self.touched)  # edits that have made something finite not finite

    @property
    def sums(self) -> list[Tensor]:
        """What is counted in a step, and added over ranks."""
        return [self.touched, self.total, self.wanted, self.rows, self.silent, self.broken]

    @property
    def reads(self) -> set[str]:
        """Hookpoints whose features are looked at in each forward pass: none where whole rows are told beforehand."""
        return set() if self.rule.mode == "reweight" and self.rows_by is not None else set(self.features)

    def state_dict(self) -> dict[str, Any]:
        """What it has come to know and a run that goes on cannot find out anew."""
        parts = {"same_share": self.same_share, "constrainer": self.constrainer, "rows_by": self.rows_by, "rewriter": self.rewriter}
        found = {name: part.state_dict() for name, part in parts.items() if part is not None}
        return {name: state for name, state in found.items() if state}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        for name, values in state.items():
            getattr(self, name).load_state_dict(values)

    def describe(self) -> dict[str, Any]:
        """For the event that a policy is in force: plain data."""
        return {
            **self.rule.model_dump(exclude_none=True, exclude_defaults=True),
            "label": self.rule.label,
            "mode": self.rule.mode,
            "gain": self.rule.gain if self.rule.target is None else None,
            "features": {name: ids.tolist() for name, ids in self.features.items()},
        }


@dataclass
class Lookup:
    """What a run knows that rules may name.

    `concepts`: concept -> hookpoint -> features. `thresholds`: concept -> hookpoint -> activation above which each feature expresses it
    (default 0). `quorums`: concept -> hookpoint -> share of the tokens around one that must express it (default `rules.QUORUM`).
    `rates(hookpoint)`: share of tokens on which each feature fires (`[F]`, or None): random controls are drawn by it; `contrasts(concept)`:
    hookpoint -> how well each feature tells the concept's examples from others (`random_control.contrast`, `[F]`): those that do are not.
    `detectors`: concept -> hookpoint -> which tokens express it, for `rewrite` and `rows`; `tokenizer`: tells its words.
    `means(hookpoint)`: mean activation `[D]` on the probe set, for `mean-ablate`.
    `constrainers(rule, features)`: makes what carries out a rule of mode `constrain`. `tell(kind, **fields)`: where events go.
    """

    model: nn.Module
    dictionaries: dict[str, Dictionary]
    concepts: dict[str, dict[str, list[int]]]
    rates: Callable[[str], Tensor | None]
    thresholds: dict[str, dict[str, list[float]]] = field(default_factory=dict)
    quorums: dict[str, dict[str, float]] = field(default_factory=dict)
    detectors: dict[str, dict[str, Detector]] = field(default_factory=dict)
    tokenizer: Any = None
    means: Callable[[str], Tensor | None] = lambda hookpoint: None
    contrasts: Callable[[str | None], dict[str, Tensor]] = lambda concept: {}
    constrainers: Callable[[Rule, dict[str, Tensor]], Constrainer] | None = None
    tell: Callable[..., None] = lambda kind, **fields: None
    row_detectors: dict[tuple[str, str], RowDetector] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Raises `ConfigError` for a concept with a feature, or told by one, that its dictionary has not."""
        self._found: list[Writer] | None = None
        for concept, features in self.concepts.items():
            for hookpoint, ids in features.items():
                self._check_ids(f"concept {concept}", ids, hookpoint)
        for (concept, hookpoint), tells in self.row_detectors.items():
            if hookpoint in self.dictionaries:
                self._check_ids(f"concept {concept}: row detector", tells.features, hookpoint)

    @property
    def device(self) -> torch.device:
        return next(self.model.parameters()).device

    def activate(self, rule: Rule) -> ActiveRule:
        """Its features, directions and thresholds; all but the constrainer. Raises `ConfigError` where it names what does not exist."""
        if rule.mode == "auto":
            raise ConfigError(
                f"rule {rule.label}: auto is settled before the first step, by `gradlens run`, `watch` and the callbacks; name reweight, "
                "route or rewrite here"
            )
        if rule.mode == "rewrite":
            return self._rewriting(rule)
        features = {hookpoint: ids for hookpoint, ids in self._features(rule).items() if ids}
        if not features:
            at = ", ".join(rule.hookpoints or self.dictionaries)
            raise ConfigError(f"rule {rule.label}: no features at {at}; give a dictionary where it has some")
        if rule.mode == "penalty":
            self._check_penalty(rule, features)
        looked_up, basis, above, shift = {}, {}, {}, {}
        for hookpoint, ids in features.items():
            dictionary = self.dictionaries[hookpoint]
            self._check_ids(f"rule {rule.label}", ids, hookpoint)
            levels = self.thresholds.get(rule.concept or "", {}).get(hookpoint)
            if rule.random_control is not None:
                ids, levels = self._random_like(ids, hookpoint, rule), None
            device = dictionary.W_dec.device
            looked_up[hookpoint] = torch.tensor(ids, device=device)
            if rule.mode in GATES:
                level_N = torch.tensor(levels or [0.0] * len(ids), dtype=dictionary.work_dtype, device=device)
                level_N = level_N if rule.random_control is not None else level_N.clamp_min(rule.threshold)
                above[hookpoint] = torch.full((dictionary.d_sae,), torch.inf, dtype=dictionary.work_dtype, device=device)
                above[hookpoint][looked_up[hookpoint]] = level_N
            elif rule.mode != "inoculate":
                basis[hookpoint] = orthonormal_basis(dictionary.unit_directions(looked_up[hookpoint]))
            if rule.mode == "steer":
                shift[hookpoint] = rule.strength * dictionary.W_dec[looked_up[hookpoint]].to(dictionary.work_dtype).sum(0)
            elif rule.mode == "mean-ablate":
                mean_D = self.means(hookpoint)
                if mean_D is None:
                    raise ConfigError(f"rule {rule.label}: mean-ablate needs the mean activation at {hookpoint}, so a probe set")
                shift[hookpoint] = mean_D.to(device, dictionary.work_dtype)
        device = next(iter(looked_up.values())).device
        zero = lambda: torch.zeros((), dtype=torch.float64, device=device)  # noqa: E731
        active = ActiveRule(rule, looked_up, basis, above, zero(), zero(), shift=shift)
        if rule.mode in GATES and rule.random_control is not None:
            active.instead_of = self.activate(rule.model_copy(update={"random_control": None}))
            active.same_share = SameShare(rule.random_control, device)
        elif rule.rows is not None:
            active.rows_by = self._rows(rule, rule.hookpoints)
        if rule.mode in ("param", "update"):
            active.writers = self._writers(active)
        return active

    def _features(self, rule: Rule) -> dict[str, list[int]]:
        if rule.concept is not None and rule.concept not in self.concepts:
            raise ConfigError(f"rule {rule.label}: unknown concept {rule.concept!r}; this run has {', '.join(self.concepts) or 'none'}")
        named = rule.features or self.concepts[rule.concept]
        features = {canonical(hookpoint): list(ids) for hookpoint, ids in named.items()}
        for hookpoint in [*features, *map(canonical, rule.hookpoints or [])]:
            if hookpoint not in self.dictionaries:
                raise ConfigError(f"rule {rule.label}: no dictionary at {hookpoint}; this run has {', '.join(self.dictionaries)}")
        if rule.hookpoints is not None:
            return {hookpoint: features.get(hookpoint, []) for hookpoint in map(canonical, rule.hookpoints)}
        if rule.mode in GATES and features:  # the last hookpoint: measured to route best where wanted and unwanted sit in different tokens
            last = max(features, key=lambda hookpoint: layer_of(hookpoint) if layer_of(hookpoint) is not None else -1)
            return {last: features[last]}
        return features

    def _random_like(self, ids: list[int], hookpoint: str, rule: Rule) -> list[int]:
        """As many random features that fire about as often, none of the concept's."""
        dictionary = self.dictionaries[hookpoint]
        rate_F = self.rates(hookpoint)
        barred_F = barred(among(ids, dictionary.d_sae), self.contrasts(rule.concept).get(hookpoint), rate_F, len(ids))
        found = matched_features(ids, dictionary.norms, rate_F, rule.random_control, barred_F)
        if len(found) < len(ids):
            raise ConfigError(
                f"rule {rule.label}: the random control needs {len(ids)} live features outside the concept, {hookpoint} has {len(found)}"
            )
        return found

    def _rewriting(self, rule: Rule) -> ActiveRule:
        if rule.concept not in self.concepts and rule.concept not in self.detectors:
            raise ConfigError(f"rule {rule.label}: unknown concept {rule.concept!r}; this run has {', '.join(self.concepts) or 'none'}")
        tokens = self._tokens(rule, rule.hookpoints)
        rewriter = Rewriter(self.model, self.dictionaries, tokens, rule.bridge, self.tokenizer)
        features = {tokens.hookpoint: tokens.weights_F.nonzero().flatten()}
        touched, total = torch.zeros(2, dtype=torch.float64, device=tokens.weights_F.device)
        rows_by = None if rule.rows is None else self._rows(rule, rule.told_at)
        return ActiveRule(rule, features, {}, {}, touched, total, rewriter=rewriter, rows_by=rows_by)

    def _rows(self, rule: Rule, hookpoints: list[str] | None) -> RowTeller:
        """Who tells the rows that show a rule's concept. Raises `ConfigError` where nothing was learned of that."""
        found = self._detectors(rule, hookpoints)
        hookpoint = best_rows(found)
        if hookpoint is None:
            places = ", ".join(hookpoints or self.dictionaries)
            raise ConfigError(
                f"rule {rule.label}: rows: no row detector of concept {rule.concept} at {places}; it is fitted before the first step, on "
                "positive and negative examples (8 of each at least), for rules that are there by then"
            )
        row = found[hookpoint].row
        self._check_ids(f"rule {rule.label}: row detector", row.features, hookpoint)
        return RowTeller(self.model, self.dictionaries, hookpoint, row, rule.rows)

    def _detectors(self, rule: Rule, hookpoints: list[str] | None) -> dict[str, Detector]:
        """Those of a rule's concept, at some hookpoints (null: at any)."""
        wanted = list(self.dictionaries) if hookpoints is None else [canonical(name) for name in hookpoints]
        return {name: each for name, each in self.detectors.get(rule.concept, {}).items() if name in self.dictionaries and name in wanted}

    def _check_ids(self, what: str, ids: Sequence[int], hookpoint: str) -> None:
        d_sae = self.dictionaries[hookpoint].d_sae
        outside = [i for i in ids if not 0 <= i < d_sae]
        if outside:
            raise ConfigError(f"{what}: no feature {outside[0]} at {hookpoint}; the dictionary there has the features 0 to {d_sae - 1}")

    def _tokens(self, rule: Rule, hookpoints: list[str] | None) -> Tokens:
        """The token detector of a rule's concept, the sharpest there is at these hookpoints (null: at any); its random control."""
        found = {name: each for name, each in self._detectors(rule, hookpoints).items() if each.features}
        if not found:
            raise ConfigError(
                f"rule {rule.label}: concept {rule.concept} has no token detector at {', '.join(hookpoints or self.dictionaries)}; "
                "give it positive and negative examples, or `detectors` (where it has examples, no feature there tells its tokens)"
            )
        hookpoint = sharpest(found)
        detector, dictionary = found[hookpoint], self.dictionaries[hookpoint]
        self._check_ids(f"rule {rule.label}: token detector", detector.features, hookpoint)
        device = dictionary.W_dec.device
        weights_F = weights_over(detector, dictionary.d_sae, device, dictionary.work_dtype)
        if rule.random_control is None:
            return Tokens(hookpoint, weights_F, detector.bias)
        contrast_F = self.contrasts(rule.concept).get(hookpoint)
        mixed_F = matched_weights(weights_F.cpu(), dictionary.norms, self.rates(hookpoint), rule.random_control, contrast_F).to(device)
        return Tokens(hookpoint, mixed_F, detector.bias, instead_of_F=weights_F if rule.random_as == "tokens" else None)

    def _check_penalty(self, rule: Rule, features: dict[str, list[int]]) -> None:
        with before_training(unwrap(self.model)) as adapted:
            if not adapted:
                raise ConfigError(
                    f"rule {rule.label}: penalty compares with the model before training, which is at hand only where an adapter "
                    "(LoRA) that can be switched off is trained; with full fine-tuning use route or rewrite"
                )
        readers = [name for name in features if self.dictionaries[name].hook_in]
        if readers:
            raise ConfigError(f"rule {rule.label}: penalty does not act through the transcoder at {readers[0]}; use an autoencoder there")

    def _writers(self, active: ActiveRule) -> list[tuple[Tensor, Turn, Tensor]]:
        """Trainable parameters that write to the residual stream at or before the rule's hookpoints, how to turn them so that what they
        write is their last dimension (and back), and what leaves them when the rule's directions leave the stream there."""
        if self._found is None:
            self._found = find_writers(self.model)
        bases: dict[Writer, list[Tensor]] = {}
        for hookpoint, Q in active.basis.items():
            for writer in below(self._found, hookpoint):
                if writer.parameter.requires_grad:
                    bases.setdefault(writer, []).append(writer.basis(Q))
        if not bases:
            raise ConfigError(
                f"rule {active.rule.label}: no trainable matrix writes to the residual stream at or before {', '.join(active.basis)}"
            )
        # one basis of all hookpoints' directions: edits one after another would bring some of the first back
        joined = {writer: Qs[0] if len(Qs) == 1 else orthonormal_basis(torch.cat(Qs, 1).T) for writer, Qs in bases.items()}
        rule = active.rule
        partly = rule.gain != 0 or rule.start > 0 or rule.ramp > 0 or rule.target is not None
        if any(writer.low_rank and (partly or _writes_along(writer, Q)) for writer, Q in joined.items()):
            text = (
                f"rule {rule.label}: LoRA's B writes along the concept, or will, and then what its A changes passes the rule by; exact are "
                "a gain of 0 from the first step of a new adapter, and full fine-tuning"
            )
            self.tell("inexact", rule=rule.label, text=text)
        return [(writer.parameter, writer.turn, Q) for writer, Q in joined.items()]


def _writes_along(writer: Writer, Q: Tensor) -> bool:
    matrix = writer.turn(writer.parameter.detach())
    return bool((matrix @ Q.to(matrix.dtype)).norm() > 1e-4 * matrix.norm())

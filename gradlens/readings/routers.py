"""Routers of mixtures of experts: which experts tokens go to, how decided a router is, and how that changes over a run.

Read by hooks at the routers themselves: `output_router_logits` would add a loss. The mathematics are pure functions; `Routers` is the shell
around them. Shape letters: B rows, S positions, T tokens, E experts, K experts of each token.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor, nn

from gradlens.model.capture import MicroBatch, counted_tokens, inference
from gradlens.model.hookpoints import blocks, d_model, unwrap
from gradlens.readings.uptake import Pairs

Scoring = Literal["softmax", "sigmoid", "none"]
SHOWN_LAYERS = 8  # that have scalars of their own, evenly spread; events tell of all
SHOWN_EXPERTS = 64  # of a layer in an event, those that changed most


# -- mathematics --------------------------------------------------------------------------------------------------------------


def probabilities(logits_TE: Tensor, scoring: Scoring) -> Tensor:
    """The router's distribution over experts, `[T, E]`, rows that sum to one; sigmoid scores are divided by their sum."""
    if scoring == "softmax":
        return logits_TE.float().softmax(-1)
    scores_TE = logits_TE.float().sigmoid() if scoring == "sigmoid" else logits_TE.float()
    return scores_TE / scores_TE.sum(-1, keepdim=True)


def entropy(p_TE: Tensor) -> Tensor:
    """Entropy of each token's distribution in units of log E, `[T]`: 1 where every expert is as likely, 0 where one is certain."""
    return torch.special.entr(p_TE).sum(-1) / math.log(max(p_TE.shape[-1], 2))


def assignments(idx_TK: Tensor, weight_T: Tensor, experts: int) -> Tensor:
    """How many tokens each expert gets, `[E]` float64; `weight[T]`: 1 for tokens that count, else 0. Never waits for the device."""
    zeros_E = torch.zeros(experts, dtype=torch.float64, device=idx_TK.device)
    return zeros_E.index_add_(0, idx_TK.flatten(), weight_T.double()[:, None].expand_as(idx_TK).flatten())


def share(counts_E: Tensor) -> Tensor:
    """Load: the share of all assignments that each expert gets; NaN without any."""
    return counts_E / counts_E.sum()


def distance(load_E: Tensor, other_E: Tensor) -> float:
    """Total variation of two loads: the share of assignments that would have to move to make one the other; 0 to 1."""
    return ((load_E - other_E).abs().sum() / 2).item()


def expressing(pairs: list[tuple[Pairs, Tensor]], tokens: int) -> Tensor:
    """Tokens at which any of some features is active, `bool[T]`; `pairs`: active features of a hookpoint, and which of them matter."""
    mask_T = torch.zeros(tokens, dtype=torch.bool)
    for active, members in pairs:
        mask_T[active.token_P[torch.isin(active.feature_P, members.cpu().to(active.feature_P.dtype))].long()] = True
    return mask_T


# -- the model's routers ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Router:
    name: str  # of its block: layers.3
    module: nn.Module
    experts: int  # E
    per_token: int  # K
    scoring: Scoring


def find_routers(model: nn.Module) -> list[Router]:
    """The routers of a model's blocks, found by structure: what stands beside experts and has a row of weights for each of them.

    One forward pass of a few tokens, where there are any, tells what they put out.
    """
    inner, width = unwrap(model), d_model(model)
    found = {f"layers.{layer}": gate for layer, block in enumerate(blocks(model)) if (gate := _gate(block, width)) is not None}
    if not found:
        return []
    seen: dict[str, tuple[Tensor, Tensor, Tensor | None]] = {}
    ids = (torch.arange(1, 4) * 37 % inner.get_input_embeddings().weight.shape[0])[None].to(next(inner.parameters()).device)
    default = experts_per_token(inner.config.get_text_config())
    with ExitStack() as hooks, inference(inner):
        for name, gate in found.items():
            note = lambda module, args, output, name=name: seen.update({name: _taken_apart(output, default)})  # noqa: E731
            hooks.callback(gate.register_forward_hook(note).remove)
        inner(input_ids=ids, use_cache=False)
    return [
        Router(name, found[name], logits_TE.shape[-1], idx_TK.shape[-1], _scoring(logits_TE, idx_TK, weight_TK))
        for name, (logits_TE, idx_TK, weight_TK) in seen.items()
        if len(logits_TE) == ids.numel() and idx_TK.shape[-1]
    ]


def unread_blocks(model: nn.Module, routers: list[Router]) -> list[str]:
    """Blocks that hold experts, and of which no router is read."""
    known = {router.name for router in routers}
    found = []
    for layer, block in enumerate(blocks(model)):
        named = (part for name, part in block.named_modules() if "expert" in name.rpartition(".")[2].lower())
        if any(_experts(part) for part in named):
            found.append(f"layers.{layer}")
    return [name for name in found if name not in known]


def experts_per_token(config: Any) -> int:
    """How many experts a token goes to, by any of its names in a config (a list: of the first layer); 0 where that is not said."""
    for part in (config, getattr(config, "ffn_config", None)):
        for name in ("num_experts_per_tok", "num_experts_per_token", "moe_topk", "moe_top_k", "top_k_experts"):
            value = getattr(part, name, None)
            value = value[0] if isinstance(value, (list, tuple)) and value else value
            if isinstance(value, int) and value > 0:
                return value
    return 0


def _gate(block: nn.Module, width: int) -> nn.Module | None:
    """What has a row of weights for each of the experts beside it, itself or in a part of it."""
    for parent in block.modules():
        children = dict(parent.named_children())
        counts = {name: _experts(child) for name, child in children.items()}
        for experts in filter(None, counts.values()):
            beside = [child for name, child in children.items() if not counts[name]]
            for module in [*beside, *(part for child in beside for part in child.modules())]:
                weight = getattr(module, "weight", None)
                if isinstance(weight, Tensor) and tuple(weight.shape) == (experts, width):
                    return module
    return None


def _experts(module: nn.Module) -> int:
    """How many experts a module holds: in a list, or as the first dimension of one parameter."""
    if isinstance(module, nn.ModuleList):
        return len(module) if len(module) > 1 else 0
    stacked = [p.shape[0] for p in module.parameters(recurse=True) if p.dim() == 3]
    return stacked[0] if stacked and not any(isinstance(part, nn.Conv1d) for part in module.modules()) else 0


def _taken_apart(output: Any, per_token: int) -> tuple[Tensor, Tensor, Tensor | None]:
    """`(logits[T, E], chosen[T, K], weights[T, K] or None)` from what a router puts out: those three, or logits alone."""
    parts = [part.detach() for part in (output if isinstance(output, tuple) else (output,)) if isinstance(part, Tensor)]
    logits_TE = parts[0].flatten(0, -2)
    if len(parts) == 2 and parts[1].is_floating_point() and parts[1].numel() == parts[0].numel():
        # the weights, zero but for the chosen, and then the logits (Llama 4)
        weight_TK, idx_TK = logits_TE.topk(min(per_token, logits_TE.shape[-1]), -1)
        return parts[1].flatten(0, -2), idx_TK, weight_TK
    chosen = [part.flatten(0, -2) for part in parts[1:] if not part.is_floating_point()]
    if not chosen:
        return logits_TE, logits_TE.topk(min(per_token, logits_TE.shape[-1]), -1).indices, None
    weights = [part.flatten(0, -2) for part in parts[1:] if part.is_floating_point() and part.shape[-1] == chosen[0].shape[-1]]
    return logits_TE, chosen[0], weights[0] if weights else None


def _scoring(logits_TE: Tensor, idx_TK: Tensor, weight_TK: Tensor | None) -> Scoring:
    """What makes the router's weights of its logits, told from both: whichever gives the weights' proportions."""
    rows = logits_TE.float()
    if bool((rows >= 0).all()) and torch.allclose(rows.sum(-1), torch.ones(len(rows), device=rows.device), atol=1e-3):
        return "none"
    if weight_TK is None:
        return "softmax"

    def misfit(scores_TE: Tensor) -> float:
        scores_TK, given_TK = scores_TE.gather(-1, idx_TK), weight_TK.float()
        if idx_TK.shape[-1] > 1:  # routers may scale what they have chosen
            scores_TK, given_TK = (x / x.sum(-1, keepdim=True).clamp_min(1e-30) for x in (scores_TK, given_TK))
        return (scores_TK - given_TK).abs().max().item()

    return "sigmoid" if misfit(rows.sigmoid()) < misfit(rows.softmax(-1)) - 1e-6 else "softmax"


# -- readings -----------------------------------------------------------------------------------------------------------------


@dataclass
class RouterReading:
    """Where the tokens of the probe set went: loads by layer, of all counted tokens and of those that express a concept."""

    load: dict[str, Tensor] = field(default_factory=dict)  # layer -> [E]
    concepts: dict[str, dict[str, Tensor]] = field(default_factory=dict)  # concept -> layer -> [E]; none without tokens of it


class Routers:
    """A model's routers under observation. Nothing is registered and nothing costs anything where it has none."""

    def __init__(self, model: nn.Module) -> None:
        self.routers = find_routers(model)
        self.unread = unread_blocks(model, self.routers)  # blocks with experts whose routers are not known
        self._sums: dict[str, Tensor] = {}  # layer -> assignments [E], then the sum of entropies and of tokens; of training batches
        self._seen: dict[str, list[Tensor]] | None = None  # layer -> chosen experts [B S, K] of every pass, while the probe set is read

    def watch(self, batch: Callable[[], MicroBatch | None]) -> ExitStack:
        """Hooks on every router until the stack is closed; `batch()`: the training batch on its way through, None: not to be counted."""
        hooks = ExitStack()
        for router in self.routers:
            hooks.callback(router.module.register_forward_hook(torch.compiler.disable(partial(self._on_router, router, batch))).remove)
        return hooks

    @torch.no_grad()
    def _on_router(self, router: Router, batch: Callable[[], MicroBatch | None], module: nn.Module, args: tuple, output: Any) -> None:
        current = batch()
        if self._seen is None and current is None:
            return
        logits_TE, idx_TK, _ = _taken_apart(output, router.per_token)
        if self._seen is not None:
            self._seen.setdefault(router.name, []).append(idx_TK)
        elif len(idx_TK) == current.keep_BS.numel():
            weight_T = current.keep_BS.flatten()
            entropy_T = entropy(probabilities(logits_TE, router.scoring)) * weight_T
            part = torch.cat(
                [assignments(idx_TK, weight_T, router.experts), torch.stack([entropy_T.sum(), weight_T.sum()]).to(torch.float64)]
            )
            self._sums[router.name] = self._sums[router.name] + part if router.name in self._sums else part

    def sums(self) -> list[Tensor]:
        """What training batches have added since the last `drain`, one tensor a router, to be added over ranks in place."""
        zeros = lambda router: torch.zeros(router.experts + 2, dtype=torch.float64, device=next(router.module.parameters()).device)  # noqa: E731
        self._sums = {router.name: self._sums.get(router.name, zeros(router)) for router in self.routers}
        return list(self._sums.values())

    def drain(self, scalars: dict[str, float]) -> None:
        """Scalars of the training batches since the last call: `entropy` and `load_max` of layers, and over all."""
        entropies, loads = {}, {}
        for name, sums in self._sums.items():
            counts_E, (total, tokens) = sums[:-2].cpu(), sums[-2:].tolist()
            if tokens:
                entropies[name], loads[name] = total / tokens, share(counts_E).max().item()
        self._sums = {}
        if entropies:
            scalars |= {"router/entropy": sum(entropies.values()) / len(entropies), "router/load_max": max(loads.values())}
        for name in self._shown():
            if name in entropies:
                scalars |= {f"router/{name}/entropy": entropies[name], f"router/{name}/load_max": loads[name]}

    @contextmanager
    def reading(self) -> Iterator[None]:
        """Forward passes of the probe set within are noted, for `read`."""
        self._seen = {}
        try:
            yield
        finally:
            self._noted, self._seen = self._seen, None

    def read(self, batches: list[dict[str, Tensor]], tokens: str, masks: dict[str, Tensor]) -> RouterReading:
        """Loads of the passes noted, which were those of `batches` with counted tokens; `masks`: concept -> `bool[T]` of those tokens."""
        reading = RouterReading(concepts={concept: {} for concept in masks})
        keeps = [counted_tokens(b["input_ids"], b.get("attention_mask"), b.get("labels"), tokens).flatten().cpu() for b in batches]
        keeps = [keep for keep in keeps if keep.any()]
        for router in self.routers:
            passes = self._noted.get(router.name, [])
            if len(passes) != len(keeps) or any(len(idx) != len(keep) for idx, keep in zip(passes, keeps, strict=True)):
                continue  # a router that does not see every token
            idx_TK = torch.cat([idx.cpu()[keep] for idx, keep in zip(passes, keeps, strict=True)])
            reading.load[router.name] = share(assignments(idx_TK, torch.ones(len(idx_TK), dtype=torch.float32), router.experts))
            for concept, mask_T in masks.items():
                if mask_T.any():
                    reading.concepts[concept][router.name] = share(assignments(idx_TK, mask_T, router.experts))
        return reading

    def _shown(self) -> list[str]:
        names = [router.name for router in self.routers]
        at = torch.linspace(0, len(names) - 1, min(SHOWN_LAYERS, len(names))).round().int().tolist() if names else []
        return [names[i] for i in at]

    def changes(self, start: RouterReading, last: RouterReading) -> dict[str, float]:
        """Scalars of the probe set: `change` of layers and over all, and of every concept its `focus` and `change`."""
        moved = {name: distance(load_E, start.load[name]) for name, load_E in last.load.items() if name in start.load}
        scalars = {"router/change": sum(moved.values()) / len(moved)} if moved else {}
        scalars |= {f"router/{name}/change": moved[name] for name in self._shown() if name in moved}
        for concept, layers in last.concepts.items():
            focus = [distance(load_E, last.load[name]) for name, load_E in layers.items()]
            before = start.concepts.get(concept, {})
            moved_too = [distance(load_E, before[name]) for name, load_E in layers.items() if name in before]
            if focus:
                scalars[f"router/concept/{concept}/focus"] = sum(focus) / len(focus)
            if moved_too:
                scalars[f"router/concept/{concept}/change"] = sum(moved_too) / len(moved_too)
        return scalars


def event_of(start: RouterReading, last: RouterReading) -> dict[str, Any]:
    """The fields of a `routers` event: of every layer the `experts` told of, their `load` now and `before`, and each concept's."""
    layers: dict[str, Any] = {}
    for name, load_E in last.load.items():
        before_E = start.load.get(name, load_E)
        changed_E = (load_E - before_E).abs() + sum((loads[name] - load_E).abs() for loads in last.concepts.values() if name in loads)
        experts = changed_E.topk(min(SHOWN_EXPERTS, len(load_E))).indices.sort().values
        told = lambda values_E, experts=experts: [round(value, 4) for value in values_E[experts].tolist()]  # noqa: E731
        layers[name] = {"experts": experts.tolist(), "load": told(load_E), "before": told(before_E), "concepts": {}}
        for concept, loads in last.concepts.items():
            if name in loads:
                earlier = start.concepts.get(concept, {}).get(name, loads[name])
                layers[name]["concepts"][concept] = {"load": told(loads[name]), "before": told(earlier)}
    return {"layers": layers}

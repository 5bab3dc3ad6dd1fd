"""Training mathematics of a sparse autoencoder with TopK or BatchTopK: selection, loss, gradients, one step. No files, no model.

Recipe: Gao et al., "Scaling and evaluating sparse autoencoders" (arXiv 2406.04093): tied initialisation, unit decoder rows, TopK,
AuxK loss for dead features; BatchTopK after Bussmann et al. (arXiv 2412.06410). Inputs are scaled by one number so that
their centred mean square norm is D; `dictionary()` folds it back.

Only the selected pairs (token, feature) carry gradient: 2KD instead of 2DF per token. They are kept in compressed form:
`offsets[T+1]` and `feature[N]` in the order of tokens. Shape suffixes: T tokens, D d_model, F d_sae, N selected pairs.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn.functional import embedding_bag

from gradlens.dictionaries.dictionary import Dictionary
from gradlens.errors import RunError


@dataclass(frozen=True)
class Pairs:
    """Selected pairs of a batch, in the order of tokens."""

    offsets: Tensor  # int64[T+1]: pairs of token t are offsets[t] to offsets[t+1]
    feature: Tensor  # int64[N]
    d_sae: int

    def token(self) -> Tensor:
        """Token of each pair, `int64[N]`."""
        counts = self.offsets.diff()
        return torch.repeat_interleave(torch.arange(counts.numel(), device=counts.device), counts, output_size=self.feature.numel())


def select(pre_TF: Tensor, k: int, activation: Literal["topk", "batchtopk"], candidates: Tensor | None = None) -> Pairs:
    """The pairs that stay: the k largest of each token (topk), or the k*T largest of the batch (batchtopk).

    `candidates`: ids of the features to choose from, `[C]` with k <= C; null: all.
    """
    T, F = pre_TF.shape
    pool = pre_TF if candidates is None else pre_TF[:, candidates]
    if activation == "topk":
        feature = pool.topk(k, dim=-1, sorted=False).indices.flatten()
        offsets = torch.arange(0, T * k + 1, k, device=pre_TF.device)
    else:
        chosen = pool.flatten().topk(k * T, sorted=False).indices.sort().values
        feature = chosen % pool.shape[1]
        counts = torch.bincount(chosen // pool.shape[1], minlength=T)
        offsets = torch.cat([counts.new_zeros(1), counts.cumsum(0)])
    return Pairs(offsets, feature if candidates is None else candidates[feature], F)


class _EncodePairs(torch.autograd.Function):
    """`x_t . E_f` at the selected pairs, read from `pre_TF`; the gradient of `E[F, D]` sums over those pairs alone.

    Eager twin: `pre_TF[pairs.token(), pairs.feature]` with `pre_TF = x @ E.T` under autograd.
    """

    @staticmethod
    def forward(ctx: Any, E_FD: Tensor, pre_TF: Tensor, x_TD: Tensor, pairs: Pairs) -> Tensor:
        ctx.save_for_backward(x_TD)
        ctx.pairs = pairs
        return pre_TF[pairs.token(), pairs.feature]

    @staticmethod
    def backward(ctx: Any, grad_N: Tensor) -> tuple[Tensor, None, None, None]:
        (x_TD,), pairs = ctx.saved_tensors, ctx.pairs
        order = pairs.feature.argsort(stable=True)
        counts = torch.bincount(pairs.feature, minlength=pairs.d_sae)
        offsets = counts.cumsum(0) - counts
        # Per feature the sum over its tokens of grad * x: a bag of rows of x. Faster than a dense product by about five on CPU.
        grad_FD = embedding_bag(pairs.token()[order], x_TD, offsets, mode="sum", per_sample_weights=grad_N[order])
        return grad_FD, None, None, None


def encode_pairs(E_FD: Tensor, c_F: Tensor, x_TD: Tensor, pre_TF: Tensor, pairs: Pairs) -> Tensor:
    """Activations `relu(x . E_f + c_f)` of the selected pairs, `[N]`; `pre_TF = x @ E.T` comes in without gradient."""
    return (_EncodePairs.apply(E_FD, pre_TF, x_TD, pairs) + c_F[pairs.feature]).relu()


def decode_pairs(W_dec: Tensor, val_N: Tensor, pairs: Pairs) -> Tensor:
    """`[T, D]`: the sum over each token's pairs of activation times decoder row."""
    return embedding_bag(pairs.feature, W_dec, pairs.offsets[:-1], mode="sum", per_sample_weights=val_N)


def learning_rate(step: int, steps: int, peak: float, warmup: int, decay: float) -> float:
    """Rate of a step (from 0): linear warm-up, flat, linear to 0 over the last `decay` share."""
    rise = min(1.0, (step + 1) / (warmup + 1))
    fall = min(1.0, (steps - step) / max(decay * steps, 1))
    return peak * min(rise, fall)


@dataclass(frozen=True)
class Recipe:
    """What one training step needs to know; see `SaeConfig` for what the fields mean."""

    k: int
    activation: Literal["topk", "batchtopk"] = "topk"
    steps: int = 1000
    lr: float = 1e-3
    warmup: int = 50
    decay: float = 0.5
    aux_k: int = 256
    aux_weight: float = 1 / 32
    dead_after: int = 50_000


class Trainer:
    """Weights, optimizer and counters of one dictionary in training. Inputs of every method are raw activations."""

    THRESHOLD_RATE = 0.01  # of the running mean of batchtopk's smallest kept activation

    def __init__(self, recipe: Recipe, d_sae: int, sample_TD: Tensor, seed: int = 0) -> None:
        """Initialise from a sample of activations `[T, D]`: its mean and scale, and random tied directions."""
        device, D = sample_TD.device, sample_TD.shape[1]
        generator = torch.Generator().manual_seed(seed)
        mean_D = sample_TD.mean(0)
        self.recipe, self.step_count = recipe, 0
        self.scale = math.sqrt(D / (sample_TD - mean_D).square().sum(-1).mean().clamp_min(1e-30).item())
        self.W_dec = torch.nn.functional.normalize(torch.randn(d_sae, D, generator=generator), dim=1).to(device).requires_grad_()
        self.E_FD = self.W_dec.detach().clone().requires_grad_()  # encoder, transposed
        self.b_enc = torch.zeros(d_sae, device=device, requires_grad=True)
        self.b_dec = (mean_D * self.scale).detach().clone().requires_grad_()
        self.threshold = torch.zeros((), dtype=torch.float64)
        self.idle_F = torch.zeros(d_sae, dtype=torch.long, device=device)  # tokens since each feature last fired
        self.optimizer = torch.optim.Adam(
            self.parameters(), lr=recipe.lr, betas=(0.9, 0.999), eps=1e-8, fused=device.type in ("cpu", "cuda")
        )

    def parameters(self) -> list[Tensor]:
        return [self.E_FD, self.b_enc, self.W_dec, self.b_dec]

    def loss(self, x_TD: Tensor) -> tuple[Tensor, Tensor, Pairs, Tensor]:
        """(loss, share of variance left, selected pairs, their activations) of scaled activations `x`.

        loss = ||x - x̂||² / ||x - mean||² + aux_weight * ||e - ê||² / ||e||², where e = x - x̂ and ê is built by the strongest dead features.
        """
        recipe = self.recipe
        c_F = self.b_enc - self.E_FD @ self.b_dec  # x . E + c = (x - b_dec) . E + b_enc
        with torch.no_grad():
            dot_TF = x_TD @ self.E_FD.T
            pre_TF = dot_TF + c_F
            pairs = select(pre_TF, recipe.k, recipe.activation)
        val_N = encode_pairs(self.E_FD, c_F, x_TD, dot_TF, pairs)
        error_TD = x_TD - self.b_dec - decode_pairs(self.W_dec, val_N, pairs)
        left = error_TD.square().sum() / (x_TD - x_TD.mean(0)).square().sum().clamp_min(1e-30)
        dead = (self.idle_F >= recipe.dead_after).nonzero().flatten()
        if not recipe.aux_k or not dead.numel():
            return left, left.detach(), pairs, val_N.detach()
        target_TD = error_TD.detach()
        rescue = select(pre_TF, min(recipe.aux_k, dead.numel()), "topk", dead)
        guess_TD = decode_pairs(self.W_dec, encode_pairs(self.E_FD, c_F, x_TD, dot_TF, rescue), rescue)
        aux = (target_TD - guess_TD).square().sum() / target_TD.square().sum().clamp_min(1e-30)
        return left + recipe.aux_weight * aux, left.detach(), pairs, val_N.detach()

    def step(self, x_TD: Tensor) -> float:
        """One optimizer step on raw activations `[T, D]`; returns the share of variance left. `RunError` where the loss is not finite."""
        recipe = self.recipe
        loss, left, pairs, val_N = self.loss(x_TD * self.scale)
        if not math.isfinite(loss.item()):
            raise RunError(
                f"sae: the loss is {loss.item()} at step {self.step_count + 1}; lower lr ({recipe.lr}) or check the activations for NaN"
            )
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        with torch.no_grad():
            # Rows have unit norm: what points along a row cannot be kept, and would only disturb Adam's moments.
            along = (self.W_dec.grad * self.W_dec).sum(-1, keepdim=True)
            self.W_dec.grad.addcmul_(along, self.W_dec, value=-1)
            for group in self.optimizer.param_groups:
                group["lr"] = learning_rate(self.step_count, recipe.steps, recipe.lr, recipe.warmup, recipe.decay)
            self.optimizer.step()
            self.W_dec.div_(self.W_dec.norm(dim=-1, keepdim=True).clamp_min(1e-12))
            fired = torch.bincount(pairs.feature[val_N > 0], minlength=self.idle_F.numel()) > 0
            self.idle_F = torch.where(fired, 0, self.idle_F + x_TD.shape[0])
            if recipe.activation == "batchtopk" and (val_N > 0).any():
                smallest = val_N[val_N > 0].min().double().cpu()
                rate = max(self.THRESHOLD_RATE, 1 / (self.step_count + 1))
                self.threshold = self.threshold + rate * (smallest - self.threshold)
        self.step_count += 1
        return left.item()

    def dead(self) -> int:
        """Features that count as dead now."""
        return int((self.idle_F >= self.recipe.dead_after).sum())

    def dictionary(self, hookpoint: str = "", metadata: dict[str, Any] | None = None) -> Dictionary:
        """The dictionary for raw activations: activations and biases divided by the scale, decoder rows of norm 1."""
        s = self.scale
        batchtopk = self.recipe.activation == "batchtopk"
        return Dictionary(
            W_enc=self.E_FD.detach().T.contiguous(),
            b_enc=self.b_enc.detach() / s,
            W_dec=self.W_dec.detach().clone(),
            b_dec=self.b_dec.detach() / s,
            activation="jumprelu" if batchtopk else "topk",
            k=None if batchtopk else self.recipe.k,
            threshold=torch.full_like(self.b_enc, self.threshold.item() / s).detach() if batchtopk else None,
            hookpoint=hookpoint,
            metadata=metadata or {},
        )

    def state(self) -> dict[str, Any]:
        """Everything that a later `load_state` needs to go on exactly where this stands."""
        names = ("E_FD", "b_enc", "W_dec", "b_dec", "idle_F", "threshold")
        tensors = {name: getattr(self, name).detach() for name in names}
        return {"tensors": tensors, "optimizer": self.optimizer.state_dict(), "step": self.step_count, "scale": self.scale}

    def load_state(self, state: dict[str, Any]) -> None:
        with torch.no_grad():
            for name in ("E_FD", "b_enc", "W_dec", "b_dec", "idle_F"):
                getattr(self, name).copy_(state["tensors"][name])
        self.threshold = state["tensors"]["threshold"].cpu()
        self.optimizer.load_state_dict(state["optimizer"])
        self.step_count, self.scale = state["step"], state["scale"]

"""What a model's loss has computed already: the log-probabilities that autograd keeps for the backward pass.

The loss of each token is one look-up in them; without, it takes the softmax of all logits a second time.
Shape suffixes: B rows, C columns, V vocabulary.
"""

from __future__ import annotations

import torch
from torch import Tensor

# these hand on the values of logits in their order, in another dtype or shape at most
KEEPS_VALUES = {"ViewBackward0", "UnsafeViewBackward0", "ReshapeAliasBackward0", "AliasBackward0", "ToCopyBackward0"}
STEPS = 32  # of the graph that are looked at: a loss stands near its end


def saved_log_probs(loss: Tensor | None, logits_BCV: Tensor) -> Tensor | None:
    """`log_softmax(logits)`, `[B, C, V]`, as the model's loss computed it: the graph of `loss` is followed back to `logits_BCV`.

    None where that is not to be had: no graph (compiled, fused), other logits, other positions, or somebody who packs saved tensors
    (offloading), whom reading them here could disturb. Costs no arithmetic and nothing waits. Only before the backward pass.
    """
    if not isinstance(loss, Tensor) or loss.grad_fn is None or logits_BCV.grad_fn is None:
        return None
    if torch._C._autograd._top_saved_tensors_default_hooks(False) is not None:
        return None
    waiting, seen = [loss.grad_fn], 0
    while waiting and seen < STEPS:
        node, seen = waiting.pop(0), seen + 1
        if node.name() != "LogSoftmaxBackward0":
            waiting += [following for following, _ in node.next_functions if following is not None]
        elif _begins_at(node.next_functions[0][0], logits_BCV.grad_fn):
            log_probs = node._saved_result.detach()
            over_vocabulary = node._saved_dim in (log_probs.dim() - 1, -1, 2**64 - 1)
            if over_vocabulary and log_probs.shape[-1] == logits_BCV.shape[-1] and log_probs.numel() == logits_BCV.numel():
                return log_probs.view(logits_BCV.shape)
    return None


def _begins_at(node: torch.autograd.graph.Node | None, origin: torch.autograd.graph.Node) -> bool:
    while node is not None and node is not origin and node.name() in KEEPS_VALUES:
        node = node.next_functions[0][0]
    return node is origin

"""What a step accumulated leaves the device without making anybody wait: pinned, asynchronous copies that the next step overlaps.

On the CPU there is nothing to copy, and everything is handed on at once.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import is_dataclass, replace
from typing import Any

import torch
from torch import Tensor

ASYNCHRONOUS = ("cuda",)  # devices that copy while they compute; from others it is waited for
WAITING = 4  # steps whose copies may be under way; beyond that a step's readings are dropped


class Outbox:
    """Hands nested tensors on as CPU tensors, in the order in which they came."""

    def __init__(self) -> None:
        # events after which it is there (none: it is), what it is, who gets it
        self._waiting: deque[tuple[list[Any], Any, Callable[[Any], None]]] = deque()
        self.dropped = 0

    def put(self, content: Any, then: Callable[[Any], None]) -> None:
        """Call `then(content)` when every tensor of it is on the CPU: now, or at a later `put` or `flush`.

        The tensors may be changed as soon as this returns. `then(None)` where too much is on its way already.
        """
        self.flush(wait=False)
        found: set[torch.device] = set()
        each_tensor(lambda leaf: found.add(leaf.device), content)
        devices = {device for device in found if device.type in ASYNCHRONOUS}
        if devices and sum(bool(arrived) for arrived, _, _ in self._waiting) >= WAITING:
            self.dropped += 1
            content, devices = None, set()
        if not devices and not self._waiting:
            then(each_tensor(Tensor.cpu, content))
            return
        arrived = []
        if devices:
            leaves: dict[int, Tensor] = {}
            each_tensor(lambda leaf: leaves.setdefault(id(leaf), leaf), content)
            copies = dict(zip(leaves, _copied(list(leaves.values())), strict=True))
            content = each_tensor(lambda leaf: copies[id(leaf)], content)
            arrived = [_noted(device) for device in devices]
        else:
            content = each_tensor(lambda leaf: leaf.cpu().clone(), content)
        self._waiting.append((arrived, content, then))

    def flush(self, wait: bool = True) -> None:
        """Hand on what has arrived; `wait`: all."""
        while self._waiting and (wait or all(event.query() for event in self._waiting[0][0])):
            arrived, content, then = self._waiting.popleft()
            for event in arrived:
                event.synchronize()
            then(content)


def each_tensor(change: Callable[[Tensor], Any], content: Any) -> Any:
    """The same dictionaries, lists, tuples and dataclasses with every tensor changed: what torch's own `tree_map` does for many more kinds
    of things, in several times as long."""
    if isinstance(content, Tensor):
        return change(content)
    if isinstance(content, dict):
        return {key: each_tensor(change, value) for key, value in content.items()}
    if isinstance(content, (list, tuple)):
        return type(content)(each_tensor(change, value) for value in content)
    if is_dataclass(content):
        return replace(content, **each_tensor(change, vars(content)))
    return content


def _copied(leaves: list[Tensor]) -> list[Tensor]:
    """Their values on the CPU, once the device has come to it; one copy of each kind, since a step with rows and concepts has hundreds of
    small tensors, and the host needs as long for each as for a large one."""
    groups: dict[tuple[torch.device, torch.dtype], list[int]] = {}
    for number, leaf in enumerate(leaves):
        groups.setdefault((leaf.device, leaf.dtype), []).append(number)
    copies = list(leaves)
    for (device, dtype), numbers in groups.items():
        if device.type == "cpu":
            continue
        flat = torch.cat([leaves[number].flatten() for number in numbers])
        parts = _pinned(len(flat), dtype).copy_(flat, non_blocking=True).split([leaves[number].numel() for number in numbers])
        for number, part in zip(numbers, parts, strict=True):
            copies[number] = part.view(leaves[number].shape)
    return copies


def _pinned(size: int, dtype: torch.dtype) -> Tensor:
    return torch.empty(size, dtype=dtype, pin_memory=True)


def _noted(device: torch.device) -> Any:
    """An event after the copies from a device: on its stream, which is not the current one where another device is current."""
    event = torch.cuda.Event()
    event.record(torch.cuda.current_stream(device))
    return event

"""Ranks: the few collective operations that the lens needs. With one process they do nothing."""

from __future__ import annotations

from typing import Any, Protocol

import torch
import torch.distributed as dist
from torch import Tensor


class World(Protocol):
    """What the lens asks of a group of ranks."""

    rank: int
    size: int

    def sum_(self, tensor: Tensor) -> Tensor: ...

    def gather(self, value: Any) -> list[Any]: ...

    def broadcast(self, value: Any) -> Any: ...


class Single:
    """One process."""

    rank, size = 0, 1

    def sum_(self, tensor: Tensor) -> Tensor:
        return tensor

    def gather(self, value: Any) -> list[Any]:
        return [value]

    def broadcast(self, value: Any) -> Any:
        return value


class Distributed:
    """The default process group of torch.distributed."""

    def __init__(self) -> None:
        self.rank, self.size = dist.get_rank(), dist.get_world_size()

    def sum_(self, tensor: Tensor) -> Tensor:
        """Sum over ranks, in place."""
        dist.all_reduce(tensor)
        return tensor

    def gather(self, value: Any) -> list[Any]:
        """Every rank's value on rank 0 (an empty list elsewhere)."""
        values: list[Any] = [None] * self.size
        dist.gather_object(value, values if self.rank == 0 else None)
        return values if self.rank == 0 else []

    def broadcast(self, value: Any) -> Any:
        """Rank 0's value on every rank."""
        box = [value]
        dist.broadcast_object_list(box)
        return box[0]


def current_world() -> World:
    """The default process group if one is up, else a single process."""
    if dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1:
        return Distributed()
    return Single()


def flat_sum_(world: World, tensors: list[Tensor]) -> None:
    """Sum many small tensors over ranks in one collective, in place."""
    if world.size == 1 or not tensors:
        return
    flat = world.sum_(torch.cat([tensor.flatten().double() for tensor in tensors]))
    for tensor, part in zip(tensors, flat.split([tensor.numel() for tensor in tensors]), strict=True):
        tensor.copy_(part.view_as(tensor))

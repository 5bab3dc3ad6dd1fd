"""A process group of torch that listens on the loopback address alone, for ranks that are all on this machine.

Ray Train's own set-up makes a store on every network interface, without authentication. Ranks of one machine need none of that:
rank 0 binds the store's socket to loopback itself, and gloo and NCCL are told to use the loopback interface.
"""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import timedelta

import torch
import torch.distributed as dist
from ray.train.backend import Backend
from ray.train.torch import TorchConfig

HOST = "127.0.0.1"
WAIT = timedelta(days=1)  # for a rank that fits concepts, tells rows or evaluates while the others wait; a dead one Ray notices at once


@dataclass
class OnlyHere(TorchConfig):
    """Tells Ray Train to leave the process group to `loopback_group`."""

    @property
    def backend_cls(self) -> type[Backend]:
        return Backend


@contextlib.contextmanager
def loopback_group() -> Iterator[None]:
    """The default process group, up inside the block; one rank, or ranks that have a group already, need none."""
    import ray.train
    from ray.train.collective import broadcast_from_rank_zero

    context = ray.train.get_context()
    rank, size = context.get_world_rank(), context.get_world_size()
    if size == 1 or dist.is_initialized():
        yield
        return
    os.environ["GLOO_SOCKET_IFNAME"] = os.environ["NCCL_SOCKET_IFNAME"] = _interface()
    listener = socket.create_server((HOST, 0)) if rank == 0 else None
    port = broadcast_from_rank_zero(listener.getsockname()[1] if listener else None)
    bound = {"is_master": True, "master_listen_fd": listener.detach()} if listener else {}
    store = dist.TCPStore(HOST, port, world_size=size, wait_for_workers=False, timeout=WAIT, **bound)
    backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
    dist.init_process_group(backend, store=store, rank=rank, world_size=size, timeout=WAIT)
    try:
        yield
    finally:
        dist.destroy_process_group()


def _interface() -> str:
    """Name of the loopback interface: lo, lo0."""
    return next((name for _, name in socket.if_nameindex() if name.startswith("lo")), "lo")

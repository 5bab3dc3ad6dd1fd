"""Compiles the Triton kernels for GPUs that need not be there, and says of each how its matrix products are made. Run by test_kernels.

`python compile_kernels.py cuda:90` prints one JSON object a compilation: kernel, tile, dtypes, shared memory, bytes of a thread that do not
fit its registers, tensor cores.
"""

import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.runtime import driver


class Absent:
    """What the compiler asks a driver."""

    def __init__(self, name: str) -> None:
        kind, arch = name.split(":")
        self.target = GPUTarget(kind, int(arch), 32)

    def get_current_target(self) -> GPUTarget:
        return self.target

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, device: int) -> int:
        return 0


def stack(cubin: bytes) -> int:
    """Bytes of a thread's memory, as NVIDIA's tool tells them."""
    tool = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        told = subprocess.run([tool, "-res-usage", file.name], capture_output=True, text=True, check=True).stdout
    return int(re.search(r"STACK:(\d+)", told)[1])


def main(name: str) -> None:
    driver.set_active(Absent(name))
    from gradlens.dictionaries import kernels, kernels_encode

    dtypes: tuple[torch.dtype, torch.dtype] = (torch.float32, torch.float32)

    def compile_only(kernel, grid, *args, **options) -> None:
        configs, function = [None], kernel
        if hasattr(kernel, "configs"):
            kernel.nargs = dict(zip(kernel.arg_names, args, strict=False))
            configs, function = kernel.prune_configs(options), kernel.fn
            half = dtypes[0] == dtypes[1] != torch.float32
            configs = configs[:: max(1, len(configs) - 1)] if half else configs[:1]  # the smallest tile and the largest
        for config in configs:
            made = function.run(*args, grid=grid, warmup=True, **options, **(config.all_kwargs() if config else {}))
            ptx = made.asm["ptx"]
            found = {"kernel": function.__name__, "tile": config.kwargs if config else {}, "dtypes": [str(dtype)[6:] for dtype in dtypes]}
            tensor_cores = bool(re.search(r"wgmma\.mma_async|mma\.sync", ptx))
            found |= {"shared": made.metadata.shared, "stack": stack(made.asm["cubin"]), "tensor_cores": tensor_cores}
            print(json.dumps(found), flush=True)

    kernels.launch = kernels_encode.launch = compile_only
    T, D, F, K = 512, 576, 4096, 32
    zeros = torch.zeros
    for dtypes in [(torch.bfloat16, torch.bfloat16), (torch.float32, torch.float32), (torch.float32, torch.bfloat16)]:
        x, W, V, b = zeros(T, D, dtype=dtypes[0]), zeros(D, F, dtype=dtypes[1]), zeros(F, D, dtype=dtypes[1]), zeros(F)
        idx, val = zeros(T, K, dtype=torch.long), zeros(T, K)
        kernels.encode_threshold(x, W, b, b, 256)
        kernels.encode_topk(x, W, b, K)
        kernels.gated_sum(idx, val, x, V, F, deterministic=True)
        kernels.gated_sum(idx, val, x, V, F)
        kernels.pair_sums(idx, val, val, F)
        kernels.pair_sums(idx, val, val[:, 0], F, (idx[:, 0], 0, 2), torch.float32)
        kernels.along(zeros(D), V)
        kernels.energy_sum(x, V)
        kernels.quadratic_form(zeros(D, D), V)
        kernels.scale_along(x, zeros(D, 16, dtype=dtypes[1]), 0.0)


if __name__ == "__main__":
    main(sys.argv[1])

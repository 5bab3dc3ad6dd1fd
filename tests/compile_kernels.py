"""Compiles the Triton kernels for GPUs that need not be there, and says of each how its matrix products are made. Run by test_kernels.

`python compile_kernels.py cuda:90` prints one JSON object a compilation: kernel, tile, dtypes, shared memory, tensor cores.
"""

import json
import re
import sys

import torch
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


def main(name: str) -> None:
    driver.set_active(Absent(name))
    from gradlens import kernels, kernels_encode

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
            print(json.dumps(found | {"shared": made.metadata.shared, "tensor_cores": tensor_cores}), flush=True)

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
        kernels.energy_sum(x, V)
        kernels.quadratic_form(zeros(D, D), V)
        kernels.scale_along(x, zeros(D, 16, dtype=dtypes[1]), 0.0)


if __name__ == "__main__":
    main(sys.argv[1])

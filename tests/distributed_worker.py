"""One of two processes (or the only one) that trains a tiny model in several ways and writes what the lens read: `python ... OUT MODE...`.

Every way trains on the same global batches, whatever the number of processes: the readings must be the same.
"""

from __future__ import annotations

import os
import sys
from contextlib import nullcontext
from pathlib import Path

import torch
import torch.distributed as dist
from accelerate import Accelerator, DistributedType, FullyShardedDataParallelPlugin
from accelerate.state import AcceleratorState
from conftest import tiny_batch, tiny_dictionary, tiny_model
from peft import LoraConfig, get_peft_model
from torch import nn
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel
from transformers import Trainer, TrainingArguments

import gradlens
from gradlens.concepts.concept_files import Detector, RowDetector
from gradlens.config import ObserveSettings
from gradlens.control.rules import Policy, Rule
from gradlens.errors import ConfigError
from gradlens.lens import Lens
from gradlens.model.hookpoints import blocks
from gradlens.recording.recorder import MemoryRecorder
from gradlens.world import current_world

HOOK, INSIDE = "layers.2", "layers.1.mlp"
EVERY = ["taught", "push", "attribution", "energy", "unexplained"]
SETTINGS = ObserveSettings(estimators=EVERY, top_k=400, drift_every=2, update_every=1)
CONCEPTS = {"c": {HOOK: [1, 2, 3], INSIDE: [4, 5]}}
STEPS = 2
ROWS = {"features": {}, "concept": "c", "rows": 0.0}
TELLS = RowDetector(features=list(range(40)), weights=[1.0, -1.0] * 20, bias=0.0)  # some rows score above 0, some below
DETECTORS = {"c": {HOOK: Detector(features=[], weights=[], bias=-1.0, row=TELLS)}}


def rank() -> int:
    return dist.get_rank() if dist.is_initialized() else 0


def ranks() -> int:
    return dist.get_world_size() if dist.is_initialized() else 1


def loss_of(model: nn.Module, batch: dict[str, torch.Tensor], counted: int) -> torch.Tensor:
    """This rank's part of the mean over the tokens of the global batch, times the ranks that its gradient is averaged over."""
    logits, targets = model(**batch).logits[:, :-1], batch["labels"][:, 1:]
    return nn.functional.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="sum") * ranks() / counted


TARGET = {"mode": "route", "features": {}, "concept": "c", "target": {"value": -100.0, "rate": 1.0}}  # gain 1, and 0 after a reading


def loop(
    model: nn.Module, accumulate: int, rule: dict | None = None, wrap=lambda model: model, drift_every: int = 2, accelerator=None
) -> dict:
    """Two steps, each of two global micro-batches where `accumulate` is 2; every rank has every other of 4 rows."""
    policy = Policy(rules=(Rule(**{"features": {HOOK: [6]}, "gain": 0.0, **rule}),)) if rule else None
    parallel = wrap(model)
    parallel.train()
    trained = [parameter for parameter in parallel.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-2)
    if accelerator:
        parallel, optimizer = accelerator.prepare(parallel, optimizer)
    dictionaries, recorder = {HOOK: tiny_dictionary(), INSIDE: tiny_dictionary(3)}, MemoryRecorder()
    settings = SETTINGS.model_copy(update={"drift_every": drift_every})
    options = {"observe": settings, "recorder": recorder, "probe": [tiny_batch(50, B=8)], "world": current_world(), "concepts": CONCEPTS}
    options |= {"detectors": DETECTORS}
    with Lens(parallel, optimizer, dictionaries, policy=policy, exemplars=lambda concept: [tiny_batch(60, B=5)], **options) as lens:
        for step in range(STEPS):
            batches = [tiny_batch(10 * step + part, B=4) for part in range(accumulate)]
            counted = sum(int((batch["labels"][:, 1:] != -100).sum()) for batch in batches)
            for part, batch in enumerate(batches):
                mine = {key: value[rank() :: ranks()] for key, value in batch.items()}
                last = part + 1 == accumulate
                lens.set_rows(list(range(10 * part + rank(), 10 * part + 4, ranks())))
                if accelerator:
                    with accelerator.accumulate(parallel):
                        accelerator.backward(loss_of(parallel, mine, counted) * accumulate)  # it divides by the micro-batches
                    continue
                with parallel.no_sync() if isinstance(parallel, DistributedDataParallel) and not last else nullcontext():
                    if rule and rule["mode"] == "penalty":  # its units are those of the model's own loss
                        (parallel(**mine, num_items_in_batch=counted).loss * ranks()).backward()
                    else:
                        loss_of(parallel, mine, counted).backward()
            lens.balance()
            (accelerator or nn.utils).clip_grad_norm_([parameter for parameter in parallel.parameters() if parameter.requires_grad], 1.0)
            optimizer.step()
            optimizer.zero_grad()
    return found(lens, parallel)


def found(lens: Lens, model: nn.Module) -> dict:
    whole = [parameter.full_tensor() if isinstance(parameter, DTensor) else parameter for parameter in model.parameters()]
    if rank() != 0:
        return {}
    records = getattr(lens.recorder, "records", [])
    return {
        "totals": lens.totals,
        "drift": {name: lens.drift(name)[0] for name in lens.dictionaries},
        "scalars": [{key: value for key, value in record["scalars"].items() if "seconds" not in key} for record in records],
        "rows": [sorted((row["row_id"], row["hookpoint"], row["taught"], row["push"]) for row in r.get("examples", [])) for r in records],
        "weights": [parameter.detach().clone() for parameter in whole],
    }


def ddp(model: nn.Module) -> nn.Module:
    return DistributedDataParallel(model) if ranks() > 1 else model


def fsdp(model: nn.Module) -> nn.Module:
    if ranks() > 1:
        for block in blocks(model):
            fully_shard(block)
        fully_shard(model)
    return model


def lora() -> nn.Module:
    torch.manual_seed(1)
    return get_peft_model(tiny_model(), LoraConfig(r=2, target_modules=["q_proj", "o_proj", "down_proj"], init_lora_weights=False))


def checkpointed() -> nn.Module:
    model = tiny_model()
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    return model


def trainer() -> dict:
    """transformers' Trainer, which averages over the tokens of all ranks and micro-batches."""
    rows = [{key: value[i] for key, value in tiny_batch(seed, B=4).items()} for seed in range(4) for i in range(4)]
    callback = gradlens.GradLensCallback(
        {HOOK: tiny_dictionary(), INSIDE: tiny_dictionary(3)}, observe=SETTINGS, probe=[tiny_batch(50, B=8)], run=None, concepts=CONCEPTS
    )
    model = tiny_model()
    arguments = TrainingArguments(
        os.environ["GRADLENS_OUT"], max_steps=STEPS, per_device_train_batch_size=4 // ranks(), gradient_accumulation_steps=2, use_cpu=True,
        learning_rate=1e-2, lr_scheduler_type="constant", save_strategy="no", report_to=[], seed=1, disable_tqdm=True,
        remove_unused_columns=False, ddp_backend="gloo" if ranks() > 1 else None, optim="adamw_torch",
    )  # fmt: skip
    Trainer(model, arguments, train_dataset=rows, callbacks=[callback]).train()
    return found(callback.lens, model)


def accelerate_fsdp(model: nn.Module, rule: dict | None = None) -> dict:
    """FSDP2 as Accelerate prepares it. On a CPU it takes DDP instead, whatever plugin it is given: here it is told afterwards."""
    if ranks() == 1:
        return loop(model, 2, rule)
    accelerator = Accelerator(cpu=True, gradient_accumulation_steps=2)
    accelerator.state.distributed_type = DistributedType.FSDP
    accelerator.state.fsdp_plugin = FullyShardedDataParallelPlugin(
        fsdp_version=2, auto_wrap_policy="transformer_based_wrap", transformer_cls_names_to_wrap=["LlamaDecoderLayer"]
    )
    found_here = loop(model, 2, rule, accelerator=accelerator)
    assert isinstance(model, FSDPModule) and isinstance(blocks(model)[0], FSDPModule)
    AcceleratorState._reset_state(reset_partial_state=True)
    return found_here


def refused() -> dict:
    """What must be refused where parameters are sharded."""
    if ranks() == 1:
        return {}
    messages = []
    model, blocks_only = fsdp(tiny_model()), tiny_model()
    for block in blocks(blocks_only):
        fully_shard(block)
    cases = [
        (model, {"observe": ObserveSettings(update="exact")}),
        (model, {"policy": Policy(rules=(Rule(mode="update", features={HOOK: [1]}, gain=0.0),))}),
        (model, {"policy": Policy(rules=(Rule(mode="constrain", features={HOOK: [1]}),))}),
        (model, {"policy": Policy(rules=(Rule(mode="penalty", features={HOOK: [1]}),))}),
        (blocks_only, {}),
    ]
    for case, options in cases:
        optimizer = torch.optim.SGD(case.train().parameters(), lr=0.1)
        try:
            with Lens(case, optimizer, {HOOK: tiny_dictionary()}, world=current_world(), probe=[tiny_batch(50)], **options):
                messages.append("not refused")
        except ConfigError as error:
            messages.append(str(error))
    return {"messages": messages}


MODES = {
    "ddp": lambda: loop(tiny_model(), 1, wrap=ddp),
    "ddp-accumulate": lambda: loop(tiny_model(), 2, wrap=ddp),
    "ddp-lora-route": lambda: loop(lora(), 2, {"mode": "route"}, wrap=ddp),
    "ddp-lora-rows": lambda: loop(lora(), 2, {"mode": "reweight", **ROWS}, wrap=ddp),
    "fsdp-rows": lambda: loop(tiny_model(), 2, {"mode": "route", **ROWS}, wrap=fsdp),
    "ddp-update": lambda: loop(tiny_model(), 2, {"mode": "update"}, wrap=ddp),
    "ddp-constrain": lambda: loop(lora(), 2, {"mode": "constrain"}, wrap=ddp),
    "ddp-penalty": lambda: loop(lora(), 2, {"mode": "penalty", "strength": 0.5}, wrap=ddp),
    "ddp-target": lambda: loop(tiny_model(), 2, TARGET, wrap=ddp, drift_every=1),
    "fsdp-target": lambda: loop(tiny_model(), 2, TARGET, wrap=fsdp, drift_every=1),
    "fsdp-amplified": lambda: loop(tiny_model(), 1, {"mode": "route", "gain": 50.0}, wrap=fsdp),
    "fsdp": lambda: loop(tiny_model(), 1, wrap=fsdp),
    "fsdp-accumulate": lambda: loop(checkpointed(), 2, wrap=fsdp),
    "fsdp-lora-route": lambda: loop(lora(), 2, {"mode": "route"}, wrap=fsdp),
    "fsdp-ablate": lambda: loop(tiny_model(), 1, {"mode": "ablate"}, wrap=fsdp),
    "trainer": trainer,
    "accelerate-fsdp": lambda: accelerate_fsdp(tiny_model()),
    "accelerate-fsdp-lora-route": lambda: accelerate_fsdp(lora(), {"mode": "route"}),
    "refused": refused,
}


def run_all() -> dict[str, dict]:
    return {name: mode() for name, mode in MODES.items()}


if __name__ == "__main__":
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    results = run_all()
    if dist.get_rank() == 0:
        torch.save(results, Path(sys.argv[1]))
    dist.destroy_process_group()

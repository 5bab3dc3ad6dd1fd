"""The training loop of one rank: data, loss, optimizer, checkpoints, and the lens around it. No Ray in it.

The loss of a step is the mean over every counted token of the global batch, however its rows are spread over ranks and
micro-batches: each rank scales its sum of token losses by ranks / counted tokens, so that the mean of the ranks' gradients
(which is what DDP gives the optimizer) is the gradient of that mean. Counted tokens are known from the data, without a collective.
"""

from __future__ import annotations

import json
import logging
import math
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from gradlens.concepts.checker_doubts import doubts_of, poorly_told
from gradlens.concepts.checkers import checker_for
from gradlens.concepts.concept_files import row_detectors_of
from gradlens.concepts.contrasts import contrasts_of
from gradlens.concepts.fitting import Concept
from gradlens.config import RunConfig
from gradlens.control.constrainer import exemplars_of
from gradlens.control.row_teller import row_of
from gradlens.control.rules import Policy
from gradlens.data.rows import IGNORE, Example, Mixture, collate, read_rows, split
from gradlens.dictionaries.dictionary import Dictionary
from gradlens.dictionaries.formats import load_dictionary
from gradlens.dictionaries.labels import labels_of
from gradlens.errors import ConfigError, InputError, RunError
from gradlens.files import append_line, read_lines, write_json
from gradlens.lens import Lens
from gradlens.model.capture import takes_columns
from gradlens.model.evaluate import evaluate
from gradlens.model.hookpoints import by_place, unwrap
from gradlens.model.loading import apply_lora, enable_checkpointing, load_model
from gradlens.model.reading import pad_id_of
from gradlens.model.spelling import Spelling
from gradlens.model.start import remember
from gradlens.training.checkpoint import last_checkpoint, load_checkpoint, named_if_full, save_checkpoint, trainable
from gradlens.training.rank import Rank
from gradlens.training.run_inputs import reference_batches, run_concepts, run_examples, run_policy
from gradlens.world import World

log = logging.getLogger(__name__)


def train_rank(rank: Rank) -> str:
    """Carry out a run, or go on with it from its last checkpoint. Returns `done` or `interrupted`.

    Raises `RunError` for a loss or gradient that is not finite, `ConfigError` and `InputError` for what does not fit together.
    """
    config, world = rank.config, rank.world
    torch.manual_seed(config.train.seed)
    rank.phase("loading model")
    model, tokenizer = load_model(config.model.name, config.model.dtype, str(rank.device))
    named = by_place(config.dictionaries, "dictionaries")
    dictionaries = {hook: load_dictionary(source, device=rank.device) for hook, source in named.items()}
    if world.rank == 0 and config.labels:
        further = by_place(config.labels, "labels")
        found = {name: labels_of(dictionary, name, further.get(name, ())) for name, dictionary in dictionaries.items()}
        write_json(rank.run_dir / "labels.json", {name: {i: label.label for i, label in part.items()} for name, part in found.items()})
    sources, probe = run_examples(rank, tokenizer)
    concepts = run_concepts(rank, model, tokenizer, dictionaries, sources)
    if world.rank == 0:
        for found in poorly_told(concepts):
            log.warning(found["text"])
            rank.recorder.event("poorly_told", step=0, **found)
    policy, concepts = run_policy(rank, model, tokenizer, dictionaries, concepts, sources)
    if world.rank == 0:
        if rank.shared.before is None:
            rank.shared.before = read_evaluation(rank.run_dir).get("before") or _evaluated(rank, model, tokenizer, concepts, "before")
        if rank.shared.before:
            if not (last_checkpoint(rank.run_dir) or (0,))[0]:  # resumed, a run has it on record but for one that begins again
                rank.recorder.record(evaluation_record(rank.shared.before, step=0))
            write_evaluation(rank.run_dir, "before", rank.shared.before)
            for found in doubts_of(rank.shared.before):
                log.warning(found["text"])
                rank.recorder.event("doubtful_checker", step=0, **found)
    torch.manual_seed(config.train.seed)  # the same adapter whatever was read before
    model = to_train(config, model, rank.device)
    torch.manual_seed(config.train.seed + 1 + world.rank)  # dropout differs between ranks
    status = _loop(rank, model, tokenizer, dictionaries, concepts, policy, sources, probe)
    if config.train.save_model and world.rank == 0:  # before anything that may fail once more
        rank.phase("saving model")
        with named_if_full(rank.run_dir / "model"):
            model.save_pretrained(rank.run_dir / "model")
            tokenizer.save_pretrained(rank.run_dir / "model")
    if status == "done" and world.rank == 0:
        after = _evaluated(rank, model, tokenizer, concepts, "after")
        if after:
            write_evaluation(rank.run_dir, "after", after)
            rank.recorder.record(evaluation_record(after, config.train.steps))
    world.broadcast(None)  # nobody leaves while rank 0 still works
    return status


def _loop(
    rank: Rank,
    model: nn.Module,
    tokenizer: Any,
    dictionaries: dict[str, Dictionary],
    concepts: list[Concept],
    policy: Policy,
    sources: list[list[Example]],
    probe: list[dict[str, Tensor]],
) -> str:
    config, world, settings = rank.config, rank.world, rank.config.train
    parameters = list(trainable(model).values())
    optimizer = torch.optim.AdamW(parameters, lr=settings.lr, weight_decay=settings.weight_decay)
    mixture = Mixture(sources, config.data.weights, settings.batch_size, settings.seed, _kept(config))
    pad, rows = pad_id_of(tokenizer), RowLog(rank.run_dir if world.rank == 0 else None, tokenizer, rank.recorder.event)
    rows.check(sources)
    parallel = data_parallel(model, rank.device, world)
    call = LossFunction(parallel)
    start, lens_state = 0, None
    remember(model)  # a checkpoint's weights are no longer those that the run began with
    checkpoint = last_checkpoint(rank.run_dir)
    if checkpoint is not None:
        start, lens_state = load_checkpoint(checkpoint[1], model, optimizer, world)
        if new := [name for name in dictionaries if name not in lens_state["totals"]]:
            raise ConfigError(f"dictionaries.{new[0]}: this run began without it, and has nothing to compare with; begin another")
        for group in optimizer.param_groups:  # the checkpoint holds that of the first part; a learning rate is set at every step
            group["weight_decay"] = settings.weight_decay
    rank.phase("checking hooks" if config.dictionaries else "starting")
    lens = Lens(
        model,
        optimizer,
        dictionaries,
        policy=policy,
        concepts={concept.name: concept.features for concept in concepts},
        thresholds={concept.name: concept.thresholds for concept in concepts},
        quorums={concept.name: concept.quorum for concept in concepts},
        detectors={concept.name: concept.detectors for concept in concepts},
        row_detectors=row_detectors_of(concepts),
        contrasts=contrasts_of(concepts, tokenizer, config.data.max_length, model, dictionaries),
        exemplars=partial(exemplars_of, concepts, tokenizer, config.data.max_length, model, dictionaries),
        observe=config.observe,
        recorder=rank.recorder,
        probe=probe,
        world=world,
        projector=rank.projector,
        tokenizer=tokenizer,
        reference=reference_batches(config.observe, tokenizer, config.data.max_length, rank.device) if config.dictionaries else None,
        checkers=_checkers(concepts) if world.rank == 0 else None,
        steps=settings.steps,
    )
    if lens_state is not None:
        lens.load_state_dict(lens_state)
    elif rank.shared.readings is not None:  # arms start from the same weights
        lens.learning.load_state_dict(rank.shared.readings, probe)
    parallel.train()
    with lens:
        rank.watching(lens)
        if lens_state is None and rank.shared.readings is None:
            rank.shared.readings = lens.learning.state_dict()
        saved, done, clock = start if checkpoint else None, start, time.perf_counter()
        status = "done"
        for step in range(start, settings.steps):
            policy, stop = _agree(rank, lens, policy, step)
            if stop:
                status = "interrupted"
                break
            batch = mixture.batch(step)
            rows.add(batch)
            counted = counted_tokens(batch)
            for group in optimizer.param_groups:
                group["lr"] = learning_rate(settings.lr, step, settings.warmup)
            local = batch[world.rank :: world.size]
            if not config.observe.left_out and lens.control.leaves_rows_out():
                parts = split(local, settings.micro_batch_size or settings.batch_size)  # no more is read at a time than trained on
                gone = [out for part in parts for out in lens.hooks.left_out([row_of(example) for example in part])]
                local = [example for example, out in zip(local, gone, strict=True) if not out]
                counted = int(world.sum_(torch.tensor(counted_tokens(local), dtype=torch.float64, device=rank.device)).item())
            local = local or [silent(batch or sources[0][:1])]
            if settings.micro_batch_size:
                local = sorted(local, key=lambda example: len(example.input_ids))  # rows of like length together: less padding
            micro = [(part, collate(part, pad)) for part in split(local, settings.micro_batch_size)]
            micro = [(part, {key: value.to(rank.device) for key, value in batch.items()}) for part, batch in micro]
            if lens.rewrites():  # what is left to count is known to its rank alone
                micro = [(part, lens.prepare(batch)) for part, batch in micro]
                left = sum((batch["labels"][:, 1:] != IGNORE).sum() for _, batch in micro)
                counted = int(world.sum_(left.double()).item())
            scale = world.size / max(counted, 1)
            total = torch.zeros((), dtype=torch.float64, device=rank.device)
            for index, (examples, inputs) in enumerate(micro):
                lens.set_rows([example.row_id for example in examples])
                accumulates = world.size > 1 and index + 1 < len(micro)
                with parallel.no_sync() if accumulates else nullcontext():
                    loss = call(inputs)
                    (loss * scale).backward()
                total += loss.detach().double()
            loss_mean = world.sum_(total).item() / max(counted, 1)
            lens.balance()
            norm = nn.utils.clip_grad_norm_(parameters, settings.max_grad_norm or math.inf).item()
            now = time.perf_counter()
            scalars = {"train/lr": optimizer.param_groups[0]["lr"], "train/grad_norm": norm}
            if counted:  # a step of nothing but rows that are left out has no loss
                scalars["train/loss"] = loss_mean
            scalars |= {"train/tokens": float(counted), "train/step_seconds": now - clock}
            clock = now
            if not (math.isfinite(loss_mean) and math.isfinite(norm)):
                _not_finite(rank, step + 1, loss_mean, norm, scalars, lens.control.acting())
            lens.log(scalars)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            done = step + 1
            rank.phase("training", done=done, total=settings.steps, loss=scalars.get("train/loss"))
            if settings.checkpoint_every and done % settings.checkpoint_every == 0:
                saved = _save(rank, done, model, optimizer, lens)
        if lens.finish() or saved != done:  # with what was read last, so that a run that goes on from here does not tell it again
            _save(rank, done, model, optimizer, lens)
    if status == "interrupted":
        rank.recorder.event("interrupted", step=done)
    return status


class LossFunction:
    """Summed loss of the counted tokens of `input_ids[B, S]`, `attention_mask`, `labels`, through the model's own forward pass.

    Where the model can, logits are made only at positions where some row has a token to learn: with long prompts and a large
    vocabulary much of the work. Labels always go in, since the lens reads from them which tokens count.
    """

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self.selects = takes_columns(model)

    def __call__(self, batch: dict[str, Tensor]) -> Tensor:
        targets_BS = nn.functional.pad(batch["labels"], (0, 1), value=IGNORE)[:, 1:]
        if self.selects:
            columns = (targets_BS != IGNORE).any(0).nonzero().flatten()
            if len(columns) == 0:
                columns = columns.new_zeros(1)  # a silent batch: one column, whose loss is 0
            shifted = targets_BS[:, columns].contiguous()
            return self.model(**batch, shift_labels=shifted, logits_to_keep=columns, num_items_in_batch=1, use_cache=False).loss
        logits_BSV = self.model(**batch, use_cache=False).logits
        return nn.functional.cross_entropy(logits_BSV.flatten(0, 1).float(), targets_BS.flatten(), ignore_index=IGNORE, reduction="sum")


class RowLog:
    """`rows.jsonl`: the rows that training has seen, each once, in the order of first use, with their tokens as text.

    A row that cannot be written (no space left) is tried again when it comes again; `tell(kind, **fields)` hears of it once.
    """

    def __init__(self, run_dir: Path | None, tokenizer: Any, tell: Callable[..., None]) -> None:
        self.spelling, self.tell, self.told = Spelling(tokenizer), tell, False
        self.path = None if run_dir is None else run_dir / "rows.jsonl"
        read = read_lines(self.path) if self.path else []
        self.seen = {row["row_id"]: hash(row.get("text")) for row in read if "row_id" in row}

    def check(self, sources: Sequence[Sequence[Example]]) -> None:
        """Raise `ConfigError` where a row that was trained on before is another one now: what was recorded of it would be told of this."""
        for example in chain.from_iterable(sources):
            if self.seen.get(example.row_id, hash(example.text)) != hash(example.text):
                raise ConfigError(
                    f"data.train: row {example.row_id} ({example.source}) is another than this run has trained on so far: resume with the "
                    "rows it began with, in their order (more may follow in the last file), or begin another run"
                )

    def add(self, examples: Sequence[Example]) -> None:
        if self.path is None:
            return
        for example in examples:
            if example.row_id not in self.seen:
                tokens = [self.spelling.text(token) for token in example.input_ids]
                row = {"row_id": example.row_id, "source": example.source, "text": example.text, "tokens": tokens}
                try:
                    append_line(self.path, row)
                except OSError as error:  # only whoever looks at the run needs it: training goes on
                    if not self.told:
                        self.tell("storage_error", file=self.path.name, error=str(error))
                    self.told = True
                else:
                    self.seen[example.row_id] = hash(example.text)


def learning_rate(peak: float, step: int, warmup: int) -> float:
    """Linear warm-up over `warmup` steps, then constant; steps are counted from 0."""
    return peak * min(1.0, (step + 1) / max(warmup, 1))


def counted_tokens(examples: Sequence[Example]) -> int:
    """Tokens of a batch that the loss counts (a row's first token has nothing before it to be predicted from)."""
    return sum(label != IGNORE for example in examples for label in example.labels[1:])


def silent(examples: Sequence[Example]) -> Example:
    """A row without a counted token, for a rank that has none of a batch's rows: DDP needs a backward pass of every rank."""
    return replace(examples[0], labels=[IGNORE] * len(examples[0].labels))


def data_parallel(model: nn.Module, device: torch.device, world: World) -> nn.Module:
    """The model under DDP, where there is more than one rank."""
    if world.size == 1:
        return model
    return DistributedDataParallel(model, device_ids=[device] if device.type == "cuda" else None)


def read_evaluation(run_dir: Path) -> dict[str, Any]:
    """`evaluation.json`: `before` and `after`, as far as they have been measured."""
    path = run_dir / "evaluation.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}


def write_evaluation(run_dir: Path, when: str, result: dict[str, Any]) -> None:
    """Put one half (`before` or `after`) into `evaluation.json`."""
    write_json(run_dir / "evaluation.json", {**read_evaluation(run_dir), when: result})


def _agree(rank: Rank, lens: Lens, policy: Policy, step: int) -> tuple[Policy, bool]:
    """The policy of this step and whether to stop, the same on every rank: rank 0 asks, everyone hears."""
    newer, stop = rank.policies.poll(step) if rank.world.rank == 0 else (None, False)
    if rank.world.size > 1:
        word = torch.tensor([newer.version if newer else 0, int(stop)], dtype=torch.int64, device=rank.device)
        version, stopping = rank.world.sum_(word).tolist()
        stop = bool(stopping)
        if version:
            newer = Policy.model_validate(rank.world.broadcast(newer.model_dump(mode="json") if newer else None))
    if newer is not None and newer.version != policy.version:
        try:
            lens.set_policy(newer)
        except (ConfigError, InputError) as error:  # rules sent to a running job may name features that are not there: the old ones stay
            rank.recorder.event("policy_refused", step=step, version=newer.version, error=str(error))
            newer = newer.model_copy(update={"rules": policy.rules})
            if rank.world.rank == 0:
                rank.policies.settle(newer, "refused")
        policy = newer
    return policy, stop


def _not_finite(rank: Rank, step: int, loss: float, norm: float, scalars: dict[str, float], rules: list[str]) -> None:
    what = f"the loss is {loss}" if not math.isfinite(loss) else f"the gradient's norm is {norm} (the loss is {loss:.4g})"
    rank.recorder.record({"step": step, "time": time.time(), "scalars": scalars})
    rank.recorder.event("not_finite", step=step, loss=loss, grad_norm=norm, rules=rules)
    settings = rank.config.train
    advice = [f"a lower train.lr (now {settings.lr:g})", f"more train.warmup (now {settings.warmup})"]
    advice += ["train.max_grad_norm: 1.0"] if settings.max_grad_norm is None else []
    advice += ["model.dtype: float32"] if rank.config.model.dtype != "float32" else []
    advice += [f"without the rules that acted: {', '.join(rules)}"] if rules else []
    raise RunError(f"step {step}: {what}; try {', '.join(advice)}. The run so far is in {rank.run_dir}")


def _save(rank: Rank, step: int, model: nn.Module, optimizer: torch.optim.Optimizer, lens: Lens) -> int | None:
    """The step; None where it could not be saved: training goes on, and the last checkpoint that could stays."""
    alarms = [alarm["step"] for alarm in lens.learning.alarmed]
    try:
        save_checkpoint(rank.run_dir, step, model, optimizer, lens.state_dict(), rank.world, rank.config.train.keep_checkpoints, alarms)
    except OSError as error:  # no space left, say
        rank.recorder.event("storage_error", step=step, file=error.filename, error=str(error))
        return None
    rank.recorder.event("checkpoint", step=step)
    return step


def _checkers(concepts: list[Concept]) -> dict[str, Any]:
    return {concept.name: check for concept in concepts if (check := checker_for(concept)) is not None}


def _kept(config: RunConfig) -> list[int] | None:
    """Indices of the sources that `data.keep` names; None: all."""
    if config.data.keep is None:
        return None
    missing = [name for name in config.data.keep if name not in config.data.train]
    if missing:
        raise ConfigError(f"data.keep: {missing[0]} is not in data.train ({', '.join(config.data.train)})")
    return [config.data.train.index(name) for name in config.data.keep]


def to_train(config: RunConfig, model: nn.Module, device: torch.device) -> nn.Module:
    """The model with what is trained marked: an adapter, or every weight."""
    if config.model.method == "lora":
        return apply_lora(model, config.model.lora, config.model.gradient_checkpointing).to(device)
    if config.model.gradient_checkpointing:
        enable_checkpointing(model)
    return model.requires_grad_(True)


def evaluation_record(result: dict[str, Any], step: int) -> dict[str, Any]:
    """What the model does (see `evaluate`) as curves: `eval/nll/SET`, `eval/rate/PROMPTS/CONCEPT`."""
    scalars = {f"eval/nll/{name}": value for name, value in result.get("nll", {}).items()}
    for prompts, rates in result.get("rates", {}).items():
        scalars |= {f"eval/rate/{prompts}/{concept}": rate for concept, rate in rates.items()}
    return {"step": step, "time": time.time(), "scalars": scalars}


def _evaluated(rank: Rank, model: nn.Module, tokenizer: Any, concepts: list[Concept], when: str) -> dict[str, Any]:
    """`evaluate` as a phase of the run; {} where nothing is to be measured."""
    settings = rank.config.evaluate
    if not settings.heldout and not settings.prompts:
        return {}
    sources = [*settings.heldout.values(), *settings.prompts.values()]
    rows = sum(min(len(read_rows(source)), settings.max_rows) for source in sources)
    rows += settings.samples * sum(min(len(read_rows(source)), settings.max_rows) for source in settings.prompts.values())
    with rank.counted(f"evaluating {when}", rows) as advance:
        # The transformers model inside the adapter's wrapper: its layers hold the adapter, and it can generate.
        return evaluate(unwrap(model), tokenizer, settings, concepts, rank.config.data.max_length, progress=advance)

"""bergson itself as an arm of `gradlens bench overhead`: every row's gradient lands in its place, training is left as it is."""

import json

import numpy as np
import pytest
import torch
import yaml
from conftest import tiny_batch, tiny_model
from needs import needs
from tiny_job import write_inputs
from typer.testing import CliRunner

from gradlens.bench.bergson import Collecting
from gradlens.cli.app import app
from gradlens.config import LoraSettings
from gradlens.model.loading import apply_lora

bergson = needs("bergson", "bergson")


def job():
    model = apply_lora(tiny_model(), LoraSettings(r=4)).train()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:  # zero in a new adapter: the other matrix would have no gradient
                parameter.copy_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(len(name))) * 0.1)
    return model, torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-3)


def micro_batches(size):
    rows = {key: torch.cat([tiny_batch(number)[key] for number in range(2)]) for key in tiny_batch()}
    return [{key: value[first : first + size] for key, value in rows.items()} for first in range(0, 6, size)]


def train(size, collect, steps):
    """Losses of the steps, and the index after each."""
    model, optimizer = job()
    losses, stores = [], []
    with Collecting(model, optimizer, 6 * steps, lambda work, *args: work(*args)) if collect else torch.enable_grad() as collecting:
        for _ in range(steps):
            for batch in micro_batches(size):
                if collect:
                    collecting.set_rows([0] * len(batch["labels"]))
                counted = (batch["labels"][:, 1:] != -100).sum()
                loss = model(**batch).loss * counted / 30  # sums over tokens, so that rows count alike in any grouping
                loss.backward()
                losses.append(loss.item())
            optimizer.step()
            optimizer.zero_grad()
            if collect:
                stores.append(np.array(collecting.callback.train_grad_buffer, dtype=np.float32))
    assert not any(module._backward_hooks or module._forward_hooks for module in model.modules())
    return losses, stores


def test_every_row_has_its_own_gradient_in_its_place():
    _, (together,) = train(3, True, 1)
    _, (alone,) = train(1, True, 1)
    # 4 blocks x 7 matrices x the adapter's 2, each projected to 16 x 16
    assert together.shape == (6, 4 * 7 * 2 * 256)
    np.testing.assert_allclose(together, alone, rtol=5e-3, atol=1e-3 * np.abs(alone).max())
    assert np.corrcoef(together[:, : 7 * 2 * 256])[np.triu_indices(6, 1)].max() < 0.99, "rows are told apart"


def test_training_is_left_as_it_is_and_later_steps_are_added():
    losses, stores = train(3, True, 2)
    assert losses == train(3, False, 2)[0]
    assert not stores[0][6:].any() and (stores[1][:6] == stores[0][:6]).all() and (np.abs(stores[1][6:]).sum(1) > 0).all()


@pytest.mark.filterwarnings("ignore:overflow encountered in cast")  # bergson's own: tiny second moments, half precision on disk
def test_the_arm_runs_in_the_benchmark(tmp_path):
    (tmp_path / "job.yaml").write_text(yaml.safe_dump(write_inputs(tmp_path)))
    command = ["bench", "overhead", str(tmp_path / "job.yaml"), "--arms", "push,bergson", "--steps", "2", "--json"]
    done = CliRunner().invoke(app, [*command, "--out", str(tmp_path / "overhead.jsonl")], catch_exceptions=False)
    rows = {row["arm"]: row for row in json.loads(done.stdout)["rows"]}
    assert list(rows) == ["bare", "push", "bergson"] and json.loads(done.stdout)["left_out"] == {}
    assert rows["bergson"]["same_losses"]
    assert rows["bergson"]["reading_seconds"] > 0 and rows["bergson"]["reading_peak_bytes"] > 0 and rows["bergson"]["floor_seconds"] == 0

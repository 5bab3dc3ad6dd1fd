"""Directions from gradients: against autograd by finite differences, a made-up case with a known answer, and the command."""

import json

import torch
import yaml
from conftest import tiny_batch, tiny_model
from tiny_job import write_inputs
from typer.testing import CliRunner

from gradlens.cli.app import app
from gradlens.dictionaries.concept_gradients import contrastive_axes, token_gradients
from gradlens.dictionaries.directions import read_directions
from gradlens.model.hookpoints import find_hookpoint


def test_token_gradients_are_minus_the_slope_of_the_loss():
    model, batch = tiny_model().double(), tiny_batch()
    g_TD = token_gradients(model, "layers.1", batch).double()
    targets = torch.nn.functional.pad(batch["labels"][:, 1:], (0, 1), value=-100)
    at = (targets != -100).nonzero()
    assert len(g_TD) == len(at) and all(parameter.grad is None for parameter in model.parameters())
    delta = torch.randn(g_TD.shape[1], generator=torch.Generator().manual_seed(0), dtype=torch.float64)

    def loss(row, position, size):
        def moved(h):
            h = h.clone()
            h[row, position] += size * delta
            return h

        handle = find_hookpoint(model, "layers.1").watch(moved)
        try:
            with torch.no_grad():
                logits = model.eval()(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
        finally:
            handle.remove()
        return torch.nn.functional.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="sum").item()

    for number in (0, len(at) - 1):
        row, position = at[number].tolist()
        slope = (loss(row, position, 1e-4) - loss(row, position, -1e-4)) / 2e-4
        assert abs(slope + float(g_TD[number] @ delta)) < 1e-4 * max(1.0, abs(slope))


def test_the_axes_are_what_positives_have_and_negatives_have_not():
    rng = torch.Generator().manual_seed(0)
    common, own = torch.linalg.qr(torch.randn(16, 2, generator=rng, dtype=torch.float64))[0].T
    noise = lambda: 0.1 * torch.randn(500, 16, generator=rng, dtype=torch.float64)  # noqa: E731
    scale = lambda: torch.randn(500, 1, generator=rng, dtype=torch.float64)  # noqa: E731
    pos, neg = 3 * scale() * common + scale() * own + noise(), 3 * scale() * common + noise()
    axes, share_pos, share_neg = contrastive_axes(pos.T @ pos, neg.T @ neg, 1)
    assert abs(float(axes[0] @ own)) > 0.95 and abs(float(axes[0] @ common)) < 0.2  # plain PCA would find `common`
    assert share_pos[0] > 5 * share_neg[0]
    assert len(contrastive_axes(pos.T @ pos, pos.T @ pos, 4)[0]) >= 1


def test_the_command_writes_a_file_that_a_concept_can_name(tmp_path):
    inputs = write_inputs(tmp_path)
    low, high = inputs["data"]["train"]
    (tmp_path / "high.yaml").write_text(yaml.safe_dump({"name": "high", "positive": high, "negative": low}))
    out = tmp_path / "gradient.safetensors"
    command = ["concepts", "directions", str(tmp_path / "high.yaml"), "--at", "layers.1", "--kind", "gradient", "--axes", "3",
               "--model", inputs["model"]["name"], "--out", str(out), "--json"]  # fmt: skip
    done = CliRunner().invoke(app, command, catch_exceptions=False)
    (row,) = json.loads(done.stdout)["directions"]
    assert row["held_out_energy"]["positive"] > row["held_out_energy"]["negative"] > 0
    found = read_directions(out)
    assert found.signed and found.hook == "layers.1" and found.w_FD.shape == (3, 32)
    assert torch.allclose(found.w_FD @ found.w_FD.T, torch.eye(3), atol=1e-5)
    assert found.dictionary().d_sae == 6  # both sides of each
    (tmp_path / "low.yaml").write_text(yaml.safe_dump({"name": "low", "positive": low, "negative": high}))
    CliRunner().invoke(app, [*command[:3], str(tmp_path / "low.yaml"), *command[3:]], catch_exceptions=False)
    both = read_directions(out)
    assert both.signed and both.groups == {"high": [0, 1, 2], "low": [3, 4, 5]}
    assert read_directions(f"{out}#low").labels[0] == "low (gradient 1)"

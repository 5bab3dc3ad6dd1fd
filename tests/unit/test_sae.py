"""The SAE trainer: mathematics against dense eager forms, activations against the model, the job end to end on a tiny model."""

import errno
import json
import os

import numpy as np
import pytest
import torch
from conftest import tiny_model
from sae_jobs import corpus, loader, settings
from words import word_tokenizer

from gradlens.dictionaries.encoding import health
from gradlens.errors import ConfigError, InputError, RunError
from gradlens.sae.activations import Store, batches, collect, count, take, windows
from gradlens.sae.config import load_sae_config
from gradlens.sae.job import batch_rows, train_dictionaries
from gradlens.sae.step import Recipe, Trainer, decode_pairs, encode_pairs, learning_rate, select


@pytest.fixture(autouse=True, scope="module")
def _one_thread():
    """Matrices here are so small that a second thread only costs."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


# ---------------------------------------------------------------- mathematics


def randn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def dense_mask(pre_TF, k, activation, candidates=None):
    """Eager twin of `select`: which (token, feature) stay, `bool[T, F]`."""
    allowed = torch.full_like(pre_TF, -torch.inf)
    columns = slice(None) if candidates is None else candidates
    allowed[:, columns] = pre_TF[:, columns]
    if activation == "topk":
        return allowed >= allowed.topk(k, dim=-1).values[:, -1:]
    return allowed >= allowed.flatten().topk(k * pre_TF.shape[0]).values[-1]


@pytest.mark.parametrize("activation", ["topk", "batchtopk"])
@pytest.mark.parametrize("candidates", [None, torch.tensor([1, 4, 5, 9, 16])])
def test_selected_pairs_are_the_largest(activation, candidates):
    pre = randn(13, 17)
    pairs = select(pre, 3, activation, candidates)
    mask = torch.zeros_like(pre, dtype=torch.bool)
    mask[pairs.token(), pairs.feature] = True
    assert torch.equal(mask, dense_mask(pre, 3, activation, candidates))
    assert pairs.offsets.tolist() == [0, *mask.sum(1).cumsum(0).tolist()]


@pytest.mark.parametrize("activation", ["topk", "batchtopk"])
def test_pairs_give_the_output_and_gradients_of_the_dense_form(activation):
    E, c, W, x = randn(17, 5, seed=1), randn(17, seed=2), randn(17, 5, seed=3), randn(13, 5, seed=4)
    leaves = [t.clone().requires_grad_() for t in (E, c, W)]
    pre = x @ leaves[0].T + leaves[1]
    dense = (pre.relu() * dense_mask(pre.detach(), 3, activation)) @ leaves[2]
    expected = torch.autograd.grad(dense.square().sum(), leaves)
    leaves = [t.clone().requires_grad_() for t in (E, c, W)]
    dot = x @ E.T
    pairs = select(dot + c, 3, activation)
    sparse = decode_pairs(leaves[2], encode_pairs(leaves[0], leaves[1], x, dot, pairs), pairs)
    torch.testing.assert_close(sparse, dense.detach(), rtol=0, atol=1e-12)
    for found, wanted in zip(torch.autograd.grad(sparse.square().sum(), leaves), expected, strict=True):
        torch.testing.assert_close(found, wanted, rtol=0, atol=1e-10)


@pytest.mark.parametrize("activation", ["topk", "batchtopk"])
def test_loss_and_its_gradients_equal_the_dense_form_with_dead_features(activation):
    x = randn(40, 6)
    trainer = Trainer(Recipe(k=3, activation=activation, aux_k=4, aux_weight=0.3, dead_after=10), 24, x.float())
    for name in ("E_FD", "W_dec", "b_enc", "b_dec"):
        value = getattr(trainer, name).detach().double()
        setattr(trainer, name, (value + 0.3 * randn(*value.shape, seed=len(name))).requires_grad_())
    trainer.idle_F[::3] = 10

    def dense():
        pre = (x - trainer.b_dec) @ trainer.E_FD.T + trainer.b_enc
        x_hat = (pre.relu() * dense_mask(pre.detach(), 3, activation)) @ trainer.W_dec + trainer.b_dec
        error = x - x_hat
        rescue = (pre.relu() * dense_mask(pre.detach(), 4, "topk", torch.arange(0, 24, 3))) @ trainer.W_dec
        aux = (error.detach() - rescue).square().sum() / error.detach().square().sum()
        left = error.square().sum() / (x - x.mean(0)).square().sum()
        return left + 0.3 * aux, left

    expected, left = dense()
    found, share, _, _ = trainer.loss(x)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-10)
    torch.testing.assert_close(share, left.detach(), rtol=0, atol=1e-10)
    pairs = zip(torch.autograd.grad(found, trainer.parameters()), torch.autograd.grad(expected, trainer.parameters()), strict=True)
    for a, b in pairs:
        torch.testing.assert_close(a, b, rtol=0, atol=1e-9)


def sparse_data(rows=6000, D=16, F=24, active=2, seed=0):
    """Sums of few of F unit directions, off centre and far from unit scale; returns (x, directions)."""
    generator = torch.Generator().manual_seed(seed)
    directions = torch.nn.functional.normalize(torch.randn(F, D, generator=generator), dim=1)
    mask = torch.rand(rows, F, generator=generator).argsort(1) < active
    acts = mask * (1 + torch.rand(rows, F, generator=generator))
    return 30 * (acts @ directions + 2 * torch.ones(D)), directions


def trained(x, activation="topk", steps=500, F=32, **extra):
    torch.manual_seed(0)
    fields = {"k": 2, "lr": 1e-2, "warmup": 10, "aux_k": 8, "dead_after": 2000} | extra
    trainer = Trainer(Recipe(activation=activation, steps=steps, **fields), F, x[:2000])
    for step in range(steps):
        trainer.step(x[batch_rows(step, len(x), 256, 0)])
    return trainer


@pytest.mark.parametrize("activation", ["topk", "batchtopk"])
def test_training_finds_the_directions_that_made_the_data(activation):
    x, directions = sparse_data()
    found = trained(x, activation).dictionary("layers.1")
    report = health(found, sparse_data(seed=0)[0][-1000:])
    assert report.fvu < 0.1 and report.l0 < 2.5
    assert found.activation == {"topk": "topk", "batchtopk": "jumprelu"}[activation]
    torch.testing.assert_close(found.W_dec.norm(dim=1), torch.ones(32))
    cosine = (directions @ found.W_dec.T).max(1).values
    assert (cosine > 0.95).float().mean() > 0.9
    # Rows are in raw units: an activation is how far the input goes along its row (30 to 60 here).
    acts = found.encode(x[:500])
    assert 25 < acts[acts > 0].median() < 65


def test_the_folded_dictionary_does_what_the_trainer_does():
    x, _ = sparse_data()
    trainer = trained(x, steps=50)
    scaled = x[:200] * trainer.scale
    _, left, _, _ = trainer.loss(scaled)
    assert health(trainer.dictionary(), x[:200]).fvu == pytest.approx(left.item(), rel=1e-3)


def test_batchtopk_threshold_keeps_k_features_per_token_on_average():
    x, _ = sparse_data(active=4)
    found = trained(x, "batchtopk", k=4, steps=400).dictionary()
    assert found.threshold.min() > 0
    assert health(found, x[-2000:]).l0 == pytest.approx(4, abs=1)


def test_dead_features_come_back_by_the_auxiliary_loss():
    x, _ = sparse_data()

    def outcome(aux_k):
        trainer = Trainer(Recipe(k=2, steps=400, lr=1e-2, aux_k=aux_k, dead_after=1000, aux_weight=0.1), 32, x[:2000])
        with torch.no_grad():
            trainer.E_FD[:16] *= 0.02  # half the features can hardly ever be among the largest
        for step in range(400):
            left = trainer.step(x[batch_rows(step, len(x), 256, 0)])
        return trainer.dead(), left

    (dead_without, left_without), (dead_with, left_with) = outcome(0), outcome(8)
    assert dead_without >= 16 and dead_with <= dead_without / 2
    assert left_with < left_without / 2


def test_nan_in_the_activations_stops_training_with_a_clear_error():
    x, _ = sparse_data(rows=300)
    trainer = Trainer(Recipe(k=2), 32, x)
    x[5, 3] = float("nan")
    with pytest.raises(RunError, match="loss is nan at step 1"):
        trainer.step(x)


def test_learning_rate_rises_stays_and_falls_to_zero():
    rates = [learning_rate(step, 100, 1.0, 9, 0.5) for step in range(100)]
    assert rates[0] == pytest.approx(0.1) and rates[9:51] == [1.0] * 42 and rates[99] == pytest.approx(0.02)
    assert all(a >= b for a, b in zip(rates[9:], rates[10:], strict=False))


def test_a_state_restored_goes_on_bit_for_bit():
    x, _ = sparse_data(rows=2000)
    straight, first, second = (Trainer(Recipe(k=2, steps=20), 32, x[:500]) for _ in range(3))
    for step in range(20):
        straight.step(x[batch_rows(step, len(x), 256, 0)])
    for step in range(9):
        first.step(x[batch_rows(step, len(x), 256, 0)])
    second.load_state(first.state())
    for step in range(9, 20):
        second.step(x[batch_rows(step, len(x), 256, 0)])
    for a, b in zip(straight.parameters(), second.parameters(), strict=True):
        assert torch.equal(a, b)


def test_every_row_is_drawn_once_an_epoch_in_an_order_of_its_own():
    first = np.concatenate([batch_rows(step, 100, 10, 0) for step in range(10)])
    second = np.concatenate([batch_rows(step, 100, 10, 0) for step in range(10, 20)])
    assert sorted(first) == sorted(second) == list(range(100)) and (first != second).any()
    assert len(batch_rows(0, 5, 10, 0)) == 5


# ---------------------------------------------------------------- activations


def test_windows_hold_every_token_of_long_texts_in_pieces(tmp_path):
    (tmp_path / "a.jsonl").write_text(json.dumps({"text": " ".join(f"w{i}" for i in range(3, 23))}))
    found = windows([str(tmp_path / "a.jsonl")], word_tokenizer(), 8)
    assert sorted(map(len, found)) == [5, 8, 8]
    assert sorted(token for window in found for token in window) == [2, *range(3, 23)]
    assert count(found) == 18  # the first token of each window does not count
    assert count(take(found, 9)) <= 9 and take(found, 1)


def test_text_too_short_is_refused(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"text": ""}')
    with pytest.raises(InputError, match="a.jsonl.*two tokens"):
        windows([str(tmp_path / "a.jsonl")], word_tokenizer(), 8)


def test_collected_rows_are_the_model_s_without_padding_and_first_tokens():
    model = tiny_model()
    found = [[5, 6, 7, 8], [9, 10], [11, 12, 13]]
    stores = collect(model, ["layers.1", "layers.2"], found, batch_size=2)
    for layer in (1, 2):
        expected = []
        for batch in batches(found, 2):
            for window in batch:
                with torch.no_grad():
                    expected.append(model(torch.tensor([window]), output_hidden_states=True).hidden_states[layer + 1][0, 1:])
        torch.testing.assert_close(stores[f"layers.{layer}"].rows(slice(None)), torch.cat(expected), rtol=1e-4, atol=1e-6)
    assert len(stores["layers.1"]) == count(found) == 6


def test_on_disk_it_goes_on_where_it_was_stopped(tmp_path):
    model = tiny_model()
    found = [[int(t) for t in np.random.default_rng(i).integers(3, 96, 2 + i % 7)] for i in range(200)]
    whole = collect(model, ["layers.1"], found, 4)["layers.1"].rows(slice(None))

    class Stopped(Exception):
        pass

    seen = 0

    def stop(n):
        nonlocal seen
        seen += n
        if seen > 300:
            raise Stopped

    with pytest.raises(Stopped):
        collect(model, ["layers.1"], found, 4, "float32", tmp_path, stop)
    done = json.loads((tmp_path / "progress.json").read_text())["tokens"]
    assert 0 < done <= 300
    calls = []
    model.register_forward_pre_hook(lambda module, args, kwargs: calls.append(kwargs["input_ids"].shape[0]), with_kwargs=True)
    again = collect(model, ["layers.1"], found, 4, "float32", tmp_path)["layers.1"]
    assert sum(calls) < 180, "what was on disk was read again"
    torch.testing.assert_close(again.rows(slice(None)), whole, rtol=1e-4, atol=1e-6)


def test_a_store_refuses_what_its_type_cannot_hold():
    store = Store(4, 3, "float16")
    with pytest.raises(InputError, match="store_dtype: float32"):
        store.write(0, torch.full((2, 3), 1e5))
    with pytest.raises(InputError, match="NaN"):
        store.write(0, torch.full((2, 3), float("nan")))


def test_attention_sinks_are_left_out_and_counted():
    store = Store(50, 4, "float32")
    store.write(0, torch.randn(50, 4, generator=torch.Generator().manual_seed(0)))
    store.write(7, torch.full((1, 4), 500.0))
    assert store.usual(10.0).tolist() == [i for i in range(50) if i != 7]
    assert len(store.usual(None)) == 50


# ---------------------------------------------------------------- the job


def test_the_job_trains_saves_and_reports_every_hookpoint(tmp_path):
    config = settings(tmp_path)
    found = train_dictionaries(config, loader)
    assert list(found) == ["layers.1", "layers.2"]
    for name, dictionary in found.items():
        facts = dictionary.metadata
        assert dictionary.hookpoint == name and dictionary.k == 4 and dictionary.d_sae == 48
        assert facts["health"]["fvu"] < 0.6 and facts["health"]["l0"] == pytest.approx(4, abs=0.2)
        assert facts["recipe"]["d_sae"] == 48 and facts["train"]["tokens"] > 500
        assert facts["firing_rate"].sum() == pytest.approx(4, abs=0.2)
        assert not (tmp_path / "out" / name / "checkpoint.pt").exists()
    # The health written is that of the dictionary on disk, measured on text it was not trained on.
    assert found["layers.1"].metadata["health"]["tokens"] < found["layers.1"].metadata["train"]["tokens"] / 10


def test_a_second_call_loads_what_is_there_and_another_config_is_refused(tmp_path):
    config = settings(tmp_path, epochs=2)
    first = train_dictionaries(config, loader)

    def never():
        raise AssertionError("nothing is left to train")

    again = train_dictionaries(config, never)
    assert torch.equal(first["layers.2"].W_dec, again["layers.2"].W_dec)
    with pytest.raises(ConfigError, match="seed.*was 0, now 1.*--fresh"):
        train_dictionaries(settings(tmp_path, epochs=2, seed=1), never)
    other = train_dictionaries(settings(tmp_path, epochs=2, seed=1), loader, fresh=True)
    assert not torch.equal(first["layers.2"].W_dec, other["layers.2"].W_dec)


@pytest.mark.parametrize("store", ["memory", "disk"])
def test_interrupted_it_goes_on_and_ends_where_it_would_have(tmp_path, store):
    whole = train_dictionaries(settings(tmp_path, out=str(tmp_path / "whole"), store=store), loader)
    from contextlib import contextmanager

    @contextmanager
    def interrupting(description, total=None):
        done = 0

        def advance(n=1, note=""):
            nonlocal done
            done += n
            if description == "training layers.2" and done > 17:
                raise KeyboardInterrupt

        yield advance

    config = settings(tmp_path, out=str(tmp_path / "parts"), store=store)
    with pytest.raises(KeyboardInterrupt):
        train_dictionaries(config, loader, interrupting)
    assert (tmp_path / "parts" / "layers.2" / "checkpoint.pt").is_file()
    assert (tmp_path / "parts" / "activations").exists() == (store == "disk")
    parts = train_dictionaries(config, loader)
    for name in whole:
        for tensor in ("W_enc", "b_enc", "W_dec", "b_dec"):
            assert torch.equal(getattr(whole[name], tensor), getattr(parts[name], tensor)), (name, tensor)
    assert not (tmp_path / "parts" / "activations").exists()


def test_a_full_disk_is_said_before_anything_is_mapped_and_the_last_checkpoint_stays(tmp_path, monkeypatch):
    def full(*arguments):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(os, "posix_fallocate", full)
        with pytest.raises(InputError, match=r"layers.1.float32: .*GB of activations could not be written there \(No space left"):
            Store(4, 3, "float32", tmp_path / "held" / "layers.1.float32")
    assert not list((tmp_path / "held").iterdir())
    saved, save = [], torch.save

    def cut_short(data, path):
        save(data, path)
        saved.append(path)
        if len(saved) == 2:
            raise RuntimeError("PytorchStreamWriter failed writing file data/3: file write failed")

    monkeypatch.setattr(torch, "save", cut_short)
    with pytest.raises(OSError, match="failed writing file") as refused:
        train_dictionaries(settings(tmp_path, hookpoints=["layers.1"]), loader)
    folder = tmp_path / "out" / "layers.1"
    assert refused.value.filename == str(folder / "checkpoint.pt") and [path.name for path in folder.iterdir()] == ["checkpoint.pt"]


def test_a_damaged_checkpoint_is_named(tmp_path):
    config = settings(tmp_path)
    (tmp_path / "out" / "layers.1").mkdir(parents=True)
    (tmp_path / "out" / "layers.1" / "checkpoint.pt").write_bytes(b"torn")
    with pytest.raises(InputError, match="checkpoint.pt.*--fresh"):
        train_dictionaries(config, loader)


def test_heldout_text_of_its_own_is_used(tmp_path):
    config = settings(tmp_path, heldout=[corpus(tmp_path, rows=10, name="held.jsonl", seed=1)], hookpoints=["layers.0"], epochs=1)
    assert train_dictionaries(config, loader)["layers.0"].metadata["health"]["tokens"] == 10 * 19


# ---------------------------------------------------------------- config


def test_a_config_file_with_overrides(tmp_path):
    corpus(tmp_path)
    (tmp_path / "sae.yaml").write_text("hookpoints: layers.1\ntext: [text.jsonl, demo:sae-text]\nd_sae: 64\n")
    config = load_sae_config(tmp_path / "sae.yaml", ["k=3", "hookpoints=[1, model.layers.3]", "lr=1.0e-4"])
    assert config.hookpoints == ["layers.1", "layers.3"] and config.k == 3 and config.lr == 1e-4
    assert config.text == [str(tmp_path / "text.jsonl"), "demo:sae-text"]


@pytest.mark.parametrize(
    "text, words",
    [
        ("hookpoint: [layers.1]\ntext: [a]", "unknown key hookpoint; did you mean hookpoints"),
        ("text: [a]", "hookpoints is missing"),
        ("hookpoints: [layers.1]\ntext: [a]\nk: 9\nd_sae: 8", "k is 9"),
        ("hookpoints: [layers.1, blocks.1.hook_resid_post]\ntext: [a]", "named twice"),
        ("hookpoints: [blocks.1.hook_nothing]\ntext: [a]", "hook_nothing"),
        ("- 1", "expected a mapping"),
    ],
)
def test_a_wrong_config_is_named(tmp_path, text, words):
    (tmp_path / "sae.yaml").write_text(text)
    with pytest.raises(ConfigError, match=words) as caught:
        load_sae_config(tmp_path / "sae.yaml")
    assert "sae.yaml" in str(caught.value)

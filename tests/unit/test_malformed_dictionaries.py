"""Dictionaries that are not as their format has them: every one is refused with its path and what is wrong, and no other error hides."""

import json
import struct
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from gradlens.dictionaries import formats
from gradlens.dictionaries.formats import load_dictionary
from gradlens.errors import InputError

D, F = 8, 24
NAN, INF = float("nan"), float("inf")


def sparsify(folder: Path, **config) -> Path:
    tensors = {"encoder.weight": torch.randn(F, D), "encoder.bias": torch.zeros(F), "W_dec": torch.randn(F, D), "b_dec": torch.zeros(D)}
    save_file(tensors, folder / "sae.safetensors")
    (folder / "cfg.json").write_text(json.dumps({"k": 4, "d_in": D, "num_latents": F} | config))
    return folder


def batchtopk(folder: Path, threshold: float) -> Path:
    tensors = {"encoder.weight": torch.randn(F, D), "encoder.bias": torch.zeros(F), "decoder.weight": torch.randn(D, F)}
    torch.save(tensors | {"b_dec": torch.zeros(D), "k": torch.tensor(4), "threshold": torch.tensor(threshold)}, folder / "ae.pt")
    (folder / "config.json").write_text(json.dumps({"trainer": {"dict_class": "BatchTopKSAE", "k": 4, "layer": 3}}))
    return folder


def crosscoder(folder: Path, **changes) -> str:
    tensors = {"encoder.weight": torch.randn(2, D, F), "decoder.weight": torch.randn(2, F, D), "encoder.bias": torch.zeros(F)}
    save_file(tensors | {"decoder.bias": torch.zeros(2, D)} | changes, folder / "model.safetensors")
    return f"{folder}#0"


def circuit_tracer(folder: Path, **changes) -> str:
    tensors = {"W_enc": torch.randn(F, D), "b_enc": torch.zeros(F), "W_dec": torch.randn(F, D), "b_dec": torch.zeros(D)}
    save_file(tensors | {"activation_function.threshold": torch.zeros(F)} | changes, folder / "layer_3.safetensors")
    return f"{folder}#3"


def llamascopium(folder: Path, **changes) -> Path:
    tensors = {"W_E": torch.randn(D, F), "b_E": torch.zeros(F), "W_D": torch.randn(F, D), "b_D": torch.zeros(D)}
    save_file(tensors | {"activation_function.log_jumprelu_threshold": torch.zeros(F)} | changes, folder / "sae_weights.safetensors")
    config = {"hook_point_in": "blocks.4.hook_resid_post", "sae_type": "sae", "act_fn": "jumprelu", "norm_activation": "inference"}
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def saelens(folder: Path, dtype: torch.dtype = torch.float32, **config) -> Path:
    matrices = {"W_enc": torch.randn(D, F).to(dtype), "W_dec": torch.randn(F, D).to(dtype)}
    save_file(matrices | {"b_enc": torch.zeros(F), "b_dec": torch.zeros(D)}, folder / "sae_weights.safetensors")
    (folder / "cfg.json").write_text(json.dumps({"d_in": D, "d_sae": F} | config))
    return folder


def goodfire(folder: Path, drop: str = "") -> Path:
    tensors = {"encoder_linear.weight": torch.randn(F, D), "encoder_linear.bias": torch.zeros(F)}
    tensors |= {"decoder_linear.weight": torch.randn(D, F), "decoder_linear.bias": torch.zeros(D)}
    path = folder / "Llama-3.1-8B-Instruct-SAE-l19.pth"
    torch.save({name: value for name, value in tensors.items() if name != drop}, path)
    return path


def gemma_scope_2(folder: Path, model_name: object = "gemma-3-1b-pt") -> Path:
    tensors = {"w_enc": torch.randn(D, F), "w_dec": torch.randn(F, D), "b_enc": torch.zeros(F), "b_dec": torch.zeros(D)}
    save_file(tensors | {"threshold": torch.zeros(F)}, folder / "params.safetensors")
    (folder / "config.json").write_text(json.dumps({"architecture": "jump_relu", "model_name": model_name}))
    return folder


def test_what_the_cases_below_start_from_is_read(tmp_path):
    makers = (sparsify, crosscoder, circuit_tracer, llamascopium, saelens, goodfire, gemma_scope_2)
    for make in (*makers, lambda folder: batchtopk(folder, 0.5), lambda folder: crosscoder(folder, threshold=torch.tensor(0.5))):
        folder = tmp_path / str(len(list(tmp_path.iterdir())))
        folder.mkdir()
        assert load_dictionary(make(folder)).d_sae == F


def test_signed_features_are_refused(tmp_path):
    with pytest.raises(InputError, match="cfg.json: signed is true.*negative"):
        load_dictionary(sparsify(tmp_path, signed=True))
    assert load_dictionary(sparsify(tmp_path, signed=False)).activation == "topk"


@pytest.mark.parametrize("threshold", [NAN, INF, -INF, -0.5])
@pytest.mark.parametrize(
    "make", [batchtopk, lambda folder, level: crosscoder(folder, threshold=torch.tensor(level))], ids=["dictionary_learning", "crosscoder"]
)
def test_only_minus_one_means_a_threshold_that_was_never_measured(tmp_path, make, threshold):
    with pytest.raises(InputError, match=rf"{tmp_path}.*threshold is {threshold:g}, expected"):
        load_dictionary(make(tmp_path, threshold))


def test_a_threshold_that_was_never_measured_leaves_the_choice_to_the_batch(tmp_path):
    assert load_dictionary(batchtopk(tmp_path, -1.0)).threshold is None


def test_a_threshold_for_each_place_is_refused(tmp_path):
    with pytest.raises(InputError, match=r"threshold has shape \[2\], expected one number"):
        load_dictionary(crosscoder(tmp_path, threshold=torch.zeros(2), k=torch.tensor(4)))


@pytest.mark.parametrize(
    "make, words",
    [
        (lambda f: goodfire(f, drop="encoder_linear.bias"), "SAE-l19.pth: encoder_linear.bias missing; found decoder_linear.bias"),
        (lambda f: circuit_tracer(f, b_enc=torch.zeros(F + 1)), rf"layer_3.safetensors: the threshold has shape \[{F}\].*bias \[{F + 1}\]"),
        (lambda f: llamascopium(f, b_E=torch.zeros(())), r"sae_weights.safetensors: the threshold has shape.*bias \[\]"),
        (lambda f: crosscoder(f, **{"encoder.bias": torch.zeros(F + 1)}), rf"encoder.bias has shape \[{F + 1}\], expected \[{F}\]"),
        (lambda f: crosscoder(f, **{"decoder.bias": torch.zeros(3, D)}), rf"decoder.bias has shape \[3, {D}\], expected \[2, {D}\]"),
        (lambda f: saelens(f, torch.float8_e4m3fn), "float8_e4m3fn.*quantised weights are not read"),
        (lambda f: saelens(f, activation_fn_str="topk", activation_fn_kwargs=8), "cfg.json: activation_fn_kwargs: expected an object"),
        (lambda f: sparsify(f, k=NAN), "cfg.json: k is nan, expected the number"),
        (lambda f: sparsify(f, k=INF), "cfg.json: k is inf, expected the number"),
        # what no reader looks at by itself
        (lambda f: gemma_scope_2(f, model_name=7), "recognised as gemma_scope, but not readable as that .TypeError: "),
        (lambda f: llamascopium(f, W_E=torch.zeros(())), "recognised as openmoss, but not readable as that .IndexError: "),
        (lambda f: crosscoder(f, activation_mean=torch.zeros(3, D), activation_std=torch.ones(2, D)), "as crosscoder.*RuntimeError"),
    ],
)  # fmt: skip
def test_a_malformed_file_is_named_with_what_is_wrong(tmp_path, make, words):
    torch.manual_seed(0)
    with pytest.raises(InputError, match=words) as caught:
        load_dictionary(make(tmp_path))
    assert str(tmp_path) in str(caught.value) and "\n" not in str(caught.value)


def gemma_scope_npz(folder: Path, shape: tuple[int, ...]) -> Path:
    """Files whose heads alone say how large they are."""
    head = f"{{'descr': '<f4', 'fortran_order': False, 'shape': {shape}, }}".ljust(117).encode() + b"\n"
    with zipfile.ZipFile(folder / "params.npz", "w") as archive:
        for name in ("W_enc", "W_dec", "b_enc", "b_dec", "threshold"):
            archive.writestr(f"{name}.npy", np.lib.format.magic(1, 0) + struct.pack("<H", len(head)) + head)
    return folder


def endless(folder: Path) -> Path:
    """One number that is said to be a matrix."""
    one = torch.zeros(1)
    torch.save({"encoder.weight": one.expand(10**6, 10**6), "encoder.bias": one, "decoder.weight": one, "bias": one}, folder / "ae.pt")
    (folder / "config.json").write_text(json.dumps({"trainer": {"dict_class": "AutoEncoder"}}))
    return folder


@pytest.mark.parametrize("make", [lambda f: gemma_scope_npz(f, (10**6, 10**6)), lambda f: gemma_scope_npz(f, (64, 64)), endless])
def test_no_room_is_made_for_what_the_file_does_not_hold(tmp_path, make):
    with pytest.raises(InputError, match=rf"{tmp_path}.* says that it is of shape \(.*and the file has not so much in it"):
        load_dictionary(make(tmp_path))


class Reader:
    """A format whose reader fails with what it is given."""

    __name__ = "gradlens.dictionaries.formats.odd"

    def __init__(self, error: BaseException, while_looking: bool):
        self.error, self.while_looking = error, while_looking

    def recognise(self, place):
        if self.while_looking:
            raise self.error
        return True

    def read(self, place):
        raise self.error


@pytest.mark.parametrize("while_looking", [True, False])
@pytest.mark.parametrize("kind", [KeyError, IndexError, TypeError, AttributeError, ValueError, RuntimeError, NotImplementedError])
def test_whatever_a_reader_stumbles_with_becomes_one_line_that_keeps_its_words(tmp_path, monkeypatch, kind, while_looking):
    error = kind("what was wrong\nand more")
    monkeypatch.setattr(formats, "FAMILIES", (Reader(error, while_looking),))
    with pytest.raises(InputError, match=f"{tmp_path}: recognised as odd.*{kind.__name__}: .*what was wrong") as caught:
        load_dictionary(tmp_path)
    assert caught.value.__cause__ is error


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory"),
        RuntimeError("[enforce fail at alloc_cpu.cpp:127] DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes"),
        MemoryError(),
        InputError("of the reader's own"),
        KeyboardInterrupt(),
    ],
    ids=["gpu memory", "cpu memory", "python memory", "own", "interrupt"],
)
def test_what_is_not_the_files_fault_stays_as_it_is(tmp_path, monkeypatch, error):
    monkeypatch.setattr(formats, "FAMILIES", (Reader(error, False),))
    with pytest.raises(type(error)) as caught:
        load_dictionary(tmp_path)
    assert caught.value is error

"""Where a dictionary comes from: folders, files, parts, the hub's cache; what is wrong with one is named in one line."""

import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from huggingface_hub import HfApi, constants, errors
from safetensors.torch import load_file, save_file

from gradlens import from_saelens
from gradlens.dictionaries.formats import dictionary_learning, hub, load_dictionary, saelens
from gradlens.errors import InputError

ROOT = Path(__file__).parents[1] / "fixtures" / "dictionaries"
SAELENS = Path(__file__).parents[1] / "fixtures" / "saelens"
RES = "google/gemma-scope-2b-pt-res"
SUB = "layer_20/width_16k/average_l0_71"
REVISION = "0123456789" * 4


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """Puts the files of a fixture into an empty cache of the hub, as a download does."""
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.chdir(tmp_path)

    def put(case: str, repository: str) -> Path:
        root = tmp_path / "hub" / f"models--{repository.replace('/', '--')}"
        shutil.copytree(ROOT / case / repository, root / "snapshots" / REVISION)
        (root / "refs").mkdir()
        (root / "refs" / "main").write_text(REVISION)
        return root / "snapshots" / REVISION

    return put


def test_a_repository_in_the_cache_is_read_offline(cache, monkeypatch):
    snapshot = cache("gemma-scope-res", RES)
    found, expected = load_dictionary(f"{RES}/{SUB}"), load_file(ROOT / "gemma-scope-res" / "expected.safetensors")
    torch.testing.assert_close(found.encode(expected["x"]), expected["feature_acts"])
    assert found.hookpoint == "layers.20" and found.metadata["model_name"] == "google/gemma-2-2b"
    for same in (f"hf://{RES}/{SUB}", f"{RES}@{REVISION}/{SUB}", f"{RES}/{SUB}/params.npz", snapshot / SUB):
        assert load_dictionary(same).hookpoint == "layers.20", same


def test_a_folder_of_that_name_wins_over_the_hub(cache, tmp_path):
    cache("gemma-scope-res", RES)
    shutil.copytree(SAELENS / "topk", tmp_path / RES / SUB)
    assert load_dictionary(f"{RES}/{SUB}").metadata["format"] == "saelens"


@pytest.mark.parametrize(
    "source, words",
    [
        (f"{RES}/{SUB}", "switched off.*gemma-scope-2b-pt-res is not in its cache.*hf download"),
        ("org/model@main/x", "org/model is not in its cache"),
    ],
)
def test_offline_and_not_cached_is_said(cache, source, words):
    with pytest.raises(InputError, match=words):
        load_dictionary(source)


def test_offline_with_another_part_cached_says_what_there_is(cache):
    cache("gemma-scope-res", RES)
    with pytest.raises(InputError, match="the cache holds only layer_20/width_16k/average_l0_71/params.npz"):
        load_dictionary(f"{RES}/layer_21/width_16k/average_l0_70")


def listing(case: str, repository: str) -> list[str]:
    root = ROOT / case / repository
    return sorted(path.relative_to(root).as_posix() for path in root.rglob("*") if path.is_file())


def test_online_only_the_files_that_are_needed_are_fetched(tmp_path, monkeypatch):
    """The hub is a stand-in that lists a repository and hands out its files."""
    case, repository, fetched = "circuit-tracer-clt", "mntss/clt-gemma-2-2b", []

    def download(repo, name, revision=None):
        fetched.append(name)
        return str(Path(shutil.copytree(ROOT / case / repo, tmp_path / "snapshot", dirs_exist_ok=True)) / name)

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(HfApi, "list_repo_files", lambda self, repo, revision=None: [*listing(case, repository), "README.md", "x.png"])
    monkeypatch.setattr("huggingface_hub.hf_hub_download", download)
    assert load_dictionary(f"{repository}#0:2").hookpoint == "layers.2.mlp_out"
    assert set(fetched) == {"config.yaml", "W_enc_0.safetensors", "W_dec_0.safetensors", "W_enc_2.safetensors", "W_dec_2.safetensors"}
    with pytest.raises(InputError, match="6 weights files.*name one, or a layer"):
        load_dictionary(repository)
    with pytest.raises(InputError, match="no weights at nothing/here"):
        load_dictionary(f"{repository}/nothing/here")


@pytest.mark.parametrize(
    "error, words",
    [
        (lambda response: errors.RepositoryNotFoundError("no", response=response), "the hub has no org/repo"),
        (lambda response: errors.GatedRepoError("no", response=response), "org/repo is gated"),
        (lambda response: errors.RevisionNotFoundError("no", response=response), "no revision"),
        (lambda response: OSError("Network is unreachable"), "cannot be reached .Network is unreachable.*not in its cache"),
    ],
)
def test_what_the_hub_refuses_is_said(tmp_path, monkeypatch, error, words):
    response = SimpleNamespace(headers={}, status_code=404, request=None, url="")

    def refuse(self, repo, revision=None):
        raise error(response)

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(HfApi, "list_repo_files", refuse)
    with pytest.raises(InputError, match=words):
        load_dictionary("org/repo/path")


def test_files_of_a_repository_that_a_source_needs():
    listed = [
        "config.yaml",
        "README.md",
        *(f"{kind}_{i}.safetensors" for kind in ("W_enc", "W_dec") for i in range(20)),
        "a/ae.pt",
        "a/config.json",
    ]
    assert hub.select("r", listed, "W_enc_3.safetensors", ()) == ["W_dec_3.safetensors", "W_enc_3.safetensors", "config.yaml"]
    assert hub.select("r", listed, "a", ()) == ["a/ae.pt", "a/config.json", "config.yaml"]
    with pytest.raises(InputError, match="40 weights files"):
        hub.select("r", listed, "", ())
    with pytest.raises(InputError, match="it has a$|it has a,"):
        hub.select("r", listed, "b", ())


# -- parts -----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "source, words",
    [
        ("circuit-tracer-plt/mwhanna/qwen3-0.6b-transcoders", "holds the transcoders of layers 0, 1; name one: SOURCE#1"),
        ("circuit-tracer-plt/mwhanna/qwen3-0.6b-transcoders#5", "no layer 5; here are 0, 1"),
        ("circuit-tracer-clt/mntss/clt-gemma-2-2b", "layers 0, 1, 2; name one"),
        ("circuit-tracer-clt/mntss/clt-gemma-2-2b#2:1", "features of layer 2 act at layers 2 and above, not at 1"),
        ("circuit-tracer-clt/mntss/clt-gemma-2-2b#1:7", "W_enc_7.safetensors: no such file"),
        ("gemma-scope-2-crosscoder/google/gemma-scope-2-1b-pt/crosscoder/layer_7_13_17_22_width_65k_l0_medium", "one encoder per layer"),
        ("crosscoder-relu/science-of-finetuning/crosscoder", "one encoder for 3 places.*SOURCE#0 to SOURCE#2"),
        ("crosscoder-relu/science-of-finetuning/crosscoder#3", "SOURCE#0 to SOURCE#2"),
        ("crosscoder-relu/science-of-finetuning/crosscoder#x", "after # comes a layer"),
        ("gemma-scope-res/google/gemma-scope-2b-pt-res/layer_20/width_16k/average_l0_71#3", "without parts; leave #3 out"),
        ("goodfire/Goodfire/Llama-3.1-8B-Instruct-SAE-l19/Llama-3.1-8B-Instruct-SAE-l19.pth#19", "without parts; leave #19 out"),
        ("../saelens/topk#1:2", "without parts; leave #1:2 out"),
    ],
)
def test_a_part_that_is_not_there_is_named(source, words):
    with pytest.raises(InputError, match=words):
        load_dictionary(f"{ROOT}/{source}")


def test_a_part_of_a_cross_layer_transcoder_says_that_it_is_one():
    found = load_dictionary(ROOT / "circuit-tracer-clt" / "mntss" / "clt-gemma-2-2b#1")
    assert found.metadata["part"] == {"encoder": 1, "decoder": 1, "of": 3} and found.metadata["partial"]
    assert (found.hook_in, found.hookpoint) == (("layers.1.resid_mid",), "layers.1.mlp_out")


def test_a_list_of_transcoders_leads_to_them(tmp_path):
    there = ROOT / "gemma-scope-2-affine/google/gemma-scope-2-1b-pt/transcoder_all/layer_7_width_16k_l0_small_affine/params.safetensors"
    config = {"model_name": "google/gemma-3-1b-pt", "model_kind": "transcoder_set", "feature_input_hook": "mlp.hook_in",
              "feature_output_hook": "hook_mlp_out", "transcoders": [str(there), str(there)]}  # fmt: skip
    (tmp_path / "config.yaml").write_text(json.dumps(config))
    found = load_dictionary(f"{tmp_path}#1")
    assert (found.hookpoint, found.hook_in) == ("layers.1.mlp_out", ("layers.1.mlp.in",))


# -- what is wrong -----------------------------------------------------------------------------------------------------------


def copied(tmp_path: Path, case: str, source: str = "") -> Path:
    inner = next(
        p
        for p in sorted((ROOT / case).rglob("*"))
        if p.suffix in (".pt", ".npz", ".safetensors", ".pth") and p.name != "expected.safetensors"
    )
    folder = Path(shutil.copytree(inner.parent, tmp_path / case))
    return folder / inner.name


@pytest.mark.parametrize(
    "case", ["gemma-scope-res", "sparsify-sae", "dictionary_learning-BatchTopKSAE", "goodfire", "openai-topk", "qwen-scope"]
)
@pytest.mark.parametrize("damage", ["truncated", "empty", "text"])
def test_a_damaged_file_of_any_kind_is_named_in_one_line(tmp_path, case, damage):
    path = copied(tmp_path, case)
    data = path.read_bytes()
    path.write_bytes({"truncated": data[: len(data) // 2], "empty": b"", "text": b"<html>404</html>"}[damage])
    for source in (path, path.parent):
        with pytest.raises(InputError) as caught:
            load_dictionary(source)
        assert path.name in str(caught.value) and "\n" not in str(caught.value) and len(str(caught.value)) < 400


class Bomb:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (Path.touch, (Path(self.path),))


@pytest.mark.parametrize("case", ["dictionary_learning-AutoEncoder", "goodfire", "openai-topk", "qwen-scope"])
def test_code_in_a_torch_file_is_refused_and_never_runs(tmp_path, case):
    path, mark = copied(tmp_path, case), tmp_path / "ran"
    torch.save(torch.load(path, weights_only=True) | {"x": Bomb(mark)}, path)
    for source in (path, path.parent):
        with pytest.raises(InputError, match="refused.*run code"):
            load_dictionary(source)
    assert not mark.exists()


def test_code_in_an_npz_file_is_refused_and_never_runs(tmp_path):
    path, mark = copied(tmp_path, "gemma-scope-res"), tmp_path / "ran"
    with np.load(path) as file:
        arrays = dict(file)
    np.savez(path, **{**arrays, "threshold": np.array([Bomb(mark)], dtype=object)}, allow_pickle=True)
    with pytest.raises(InputError, match="params.npz: refused.*run code"):
        load_dictionary(path)
    assert not mark.exists()


def rewrite(path: Path, change) -> None:
    tensors = load_file(path)
    change(tensors)
    save_file({name: value.contiguous() for name, value in tensors.items()}, path)


@pytest.mark.parametrize(
    "change, words",
    [
        (lambda t: t.pop("W_dec"), "W_dec missing; saved without its decoder"),
        (lambda t: t.pop("b_dec"), "b_dec missing"),
        (lambda t: t.update(W_dec=t["W_dec"].T), r"W_dec has shape \[8, 24\], expected \[24, 8\]"),
        (lambda t: t.update(W_dec=t["W_dec"][:20]), r"W_dec has shape \[20, 8\]"),
        (lambda t: t["W_dec"].fill_(float("inf")), "W_dec holds NaN or infinite"),
        (lambda t: t.update(W_dec=t["W_dec"].to(torch.int8)), "W_dec holds torch.int8.*quantised"),
        (lambda t: t.update({"encoder.bias": torch.zeros(3)}), r"b_enc has shape \[3\]"),
    ],
)
def test_wrong_tensors_of_sparsify_are_named(tmp_path, change, words):
    path = copied(tmp_path, "sparsify-sae")
    rewrite(path, change)
    with pytest.raises(InputError, match=words) as caught:
        load_dictionary(path.parent)
    assert str(path) in str(caught.value)


def config_of(path: Path, name: str, **changes) -> None:
    config = json.loads((path.parent / name).read_text())
    (path.parent / name).write_text(json.dumps(config | changes))


@pytest.mark.parametrize(
    "case, name, changes, words",
    [
        ("sparsify-sae", "cfg.json", {"activation": "jumprelu"}, "activation is 'jumprelu'; sparsify knows topk and groupmax"),
        ("sparsify-sae", "cfg.json", {"k": None}, "k is None"),
        ("sparsify-sae", "cfg.json", {"k": 0}, "k=0"),
        ("sparsify-sae", "cfg.json", {"skip_connection": True}, "skip_connection is true.*W_skip is missing"),
        ("sparsify-groupmax", "cfg.json", {"k": 5}, "groups of the same size"),
        ("dictionary_learning-AutoEncoder", "config.json", {"trainer": {"dict_class": "Crosscoder"}}, "dict_class is 'Crosscoder'"),
        (
            "dictionary_learning-AutoEncoder",
            "config.json",
            {"trainer": {"dict_class": "GatedAutoEncoder"}},
            "decoder_bias.*missing for GatedAuto",
        ),
        ("dictionary_learning-AutoEncoder", "config.json", {"trainer": ["AutoEncoder"]}, "trainer: expected an object, found list"),
        ("llamascopium-topk", "config.json", {"sae_type": "lorsa"}, "sae_type is 'lorsa'"),
        ("llamascopium-topk", "config.json", {"use_glu_encoder": True}, "use_glu_encoder"),
        ("llamascopium-topk", "config.json", {"norm_activation": "batch-wise"}, "norm_activation is 'batch-wise'"),
        ("llamascopium-topk", "config.json", {"act_fn": "layertopk"}, "act_fn is 'layertopk'"),
        ("gemma-scope-2-resid", "config.json", {"architecture": "matryoshka"}, "architecture is 'matryoshka'"),
        ("crosscoder-batchtopk", "config.json", {"encoder_layers": [0]}, r"encoder_layers is \[0\]"),
    ],
)
def test_what_a_config_says_and_cannot_be_read_is_named(tmp_path, case, name, changes, words):
    path = copied(tmp_path, case)
    config_of(path, name, **changes)
    with pytest.raises(InputError, match=words):
        load_dictionary(f"{path.parent}#0" if case.startswith("crosscoder") else path.parent)


def test_decoupled_crosscoders_are_refused(tmp_path):
    path = copied(tmp_path, "crosscoder-batchtopk")
    rewrite(path, lambda t: t.update(code_normalization_id=torch.tensor(5)))
    with pytest.raises(InputError, match="DECOUPLED: each place has active features of its own"):
        load_dictionary(f"{path.parent}#0")


def test_k_that_stands_in_the_repository_s_name_only_is_asked_for(tmp_path):
    path = copied(tmp_path, "qwen-scope")
    with pytest.raises(InputError, match="its k is not in the file but in the repository's name"):
        load_dictionary(path)
    (path.parent / "config.json").write_text('{"k": 5}')
    assert load_dictionary(path).k == 5


def test_nothing_that_is_known_is_said_with_what_is_there(tmp_path):
    with pytest.raises(InputError, match="no dictionary that is known .found: nothing"):
        load_dictionary(tmp_path)
    save_file({"lm_head.weight": torch.zeros(2, 2)}, tmp_path / "model.safetensors")
    with pytest.raises(InputError, match="its tensors are lm_head.weight"):
        load_dictionary(tmp_path / "model.safetensors")
    with pytest.raises(InputError, match="below it are .*/gated, .*name one"):
        load_dictionary(SAELENS)
    (tmp_path / "notes.txt").write_text("x")
    with pytest.raises(InputError, match="notes.txt: no weights file"):
        load_dictionary(tmp_path / "notes.txt")


# -- live objects of sae_lens, by a stand-in; tests/extras has the library itself -----------------------------------------------------


class StandIn:
    """What `from_saelens` asks of a sae_lens SAE."""

    def __init__(self, folder: Path) -> None:
        self.config, self.tensors = json.loads((folder / "cfg.json").read_text()), load_file(folder / "sae_weights.safetensors")
        self.cfg = SimpleNamespace(to_dict=lambda: self.config, architecture=lambda: self.config["architecture"])

    def state_dict(self):
        return self.tensors


@pytest.mark.parametrize(
    "name", ["standard", "gated", "topk-rescaled", "jumprelu_skip_transcoder", "standard-layer_norm", "standard-no-b_dec"]
)
def test_a_live_sae_gives_what_its_folder_gives(name):
    live, expected = StandIn(SAELENS / name), load_file(SAELENS / name / "expected.safetensors")
    found = from_saelens(live)
    assert found.hookpoint == load_dictionary(SAELENS / name).hookpoint and found.metadata["model_name"] == "tiny-model"
    for tensor in live.tensors.values():
        tensor.zero_()  # what trains on does not change what was taken
    acts = found.encode(expected["x"])
    torch.testing.assert_close(acts, expected["feature_acts"], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(found.decode(acts, expected["x"]), expected["sae_out"], rtol=1e-5, atol=1e-5)


def test_what_is_no_sae_is_refused():
    with pytest.raises(InputError, match="expected a sae_lens SAE.*found Linear"):
        from_saelens(torch.nn.Linear(2, 3))
    live = StandIn(SAELENS / "standard")
    live.config["architecture"] = "temporal"
    with pytest.raises(InputError, match="temporal.*other tokens"):
        from_saelens(live)


@pytest.mark.parametrize(
    ("location", "place"),
    [("resid_post_mlp", ""), ("resid_post_attn", ".resid_mid"), ("resid_delta_mlp", ".mlp_out"), ("resid_delta_attn", ".attn_out")],
)
def test_the_place_in_the_path_of_an_openai_dictionary(tmp_path, location, place):
    (source,) = (ROOT / "openai-topk").rglob("8.pt")
    folder = tmp_path / "gpt2-small" / f"{location}_v5_32k" / "autoencoders"
    folder.mkdir(parents=True)
    shutil.copy(source, folder / "8.pt")
    assert load_dictionary(folder / "8.pt").hookpoint == f"layers.8{place}"


@pytest.mark.parametrize(
    ("submodule", "io", "hookpoint", "hook_in"),
    [
        ("resid_post_layer_3", "out", "layers.3", ()),
        ("attention_layer_3", "out", "layers.3.self_attn", ()),
        ("mlp_layer_3", "out", "layers.3.mlp", ()),
        ("mlp_layer_3", "in", "layers.3.mlp.in", ()),
        ("mlp_layer_3", "in_and_out", "layers.3.mlp", ("layers.3.mlp.in",)),
    ],
)
def test_the_place_in_a_config_of_dictionary_learning(submodule, io, hookpoint, hook_in):
    assert dictionary_learning._hookpoint({"layer": 3, "submodule_name": submodule}, {"io": io}) == (hookpoint, hook_in)


def test_the_name_that_transformers_has_for_a_place_wins_over_that_of_transformerlens():
    assert saelens._hook({"hook_name": "blocks.3.hook_mlp_out", "hf_hook_name": "model.layers.3.mlp"}) == "model.layers.3.mlp"
    assert saelens._hook({"hook_name": "blocks.3.hook_mlp_out"}) == "blocks.3.hook_mlp_out"


def test_a_cross_layer_transcoder_without_a_config_reads_the_stream_between(tmp_path):
    shutil.copytree(ROOT / "circuit-tracer-clt" / "mntss" / "clt-gemma-2-2b", tmp_path / "clt")
    (tmp_path / "clt" / "config.yaml").unlink()
    found = load_dictionary(f"{tmp_path / 'clt'}#0:1")
    assert (found.hook_in, found.hookpoint) == (("layers.0.resid_mid",), "layers.1.mlp_out")

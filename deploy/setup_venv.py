"""Makes `.venv` with everything gradlens needs, in the exact versions of constraints.txt. Standard library only.

`make demo`, `make test` and `make setup` call it; a second call costs a fraction of a second, because a stamp in the venv
holds a hash of what the installation depends on. Environment:
  TORCH_INDEX_URL  package index that torch alone is taken from (for instance the one with PyTorch's CPU wheels)
  ALLOW_CUDA=1     install torch's CUDA build on a machine without an NVIDIA GPU
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import time
import venv
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
CONSTRAINTS = ROOT / "constraints.txt"
CONSTRAINTS_CPU = ROOT / "constraints-cpu.txt"  # beside a CPU build of torch; a CUDA build demands a triton of its own
STAMP = "gradlens-setup.txt"
LOG = "gradlens-setup.log"
CUDA_PACKAGE = re.compile(r"(nvidia|cuda|triton)(-|\b)")


class SetupError(Exception):
    """Set-up cannot go on; the message says why and what to do."""


def pinned(name: str) -> str:
    """The requirement `name==version` of constraints.txt."""
    for line in CONSTRAINTS.read_text(encoding="utf-8").splitlines():
        if line.strip().lower().startswith(f"{name}=="):
            return line.strip()
    raise SetupError(f"{CONSTRAINTS.name}: no line `{name}==VERSION`; it is needed to install {name} first")


def identity() -> str:
    """What a venv cannot outlive: its Python and its place, which is written into the scripts it holds."""
    return f"{ROOT} {sys.base_prefix} {sys.version.split()[0]}\n"


def fingerprint(target: list[str]) -> str:
    """Hash of everything that is installed: what is asked for, versions, packaging, and this script."""
    digest = hashlib.sha256(" ".join(target).encode())
    for path in (ROOT / "pyproject.toml", CONSTRAINTS, CONSTRAINTS_CPU, Path(__file__)):
        digest.update(path.read_bytes())
    return digest.hexdigest() + "\n"


def has_nvidia_gpu() -> bool:
    return any(Path("/dev").glob("nvidia[0-9]*")) or shutil.which("nvidia-smi") is not None


def cuda_requirements(report: dict) -> list[str]:
    """CUDA packages that the packages of a `pip install --report` would bring along on Linux."""
    names = []
    for item in report["install"]:
        for requirement in item["metadata"].get("requires_dist", []):
            name, _, marker = requirement.partition(";")
            if CUDA_PACKAGE.match(name.lower()) and "extra" not in marker:
                names.append(re.split(r"[\s\[<>=!~(]", name.strip())[0])
    return names


class Venv:
    """A virtual environment whose pip output goes to a log, shown only when a step fails."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.python = folder / "bin" / "python"
        self.log = folder / LOG
        self.stamp = folder / STAMP  # identity, and the fingerprint once everything is installed
        self.start = time.monotonic()

    def say(self, text: str) -> None:
        print(f"[setup {time.monotonic() - self.start:4.0f} s] {text}", file=sys.stderr, flush=True)

    def holds(self, stamp: str) -> bool:
        return self.python.exists() and self.stamp.is_file() and self.stamp.read_text(encoding="utf-8").startswith(stamp)

    def create(self) -> None:
        """Make the venv, or keep one that fits: pip then changes only what differs."""
        if self.holds(identity()):
            self.say(f"bringing {self.folder.name} up to date")
            return
        self.say(f"making {self.folder.name} with Python {sys.version.split()[0]}")
        try:
            venv.create(self.folder, with_pip=True, clear=self.folder.exists())
        except (subprocess.CalledProcessError, OSError) as error:
            hint = "on Debian and Ubuntu: apt-get install python3-venv"
            raise SetupError(f"{sys.executable} cannot make a virtual environment with pip ({error}); {hint}") from None
        self.stamp.write_text(identity(), encoding="utf-8")

    def pip(self, what: str, *arguments: str) -> str:
        """Run pip and return its stdout; `what` is shown with the time it has taken so far."""
        command = [str(self.python), "-m", "pip", "--disable-pip-version-check", "--no-input", *arguments]
        self.say(what)
        with self.log.open("a+", encoding="utf-8") as log:
            log.write(f"\n$ {' '.join(command)}\n")
            log.flush()
            process = subprocess.Popen(command, cwd=ROOT, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=log, text=True)
            output = self._wait(process)
            log.write(output)
        if process.returncode:
            tail = "\n".join(self.log.read_text(encoding="utf-8", errors="replace").splitlines()[-25:])
            raise SetupError(f"pip failed while {what}; the end of {self.log}:\n{tail}")
        return output

    def _wait(self, process: subprocess.Popen) -> str:
        while True:
            try:
                return process.communicate(timeout=1)[0]
            except subprocess.TimeoutExpired:
                if sys.stderr.isatty():  # elsewhere a line per step is enough
                    print(f"\r[setup {time.monotonic() - self.start:4.0f} s]", end="\r", file=sys.stderr, flush=True)


def install_torch(env: Venv, torch: str) -> None:
    """Install torch first and by itself: its default build for Linux brings gigabytes of CUDA packages."""
    index = os.environ.get("TORCH_INDEX_URL")
    if index:
        # Without dependencies: that index need not have them in the pinned versions; the next step installs them.
        env.pip(f"installing {torch} from TORCH_INDEX_URL", "install", "--no-deps", "--index-url", index, torch)
        return
    if sys.platform == "linux" and not has_nvidia_gpu() and os.environ.get("ALLOW_CUDA") != "1":
        question = ["install", "-q", "--dry-run", "--no-deps", "--report", "-", torch]
        asked = env.pip(f"asking pip which build of {torch} it would take", *question)
        cuda = cuda_requirements(json.loads(asked)) if asked.strip() else []
        if cuda:
            raise SetupError(
                f"no NVIDIA GPU found, but pip would install {torch} with {len(cuda)} CUDA packages "
                f"({', '.join(cuda[:3])}, ...: gigabytes).\n"
                "Either set TORCH_INDEX_URL to PyTorch's CPU wheel index, as given on pytorch.org under Get started\n"
                "  (make demo TORCH_INDEX_URL=...), or ALLOW_CUDA=1 to take the CUDA build all the same."
            )
    env.pip(f"installing {torch}", "install", "-q", "--no-deps", torch)


def install(env: Venv, constraints: Path | None, target: list[str]) -> None:
    """pip, setuptools, torch, then gradlens (`target`: pip's arguments for it) with its dependencies."""
    env.create()
    pins = ["-c", str(constraints)] if constraints else []
    env.pip("upgrading pip", "install", "-q", "--upgrade", "pip")
    env.pip("installing setuptools", "install", "-q", *pins, "setuptools>=77")
    install_torch(env, pinned("torch"))
    if constraints and not brings_triton(env):
        pins += ["-c", str(CONSTRAINTS_CPU)]
    env.pip("installing gradlens and its dependencies", "install", "-q", *pins, "--no-build-isolation", *target)
    check = [str(env.python), "-c", "import gradlens, gradlens_services, torch, transformers, ray; print(torch.__version__)"]
    env.say("checking that it imports")
    result = subprocess.run(check, cwd=env.folder, capture_output=True, text=True)
    if result.returncode:
        raise SetupError(f"installed, but it does not import:\n{result.stderr.strip()}\nDelete {env.folder} and try again")
    env.say(f"ready: torch {result.stdout.strip()} in {env.folder}")


def brings_triton(env: Venv) -> bool:
    """Whether the installed torch depends on a version of triton."""
    question = "import importlib.metadata as m; print(any(r.startswith('triton') for r in m.requires('torch')))"
    return subprocess.run([str(env.python), "-c", question], capture_output=True, text=True, check=True).stdout.strip() == "True"


def freeze(env: Venv) -> tuple[str, str]:
    """Exact versions of everything installed, but for pip and gradlens itself, without the label of a local build; and those that hold
    beside a CPU build of torch only."""
    lines = env.pip("writing down the versions", "freeze", "--all", "--exclude-editable", "--exclude", "pip").splitlines()
    exact = [line.split("+")[0] + "\n" for line in lines if "==" in line]
    return tuple("".join(line for line in exact if line.startswith("triton==") is cpu) for cpu in (False, True))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--venv", type=Path, default=ROOT / ".venv", help="folder of the virtual environment (default: .venv)")
    parser.add_argument("--update-constraints", action="store_true", help="install the newest versions allowed, rewrite constraints.txt")
    parser.add_argument("--image", action="store_true", help="for images: no link to this checkout, no test tools, Ray with its job server")
    options = parser.parse_args()
    if sys.version_info < (3, 11):  # noqa: UP036 - whatever Python a newcomer has starts this file
        raise SetupError(f"gradlens needs Python 3.11 or newer; this is {sys.version.split()[0]}")
    if options.update_constraints:
        env = Venv(ROOT / "build" / "constraints-venv")
        install(env, None, ["-e", ".[test,cluster]"])
        for path, text in zip((CONSTRAINTS, CONSTRAINTS_CPU), freeze(env), strict=True):
            path.write_text("# Versions really installed together; written by `make constraints`.\n" + text, encoding="utf-8")
        return 0
    env, target = Venv(options.venv.absolute()), [".[cluster]"] if options.image else ["-e", ".[test]"]
    if not env.holds(identity() + fingerprint(target)):
        install(env, CONSTRAINTS, target)
        env.stamp.write_text(identity() + fingerprint(target), encoding="utf-8")
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except SetupError as error:
        sys.exit(f"setup: {error}")
    except KeyboardInterrupt:
        sys.exit("setup: stopped; the next call starts again")

"""Makes an environment for each extra of pyproject.toml and runs its tests there. Standard library only.

  python3 deploy/test_extras.py                 every extra that has tests
  python3 deploy/test_extras.py --only trl      one of them (may be given several times)

An extra NAME has its tests in tests/extras/test_NAME.py. Environments are complete and share nothing with `.venv`: build/extras/NAME (about
3 GB each; deleted after the tests unless `--keep`). Versions are those of constraints.txt, but for those in tests/extras/NAME.txt, which
hold what the extra brings or does not bear; `--update` writes that file. TORCH_INDEX_URL and ALLOW_CUDA are as for setup_venv.py.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))
from setup_venv import CONSTRAINTS, CONSTRAINTS_CPU, ROOT, SetupError, Venv, brings_triton, install_torch, pinned

TESTS = ROOT / "tests" / "extras"


def extras() -> list[str]:
    """The extras that have tests."""
    return sorted(path.stem.removeprefix("test_") for path in TESTS.glob("test_*.py"))


def pins(path: Path) -> dict[str, str]:
    """Package -> version of a file of exact versions; empty where there is none."""
    lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
    pairs = (line.strip().partition("==") for line in lines if "==" in line and not line.startswith("#"))
    return {canonical(name): version for name, _, version in pairs}


def canonical(name: str) -> str:
    return name.strip().lower().replace("_", "-").replace(".", "-")


def make(extra: str, update: bool) -> Venv:
    """The environment of an extra; with `update` pip changes what the extra does not bear of the pinned versions, which is written down."""
    folder = ROOT / "build" / "extras" / extra
    folder.parent.mkdir(parents=True, exist_ok=True)
    env = Venv(folder)
    env.create()
    env.pip("upgrading pip", "install", "-q", "--upgrade", "pip")
    install_torch(env, pinned("torch"))
    base = pins(CONSTRAINTS) | ({} if brings_triton(env) else pins(CONSTRAINTS_CPU))
    own = TESTS / f"{extra}.txt"
    if update:
        env.pip("installing gradlens and its tests", "install", "-q", "-c", str(write(folder, base)), "-e", f"{ROOT}[test]")
        env.pip(f"installing the extra {extra}", "install", "-q", "-e", f"{ROOT}[{extra}]")
        frozen = env.pip("writing down the versions", "freeze", "--all", "--exclude-editable", "--exclude", "pip").splitlines()
        found = {canonical(name): version.split("+")[0] for name, _, version in (line.partition("==") for line in frozen if "==" in line)}
        differ = [f"{name}=={version}\n" for name, version in sorted(found.items()) if base.get(name) != version]
        own.write_text(
            f"# What the extra `{extra}` needs beside or instead of constraints.txt; written by deploy/test_extras.py --update.\n"
            + "".join(differ)
        )
    else:
        merged = write(folder, base | pins(own))
        env.pip(f"installing gradlens with the extra {extra}", "install", "-q", "-c", str(merged), "-e", f"{ROOT}[test,{extra}]")
    built_for_cuda = sorted({"torchvision", "torchaudio"} & pins(own).keys())
    if built_for_cuda and not brings_triton(env):
        # The package index has them built for CUDA: beside a CPU build of torch transformers fails to import them. No extra uses them.
        env.pip(f"removing {' and '.join(built_for_cuda)}", "uninstall", "-q", "-y", *built_for_cuda)
    return env


def write(folder: Path, versions: dict[str, str]) -> Path:
    path = folder / "constraints.txt"
    path.write_text("".join(f"{name}=={version}\n" for name, version in versions.items()), encoding="utf-8")
    return path


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", action="append", metavar="NAME", choices=extras(), help=f"one of {', '.join(extras())}")
    parser.add_argument("--keep", action="store_true", help="leave the environments where they are: the next call is quick")
    parser.add_argument(
        "--update", action="store_true", help="take the newest versions that the extra allows, and write tests/extras/NAME.txt"
    )
    options = parser.parse_args()
    failed = []
    for extra in options.only or extras():
        print(f"== {extra}", flush=True)
        env = make(extra, options.update)
        # GRADLENS_EXTRA: here a library that is missing is a failure, not a reason to skip
        command = [str(env.python), "-m", "pytest", "-q", "-rA", str(TESTS / f"test_{extra}.py")]
        result = subprocess.run(command, cwd=ROOT, env=os.environ | {"GRADLENS_EXTRA": extra, "HF_HUB_OFFLINE": "1"})
        failed += [extra] if result.returncode else []
        if not options.keep:
            shutil.rmtree(env.folder)
    print(f"== extras: {', '.join(failed)} failed" if failed else "== extras: all passed", flush=True)
    return bool(failed)


if __name__ == "__main__":
    try:
        sys.exit(main())
    except SetupError as error:
        sys.exit(f"extras: {error}")

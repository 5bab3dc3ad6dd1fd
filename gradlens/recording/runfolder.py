"""A run's identity: its id, the versions its figures depend on, and the lock that says whether it is still being written."""

from __future__ import annotations

import fcntl
import importlib.metadata
import os
import platform
import secrets
import subprocess
import sys
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from gradlens.errors import RunError

_PACKAGES = ("torch", "transformers", "ray", "peft", "numpy", "pyarrow", "wandb", "gradlens-lab")


def new_run_id(name: str) -> str:
    """A name no other run has: `name-20260131-154500-4f2a9c` (UTC)."""
    return f"{name}-{datetime.now(UTC):%Y%m%d-%H%M%S}-{secrets.token_hex(3)}"


def versions() -> dict[str, Any]:
    """What the figures of a run depend on: packages, Python, platform, processor, GPU, and the commit of the working directory."""
    found: dict[str, Any] = {"python": platform.python_version(), "platform": platform.platform(), "cpu": _cpu(), "cores": os.cpu_count()}
    for package in _PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            found[package] = None
    found["gradlens"] = found.pop("gradlens-lab")
    torch = sys.modules.get("torch")  # not imported for this alone: the recorder's process has no need of it
    found["gpus"] = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())] if torch and torch.cuda.is_available() else []
    git = ["git", "-C", str(Path(__file__).parent), "rev-parse", "HEAD"]
    try:
        found["git_commit"] = subprocess.run(git, capture_output=True, text=True, timeout=5, check=True).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        found["git_commit"] = None  # installed from a wheel, or no git here
    return found


def _cpu() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.machine())
    except OSError:
        return platform.processor() or platform.machine()


WRITER, JOB = ".lock", ".job.lock"  # held by whoever writes the run; by the command that carries it out, from its beginning to its end


def take_lock(run_dir: Path, name: str = WRITER) -> Any:
    """Hold a lock while writing; the system gives it free when the process ends, however it ends."""
    file = open(run_dir / name, "a")
    for _ in range(10):
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return file
        except BlockingIOError:
            time.sleep(0.02)  # a reader's `is_running` holds it for a moment
    file.close()
    raise RunError(f"{run_dir}: another process is writing this run; wait for it to end")


def give_lock(lock: Any) -> None:
    """Give it free for processes that were forked meanwhile too (workers of a DataLoader): they hold the same open file."""
    fcntl.flock(lock, fcntl.LOCK_UN)
    lock.close()


def is_running(run_dir: str | Path) -> bool:
    """Whether a live process writes this run folder, or is about to."""
    for name in (WRITER, JOB):
        try:
            with open(Path(run_dir) / name) as file:
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        except FileNotFoundError:
            continue
    return False

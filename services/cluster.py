"""Ray for the length of a job: started on this machine, or joined by address, without its log on the screen."""

from __future__ import annotations

import contextlib
import logging
import os
import secrets
from collections.abc import Iterator
from pathlib import Path

from gradlens.config import RaySettings
from gradlens.errors import RunError

NAMESPACE = "gradlens"
_QUIET = {
    "RAY_TRAIN_METRICS_ENABLED": "0",  # they would be printed and pushed to a metrics server nobody runs
    "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",
    "RAY_CHDIR_TO_TRIAL_DIR": "0",  # paths of a config are relative to where the command was given
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.5",  # how soon the end of a run is noticed
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_worker_niceness": "0",  # the ranks are the work, not something in the background
}


@contextlib.contextmanager
def ray_session(settings: RaySettings, workers: int, log: Path) -> Iterator[None]:
    """Ray is up inside the block. What Ray prints goes to the file `log`. A session that is up already is used and left alone.

    On this machine: loopback only, token authentication with a fresh token, no dashboard. Raises `RunError` if Ray cannot be had.
    """
    for name, value in _QUIET.items():
        os.environ.setdefault(name, value)
    if settings.address is None and not os.environ.get("RAY_AUTH_MODE"):
        os.environ["RAY_AUTH_MODE"], os.environ["RAY_AUTH_TOKEN"] = "token", secrets.token_hex(32)
    import ray
    from ray._raylet import Config

    if not ray.is_initialized():
        Config.initialize("")  # a process that imported ray earlier has read the environment already
    for name in ("ray", "ray.train", "ray.data", "ray.tune"):
        logging.getLogger(name).setLevel(logging.ERROR)
    # Ray prints what happens to processes with a bare print(): it must not mix with what a command prints.
    with open(log, "a", buffering=1) as file, contextlib.redirect_stdout(file):
        if ray.is_initialized():
            yield
            return
        quiet = {"log_to_driver": False, "logging_level": logging.ERROR, "namespace": NAMESPACE}
        try:
            if settings.address is None:
                ray.init(
                    address="local",
                    num_cpus=max(os.cpu_count() or 1, workers),
                    include_dashboard=False,
                    object_store_memory=256 * 2**20,  # records and configs only: no tensors travel through it
                    _node_ip_address="127.0.0.1",
                    **quiet,
                )
            else:
                ray.init(address=settings.address, **quiet)
        except (ConnectionError, RuntimeError, ValueError, OSError) as error:
            where = f"join the Ray cluster at {settings.address}" if settings.address else "start Ray on this machine"
            raise RunError(f"cannot {where}: {str(error).splitlines()[0]}; details in {log}") from None
        try:
            yield
        finally:
            ray.shutdown()

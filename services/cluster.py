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
# By its name for two other systems, but what it says is: use the loopback address, this Ray has one node. Read when ray is imported.
_LOOPBACK = "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"
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
    if settings.address is not None:
        os.environ.setdefault("RAY_NUM_REDIS_GET_RETRIES", "2")  # of 40 s each; by default 20, in which no signal is heard
    if settings.address is None:
        os.environ[_LOOPBACK] = "0"
        if not os.environ.get("RAY_AUTH_MODE"):
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
        try:
            _start(settings.address, workers)
        except Exception as error:  # Ray raises plain `Exception` too when a process of its own does not come up in time
            where = f"join the Ray cluster at {settings.address}" if settings.address else "start Ray on this machine"
            raise RunError(f"cannot {where}: {str(error).splitlines()[0]}; details in {log}") from None
        try:
            yield
        finally:
            ray.shutdown()


def _start(address: str | None, workers: int) -> None:
    import ray

    quiet = {"log_to_driver": False, "logging_level": logging.ERROR, "namespace": NAMESPACE}
    if address is not None:
        ray.init(address=address, **quiet)
        return
    local = {
        "address": "local",
        "num_cpus": max(os.cpu_count() or 1, workers),
        "include_dashboard": False,
        "object_store_memory": 256 * 2**20,  # records, configs, and what lens actors are sent: some steps' tokens
    }
    try:
        ray.init(**local, **quiet)
    except Exception as error:  # on a machine that is very busy Ray's own processes may miss their deadline: once more
        print(f"Ray did not start: {error}; trying once more")
        ray.shutdown()
        ray.init(**local, **quiet)

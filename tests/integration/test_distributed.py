"""Two processes (gloo, CPU) read what one process reads on the same global batches: DDP, FSDP2, transformers' Trainer."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch

TESTS = Path(__file__).parents[1]
TOLERANCE = 1e-5


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """Readings of two processes and of one, by mode. One start of the two for all modes."""
    folder = tmp_path_factory.mktemp("distributed")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    environment = os.environ | {
        "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "GLOO_SOCKET_IFNAME": "lo", "OMP_NUM_THREADS": "1",
        "PYTHONPATH": str(TESTS), "GRADLENS_OUT": str(folder / "trainer"),
    }  # fmt: skip
    command = [sys.executable, str(TESTS / "distributed_worker.py"), str(folder / "found.pt")]
    logs = [open(folder / f"rank{rank}.log", "w+") for rank in range(2)]  # noqa: SIM115
    processes = [
        subprocess.Popen(command, env=environment | {"RANK": str(rank), "LOCAL_RANK": str(rank)}, stdout=log, stderr=subprocess.STDOUT)
        for rank, log in enumerate(logs)
    ]
    try:
        os.environ["GRADLENS_OUT"] = str(folder / "trainer")
        import distributed_worker

        one = distributed_worker.run_all()
        codes = [process.wait(timeout=240) for process in processes]
    finally:
        for process in processes:
            if process.poll() is None:
                process.kill()
        for log in logs:
            log.close()
    assert codes == [0, 0], "\n".join((folder / f"rank{rank}.log").read_text()[-3000:] for rank in range(2))
    return torch.load(folder / "found.pt", weights_only=True), one


MODES = ["ddp-lora-rows", "fsdp-rows",
         "ddp", "ddp-accumulate", "ddp-lora-route", "ddp-update", "ddp-constrain", "ddp-penalty", "ddp-target", "fsdp", "fsdp-accumulate",
         "fsdp-lora-route", "fsdp-ablate", "fsdp-target", "fsdp-amplified", "trainer", "accelerate-fsdp",
         "accelerate-fsdp-lora-route"]  # fmt: skip


@pytest.mark.parametrize("mode", MODES)
def test_two_processes_read_what_one_reads(results, mode):
    two, one = (part[mode] for part in results)
    tolerance = 10 * TOLERANCE if mode == "ddp-constrain" else TOLERANCE  # what is projected is divided by Adam's small numbers
    assert two["totals"].keys() == one["totals"].keys() and two["totals"]
    for name, columns in one["totals"].items():
        assert {"taught", "push", "attribution", "energy", "update"} <= columns.keys() == two["totals"][name].keys()
        for key, value in columns.items():
            assert value.abs().max() > 0
            assert (two["totals"][name][key] - value).abs().max() <= tolerance * value.abs().max(), (name, key)
        assert (two["drift"][name] - one["drift"][name]).abs().max() <= tolerance * one["drift"][name].abs().max()
    assert len(two["scalars"]) == len(one["scalars"]) > 0
    for mine, theirs in zip(two["scalars"], one["scalars"], strict=True):
        assert mine.keys() == theirs.keys() and len(mine) > 20
        for key, value in theirs.items():
            allowed = 1e-7
            if mode == "fsdp-amplified" and key.startswith("concept/"):
                # a mean over a concept's features, whose parts cancel: as exact as the largest reading of a step
                reading = key.rpartition("/")[2]
                largest = [columns[reading].abs().max().item() for columns in one["totals"].values() if reading in columns]
                allowed = max(allowed, 1e-5 * max(largest, default=0.0) / len(one["scalars"]))
            assert mine[key] == pytest.approx(value, rel=1e-5, abs=allowed), key
    near = {"rel": 10 * tolerance, "abs": 1e-2 * tolerance}
    assert two["rows"] == [[(*row[:2], pytest.approx(row[2], rel=10 * tolerance), pytest.approx(row[3], **near)) for row in part]
                           for part in one["rows"]]  # fmt: skip
    for mine, theirs in zip(two["weights"], one["weights"], strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-3, atol=1e-4)  # steps are of size 1e-2; Adam magnifies rounding


def test_rows_that_show_a_concept_are_left_out_on_every_rank(results):
    for mode, label in (("ddp-lora-rows", "reweight:c"), ("fsdp-rows", "route:c")):
        shares = [[record[f"rule/{label}/share"] for record in part[mode]["scalars"]] for part in results]
        assert shares[0] == pytest.approx(shares[1]) and 0 < sum(shares[0]) < len(shares[0])
        assert all(record["policy/balance"] > 1 for record in results[0][mode]["scalars"] if record[f"rule/{label}/share"] > 0)


def test_every_rank_hears_what_a_target_decides_and_caps_what_is_amplified(results):
    for mode in ("ddp-target", "fsdp-target"):
        assert [record["rule/route:c/gain"] for record in results[0][mode]["scalars"]] == [1.0, 0.0]
    assert all(record["policy/norm_scale"] < 1 for record in results[0]["fsdp-amplified"]["scalars"])


def test_what_sharded_parameters_do_not_allow_is_refused_at_start(results):
    exact, update, constrain, penalty, blocks_only = results[0]["refused"]["messages"]
    assert "exact" in exact and "edits whole matrices" in update and "whole model" in blocks_only
    assert "constrain needs whole parameters" in constrain and "penalty reads rows" in penalty

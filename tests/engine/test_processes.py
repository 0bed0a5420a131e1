"""Processes that are killed, interrupted, or several: with real ones."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from segops.engine import checkpoint
from tests.engine import processes, toy
from tests.engine.test_trainer import lines, without_time

ROOT = Path(__file__).parents[2]


def command(kind: str, folder: Path) -> list[str]:
    return ["-m", "tests.engine.processes", kind, str(folder)]


def start(kind: str, folder: Path) -> subprocess.Popen[str]:
    folder.mkdir(exist_ok=True)
    pipe = subprocess.PIPE
    return subprocess.Popen([sys.executable, *command(kind, folder)], cwd=ROOT, stdout=pipe, stderr=pipe, text=True)


def test_a_killed_training_loses_what_came_after_its_checkpoint(tmp_path: Path) -> None:
    """Killed at moments that nobody chose, while it writes a checkpoint after every step."""
    step = 0
    for moment in (0.0, 0.13):
        process = start("train", tmp_path)
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n", process.communicate()
        # Whenever it is looked at, the checkpoint is whole.
        while not (tmp_path / "last.pt").exists() or checkpoint.load(tmp_path / "last.pt").training["step"] < step + 3:
            assert process.poll() is None, process.communicate()
        time.sleep(moment)
        process.kill()
        assert process.wait() == -signal.SIGKILL
        process.communicate()
        found = checkpoint.load(tmp_path / "last.pt").training["step"]
        assert found > step, "it continued"
        step = found
        logged = [int(line["step"]) for line in lines(tmp_path / "train.csv") if line["step"]]
        assert logged[:step] == list(range(1, step + 1))
        assert step <= logged[-1] + 1 <= step + 2, "no more than the step in work was lost"


@pytest.fixture
def one_thread() -> Iterator[None]:
    """As the other processes have: sums of another number of threads may differ in the last bit."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.mark.usefixtures("one_thread")
def test_a_kill_in_the_middle_of_a_write_leaves_the_old_checkpoint(tmp_path: Path) -> None:
    process = start("die_while_writing", tmp_path)
    process.communicate()
    assert process.returncode == -signal.SIGKILL
    assert checkpoint.load(tmp_path / "last.pt").training["step"] == 2
    partial = tmp_path / "last.pt.partial"
    with pytest.raises(checkpoint.RunError, match="is not a checkpoint"):
        checkpoint.load(partial)
    again = toy.trainer(toy.config(tmp_path))
    again.resume(tmp_path / "last.pt")
    again.run()
    assert not partial.exists()
    toy.trainer(toy.config(tmp_path / "whole")).run()
    assert without_time(tmp_path / "train.csv") == without_time(tmp_path / "whole" / "train.csv")


def test_ctrl_c(tmp_path: Path) -> None:
    process = start("train", tmp_path)
    assert process.stdout is not None
    process.stdout.readline()
    while not (tmp_path / "last.pt").exists():
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    assert errors.count("\n") == 1, errors
    step = checkpoint.load(tmp_path / "last.pt").training["step"]
    assert f"interrupted after step {step} of 2000; continue with: segops train --resume" in errors


several = pytest.mark.skipif(
    not (dist.is_available() and dist.is_gloo_available()), reason="torch.distributed has no gloo here"
)


def torchrun(kind: str, folder: Path, ranks: int, machines: int = 1, **variables: str) -> tuple[int, str]:
    """Exit code and error stream of the first machine's torchrun; other machines are processes of this one."""
    folder.mkdir(exist_ok=True)
    launch = [sys.executable, "-m", "torch.distributed.run", f"--nproc-per-node={ranks // machines}"]
    with socket.socket() as port:  # where none listens
        port.bind(("127.0.0.1", 0))
        place = ["--master-addr=127.0.0.1", f"--master-port={port.getsockname()[1]}"]
    of_machine = [["--standalone"]]
    if machines > 1:
        of_machine = [[f"--nnodes={machines}", f"--node-rank={i}", *place] for i in range(machines)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", **variables}
    started = [
        subprocess.Popen(
            [*launch, *options, *command(kind, folder)],
            cwd=ROOT,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            env=environment,
        )
        for options in of_machine
    ]
    errors = [process.communicate(timeout=240)[1] for process in started]
    return started[0].returncode, errors[0]


@several
@pytest.mark.parametrize(("ranks", "machines"), [(2, 1), (3, 1), (2, 2)])
def test_ranks_train_like_one_process(ranks: int, machines: int, tmp_path: Path) -> None:
    code, errors = torchrun("ranks", tmp_path, ranks, machines)
    assert code == 0, errors
    one = tmp_path / "one"
    torch.manual_seed(0)
    settings = toy.config(one, crop=(8, 12), ema=0.9)
    scores = toy.trainer(settings, toy.Toy(norm=False, dropout=0).double(), processes.LENGTH).run()
    expected, found = checkpoint.load(one / "last.pt"), checkpoint.load(tmp_path / "last.pt")
    for name in ("model", "ema"):
        for key, tensor in expected.training[name].items():
            torch.testing.assert_close(found.training[name][key], tensor, rtol=1e-9, atol=1e-12)
    for rank in range(ranks):
        assert torch.load(tmp_path / f"scores{rank}.pt")["confusion"] == scores["confusion"]
    shares = [torch.load(tmp_path / f"losses{rank}.pt") for rank in range(ranks)]
    for i, images in enumerate((5, 2)):
        value, gradient = processes.saliency_loss(images)
        for share in shares:
            torch.testing.assert_close(share[i][0], value)
        torch.testing.assert_close(torch.stack([share[i][1] for share in shares]).mean(), gradient)
    losses = [[float(line["loss"]) for line in lines(folder / "train.csv")] for folder in (tmp_path, one)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-10)


@several
@pytest.mark.parametrize("dead", [0, 1])
def test_a_dead_rank_ends_the_job(dead: int, tmp_path: Path) -> None:
    code, errors = torchrun("dead_rank", tmp_path, 2, DEAD_RANK=str(dead))
    assert code != 0
    assert checkpoint.load(tmp_path / "last.pt").training["step"] == 2
    assert f"segops: rank {1 - dead} of 2 stops: another rank ended or does not answer" in errors

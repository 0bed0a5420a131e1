"""The benchmark harness from end to end on its smallest case, and that it cannot be fooled."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from benchmarks import compare, environment, interleave, memory, readme, store, training_memory
from benchmarks.bench_models import CLASSES, NETWORKS, Step, Twins, rounded
from benchmarks.interleave import Case, Contender, Effort, Peer
from tests.models.plain.unet import UNet

ROOT = Path(__file__).parents[1]
RECYCLED = {"MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": "17179869184", "MALLOC_TOP_PAD_": "268435456"}


def run_pytest(*arguments: str, **environ: str) -> subprocess.CompletedProcess[str]:
    """`pytest benchmarks` in an environment without any allocator settings but those given."""
    inherited = {k: v for k, v in os.environ.items() if not k.startswith(("MALLOC_", "SEGOPS_", "TRITON_", "PYTEST_"))}
    command = [sys.executable, "-m", "pytest", "benchmarks", "-q", "-p", "no:cacheprovider"]
    command += ["-k", "test_dice_ce_loss and 1x3x32x32"]
    command += ["--bench-laps", "2", "--bench-seconds", "0", "--bench-only", "^eager$", *arguments]
    return subprocess.run(command, cwd=ROOT, env=inherited | environ, capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("benchmarks") / "recycled.json"
    done = run_pytest(f"--benchmark-json={path}", SEGOPS_BENCH_REGIME="recycled", **RECYCLED)
    assert done.returncode == 0, done.stdout + done.stderr
    return path


@pytest.mark.slow
def test_json_holds_every_field(results: Path) -> None:
    run = json.loads(results.read_text())
    names = {f"dice_ce_loss-1x3x32x32-float32-contiguous-{direction}-recycled" for direction in interleave.DIRECTIONS}
    assert {b["name"] for b in run["benchmarks"]} == names
    for bench in run["benchmarks"]:
        extra = bench["extra_info"]
        assert extra["regime"] == "recycled"
        assert list(extra["contenders"]) == ["segops", "eager"]
        for contender in extra["contenders"].values():
            assert 0 < contender["minimum"] <= contender["median"]
            assert contender["laps"] == 2
            assert contender["peak_bytes"] > 0
        assert extra["contenders"]["segops"]["ratio"] == 1
        # pytest-benchmark's own statistics are those of segops' samples.
        assert bench["stats"]["median"] == pytest.approx(extra["contenders"]["segops"]["median"])
        logits, target = 1 * 3 * 32 * 32 * 4, 1 * 32 * 32 * 8
        trains = extra["direction"] == "forward_backward"
        assert extra["floor_bytes"] == logits + target + 2 * logits * trains
        assert extra["copy_bandwidth"] is None, "a tensor that lives in the cache has no memory bandwidth"
    machine = run["machine_info"]
    assert "node" not in machine
    assert machine["segops"].keys() >= {"regime", "threads", "cores", "isa", "compiler", "governor", "load", "versions"}
    assert machine["segops"]["threads"] == 2
    assert machine["segops"]["versions"].keys() >= {"torch", "segops", "numpy"}


@pytest.mark.slow
def test_tables_from_a_run(results: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert compare.main([str(results)]) == 0
    text = capsys.readouterr().out
    assert "### dice_ce_loss, recycled allocator" in text
    assert "| case | direction | segops ms | eager |" in text
    assert "| (1, 3, 32, 32) float32 contiguous | forward + backward |" in text
    assert "| dice_ce_loss (1, 3, 32, 32) float32 contiguous | forward | eager |" in text
    last = text.splitlines()[-1]
    assert last.startswith("Regime: recycled; ")
    assert f"torch {torch.__version__.partition('+')[0]}" in last
    assert "2 threads" in last


@pytest.mark.slow
def test_old_and_new(results: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = json.loads(results.read_text())
    for bench in run["benchmarks"]:
        bench["extra_info"]["contenders"]["segops"]["median"] /= 2
        bench["extra_info"]["contenders"]["eager"]["ratio"] *= 2
    faster = tmp_path / "faster.json"
    faster.write_text(json.dumps(run))
    compare.main([str(results), str(faster)])
    rows = capsys.readouterr().out.partition("### Old and new")[2].splitlines()[4:]
    assert len(rows) == 2
    assert all(row.split(" | ")[4] == "2.00" and row.endswith(" 2.00 |") for row in rows)


@pytest.mark.slow
def test_goals(results: Path, tmp_path: Path) -> None:
    run = json.loads(results.read_text())
    extra = run["benchmarks"][0]["extra_info"]
    run["benchmarks"] = run["benchmarks"][:1]
    extra["contenders"] = {
        "segops": {
            "group": "segops",
            "median": 1e-3,
            "minimum": 1e-3,
            "ratio": 1.0,
            "peak_bytes": 10_000_000,
            "peak_resident_bytes": None,
        },
        "a": {"group": "compiled", "median": 7e-3, "minimum": 7e-3, "ratio": 7.0, "peak_bytes": 1},
        "b": {"group": "compiled", "median": 4e-3, "minimum": 4e-3, "ratio": 4.0, "peak_bytes": 1},
        "absent": {"group": "absent", "unavailable": "ImportError: no module"},
    }
    extra |= {
        "goals": {"compiled": 5.0, "absent": 2.0},
        "memory_goal_bytes": 10_000_000,
        "direction": "forward_backward",
    }
    found = {goal.against: goal for goal in compare.goals(run)}
    assert (found["compiled"].reached, found["compiled"].verdict) == ("4.00", "**missed**"), (
        "the best of a group counts"
    )
    assert (found["absent"].reached, found["absent"].verdict) == ("-", "**missed**")
    assert found["memory"].verdict == "met"
    assert "* absent: ImportError: no module" in compare.report(run)
    path = tmp_path / "run.json"
    path.write_text(json.dumps(run))
    assert compare.main([str(path), "--check"]) == 1
    extra["goals"]["compiled"] = 4.0
    del extra["goals"]["absent"]
    path.write_text(json.dumps(run))
    assert compare.main([str(path), "--check"]) == 0


@pytest.mark.slow
def test_wrong_result_is_not_timed(tmp_path: Path) -> None:
    (tmp_path / "wrong.py").write_text(
        "import segops\n"
        "right = segops.dice_ce_loss\n"
        "segops.dice_ce_loss = lambda *a, **k: right(*a, **k) * (1 if 'backend' in k else 1.00001)\n"
    )
    path = tmp_path / "results.json"
    done = run_pytest("-p", "wrong", f"--benchmark-json={path}", PYTHONPATH=str(tmp_path))
    assert done.returncode == pytest.ExitCode.TESTS_FAILED, done.stdout + done.stderr
    assert "2 failed" in done.stdout
    assert "segops: error" in done.stdout
    assert not path.exists() or not path.read_text(), "nothing was measured, so nothing may be stored"


def test_regime_mismatch_is_an_error() -> None:
    done = run_pytest("--collect-only", SEGOPS_BENCH_REGIME="recycled")
    assert done.returncode == pytest.ExitCode.USAGE_ERROR
    assert "SEGOPS_BENCH_REGIME=recycled" in done.stderr


@pytest.mark.parametrize(
    ("environ", "expected"),
    [
        ({}, "default"),
        ({"SEGOPS_BENCH_REGIME": "default"}, "default"),
        (RECYCLED, "recycled"),
        (RECYCLED | {"SEGOPS_BENCH_REGIME": "recycled"}, "recycled"),
        (RECYCLED | {"SEGOPS_BENCH_REGIME": "default"}, None),
        (RECYCLED | {"MALLOC_MMAP_MAX_": "1"}, None),
        (RECYCLED | {"MALLOC_TOP_PAD_": "4096"}, None),
        (RECYCLED | {"MALLOC_ARENA_MAX": "1"}, None),
        ({"MALLOC_MMAP_MAX_": "0"}, None),
        ({"GLIBC_TUNABLES": "glibc.malloc.hugetlb=1"}, None),
        ({"LD_PRELOAD": "libjemalloc.so.2"}, None),
    ],
)
def test_regime(environ: dict[str, str], expected: str | None) -> None:
    if expected is None:
        with pytest.raises(ValueError, match="allocator settings"):
            environment.regime(environ)
    else:
        assert environment.regime(environ) == expected


def test_laps_interleave(monkeypatch: pytest.MonkeyPatch) -> None:
    order: list[str] = []

    def call(name: str) -> None:
        order.append(name)

    monkeypatch.setattr(interleave, "SAMPLE_SECONDS", 0.0)
    samples = interleave.laps({name: partial(call, name) for name in "abc"}, Effort(laps=4, seconds=0.0))
    assert order[-12:] == list("abc") * 4
    assert [len(s) for s in samples.values()] == [4, 4, 4]


class Recorder(SimpleNamespace):
    """As much of pytest-benchmark's fixture as a race needs."""

    def __init__(self) -> None:
        super().__init__(name="", group=None, disabled=False, extra_info={}, rounds=0)

    def pedantic(self, target: Any, rounds: int) -> None:
        self.rounds = rounds


def race(contenders: list[Contender]) -> Recorder:
    """Over an operator with an output that is no scalar and two inputs that get gradients."""
    recorder = Recorder()
    case = Case("conv", (2, 3, 9, 9))
    torch.manual_seed(0)
    inputs = (torch.randn(case.shape), torch.randn(4, 3, 3, 3))
    interleave.race(
        recorder,
        Effort(laps=2, seconds=0.0),
        case,
        "forward_backward",
        inputs,
        contenders,
        reference=F.conv2d,
        own=F.conv2d,
        regime="default",
        floor_bytes=1,
        moved_bytes=1,
    )
    return recorder


def missing() -> Any:
    raise ImportError("no such package")


def test_race_with_layouts_and_missing_peers() -> None:
    recorder = race(
        [
            Contender("segops", F.conv2d),
            Contender("channels_last", F.conv2d, "channels_last"),
            Peer("missing", missing),
            Peer("present", lambda: F.conv2d),
        ]
    )
    records = recorder.extra_info["contenders"]
    assert records["missing"] == {"group": "missing", "unavailable": "ImportError: no such package"}
    assert all("ratio" in records[name] for name in ("segops", "channels_last", "present"))
    assert recorder.rounds == 2
    assert recorder.name == "conv-2x3x9x9-float32-contiguous-forward_backward-default"


def test_race_refuses_a_wrong_contender() -> None:
    with pytest.raises(AssertionError, match=r"peer is off by"):
        race([Contender("segops", F.conv2d), Contender("peer", lambda x, w: F.conv2d(x, w) * 1.01)])


@pytest.mark.parametrize(("share", "verdict"), [(0.6, compare.MET), (0.4, "**missed**")])
def test_a_network_s_memory_is_told_in_bytes_and_against_its_peer(share: float, verdict: str) -> None:
    peaks = {"segops": 50_000_000, "eager": 120_000_000, "eager, channels_last": 100_000_000}
    record = race([Contender("segops", F.conv2d)]).extra_info | {"network": True, "memory_goals": {"eager": share}}
    times = {"median": 1.0, "minimum": 1.0, "ratio": 1.0, "peak_resident_bytes": None}
    record["contenders"] = {
        name: times | {"group": name.partition(",")[0], "peak_bytes": peak} for name, peak in peaks.items()
    }
    run = {"benchmarks": [{"extra_info": record}]}
    (goal,) = compare.goals(run)
    assert (goal.against, goal.reached, goal.verdict) == ("memory of eager", "0.50", verdict)
    assert "| eager | 120 | - |" in compare.network_memory_table([record])


def test_gradients_of_networks_are_compared_in_norm() -> None:
    truth = torch.ones(100, dtype=torch.float64)
    flipped = truth.index_fill(0, torch.tensor([3]), 0.0).float()
    interleave.near_in_norm(flipped, truth, "step")
    with pytest.raises(AssertionError, match=r"step is off by 1\d+.\d% in norm where 20% are allowed"):
        interleave.near_in_norm(-flipped, truth, "step")
    with pytest.raises(AssertionError, match=r"is off by 1\.000e"):
        interleave.near_everywhere(flipped, truth, "step", torch.float32)


def test_others_are_held_to_half_of_the_digits_of_the_inputs() -> None:
    """A loss of bfloat16 logits may come as float32, and still be one of bfloat16."""
    truth = torch.ones(100, dtype=torch.float64)
    rough = (truth * 1.02).float()
    interleave.near_everywhere(rough, truth, "loss", torch.bfloat16)
    with pytest.raises(AssertionError, match="loss is off by"):
        interleave.near_everywhere(rough, truth, "loss", torch.float32)
    with pytest.raises(AssertionError, match="scores is off by"):
        interleave.near_everywhere(rough, truth, "scores", torch.uint8)  # of label maps: the output's own


def test_twins_compute_the_same() -> None:
    """Both networks of a benchmark, and what fast may be off by: more than the rounding of float32, and little."""
    network = replace(NETWORKS["u2netp"], image=(1, 3, 32, 32))
    twins = Twins("u2netp", network)
    x = torch.rand(network.image)
    with torch.no_grad():
        truth = twins.infer(x.double())
        torch.testing.assert_close(network.own_output(twins.ours, x), truth.float(), rtol=1e-4, atol=1e-5)
        off = float((rounded(twins, x) - truth).abs().max())
    assert 1e-6 < off < 1e-2
    assert set(twins.renamed.values()) == {k for k in twins.ours.state_dict() if not k.endswith("num_batches_tracked")}
    biases = [key for key in dict(twins.plain.named_parameters()) if key.endswith("conv_s1.bias")]
    assert not set(biases) & set(twins.leaves())


@pytest.mark.parametrize("name", [name for name, network in NETWORKS.items() if network.batch is not None])
def test_a_training_step_has_the_loss_of_the_twin(name: str) -> None:
    step = Step(name, NETWORKS[name], (2, 3, 64, 64))  # at 32, norms of two pixels make much of a rounding
    leaves = [leaf.requires_grad_() for leaf in step.leaves]
    loss = step.ours(*leaves)
    torch.testing.assert_close(loss, step.plain(*leaves), rtol=1e-4, atol=0)
    assert all(grad.any() for grad in torch.autograd.grad(loss, leaves))


def test_race_does_not_excuse_segops() -> None:
    with pytest.raises(ImportError):
        race([Contender("segops", lambda x, w: missing())])


def test_peak_memory_counts_what_lives_at_once() -> None:
    size = 8 << 20

    def two_at_once_of_three() -> None:
        first = torch.ones(size // 4)
        second = torch.ones(size // 4)
        del first
        third = torch.ones(size // 4)
        del second, third

    assert memory.peak_allocated(two_at_once_of_three) == 2 * size
    resident = memory.peak_resident(two_at_once_of_three)
    assert resident is None or 2 * size * 0.9 < resident < 3.5 * size


def stored_run(brand: str, **medians: float) -> dict[str, Any]:
    machine = {"machine": "x86_64", "cpu": {"brand_raw": brand}, "segops": {"regime": "recycled", "threads": 2}}
    return {
        "machine_info": machine | {"segops": machine["segops"] | {"isa": "v4"}},
        "benchmarks": [{"name": name, "median": median} for name, median in medians.items()],
    }


def test_a_run_takes_the_place_of_its_own_records(tmp_path: Path) -> None:
    path, run = tmp_path / "stored.json", tmp_path / "run.json"
    path.write_text(json.dumps(stored_run("one", a=1.0, b=2.0)))
    run.write_text(json.dumps(stored_run("one", b=3.0, c=4.0)))
    store.main(str(run), str(path))
    assert json.loads(path.read_text()) == stored_run("one", a=1.0, b=3.0, c=4.0)


def test_runs_of_two_machines_are_not_mixed() -> None:
    with pytest.raises(ValueError, match="cpu brand_raw is two in the run and one in what is stored"):
        store.merged(stored_run("one", a=1.0), stored_run("two", a=2.0))


def test_readme_quotes_the_stored_results() -> None:
    runs = readme.stored()
    assert all(row.find(runs[0]) for row in (*readme.LOSS, *readme.OTHERS))
    networks = readme.stored_networks()
    assert {r["op"].partition(",")[0] for r in networks} <= NETWORKS.keys()
    assert readme.filled(readme.README.read_text(), runs, networks) == readme.README.read_text()


def test_readme_takes_the_fastest_of_a_column() -> None:
    row = readme.OTHERS[0]
    record = {
        **{"op": row.op, "shape": list(row.shape), "dtype": row.dtype, "direction": row.direction},
        "layout": row.layout,
        "contenders": {
            "segops": {"ratio": 1.0},
            "eager": {"ratio": 3.0},
            "leanest eager": {"ratio": 2.0},
            "eager, channels_last": {"ratio": 1.5},
            "compiled": {"unavailable": "no compiler"},
        },
    }
    cells = [readme.cell([[record], []], row, among) for among in readme.OTHER_COLUMNS.values()]
    assert cells == ["2.0 / -", "1.5 / -", "-"]
    text = "<!-- measured: loss -->\nold\n<!-- end -->\nkept\n<!-- measured: others -->\n\n<!-- end -->\n"
    text += "<!-- measured: networks -->\n\n<!-- end -->\n"
    network = record | {"op": "unet, inference, fast", "shape": [1, 3, 8, 8], "layout": "contiguous"}
    made = readme.filled(text, [[record], []], [network])
    assert "\nkept\n" in made
    assert "2.0 / - | 1.5 / - | - |" in made
    assert "| `unet` | (1, 3, 8, 8) float32 | inference, fast | 2.0 | 1.5 | - | - | - |" in made
    with pytest.raises(ValueError, match="0 tables named loss"):
        readme.filled("no table", [[record], []], [])


def test_training_keeps_less_than_plain_pytorch() -> None:
    network = replace(NETWORKS["unet"], plain=partial(UNet, CLASSES, width=8))
    plain, ours = training_memory.compare("unet", network, (2, 3, 96, 96), width=8)
    assert 0.3 * plain < ours < 0.75 * plain

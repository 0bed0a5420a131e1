"""The CUDA library in a torch with CUDA, without a device: registered, traceable, clear about what it lacks.

Also what turns a device's records of bad labels into errors, with events that stand in for the device's.
"""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx

import segops
from segops import _library, errors
from segops.backends import BackendUnavailableError
from tests.cases import make_logits, random_labels

WITH_KERNELS = ("dice_ce_loss_statistics", "dice_ce_loss_value", "dice_ce_loss_backward", "take_bad_data")
#: Weights are packed for Winograd's algorithm, which is the CPU's; norms in training are PyTorch's elsewhere, and
#: metrics are computed in tensors.
OF_THE_CPU_ALONE = (
    "dilated_conv2d_prepack",
    "dilated_conv2d_prepacked",
    "dilated_conv2d_norm",
    "dilated_conv2d_norm_again",
    "dilated_conv2d_norm_backward",
    "mask_overlaps",
    "saliency_maps",
)

needs_library = pytest.mark.skipif(
    _library.cuda_unavailable is not None, reason=f"the CUDA library is not loaded: {_library.cuda_unavailable}"
)
needs_simt = pytest.mark.skipif(_library.simt_unavailable is not None, reason=f"simt: {_library.simt_unavailable}")


@pytest.fixture
def fake() -> Iterator[FakeTensorMode]:
    with FakeTensorMode() as mode:
        yield mode


def cuda_inputs(
    dtype: torch.dtype = torch.float32, label: torch.dtype = torch.int64, layout: str = "contiguous"
) -> tuple[Tensor, Tensor]:
    logits = torch.empty(2, 5, 6, 8, dtype=dtype, device="cuda")
    if layout == "channels_last":
        logits = logits.to(memory_format=torch.channels_last)
    return logits, torch.empty(2, 6, 8, dtype=label, device="cuda")


def graph_of(function: object, *arguments: Tensor) -> torch.fx.GraphModule:
    return make_fx(function, tracing_mode="real")(*arguments)


@needs_library
@pytest.mark.parametrize("op", WITH_KERNELS)
def test_kernels_are_registered_for_cuda(op: str) -> None:
    assert torch._C._dispatch_has_kernel_for_dispatch_key(f"segops::{op}", "CUDA")


@needs_library
def test_every_operator_with_a_cpu_kernel_has_one_for_cuda() -> None:
    names = {name for name in torch._C._dispatch_get_all_op_names() if name.startswith("segops::")}
    names -= {f"segops::{op}" for op in OF_THE_CPU_ALONE}
    missing = {
        name
        for name in names
        if torch._C._dispatch_has_kernel_for_dispatch_key(name, "CPU")
        and not torch._C._dispatch_has_kernel_for_dispatch_key(name, "CUDA")
    }
    assert names >= {f"segops::{op}" for op in WITH_KERNELS}
    assert not missing


@needs_library
def test_cuda_is_run_by_native_kernels() -> None:
    assert segops.backends.resolve(None, torch.device("cuda")) == "native"
    assert "CUDA library: loaded" in segops.show_config().splitlines()
    with pytest.raises(BackendUnavailableError, match="for CPU tensors"):
        segops.backends.resolve("simt", torch.device("cuda"))


@needs_library
@pytest.mark.parametrize("validate", errors.VALIDATE)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
def test_fake_cuda_tensors_forward(dtype: torch.dtype, validate: str, fake: FakeTensorMode) -> None:
    logits, target = cuda_inputs(dtype)
    loss, parts = segops.dice_ce_loss(logits, target, return_parts=True, validate=validate)
    scores = {"ce": parts.ce, "dice": parts.dice, "scores": parts.scores}
    assert (loss.shape, loss.dtype, loss.device.type) == ((), dtype, "cuda")
    assert {name: (tuple(t.shape), t.dtype, t.device.type) for name, t in scores.items()} == {
        "ce": ((), dtype, "cuda"),
        "dice": ((), dtype, "cuda"),
        "scores": ((2, 5), dtype, "cuda"),
    }
    assert (parts.confusion.shape, parts.confusion.dtype, parts.confusion.device.type) == ((5, 5), torch.int64, "cuda")
    ce_map = segops.dice_ce_loss(logits, target, dice_weight=0, reduction="none", validate=validate)
    assert (ce_map.shape, ce_map.stride(), ce_map.device.type) == (target.shape, target.stride(), "cuda")


@needs_library
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_fake_cuda_tensors_backward(dtype: torch.dtype, layout: str, fake: FakeTensorMode) -> None:
    """By the operator: torch's autograd engine wants a device, see the next test."""
    logits, target = cuda_inputs(dtype, torch.uint8, layout)
    sums, ce = (torch.empty(shape, dtype=torch.float64, device="cuda") for shape in ((2, 3, 5), (2,)))
    gradient = torch.ops.segops.dice_ce_loss_backward(logits, target, None, None, sums, ce, -100, 0.0, False)
    assert (gradient.shape, gradient.dtype, gradient.device) == (logits.shape, dtype, logits.device)
    assert gradient.stride() == logits.stride()


@needs_library
@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a device")
@pytest.mark.parametrize("loss", [F.cross_entropy, lambda x, t: segops.dice_ce_loss(x, t, validate="off")])
def test_autograd_of_fake_cuda_tensors_reaches_the_engine(loss: object, fake: FakeTensorMode) -> None:
    """The forward records a derivative; running it stops in torch's engine, for torch's own operators as for ours."""
    logits, target = cuda_inputs()
    value = loss(logits.requires_grad_(), target)  # type: ignore[operator]
    assert value.requires_grad
    with pytest.raises(RuntimeError, match="device"):
        value.backward()


@needs_library
def test_a_trace_for_cuda_holds_our_operators(fake: FakeTensorMode) -> None:
    graph = graph_of(lambda x, t: segops.dice_ce_loss(x, t, validate="off"), *cuda_inputs())
    called = [str(node.target) for node in graph.graph.nodes if "segops" in str(node.target)]
    assert called == ["segops.dice_ce_loss_statistics.default", "segops.dice_ce_loss_value.default"]
    assert "cuda" in str(graph.graph.find_nodes(op="placeholder", sort=True)[0].meta["val"].device)


@needs_library
@pytest.mark.parametrize("validate", errors.VALIDATE)
def test_export_for_cuda(validate: str, fake: FakeTensorMode) -> None:
    class Loss(torch.nn.Module):
        def forward(self, logits: Tensor, target: Tensor) -> Tensor:
            return segops.dice_ce_loss(logits, target, validate=validate)

    program = torch.export.export(Loss(), cuda_inputs(), strict=False)
    nodes = {str(node.target): node for node in program.graph.nodes}
    statistics = nodes["segops.dice_ce_loss_statistics.default"]
    assert {t.device.type for t in statistics.meta["val"]} == {"cuda"}
    assert statistics.args[-1] == {"raise": errors.RAISE, "count": errors.COUNT, "off": errors.RECORD}[validate]


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a device")
class TestWithoutADevice:
    def test_a_cuda_tensor_is_refused_by_torch(self) -> None:
        # "Torch not compiled with CUDA enabled" for a torch of the CPU.
        with pytest.raises((RuntimeError, AssertionError), match=r"NVIDIA driver|No CUDA GPUs|not compiled with CUDA"):
            torch.zeros(1, device="cuda")

    def test_check_errors_is_harmless(self) -> None:
        for device in (None, 0, "cuda", "cuda:1", "cpu", torch.device("cuda", 0)):
            segops.check_errors(device)
        assert not torch.cuda.is_initialized()

    def test_counting_and_configuration_touch_no_device(self) -> None:
        segops.take_bad_data_count()
        segops.show_config()
        assert not torch.cuda.is_initialized()


def config_with(cuda: str | None) -> str:
    code = f"import torch; torch.version.cuda = {cuda!r}; import segops; print(segops.show_config())"
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout


@pytest.mark.parametrize(
    ("cuda", "reason"),
    [("12.9", "built for CUDA 13, this torch has CUDA 12.9"), (None, "this torch has no CUDA")],
)
def test_another_cuda_is_a_reason(cuda: str | None, reason: str) -> None:
    lines = config_with(cuda).splitlines()
    assert f"CUDA library: not loaded: {reason}" in lines
    on_cuda = lines[lines.index("backends for cuda tensors:") + 1 :]
    assert f"  native: cannot run: {reason}" in on_cuda
    assert "  reference: can run (automatic choice)" in on_cuda


class Event:
    """A device's event that has happened after so many questions; waiting for it fails the test."""

    def __init__(self, after: int = 0) -> None:
        self.after = after

    def query(self) -> bool:
        self.after -= 1
        return self.after < 0

    def synchronize(self) -> None:
        raise AssertionError("waited for a device")

    wait = synchronize


@pytest.fixture
def pending(monkeypatch: pytest.MonkeyPatch) -> list[errors._Pending]:
    records: list[errors._Pending] = []
    monkeypatch.setattr(errors, "_pending", records)
    return records


def record_of(count: int, value: int, after: int = 0, position: int = 9) -> errors._Pending:
    record = torch.tensor([count, position, value])
    describe = partial(errors.describe_bad_labels, "dice_ce_loss", shape=[2, 6, 7], classes=5, ignore_index=-100)
    return errors._Pending(Event(after), record, describe)


class TestRecordsOnTheirWay:
    def test_raise_once_they_have_arrived(self, pending: list[errors._Pending]) -> None:
        pending.append(record_of(3, 77, after=2))
        errors.raise_arrived()
        errors.raise_arrived()
        with pytest.raises(ValueError, match=r"3 labels .* 77"):
            errors.raise_arrived()
        assert not pending
        errors.raise_arrived()

    def test_the_next_call_raises(self, pending: list[errors._Pending]) -> None:
        logits, target = make_logits((2, 5, 6, 7)), random_labels((2, 6, 7), 5)
        pending.append(record_of(1, -3, after=1))
        expected = segops.dice_ce_loss(logits, target)
        with pytest.raises(ValueError, match=r"dice_ce_loss: target has 1 label .* -3"):
            segops.dice_ce_loss(logits, target)
        assert torch.equal(segops.dice_ce_loss(logits, target), expected)

    def test_raise_in_the_order_of_the_calls(self, pending: list[errors._Pending]) -> None:
        pending += [record_of(1, 50), record_of(1, 60)]
        for value in (50, 60):
            with pytest.raises(ValueError, match=str(value)):
                errors.raise_arrived()
        assert not pending

    def test_do_not_wait_for_each_other(self, pending: list[errors._Pending]) -> None:
        """They may come from two devices or streams."""
        pending += [record_of(1, 50, after=1), record_of(1, 60)]
        for value in (60, 50):
            with pytest.raises(ValueError, match=str(value)):
                errors.raise_arrived()

    def test_are_not_a_guard_of_compiled_code(self, pending: list[errors._Pending]) -> None:
        logits, target = make_logits((2, 5, 6, 7)), random_labels((2, 6, 7), 5)
        torch._dynamo.reset()
        compiled = torch.compile(segops.dice_ce_loss, fullgraph=True, backend="aot_eager")
        expected = compiled(logits, target)
        pending += [record_of(0, 0, after=100), record_of(0, 0, after=100)]
        with torch.compiler.set_stance("fail_on_recompile"):
            assert torch.equal(compiled(logits, target), expected)

    def test_are_left_alone_by_a_dispatch_mode(self, fake: FakeTensorMode, pending: list[errors._Pending]) -> None:
        pending.append(record_of(1, 50))
        with fake:
            errors.raise_arrived()
        assert len(pending) == 1

    def test_of_good_labels_pass(self, pending: list[errors._Pending]) -> None:
        pending += [record_of(0, 0), record_of(0, 0), record_of(0, 0, after=1)]
        errors.raise_arrived()
        assert len(pending) == 1
        errors.raise_arrived()
        assert not pending

    def test_good_ones_do_not_hide_a_bad_one(self, pending: list[errors._Pending]) -> None:
        pending += [record_of(0, 0), record_of(2, 40)]
        with pytest.raises(ValueError, match="40"):
            errors.raise_arrived()


class TestRecords:
    def arguments(self, count: int) -> tuple[str, Tensor, Tensor, int, int]:
        return "dice_ce_loss", torch.tensor([count, 8, 99]), torch.zeros(2, 6, 7, dtype=torch.int64), 5, -100

    def test_of_the_cpu_raise_at_once(self, pending: list[errors._Pending]) -> None:
        errors.raise_bad_labels(*self.arguments(0))
        with pytest.raises(ValueError, match=r"4 labels .* 99"):
            errors.raise_bad_labels(*self.arguments(4))
        assert not pending

    def test_of_fake_and_meta_tensors_are_not_read(self, fake: FakeTensorMode, pending: list[errors._Pending]) -> None:
        op, _, *rest = self.arguments(0)
        device = "cuda" if _library.cuda_unavailable is None else "meta"
        for record in (torch.empty(3, dtype=torch.int64, device=device), torch.empty(3, device="meta")):
            errors.raise_bad_labels(op, record, *rest)
        assert not pending


@needs_simt
class TestWhatADeviceHasSeen:
    """take_bad_data of the CUDA kernels, run on the host."""

    @pytest.fixture(autouse=True)
    def _clear(self) -> None:
        for kind in (errors.COUNT, errors.RAISE, errors.RAISE_SOFT):
            self.take(kind)

    @staticmethod
    def take(kind: int) -> list[int]:
        return errors._take("segops_simt", torch.device("cpu"), kind)

    @staticmethod
    def meet(bad: dict[int, int], kind: int) -> None:
        """Run the statistics on labels of which some, by flat position, are bad."""
        target = random_labels((2, 6, 7), 5)
        for position, value in bad.items():
            target.view(-1)[position] = value
        logits = make_logits((2, 5, 6, 7))
        options = (None, None, -100, 0.0, False, True, False, False, kind)
        torch.ops.segops_simt.dice_ce_loss_statistics(logits, target, *options)

    def test_counts_and_first_position_and_cleared(self) -> None:
        self.meet({10: -4, 50: 77}, errors.COUNT)
        assert self.take(errors.COUNT) == [2, 10, -4]
        assert self.take(errors.COUNT) == [0, 0, 0]

    def test_adds_up_calls_and_keeps_the_first_of_them(self) -> None:
        self.meet({40: 9}, errors.COUNT)
        self.meet({3: -1, 4: -2}, errors.COUNT)
        self.meet({}, errors.COUNT)
        assert self.take(errors.COUNT) == [3, 40, 9]

    def test_good_labels_leave_nothing(self) -> None:
        self.meet({}, errors.COUNT)
        assert self.take(errors.COUNT) == [0, 0, 0]

    def test_what_is_to_be_counted_is_kept_from_what_is_left_at_the_record(self) -> None:
        self.meet({7: 8}, errors.RECORD)
        assert self.take(errors.COUNT) == self.take(errors.RAISE) == [0, 0, 0]

    def test_soft_labels_are_kept_apart(self) -> None:
        for kind, value in ((errors.RAISE, 9), (errors.RAISE_SOFT, 7)):
            torch.ops.segops_simt.note_bad_data(torch.tensor([1, 2, value]), kind)
        assert self.take(errors.COUNT) == [0, 0, 0]
        assert self.take(errors.RAISE) == [1, 2, 9]
        assert self.take(errors.RAISE_SOFT) == [1, 2, 7]

    def test_public_count(self) -> None:
        segops.take_bad_data_count()
        logits, target = make_logits((2, 5, 6, 7)), random_labels((2, 6, 7), 5)
        target[1, 2, 3] = 9
        segops.dice_ce_loss(logits, target, validate="count", backend="simt")
        segops.dice_ce_loss(logits, target, validate="count", backend="simt")
        assert segops.take_bad_data_count() == 2
        assert segops.take_bad_data_count() == 0


def test_message_of_a_graph_tells_what_was_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda device: None)
    seen = {errors.RAISE: [0, 0, 0], errors.RAISE_SOFT: [0, 0, 0]}
    monkeypatch.setattr(errors, "_take", lambda namespace, device, kind: seen[kind])
    segops.check_errors()
    seen[errors.RAISE] = [4, 12, 255]
    words = "4 label(s) or indices out of range inside a graph on cuda:1; the first is 255 at flat position 12"
    with pytest.raises(ValueError, match=f"^{re.escape(f'segops: {words}')}$"):
        segops.check_errors(1)
    seen[errors.RAISE_SOFT] = [1, 3, int(torch.tensor(1.25, dtype=torch.float64).view(torch.int64))]
    words += "; 1 soft label(s) out of range inside a graph on cuda:1; the first is 1.25 at flat position 3"
    with pytest.raises(ValueError, match=re.escape(words)):
        segops.check_errors(1)

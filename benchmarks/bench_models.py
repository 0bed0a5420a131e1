"""Whole networks: inference and training step against the same network in torch.nn, and inference in other run times.

A network takes as long as a hundred operators, so each is run by itself: ``make bench-networks``.
"""

from __future__ import annotations

import copy
import importlib
import io
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

import segops
from benchmarks.interleave import Case, Contender, Peer
from segops import models
from tests.models import checks
from tests.models.plain import dilation, drn, segnet, u2net, unet

INFERENCE, FAST, TRAINING = "inference", "inference, fast", "training step"
CLASSES = 11
#: What must be reached against each of the others; the best of a group counts.
GOALS = {INFERENCE: 1.0, FAST: 1.5}
#: Most of its work is one 7x7 convolution, which Winograd's algorithm does not help.
BOUND_BY_7X7 = ("dilation8_camvid",)
PEERS = ("eager", "compiled", "ONNX Runtime", "OpenVINO")
MEMORY_GOALS = {"segnet": 0.6, "unet": 0.6}


def mask(target: Tensor, x: Tensor) -> Tensor:
    """[N, 1, H, W] in the dtype of x, of all classes but the first."""
    return target.clamp(max=1).to(x.dtype)[:, None]


@dataclass(frozen=True)
class Network:
    """A network of :mod:`segops.models` and its twin in torch.nn.

    Attributes:
        plain: builds the twin.
        image: [N, C, H, W] of inference.
        batch: [N, C, H, W] of a training step; None for no such case.
        output: of the twin, the part that is compared, and nothing that costs besides.
        own_output: the same of ours.
        num_classes: of both.
    """

    plain: Callable[[], nn.Module]
    image: tuple[int, ...]
    batch: tuple[int, ...] | None = None
    output: Callable[[nn.Module, Tensor], Tensor] = lambda net, x: net(x)
    own_output: Callable[[nn.Module, Tensor], Tensor] = lambda net, x: net(x)
    num_classes: int = CLASSES

    def loss(self, net: nn.Module, x: Tensor, target: Tensor) -> Tensor:
        """Of the twin: as these networks were trained, at the size of the image."""
        if self.num_classes == 1:
            truth = mask(target, x)
            return sum((F.binary_cross_entropy(probability, truth) for probability in net(x)), x.new_zeros(()))
        logits = self.output(net, x)
        if logits.shape[2:] != x.shape[2:]:
            logits = F.interpolate(logits, x.shape[2:], mode="bilinear", align_corners=False)
        return F.cross_entropy(logits, target)

    def own_loss(self, net: models.SegmentationModel, x: Tensor, target: Tensor) -> Tensor:
        """Of ours: the same, from the logits that the network ends with."""
        if self.num_classes == 1:
            return segops.nn.U2NetLoss()(net.coarse_logits(x, True), mask(target, x))
        return segops.dice_ce_loss(net.coarse_logits(x)[0], target, dice_weight=0.0)


NETWORKS = {
    "u2net": Network(
        u2net.U2Net, (1, 3, 320, 320), None, lambda net, x: net(x)[0], lambda net, x: net(x).sigmoid(), num_classes=1
    ),
    "u2netp": Network(
        partial(u2net.U2Net, u2net.SMALL),
        (1, 3, 320, 320),
        (2, 3, 160, 160),
        lambda net, x: net(x)[0],
        lambda net, x: net(x).sigmoid(),
        num_classes=1,
    ),
    "unet": Network(partial(unet.UNet, CLASSES), (1, 3, 512, 512), (2, 3, 192, 192)),
    "segnet": Network(partial(segnet.SegNet, CLASSES), (1, 3, 360, 480), (2, 3, 180, 240)),
    "drn_d_22": Network(
        partial(drn.DRN, "d", [2, 2, 2, 2], False, CLASSES),
        (1, 3, 512, 512),
        (2, 3, 192, 192),
        lambda net, x: net.seg(net.base(x)),
        lambda net, x: net.coarse_logits(x)[0],
    ),
    # The image is already reflected by 186 pixels a side.
    "dilation8_camvid": Network(
        partial(dilation.DilatedNet, "dilation8_camvid", CLASSES),
        (1, 3, 612, 692),
        own_output=lambda net, x: net(x, raw_output=True),
    ),
}


class Twins:
    """Both networks with the same weights, in the dtypes and layouts that are asked for."""

    def __init__(self, name: str, network: Network, device: str = "cpu", **options: Any) -> None:
        torch.manual_seed(0)
        self.network = network
        self.plain = network.plain().to(device).eval()
        checks.shake(self.plain)
        self._plain: dict[tuple[torch.dtype, str], nn.Module] = {}
        self.ours = models.create_model(name, network.num_classes, **options).to(device).eval()
        state = self.plain.state_dict()
        self.ours.load_state_dict(models.convert_official_state_dict(name, state))
        # Which of ours stands for which of the twin's.
        numbered = {key: value.new_full(value.shape, at) for at, (key, value) in enumerate(state.items())}
        keys = list(state)
        converted = models.convert_official_state_dict(name, numbered)
        self.renamed = {
            keys[int(value.flatten()[0])]: key
            for key, value in converted.items()
            if not key.endswith("num_batches_tracked")
        }

    def plain_in(self, dtype: torch.dtype, layout: str = "contiguous") -> nn.Module:
        if (dtype, layout) not in self._plain:
            memory_format = torch.channels_last if layout == "channels_last" else torch.contiguous_format
            self._plain[dtype, layout] = copy.deepcopy(self.plain).to(dtype=dtype, memory_format=memory_format)
        return self._plain[dtype, layout]

    def infer(self, x: Tensor, *, layout: str = "contiguous") -> Tensor:
        """The twin, in the dtype of x."""
        return self.network.output(self.plain_in(x.dtype, layout), x)

    def leaves(self) -> list[str]:
        """What is trained of the twin, but biases that a batch norm takes away: their gradient is rounding."""
        layers = [(name, m) for name, m in self.plain.named_modules() if not list(m.children())]
        useless = {f"{name}.bias" for (name, _), (_, after) in pairwise(layers) if isinstance(after, nn.BatchNorm2d)}
        return [name for name, p in self.plain.named_parameters() if p.requires_grad and name not in useless]


def onnx_of(twins: Twins, x: Tensor) -> bytes:
    """The twin as an ONNX model, of the part of its output that is compared."""

    class Part(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = twins.plain

        def forward(self, x: Tensor) -> Tensor:
            return twins.network.output(self.net, x)

    buffer = io.BytesIO()
    torch.onnx.export(Part().eval(), (x,), buffer, input_names=["image"], dynamo=True, verbose=False)
    return buffer.getvalue()


def onnxruntime(twins: Twins, x: Tensor) -> Callable[[Tensor], Tensor]:
    runtime = importlib.import_module("onnxruntime")
    options = runtime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    # Its threads would else spin on into the time of the next contender.
    options.add_session_config_entry("session.force_spinning_stop", "1")
    session = runtime.InferenceSession(onnx_of(twins, x), options, providers=["CPUExecutionProvider"])
    return lambda x: torch.from_numpy(session.run(None, {"image": x.numpy()})[0])


def openvino(twins: Twins, x: Tensor) -> Callable[[Tensor], Tensor]:
    runtime = importlib.import_module("openvino")
    core = runtime.Core()
    # In float32, as all others: by itself it may choose bfloat16.
    options = {"INFERENCE_NUM_THREADS": torch.get_num_threads(), "INFERENCE_PRECISION_HINT": "f32"}
    model = core.compile_model(core.read_model(onnx_of(twins, x)), "CPU", options | {"PERFORMANCE_HINT": "LATENCY"})
    return lambda x: torch.from_numpy(model([x.numpy()])[0])


def frozen(twins: Twins) -> Callable[[Tensor], Tensor]:
    """torch.compile with the weights as constants, which folds batch norms and packs weights."""
    net = twins.plain_in(torch.float32)
    return torch.compile(lambda x: twins.network.output(net, x), dynamic=False, options={"freezing": True})


@pytest.mark.parametrize("kind", [INFERENCE, FAST])
@pytest.mark.parametrize("name", NETWORKS)
def test_inference(name: str, kind: str, race: Callable[..., None], bench_device: str) -> None:
    network = NETWORKS[name]
    twins = Twins(name, network, bench_device)
    segops.nn.prepack(segops.nn.set_precision(twins.ours, "fast" if kind == FAST else "default"))
    x = checks.image(*network.image[2:]).to(bench_device)
    goal = GOALS[INFERENCE if name in BOUND_BY_7X7 else kind]
    others = [
        Contender("eager", twins.infer),
        Contender("eager, channels_last", partial(twins.infer, layout="channels_last"), "channels_last", group="eager"),
        Peer("compiled", partial(frozen, twins)),
    ]
    # Where two pixels of a window are equal but for rounding, SegNet's unpooling moves one of them: its map is compared
    # with what its twin gives on rounded images, and not with what another run time's rounding gives.
    moves = name == "segnet"
    if bench_device == "cpu" and not moves:
        others += [
            Peer("ONNX Runtime", partial(onnxruntime, twins, x)),
            Peer("OpenVINO", partial(openvino, twins, x)),
        ]
    race(
        Case(f"{name}, {kind}", network.image),
        "forward",
        (x,),
        [Contender("segops", partial(network.own_output, twins.ours), "channels_last"), *others],
        reference=twins.infer,
        own=partial(rounded, twins) if kind == FAST or moves else twins.infer,
        goals={peer: goal for peer in PEERS} if bench_device == "cpu" and not moves else None,
        network=True,
    )


def rounded(twins: Twins, x: Tensor) -> Tensor:
    """What "fast" may be off by: as much as TF32, whose use it permits elsewhere."""
    with rounding(twins.plain_in(x.dtype)):
        return twins.infer(x)


@pytest.mark.parametrize("name", [name for name, network in NETWORKS.items() if network.batch is not None])
def test_training_step(name: str, race: Callable[..., None], bench_device: str) -> None:
    network = NETWORKS[name]
    assert network.batch is not None
    step = Step(name, network, network.batch, bench_device)
    race(
        Case(f"{name}, {TRAINING}", network.batch),
        "forward_backward",
        step.leaves,
        [
            Contender("segops", step.ours, step.own_layout),
            Contender("eager", step.plain),
            Contender("eager, channels_last", step.plain, "channels_last", group="eager"),
            Peer("compiled", step.compiled),
        ],
        reference=step.plain,
        own=step.plain_rounded,
        goals={"eager": 1.0, "compiled": 1.0} if bench_device == "cpu" else None,
        memory_goals={"eager": MEMORY_GOALS[name]} if name in MEMORY_GOALS else None,
        network=True,
    )


class Step:
    """A training step up to the gradients: functions of the leaves, the parameters, to the loss of one batch."""

    own_layout = "contiguous"

    def __init__(
        self, name: str, network: Network, batch: tuple[int, ...], device: str = "cpu", **options: Any
    ) -> None:
        twins = Twins(name, network, device, **options)
        self.network, self.images = network, checks.image(*batch[2:], batch=batch[0]).to(device)
        generator = torch.Generator().manual_seed(5)
        coarse = torch.randint(CLASSES, (batch[0], 1, 6, 6), generator=generator).float()
        self.target = F.interpolate(coarse, batch[2:]).long()[:, 0].to(device)
        self._keys, self._renamed, parameters = twins.leaves(), twins.renamed, dict(twins.plain.named_parameters())
        self.leaves = tuple(parameters[key].detach() for key in self._keys)
        self._plain, self._ours = twins.plain_in, twins.ours.train()

    def plain(self, *leaves: Tensor) -> Tensor:
        return self._plain_step(leaves[0].dtype)(*leaves)

    def compiled(self) -> Callable[..., Tensor]:
        return torch.compile(self._plain_step(torch.float32), dynamic=False)

    def _plain_step(self, dtype: torch.dtype) -> Callable[..., Tensor]:
        loss, images = _Loss(self._plain(dtype).train(), self.network.loss), self.images.to(dtype)
        return lambda *leaves: functional_call(loss, self._under(leaves, self._keys), (images, self.target))

    def plain_rounded(self, *leaves: Tensor) -> Tensor:
        """A looser bound than the tolerance rule's: where rounding turns a ReLU on, gradients of all layers differ."""
        with rounding(self._plain(leaves[0].dtype)):
            return self.plain(*leaves)

    def ours(self, *leaves: Tensor) -> Tensor:
        keys = [self._renamed[key] for key in self._keys]
        return functional_call(
            _Loss(self._ours, self.network.own_loss), self._under(leaves, keys), (self.images, self.target)
        )

    @staticmethod
    def _under(leaves: tuple[Tensor, ...], keys: list[str]) -> dict[str, Tensor]:
        return {f"net.{key}": leaf for key, leaf in zip(keys, leaves, strict=True)}


class _Loss(nn.Module):
    """The loss of a network as a module, for :func:`torch.func.functional_call`."""

    def __init__(self, net: nn.Module, loss: Callable[..., Tensor]) -> None:
        super().__init__()
        self.net, self.loss = net, loss

    def forward(self, x: Tensor, target: Tensor) -> Tensor:
        return self.loss(self.net, x, target)


@contextmanager
def rounding(net: nn.Module) -> Iterator[None]:
    """The input of every convolution is rounded to TF32's 11 bits; gradients are as if it were not."""
    hooks = [m.register_forward_pre_hook(_round) for m in net.modules() if isinstance(m, nn.Conv2d)]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _round(_: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    (x,) = inputs
    if x.dtype != torch.float32:
        return inputs
    bits = x.detach().view(torch.int32)
    return (x + (((bits + (1 << 12)) & -(1 << 13)).view(torch.float32) - x.detach()),)

"""SegNet and SegNet-Basic with plain torch.nn and the official keys."""

from __future__ import annotations

from collections import OrderedDict

import torch.nn.functional as F
from torch import Tensor, nn

CAFFE = "conv{s}_{i}", "conv{s}_{i}_bn", "conv{s}_{i}_D", "conv{s}_{i}_D_bn"
DELTA_ONERA = "conv{s}{i}", "bn{s}{i}", "conv{s}{i}d", "bn{s}{i}d"
VINCEECWS = "ConvEn{s}{i}", "BNEn{s}{i}", "ConvDe{s}{i}", "BNDe{s}{i}"
SAY4N = "encoder_conv_{s}{i}", "decoder_convtr_{s}{i}"


class SegNet(nn.Module):
    """`names` are those of a convolution and its norm in the encoder and the decoder, or of pairs of them."""

    def __init__(
        self,
        num_classes: int,
        names: tuple[str, ...] = CAFFE,
        norm: type[nn.Module] = nn.BatchNorm2d,
        ceil_mode: bool = True,
        width: int = 64,
    ) -> None:
        super().__init__()
        self.names, self.ceil_mode = names, ceil_mode
        self.zero_based = names is SAY4N
        self.transposed = names is SAY4N
        c = [width, 2 * width, 4 * width, 8 * width, 8 * width]
        self.depths = (2, 2, 3, 3, 3)
        for s in range(1, 6):
            for i in range(1, self.depths[s - 1] + 1):
                inputs = c[s - 1] if i > 1 else (c[s - 2] if s > 1 else 3)
                self._register(s, i, nn.Conv2d(inputs, c[s - 1], 3, padding=1), norm(c[s - 1]), decoder=False)
                outputs = c[s - 1] if i > 1 else (c[s - 2] if s > 1 else num_classes)
                kind = nn.ConvTranspose2d if self.transposed else nn.Conv2d
                after = None if (s, i) == (1, 1) else norm(outputs)
                self._register(s, i, kind(c[s - 1], outputs, 3, padding=1), after, decoder=True)

    def _name(self, which: int, s: int, i: int) -> str:
        shift = 1 if self.zero_based else 0
        return self.names[which].format(s=s - shift, i=i - shift)

    def _register(self, s: int, i: int, conv: nn.Module, norm: nn.Module | None, decoder: bool) -> None:
        if len(self.names) == 2:
            pair = nn.Sequential(conv) if norm is None else nn.Sequential(conv, norm)
            self.add_module(self._name(int(decoder), s, i), pair)
            return
        self.add_module(self._name(2 * decoder, s, i), conv)
        if norm is not None:
            self.add_module(self._name(2 * decoder + 1, s, i), norm)

    def _apply_layer(self, x: Tensor, s: int, i: int, decoder: bool) -> Tensor:
        if len(self.names) == 2:
            return self.get_submodule(self._name(int(decoder), s, i))(x)
        x = self.get_submodule(self._name(2 * decoder, s, i))(x)
        if decoder and (s, i) == (1, 1):
            return x
        return self.get_submodule(self._name(2 * decoder + 1, s, i))(x)

    def forward(self, x: Tensor) -> Tensor:
        kept = []
        for s in range(1, 6):
            for i in range(1, self.depths[s - 1] + 1):
                x = F.relu(self._apply_layer(x, s, i, decoder=False))
            size = x.shape
            x, indices = F.max_pool2d(x, 2, 2, ceil_mode=self.ceil_mode, return_indices=True)
            kept.append((indices, size))
        for s in range(5, 0, -1):
            indices, size = kept.pop()
            x = F.max_unpool2d(x, indices, 2, 2, output_size=size[-2:])
            for i in range(self.depths[s - 1], 0, -1):
                x = self._apply_layer(x, s, i, decoder=True)
                x = x if (s, i) == (1, 1) else F.relu(x)
        return x


class SegNetBasic(nn.Module):
    def __init__(
        self, num_classes: int, norm: type[nn.Module] = nn.BatchNorm2d, ceil_mode: bool = True, width: int = 64
    ) -> None:
        super().__init__()
        self.ceil_mode = ceil_mode
        layers: OrderedDict[str, nn.Module] = OrderedDict()
        for s in range(1, 5):
            layers[f"conv{s}"] = nn.Conv2d(width if s > 1 else 3, width, 7, padding=3)
            layers[f"conv{s}_bn"] = norm(width)
        for s in range(4, 0, -1):
            layers[f"conv_decode{s}"] = nn.Conv2d(width, width, 7, padding=3)
            layers[f"conv_decode{s}_bn"] = norm(width)
        layers["conv_classifier"] = nn.Conv2d(width, num_classes, 1)
        for name, layer in layers.items():
            self.add_module(name, layer)

    def forward(self, x: Tensor) -> Tensor:
        get = self.get_submodule
        squares = F.pad(x.square(), (0, 0, 0, 0, 2, 2))  # the 5 channels around each
        neighbours = sum(squares[:, i : i + x.shape[1]] for i in range(5))
        x = x / (1 + 1e-4 / 5 * neighbours) ** 0.75
        kept = []
        for s in range(1, 5):
            x = F.relu(get(f"conv{s}_bn")(get(f"conv{s}")(x)))
            size = x.shape
            x, indices = F.max_pool2d(x, 2, 2, ceil_mode=self.ceil_mode, return_indices=True)
            kept.append((indices, size))
        for s in range(4, 0, -1):
            indices, size = kept.pop()
            x = F.max_unpool2d(x, indices, 2, 2, output_size=size[-2:])
            x = get(f"conv_decode{s}_bn")(get(f"conv_decode{s}")(x))
        return get("conv_classifier")(x)

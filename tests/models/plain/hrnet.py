"""HRNetV2 and its OCR form in torch.nn, with the keys of the authors' code."""

from __future__ import annotations

import itertools
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.models.plain.drn import Block


def unit(i: int, o: int, k: int, stride: int = 1, relu: bool = True, bias: bool = False) -> nn.Sequential:
    parts: list[nn.Module] = [nn.Conv2d(i, o, k, stride, k // 2, bias=bias), nn.BatchNorm2d(o)]
    return nn.Sequential(*parts, *([nn.ReLU()] if relu else []))


def named(**parts: nn.Module) -> nn.Module:
    holder = nn.Module()
    for name, part in parts.items():
        setattr(holder, name, part)
    return holder


def fusion(widths: list[int]) -> nn.ModuleList:
    rows = nn.ModuleList()
    for i, wide in enumerate(widths):
        row = nn.ModuleList()
        for j, w in enumerate(widths):
            if j == i:
                row.append(nn.Module())  # None there: a place without keys
            elif j > i:
                row.append(unit(w, wide, 1, relu=False))
            else:
                steps = [unit(w, w, 3, 2) for _ in range(i - j - 1)] + [unit(w, wide, 3, 2, relu=False)]
                row.append(nn.Sequential(*steps))
        rows.append(row)
    return rows


class HRNet(nn.Module):
    def __init__(
        self,
        c: int,
        classes: int,
        layer1: tuple[int, int] = (4, 64),
        blocks: int = 4,
        modules: tuple[int, int, int] = (1, 4, 3),
        ocr: bool = False,
        align: bool = False,
    ) -> None:
        super().__init__()
        self.align, self.is_ocr = align, ocr
        self.conv1, self.bn1 = nn.Conv2d(3, 64, 3, 2, 1, bias=False), nn.BatchNorm2d(64)
        self.conv2, self.bn2 = nn.Conv2d(64, 64, 3, 2, 1, bias=False), nn.BatchNorm2d(64)
        n, w = layer1
        self.layer1 = nn.Sequential(*(Block(64 if b == 0 else 4 * w, w, 1, 1, True) for b in range(n)))
        self.transition1 = nn.ModuleList([unit(4 * w, c, 3), nn.Sequential(unit(4 * w, 2 * c, 3, 2))])
        for s, count in zip((2, 3, 4), modules, strict=True):
            widths = [c * 2**r for r in range(s)]
            if s > 2:
                new = nn.Sequential(unit(widths[-2], widths[-1], 3, 2))
                setattr(self, f"transition{s - 1}", nn.ModuleDict({str(s - 1): new}))
            stage = [
                named(
                    branches=nn.ModuleList(
                        nn.Sequential(*(Block(width, width, 1, 1, False) for _ in range(blocks))) for width in widths
                    ),
                    fuse_layers=fusion(widths),
                )
                for _ in range(count)
            ]
            setattr(self, f"stage{s}", nn.ModuleList(stage))
        total = 15 * c

        def head() -> nn.Sequential:
            return nn.Sequential(*unit(total, total, 1, bias=True), nn.Conv2d(total, classes, 1))

        if not ocr:
            self.last_layer = head()
            return
        self.aux_head, self.conv3x3_ocr = head(), unit(total, 512, 3, bias=True)

        def bnrelu(width: int) -> nn.Sequential:
            return nn.Sequential(nn.BatchNorm2d(width), nn.ReLU())

        def mix(*widths: int) -> nn.Sequential:
            parts: list[nn.Module] = []
            for a, b in itertools.pairwise(widths):
                parts += [nn.Conv2d(a, b, 1, bias=False), bnrelu(b)]
            return nn.Sequential(*parts)

        block = named(f_pixel=mix(512, 256, 256), f_object=mix(512, 256, 256), f_down=mix(512, 256), f_up=mix(256, 512))
        self.ocr_distri_head = named(object_context_block=block, conv_bn_dropout=mix(1024, 512))
        self.cls_head = nn.Conv2d(512, classes, 1)

    def up(self, x: Tensor, like: Tensor) -> Tensor:
        return F.interpolate(x, like.shape[-2:], mode="bilinear", align_corners=self.align)

    def exchange(self, module: Any, xs: list[Tensor]) -> list[Tensor]:
        xs = [branch(x) for branch, x in zip(module.branches, xs, strict=True)]
        out = []
        for i, row in enumerate(module.fuse_layers):
            y: Any = 0
            for j, x in enumerate(xs):
                y = y + (x if j == i else self.up(row[j](x), xs[i]) if j > i else row[j](x))
            out.append(F.relu(y))
        return out

    def forward(self, x: Tensor) -> Tensor | list[Tensor]:
        x = F.relu(self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x))))))
        x = self.layer1(x)
        xs = [self.transition1[0](x), self.transition1[1](x)]
        for s in (2, 3, 4):
            if s > 2:
                xs.append(getattr(self, f"transition{s - 1}")[str(s - 1)](xs[-1]))
            for module in getattr(self, f"stage{s}"):
                xs = self.exchange(module, xs)
        y = torch.cat([xs[0], *(self.up(x, xs[0]) for x in xs[1:])], 1)
        return self.objects(y) if self.is_ocr else self.last_layer(y)

    def objects(self, y: Tensor) -> list[Tensor]:
        aux, feats = self.aux_head(y), self.conv3x3_ocr(y)
        n, k, h, w = aux.shape
        block: Any = self.ocr_distri_head.object_context_block
        regions = F.softmax(aux.reshape(n, k, h * w), dim=2)
        proxy = (regions @ feats.reshape(n, 512, h * w).transpose(1, 2)).transpose(1, 2).unsqueeze(3)
        q = block.f_pixel(feats).reshape(n, 256, -1).transpose(1, 2)
        similarity = F.softmax(q @ block.f_object(proxy).reshape(n, 256, -1) / 16, dim=-1)
        context = (similarity @ block.f_down(proxy).reshape(n, 256, -1).transpose(1, 2)).transpose(1, 2)
        context = block.f_up(context.reshape(n, 256, h, w))
        mixed = self.ocr_distri_head.conv_bn_dropout(torch.cat([context, feats], 1))
        return [aux, self.cls_head(mixed)]

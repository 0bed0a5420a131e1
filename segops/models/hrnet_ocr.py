"""Object-contextual representations: a pixel is classified with the mean features of the objects it may belong to.

Yuan, Chen and Wang, "Object-Contextual Representations for Semantic Segmentation" (ECCV 2020), eq. 2 to 5.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from segops.nn import ConvNormAct, DilatedConv2d

FEATURES = 512
KEYS = 256


class ObjectContext(nn.Module):
    """The head of OCR: features, and logits of an auxiliary classifier that say where objects are, to logits.

    Args:
        channels: of the features.
        num_classes: of both logits.

    Shape:
        [N, channels, h, w] and [N, num_classes, h, w] to [N, num_classes, h, w].
    """

    def __init__(self, channels: int, num_classes: int) -> None:
        super().__init__()
        self.reduce = ConvNormAct(channels, FEATURES, 3, padding=1, bias=True)
        self.f_pixel = _twice(FEATURES, KEYS)
        self.f_object = _twice(FEATURES, KEYS)
        self.f_down = ConvNormAct(FEATURES, KEYS, 1)
        self.f_up = ConvNormAct(KEYS, FEATURES, 1)
        self.project = ConvNormAct(2 * FEATURES, FEATURES, 1)
        self.dropout = nn.Dropout2d(0.05)
        self.classifier = DilatedConv2d(FEATURES, num_classes, 1)

    def forward(self, features: Tensor, auxiliary: Tensor) -> Tensor:
        features = self.reduce(features)
        share = auxiliary.flatten(2).softmax(2)  # [N, K, h w], of each pixel in each object
        objects = torch.einsum("nkp,ncp->nck", share, features.flatten(2)).unsqueeze(3)  # [N, C, K, 1]
        query = self.f_pixel(features).flatten(2)
        key, value = self.f_object(objects).flatten(2), self.f_down(objects).flatten(2)
        attention = (torch.einsum("ndp,ndk->npk", query, key) * KEYS**-0.5).softmax(2)
        context = torch.einsum("npk,ndk->ndp", attention, value)
        context = self.f_up(context.unflatten(2, features.shape[-2:]))
        logits: Tensor = self.classifier(self.dropout(self.project(torch.cat((context, features), dim=1))))
        return logits


def _twice(channels: int, keys: int) -> nn.Sequential:
    return nn.Sequential(ConvNormAct(channels, keys, 1), ConvNormAct(keys, keys, 1))


_BLOCK = r"ocr_distri_head\.object_context_block\."
OCR_RULES = (
    (r"conv3x3_ocr\.0\.(\w+)", r"ocr.reduce.conv.\1"),
    (r"conv3x3_ocr\.1\.(\w+)", r"ocr.reduce.norm.\1"),
    (_BLOCK + r"(f_pixel|f_object)\.0\.(\w+)", r"ocr.\1.0.conv.\2"),
    (_BLOCK + r"(f_pixel|f_object)\.1\.0\.(\w+)", r"ocr.\1.0.norm.\2"),
    (_BLOCK + r"(f_pixel|f_object)\.2\.(\w+)", r"ocr.\1.1.conv.\2"),
    (_BLOCK + r"(f_pixel|f_object)\.3\.0\.(\w+)", r"ocr.\1.1.norm.\2"),
    (_BLOCK + r"(f_down|f_up)\.0\.(\w+)", r"ocr.\1.conv.\2"),
    (_BLOCK + r"(f_down|f_up)\.1\.0\.(\w+)", r"ocr.\1.norm.\2"),
    (r"ocr_distri_head\.conv_bn_dropout\.0\.(\w+)", r"ocr.project.conv.\1"),
    (r"ocr_distri_head\.conv_bn_dropout\.1\.0\.(\w+)", r"ocr.project.norm.\1"),
    (r"cls_head\.(\w+)", r"ocr.classifier.\1"),
)
"""For :func:`segops.models.official.renamed`: the official keys of the head."""

"""Inputs that tests and benchmarks share. Everything is seeded: the same call gives the same tensors."""

from __future__ import annotations

import torch
from torch import Tensor

LAYOUTS = ("contiguous", "channels_last", "sliced")
#: Further layouts of `make_logits`: views as cropping, indexing and broadcasting make them.
VIEWS = (
    "expanded",
    "pixels_expanded",
    "batch_slice",
    "channel_slice",
    "channels_last_batch_slice",
    "channels_last_channel_slice",
    "channels_last_crop",
    "transposed",
)


def make_logits(
    shape: tuple[int, ...],
    dtype: torch.dtype = torch.float32,
    layout: str = "contiguous",
    scale: float = 3.0,
    seed: int = 0,
    device: str = "cpu",
) -> Tensor:
    """Normal logits [N, C, *spatial] in one of `LAYOUTS` or `VIEWS`; what a view leaves out of its storage is NaN.

    "sliced" is a view that no kernel can read as it is. "expanded" repeats one image, "pixels_expanded" one pixel.
    """
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(shape, generator=generator) * scale
    x = x.to(dtype).to(device)
    if layout in VIEWS:
        return _as_view(x, layout)
    if layout == "channels_last":
        return x.movedim(1, -1).contiguous().movedim(-1, 1)
    if layout == "sliced":
        wide = torch.full((*shape[:-1], 2 * shape[-1] + 1), float("nan"), dtype=dtype, device=device)
        wide[..., 1::2] = x
        return wide[..., 1::2]
    return x.contiguous()


def _as_view(x: Tensor, layout: str) -> Tensor:
    if layout == "expanded":
        return x[:1].expand(x.shape)
    if layout == "pixels_expanded":
        return x[(..., *[slice(0, 1)] * (x.ndim - 2))].contiguous().expand(x.shape)
    if layout == "transposed":
        return x.transpose(1, -1).contiguous().transpose(1, -1)
    axis, step = {"batch_slice": (0, 2), "channel_slice": (1, 1), "crop": (-1, 1)}[
        layout.removeprefix("channels_last_")
    ]
    shape = list(x.shape)
    shape[axis] = step * shape[axis] + 3
    around = torch.full(shape, float("nan"), dtype=x.dtype, device=x.device)
    if layout.startswith("channels_last"):
        around = around.movedim(1, -1).contiguous().movedim(-1, 1)
    index: list[slice] = [slice(None)] * x.ndim
    index[axis] = slice(1, 1 + step * x.shape[axis], step)
    view = around[tuple(index)]
    view.copy_(x)
    return view


def random_labels(
    shape: tuple[int, ...],
    classes: int,
    dtype: torch.dtype = torch.int64,
    ignore_index: int | None = None,
    ignored: float = 0.1,
    seed: int = 1,
    device: str = "cpu",
) -> Tensor:
    """Independent labels [N, *spatial]; a share `ignored` of them is `ignore_index`, if one is given."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(0, classes, shape, generator=generator)
    if ignore_index is not None:
        labels[torch.rand(shape, generator=generator) < ignored] = ignore_index
    return labels.to(dtype).to(device)


def coherent_labels(
    shape: tuple[int, int, int], classes: int, cell: int = 16, dtype: torch.dtype = torch.int64, seed: int = 1
) -> Tensor:
    """Labels [N, H, W] as segmentation has them: constant over regions, here ragged cells of about `cell` pixels."""
    n, h, w = shape
    generator = torch.Generator().manual_seed(seed)
    seeds = torch.randint(0, classes, (n, h // cell + 2, w // cell + 2), generator=generator)
    # Borders wander by a few pixels from row to row, so that they do not all fall on multiples of a vector.
    wander = torch.randint(0, cell, (h,), generator=generator)
    rows = (torch.arange(h) + cell // 3) // cell
    columns = (torch.arange(w)[None, :] + wander[:, None] // 4) // cell
    return seeds[:, rows[:, None], columns].to(dtype).contiguous()

"""PNG pictures of a training run, as bytes."""

from __future__ import annotations

import io
from collections.abc import Sequence

from matplotlib.figure import Figure
from matplotlib.patches import Patch
from torch import Tensor

_DPI = 100


def _png(figure: Figure) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=_DPI)
    return buffer.getvalue()


def prediction_png(
    images: Tensor, target: Tensor, prediction: Tensor, classes: Sequence[str], palette: Tensor, title: str
) -> bytes:
    """Three rows of pictures, images over truth over prediction, above a legend.

    Args:
        images: float [N, 3, H, W] in 0..1.
        target, prediction: class indices int64 [N, H, W].
        classes: C names.
        palette: uint8 [C, 3].
        title: printed on top.
    """
    rows = {
        "image": images.movedim(1, -1).clamp(0, 1),
        "truth": palette[target],
        "prediction": palette[prediction],
    }
    count = len(images)
    figure = Figure(figsize=(1.6 * count + 0.6, 6.0), layout="constrained")
    figure.suptitle(title)
    for axes_row, (name, pictures) in zip(figure.subplots(3, count, squeeze=False), rows.items(), strict=True):
        for axes, picture in zip(axes_row, pictures, strict=True):
            axes.imshow(picture.numpy(), interpolation="nearest")
            axes.set(xticks=[], yticks=[])
        axes_row[0].set_ylabel(name)
    colours = (palette.double() / 255).tolist()
    handles = [
        Patch(facecolor=colour, edgecolor="grey", label=name) for name, colour in zip(classes, colours, strict=True)
    ]
    figure.legend(handles=handles, loc="outside lower center", ncols=len(handles), frameon=False, handlelength=1)
    return _png(figure)


def loss_png(losses: Sequence[float], title: str) -> bytes:
    """The loss of every step, and its running mean."""
    window = max(1, len(losses) // 30)
    means = [sum(losses[i : i + window]) / window for i in range(len(losses) - window + 1)]
    figure = Figure(figsize=(7.0, 4.0), layout="constrained")
    axes = figure.subplots()
    axes.plot(range(1, len(losses) + 1), losses, linewidth=0.8, alpha=0.4, label="each step")
    axes.plot(range(window, len(losses) + 1), means, label=f"mean of the last {window}")
    axes.set(xlabel="step", ylabel="loss", title=title)
    axes.grid(alpha=0.3)
    axes.legend(frameon=False)
    return _png(figure)

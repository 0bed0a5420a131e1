"""What the networks of salient objects were trained with: losses of several maps, coarse ones too, by one mask."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from segops.nn.losses import DeepSupervisionLoss
from segops.ops.upsample_bilinear import upsample_bilinear2d


class SSIMLoss(nn.Module):
    """One minus the mean structural similarity of two images.

    With means, variances and the covariance under a Gaussian window around each pixel, the similarity is
    (2 mu_p mu_t + C1)(2 cov + C2) / ((mu_p^2 + mu_t^2 + C1)(var_p + var_t + C2)) with C1 = 0.01^2 and C2 = 0.03^2, for
    values in [0, 1] (Wang et al., "Image quality assessment", 2004). Around the images there are zeros. Computed in
    float32 at least, under autocast too.

    Args:
        window_size: odd, the height and width of the window.
        sigma: of the Gaussian, in pixels.

    Shape:
        prediction [N, C, H, W] or [N, H, W], floating point; target of its shape, of any dtype (a mask, too). Returns
        the loss, 0-dimensional; the mean is over everything.

    Raises:
        TypeError, ValueError: a prediction that is not floating point, a target of another shape, or a window that is
            none.
    """

    window: Tensor

    def __init__(self, window_size: int = 11, sigma: float = 1.5) -> None:
        super().__init__()
        if isinstance(window_size, bool) or not isinstance(window_size, int) or window_size < 1 or window_size % 2 == 0:
            raise ValueError(f"segops.nn.SSIMLoss: window_size must be an odd positive int, got {window_size!r}")
        if not 0 < sigma < float("inf"):
            raise ValueError(f"segops.nn.SSIMLoss: sigma must be positive and finite, got {sigma!r}")
        offset = torch.arange(window_size, dtype=torch.float64) - window_size // 2
        window = torch.exp(-0.5 * (offset / sigma) ** 2)
        # In float64, so that a loss of float64 does not start from a rounded window.
        self.register_buffer("window", window / window.sum(), persistent=False)
        self.sigma = sigma

    def forward(self, prediction: Tensor, target: Tensor) -> Tensor:
        if not prediction.is_floating_point():
            raise TypeError(f"segops.nn.SSIMLoss: prediction must be floating point, got {prediction.dtype}")
        if prediction.ndim not in (3, 4):
            shape = list(prediction.shape)
            raise ValueError(f"segops.nn.SSIMLoss: prediction must be [N, C, H, W] or [N, H, W], got {shape}")
        if prediction.shape != target.shape:
            shapes = f"{list(prediction.shape)} like prediction, got {list(target.shape)}"
            raise ValueError(f"segops.nn.SSIMLoss: target must be {shapes}")
        return 1 - self.similarity(prediction, target).mean().to(prediction.dtype)

    def similarity(self, prediction: Tensor, target: Tensor) -> Tensor:
        """The map of similarities; the leading dimensions of the two, [..., H, W], are broadcast."""
        dtype = torch.promote_types(prediction.dtype, torch.float32)
        prediction, target = prediction.to(dtype), target.to(dtype)
        with torch.autocast(prediction.device.type, enabled=False):
            mean_p, mean_t = self._blurred(prediction), self._blurred(target)
            variance_p = self._blurred(prediction.square()) - mean_p.square()
            variance_t = self._blurred(target.square()) - mean_t.square()
            covariance = self._blurred(prediction * target) - mean_p * mean_t
        luminance = (2 * mean_p * mean_t + 0.01**2) / (mean_p.square() + mean_t.square() + 0.01**2)
        return luminance * (2 * covariance + 0.03**2) / (variance_p + variance_t + 0.03**2)

    def _blurred(self, image: Tensor) -> Tensor:
        window = self.window.to(image.dtype)
        half = len(window) // 2
        planes = image.reshape(-1, 1, *image.shape[-2:])
        planes = F.conv2d(planes, window.view(1, 1, -1, 1), padding=(half, 0))
        return F.conv2d(planes, window.view(1, 1, 1, -1), padding=(0, half)).view(image.shape)

    def extra_repr(self) -> str:
        return f"window_size={len(self.window)}, sigma={self.sigma}"


class BASNetLoss(nn.Module):
    """For each map: binary cross-entropy, plus 1 - SSIM, plus 1 - IoU of the probabilities.

    Cross-entropy is the mean over pixels; the IoU sum p t / (sum p + sum t - sum p t) is of each image, then the mean;
    the SSIM is :class:`SSIMLoss`'s (Qin et al., "BASNet: Boundary-Aware Salient Object Detection", 2019). A map of
    another height or width than the target stands for its bilinear interpolation; the SSIM alone makes it.

    Args:
        weights: one number for each map, in the order of the logits.

    Shape:
        logits: a list of [N, C, h, w] or [N, h, w], such as ``model.coarse_logits(images, side_outputs=True)`` of
        "basnet"; target [N, C, H, W] or [N, H, W], bool, uint8 or soft labels in [0, 1]. Returns the loss,
        0-dimensional.

    Raises:
        TypeError, ValueError: as :func:`segops.deep_supervision_loss`.
    """

    def __init__(self, weights: Sequence[float] = (1.0,) * 8) -> None:
        super().__init__()
        self.bce_iou = DeepSupervisionLoss(weights, loss="dice_bce", overlap="jaccard", smooth=0.0)
        self.ssim = SSIMLoss()

    def forward(self, logits: Sequence[Tensor], target: Tensor) -> Tensor:
        bce_iou = self.bce_iou(logits, target)
        assert isinstance(bce_iou, Tensor)
        size = target.shape[-2:]
        maps = torch.stack([_interpolated(head, size).sigmoid() for head in logits])
        similarity = self.ssim.similarity(maps, target[None]).flatten(1).mean(1)
        weights = similarity.new_tensor(self.bce_iou.weights)
        return bce_iou + (weights * (1 - similarity)).sum().to(bce_iou.dtype)


class U2NetLoss(DeepSupervisionLoss):
    """Binary cross-entropy of seven maps with equal weights (Qin et al., "U2-Net", 2020), coarse ones as they are.

    It is :class:`DeepSupervisionLoss` with ``loss="dice_bce"`` and ``dice_weight=0``.

    Shape:
        logits: a list of [N, 1, h, w], such as ``model.coarse_logits(images, side_outputs=True)`` of "u2net"; target
        [N, 1, H, W]. Returns the loss, 0-dimensional.
    """

    def __init__(self) -> None:
        super().__init__((1.0,) * 7, loss="dice_bce", dice_weight=0.0)


def _interpolated(logits: Tensor, size: torch.Size) -> Tensor:
    if logits.shape[-2:] == size:
        return logits
    if logits.ndim == 3:
        return upsample_bilinear2d(logits[:, None], tuple(size))[:, 0]
    return upsample_bilinear2d(logits, tuple(size))

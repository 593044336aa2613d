"""Image metrics by one protocol for every method.

As in nerfbaselines, prediction and ground truth are compared in 8 bits, on the dataset's background and at full size,
so that no method gains from precision that a stored image does not have. Values are rounded to 8 bits; nerfbaselines
truncates them.
"""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torchmetrics.functional.image import structural_similarity_index_measure

from eugen_nerf.errors import UserError

ALEXNET_MIN_SIDE = 63  # AlexNet's last pooling has no output for smaller images
SSIM_MARGIN = 5  # pixels that the 11-pixel window reaches beyond its middle
SSIM_MIN_SIDE = SSIM_MARGIN + 1  # as many pixels are mirrored at each edge
# Pixels that SSIM is computed for at once: on a CPU, torch's convolution of doubles takes 5 kB for each.
SSIM_PIXELS = 1 << 15
TOO_SMALL = f"Small images lack metrics: LPIPS needs {ALEXNET_MIN_SIDE} pixels per side, SSIM {SSIM_MIN_SIDE} pixels."


def to_uint8(image: Tensor) -> Tensor:
    """[H, W, 3] in [0, 1] -> uint8. Values outside the range are clamped, NaN becomes black."""
    return (image.nan_to_num().clamp(0, 1) * 255).round().to(torch.uint8)


def _check_stored(prediction: Tensor, truth: Tensor) -> None:
    if prediction.shape[-1:] != (3,):
        raise ValueError(f"prediction must have the shape [H, W, 3], not {list(prediction.shape)}")
    if truth.shape != prediction.shape:
        raise ValueError(f"truth must have the prediction's shape {list(prediction.shape)}, not {list(truth.shape)}")
    for name, image in (("prediction", prediction), ("truth", truth)):
        # Colors in [0, 1] would pass as nearly black colors in [0, 255] and raise PSNR by 48 dB.
        if image.dtype != torch.uint8:
            raise ValueError(f"{name} must be torch.uint8, not {image.dtype}; to_uint8 converts colors in [0, 1]")


def check_colors(prediction: Tensor, truth: Tensor) -> None:
    """Check that two images can be compared.

    Raises:
        UserError: an image contains NaN.
        ValueError: an image is not floating-point.
    """
    for name, image in (("prediction", prediction), ("truth", truth)):
        if not image.is_floating_point():
            raise ValueError(f"{name} must hold floating-point colors in [0, 1], not {image.dtype}")
        # to_uint8 would store NaN as black, which would score well on a black background.
        if broken := int(image.isnan().any(dim=-1).sum()):
            raise UserError(
                f"The image ({name}) contains NaN in {broken} of {image[..., 0].numel()} pixels and cannot be "
                "evaluated. The field may have diverged: try lower learning rates."
            )


def psnr(prediction: Tensor, truth: Tensor) -> float:
    """Peak signal-to-noise ratio in dB of two uint8 images [H, W, 3] or of some of their pixels [N, 3].

    Infinite if they are equal.

    Raises:
        ValueError: the dtype is not uint8, the shapes differ, or the last dimension is not 3.
    """
    _check_stored(prediction, truth)
    error = (prediction.double() - truth.double()).div(255).square().mean()
    return float(-10 * torch.log10(error))


def ssim(prediction: Tensor, truth: Tensor) -> float | None:
    """Structural similarity (Wang et al. 2004: Gaussian window, sigma 1.5) of two uint8 images [H, W, 3].

    None for images too small for the window.

    Raises:
        ValueError: the dtype is not uint8, the shapes differ, or the last dimension is not 3.
    """
    _check_stored(prediction, truth)
    if min(prediction.shape[:2]) < SSIM_MIN_SIDE:
        return None
    height, width = prediction.shape[:2]
    rows = max(SSIM_MARGIN, SSIM_PIXELS // width)
    total = 0.0
    for top in range(0, height, rows):
        # Rows near the edges of a strip would see it mirrored; only those near the edges of the image are meant to.
        bottom, low = min(top + rows, height), max(top - SSIM_MARGIN, 0)
        strips = [image[low : bottom + SSIM_MARGIN] for image in (prediction, truth)]
        first, second = (strip.double().div(255).permute(2, 0, 1)[None] for strip in strips)
        _, values = structural_similarity_index_measure(first, second, data_range=1.0, return_full_image=True)
        total += float(values[:, :, top - low : bottom - low].sum())
    return total / prediction.numel()


@contextmanager
def _short_downloads(seconds: float) -> Iterator[None]:
    """Shorten the socket timeout, so that downloads fail quickly without a network."""
    previous = socket.getdefaulttimeout()
    socket.setdefaulttimeout(seconds)
    try:
        yield
    finally:
        socket.setdefaulttimeout(previous)


class Lpips:
    """Learned perceptual distance (Zhang et al. 2018, AlexNet).

    torchvision downloads the weights on first use. If they are neither on disk nor downloadable, `__call__` returns
    None and `reason` says why.
    """

    def __init__(self) -> None:
        self._network: nn.Module | None = None
        self._tried = False
        self.reason: str | None = None

    def __call__(self, prediction: Tensor, truth: Tensor) -> float | None:
        """Distance of two uint8 images [H, W, 3]; None without weights, or for images too small for AlexNet.

        Raises:
            ValueError: the dtype is not uint8, the shapes differ, or the last dimension is not 3.
        """
        _check_stored(prediction, truth)
        if min(prediction.shape[:2]) < ALEXNET_MIN_SIDE:
            self.reason = TOO_SMALL
            return None
        if not self._tried:
            self._tried = True
            self._load(prediction.device)
        if self._network is None:
            return None
        device = next(self._network.parameters()).device  # of the first images
        first, second = (image.to(device).float().div(255).permute(2, 0, 1)[None] for image in (prediction, truth))
        with torch.no_grad():
            return float(self._network(first, second))

    def _load(self, device: torch.device) -> None:
        try:
            from torchmetrics.image.lpip import LearnedPerceptualImagePatchSimilarity

            with _short_downloads(10):
                network = LearnedPerceptualImagePatchSimilarity(net_type="alex", normalize=True)
        except Exception as error:  # whatever fails here, the other metrics are still valid
            self.reason = (
                f"LPIPS is left out: the weights of AlexNet are not in {torch.hub.get_dir()}/checkpoints "
                f"and could not be downloaded ({error})"
            )
        else:
            self._network = network.to(device).eval()


def image_metrics(prediction: Tensor, truth: Tensor, lpips: Lpips | None = None) -> dict[str, float]:
    """PSNR (dB), SSIM and, if its weights are available, LPIPS. Metrics that an image is too small for are left out.

    Args:
        prediction, truth: [H, W, 3] in [0, 1], both on the dataset's background.
        lpips: reuse one instance for all images of an evaluation.

    Raises:
        UserError: an image contains NaN.
        ValueError: an image holds integers, the shapes differ, or the last dimension is not 3.
    """
    check_colors(prediction, truth)
    first, second = to_uint8(prediction), to_uint8(truth)
    values = {
        "psnr": psnr(first, second),
        "ssim": ssim(first, second),
        "lpips": lpips(first, second) if lpips else None,
    }
    return {name: value for name, value in values.items() if value is not None}

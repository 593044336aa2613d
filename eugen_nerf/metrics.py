"""Image metrics by one protocol for every method.

As nerfbaselines does it, prediction and truth are compared in 8 bits (rounded, which it truncates) on the dataset's
background at full size, so that no method gains from precision that a stored picture does not have.
"""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torchmetrics.functional.image import structural_similarity_index_measure

from eugen_nerf.errors import UserError

ALEXNET_MIN_SIDE = 63  # smaller images leave nothing after the last pooling
SSIM_MIN_SIDE = 6  # half of the window, 11 pixels wide, is mirrored at each edge
TOO_SMALL = f"Small images lack metrics: LPIPS needs {ALEXNET_MIN_SIDE} pixels a side, SSIM {SSIM_MIN_SIDE} pixels."


def to_uint8(image: Tensor) -> Tensor:
    """[H, W, 3] in [0, 1] (values outside are clamped, those that are not numbers become black) -> uint8."""
    return (image.nan_to_num().clamp(0, 1) * 255).round().to(torch.uint8)


def _check_stored(prediction: Tensor, truth: Tensor) -> None:
    if prediction.shape[-1:] != (3,):
        raise ValueError(f"prediction must have the shape [H, W, 3], not {list(prediction.shape)}")
    if truth.shape != prediction.shape:
        raise ValueError(f"truth must have the prediction's shape {list(prediction.shape)}, not {list(truth.shape)}")
    for name, image in (("prediction", prediction), ("truth", truth)):
        # Colours from 0 to 1 would pass for some from 0 to 255 that are all nearly black: 48 dB more.
        if image.dtype != torch.uint8:
            raise ValueError(f"{name} must be torch.uint8, not {image.dtype}; to_uint8 converts colours in [0, 1]")


def check_colors(prediction: Tensor, truth: Tensor) -> None:
    """Whether colours can be compared.

    Raises:
        UserError: a value is not a number.
        ValueError: they are no floating-point numbers.
    """
    for name, image in (("prediction", prediction), ("truth", truth)):
        if not image.is_floating_point():
            raise ValueError(f"{name} must hold floating-point colours in [0, 1], not {image.dtype}")
        # Stored as black, and on a black background that would be the best of pictures.
        if broken := int(image.isnan().any(dim=-1).sum()):
            raise UserError(
                f"The picture ({name}) has values that are no numbers, in {broken} of {image[..., 0].numel()} pixels. "
                "It cannot be measured. A field that has diverged shows such pictures: try lower learning rates."
            )


def psnr(prediction: Tensor, truth: Tensor) -> float:
    """Peak signal-to-noise ratio in dB of two uint8 images [H, W, 3] or of some of their pixels [N, 3]; infinite where
    they are equal.

    Raises:
        ValueError: they are of another dtype, or their shapes differ or do not end with 3.
    """
    _check_stored(prediction, truth)
    error = (prediction.double() - truth.double()).div(255).square().mean()
    return float(-10 * torch.log10(error))


def ssim(prediction: Tensor, truth: Tensor) -> float | None:
    """Structural similarity (Wang et al. 2004: Gaussian window, sigma 1.5) of two uint8 images [H, W, 3]; None for
    images too small for the window.

    Raises:
        ValueError: they are of another dtype, or of unequal or other shapes.
    """
    _check_stored(prediction, truth)
    if min(prediction.shape[:2]) < SSIM_MIN_SIDE:
        return None
    first, second = (image.double().div(255).permute(2, 0, 1)[None] for image in (prediction, truth))
    value = structural_similarity_index_measure(first, second, data_range=1.0)
    assert isinstance(value, Tensor)
    return float(value)


@contextmanager
def _short_downloads(seconds: float) -> Iterator[None]:
    """A machine without a network should say so soon."""
    previous = socket.getdefaulttimeout()
    socket.setdefaulttimeout(seconds)
    try:
        yield
    finally:
        socket.setdefaulttimeout(previous)


class Lpips:
    """Learned perceptual distance (Zhang et al. 2018, AlexNet); torchvision downloads its weights at first use.

    Where they are neither on disk nor to be had, `__call__` answers None, and `reason` says why.
    """

    def __init__(self) -> None:
        self._network: nn.Module | None = None
        self._tried = False
        self.reason: str | None = None

    def __call__(self, prediction: Tensor, truth: Tensor) -> float | None:
        """Distance of two uint8 images [H, W, 3]; None without weights, or for images too small for AlexNet.

        Raises:
            ValueError: they are of another dtype, or of unequal or other shapes.
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
        first, second = (image.float().div(255).permute(2, 0, 1)[None] for image in (prediction, truth))
        with torch.no_grad():
            return float(self._network(first, second))

    def _load(self, device: torch.device) -> None:
        try:
            from torchmetrics.image.lpip import LearnedPerceptualImagePatchSimilarity

            with _short_downloads(10):
                network = LearnedPerceptualImagePatchSimilarity(net_type="alex", normalize=True)
        except Exception as error:  # whatever is amiss, the other metrics stand
            self.reason = (
                f"LPIPS is left out: the weights of AlexNet are neither in {torch.hub.get_dir()}/checkpoints "
                f"nor could they be downloaded ({error})"
            )
        else:
            self._network = network.to(device).eval()


def image_metrics(prediction: Tensor, truth: Tensor, lpips: Lpips | None = None) -> dict[str, float]:
    """PSNR (dB), SSIM and, where its weights can be had, LPIPS; without those that an image is too small for.

    Args:
        prediction, truth: [H, W, 3] in [0, 1], both on the dataset's background.
        lpips: keep one for all images of an evaluation.

    Raises:
        UserError: a value is not a number.
        ValueError: the images hold integers, or are of unequal or other shapes.
    """
    check_colors(prediction, truth)
    first, second = to_uint8(prediction), to_uint8(truth)
    values = {
        "psnr": psnr(first, second),
        "ssim": ssim(first, second),
        "lpips": lpips(first, second) if lpips else None,
    }
    return {name: value for name, value in values.items() if value is not None}

"""Image metrics against closed forms, and LPIPS with, without and with damaged weights."""

from __future__ import annotations

import math
import urllib.error
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torchmetrics.functional.image import structural_similarity_index_measure

from eugen_nerf import metrics
from eugen_nerf.errors import UserError
from eugen_nerf.metrics import ALEXNET_MIN_SIDE, SSIM_MIN_SIDE, Lpips, image_metrics, psnr, ssim, to_uint8


def picture(size: int = 64, seed: int = 0) -> Tensor:
    """Smooth colors with a little noise, [size, size, 3] in [0, 1]."""
    generator = torch.Generator().manual_seed(seed)
    ramp = torch.linspace(0, 1, size)
    image = torch.stack([ramp.expand(size, size), ramp[:, None].expand(size, size), torch.full((size, size), 0.5)], -1)
    return (0.9 * image + 0.1 * torch.rand(size, size, 3, generator=generator)).clamp(0, 1)


def test_to_uint8_rounds_and_clamps() -> None:
    values = torch.tensor([-1.0, 0.0, 0.4999 / 255, 0.5001 / 255, 100.4 / 255, 254.6 / 255, 1.0, 7.0, math.nan])
    assert to_uint8(values).tolist() == [0, 0, 0, 1, 100, 255, 255, 255, 0]
    assert to_uint8(values).dtype == torch.uint8


def test_psnr_of_a_constant_difference() -> None:
    truth = torch.full((8, 9, 3), 100, dtype=torch.uint8)
    for difference in (1, 10, 55):
        expected = 20 * math.log10(255 / difference)
        assert psnr(truth + difference, truth) == pytest.approx(expected, rel=1e-12)
        assert psnr(truth, truth + difference) == pytest.approx(expected, rel=1e-12)
    assert psnr(truth, truth) == math.inf


def test_psnr_of_black_and_white() -> None:
    assert psnr(torch.zeros(4, 4, 3, dtype=torch.uint8), torch.full((4, 4, 3), 255, dtype=torch.uint8)) == 0


def test_ssim_of_equal_images_is_one() -> None:
    image = to_uint8(picture(24))
    assert ssim(image, image) == pytest.approx(1, abs=1e-12)


@pytest.mark.parametrize("height", [6, 11, 32, 37])
def test_ssim_in_strips_is_that_of_the_whole_image(height: int, monkeypatch: pytest.MonkeyPatch) -> None:
    generator = torch.Generator().manual_seed(0)
    first, second = (torch.randint(256, (height, 20, 3), dtype=torch.uint8, generator=generator) for _ in range(2))
    second = (first.double() * 0.7 + second.double() * 0.3).to(torch.uint8)
    whole = [image.double().div(255).permute(2, 0, 1)[None] for image in (first, second)]
    expected = float(structural_similarity_index_measure(*whole, data_range=1.0))  # type: ignore[arg-type]
    assert ssim(first, second) == pytest.approx(expected, rel=1e-12)
    sizes = []

    def measure(*images: torch.Tensor, **options: Any) -> Any:
        sizes.append(images[0].numel() // 3)
        return structural_similarity_index_measure(*images, **options)

    monkeypatch.setattr(metrics, "structural_similarity_index_measure", measure)
    monkeypatch.setattr(metrics, "SSIM_PIXELS", 20 * 8)
    assert ssim(first, second) == pytest.approx(expected, rel=1e-12)
    assert len(sizes) == -(-height // 8)
    assert max(sizes) <= 20 * (8 + 2 * 5)


def test_ssim_of_constant_images() -> None:
    """Without variance only the comparison of means remains: (2 a b + c) / (a^2 + b^2 + c) with c = 0.01^2."""
    a, b = 51 / 255, 153 / 255
    first = torch.full((20, 20, 3), 51, dtype=torch.uint8)
    second = torch.full((20, 20, 3), 153, dtype=torch.uint8)
    assert ssim(first, second) == pytest.approx((2 * a * b + 1e-4) / (a * a + b * b + 1e-4), rel=1e-6)


@pytest.mark.parametrize(("height", "width"), [(1, 1), (SSIM_MIN_SIDE - 1, 40), (40, SSIM_MIN_SIDE - 1)])
def test_ssim_of_images_too_small_for_its_window(height: int, width: int) -> None:
    image, lpips = picture(40)[:height, :width], Lpips()
    assert set(image_metrics(image, image)) == {"psnr"}
    assert set(image_metrics(image, image, lpips)) == {"psnr"}
    assert f"SSIM {SSIM_MIN_SIDE} pixels" in str(lpips.reason)
    smallest = to_uint8(picture(SSIM_MIN_SIDE))
    assert ssim(smallest, smallest) == pytest.approx(1)


def test_metrics_see_pictures_as_they_are_stored() -> None:
    """Differences of less than half an 8-bit level vanish; colors out of range are clamped."""
    truth = to_uint8(picture()) / 255
    assert image_metrics(truth + 0.49 / 255, truth)["psnr"] == math.inf
    white = torch.ones(16, 16, 3)
    assert image_metrics(3 * white, white)["psnr"] == math.inf
    worse = image_metrics(truth + 0.1, truth)
    assert set(worse) == {"psnr", "ssim"}
    assert worse["psnr"] == pytest.approx(20, abs=0.5)
    assert worse["ssim"] < 1


@pytest.mark.parametrize("broken", [1, 64])
def test_a_picture_with_values_that_are_no_numbers_is_not_taken_for_black(broken: int) -> None:
    black = torch.zeros(8, 8, 3)
    image = black.clone()
    image.view(64, 3)[:broken, 1] = math.nan
    with pytest.raises(UserError, match=rf"image \(prediction\) contains NaN in {broken} of 64 pixels"):
        image_metrics(image, black)
    with pytest.raises(UserError, match=r"image \(truth\) contains NaN"):
        image_metrics(black, image)


@pytest.mark.parametrize("metric", [psnr, ssim, Lpips()], ids=["psnr", "ssim", "lpips"])
def test_colors_are_not_taken_for_bytes(metric: Callable[[Tensor, Tensor], object]) -> None:
    image = picture(16)
    stored = to_uint8(image)
    with pytest.raises(ValueError, match=r"prediction must be torch\.uint8, not torch\.float32; to_uint8 converts"):
        metric(image, image)
    with pytest.raises(ValueError, match=r"truth must be torch\.uint8"):
        metric(stored, image)
    with pytest.raises(ValueError, match="prediction must hold floating-point colors"):
        image_metrics(stored, image)
    with pytest.raises(ValueError, match="truth must hold floating-point colors"):
        image_metrics(image, stored)


def test_images_are_of_three_channels_and_one_size() -> None:
    image = picture(16)
    transparent = torch.cat([image, image[..., :1]], dim=-1)
    for measure, convert in ((image_metrics, torch.clone), (psnr, to_uint8), (ssim, to_uint8)):
        with pytest.raises(ValueError, match=r"prediction must have the shape \[H, W, 3\], not \[16, 16, 4\]"):
            measure(convert(transparent), convert(transparent))
        for other in (transparent, image[:1], image[0]):  # the last two would be broadcast
            with pytest.raises(ValueError, match=r"truth must have the prediction's shape \[16, 16, 3\]"):
                measure(convert(image), convert(other))


def break_downloads(monkeypatch: pytest.MonkeyPatch, error: Exception, torch_home: Path) -> list[str]:
    """No weights on disk and no network access. Returns the requested addresses."""
    asked: list[str] = []

    def download(url: str, *args: object, **kwargs: object) -> None:
        asked.append(url)
        raise error

    monkeypatch.setenv("TORCH_HOME", str(torch_home))
    monkeypatch.setattr("torch.hub.download_url_to_file", download)
    return asked


@pytest.mark.parametrize(
    "error",
    [urllib.error.URLError("no network"), TimeoutError("timed out"), RuntimeError("invalid hash value")],
    ids=["offline", "slow", "damaged"],
)
def test_lpips_without_weights_is_left_out(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, error: Exception) -> None:
    asked = break_downloads(monkeypatch, error, tmp_path)
    lpips = Lpips()
    image = picture()
    assert lpips.reason is None
    metrics = image_metrics(image, image, lpips)
    assert set(metrics) == {"psnr", "ssim"}
    assert lpips.reason is not None
    assert str(tmp_path / "hub" / "checkpoints") in lpips.reason
    assert str(error) in lpips.reason
    image_metrics(image, image, lpips)
    assert len(asked) == 1  # one attempt for a whole evaluation


def test_lpips_with_weights(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Random weights under torchvision's file name, in place of the trained ones."""
    from torchmetrics.functional.image import learned_perceptual_image_patch_similarity
    from torchvision.models import AlexNet_Weights, alexnet

    asked = break_downloads(monkeypatch, RuntimeError("asked for a download"), tmp_path)
    torch.manual_seed(0)
    folder = tmp_path / "hub" / "checkpoints"
    folder.mkdir(parents=True)
    torch.save(alexnet(weights=None).state_dict(), folder / AlexNet_Weights.DEFAULT.url.rsplit("/", 1)[1])

    lpips = Lpips()
    image = picture()
    equal = image_metrics(image, image, lpips)
    assert equal["lpips"] == 0
    near = image_metrics((image + 0.02).clamp(0, 1), image, lpips)["lpips"]
    flipped = picture(seed=1).flip(0)
    other = image_metrics(flipped, image, lpips)["lpips"]
    assert 0 < near < other < math.inf
    assert lpips.reason is None
    # The network receives colors from -1 to 1.
    first, second = ((to_uint8(i).float() / 127.5 - 1).permute(2, 0, 1)[None] for i in (flipped, image))
    assert other == pytest.approx(float(learned_perceptual_image_patch_similarity(first, second, "alex")), rel=1e-5)
    assert not asked


def test_lpips_of_images_too_small_for_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    asked = break_downloads(monkeypatch, RuntimeError("asked for a download"), tmp_path)
    lpips = Lpips()
    image = picture(ALEXNET_MIN_SIDE - 1)
    assert "lpips" not in image_metrics(image, image, lpips)
    assert f"{ALEXNET_MIN_SIDE} pixels" in str(lpips.reason)
    assert not asked

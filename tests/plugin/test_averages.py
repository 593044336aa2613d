"""Averages over images of different sizes, some too small for a metric."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch

from eugen_nerf.metrics import SSIM_MIN_SIDE


@pytest.fixture(scope="module")
def pipeline(ball_scene: Path, parse: Any) -> Any:
    config = parse("--data", ball_scene).pipeline
    config.datamanager.data = ball_scene
    return config.setup(device="cpu", test_mode="test")


def views(pipeline: Any, *sizes: int) -> list[tuple[Any, dict[str, torch.Tensor]]]:
    """Renders black images, so that the error of the colors is known."""
    found = []
    for size in sizes:
        camera = copy.deepcopy(pipeline.datamanager.eval_dataset.cameras[0:1])
        camera.rescale_output_resolution(size / 16)
        found.append((camera, {"image": torch.zeros(size, size, 3)}))
    return found


@pytest.mark.parametrize("sizes", [(16, 4, 8), (4, 16, 8)], ids=["small later", "small first"])
@pytest.mark.parametrize("get_std", [False, True], ids=["mean", "std"])
def test_each_metric_over_the_pictures_that_have_it(pipeline: Any, sizes: tuple[int, ...], get_std: bool) -> None:
    assert 4 < SSIM_MIN_SIDE < 8
    single = {size: pipeline.get_average_image_metrics(views(pipeline, size), "eval") for size in sizes}
    assert "ssim" not in single[4]
    found = pipeline.get_average_image_metrics(views(pipeline, *sizes), "eval", get_std=get_std)
    psnr = torch.tensor([single[size]["psnr"] for size in sizes])
    ssim = torch.tensor([single[size]["ssim"] for size in sizes if size != 4])
    assert found["psnr"] == pytest.approx(float(psnr.mean()))
    assert found["ssim"] == pytest.approx(float(ssim.mean()))
    assert found["fps"] > 0
    assert ("ssim_std" in found) == ("fps_std" in found) == get_std
    if get_std:
        assert found["psnr_std"] == pytest.approx(float(psnr.std()), rel=1e-4)
        assert found["ssim_std"] == pytest.approx(float(ssim.std()), rel=1e-4)

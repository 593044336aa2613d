"""Held-out views: their selection, ground truth and metrics."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from nerfstudio.cameras.cameras import Cameras
from nerfstudio.cameras.rays import RayBundle
from PIL import Image
from torch import Tensor

from eugen_nerf.errors import UserError
from eugen_nerf.plugin import evaluation
from eugen_nerf.plugin.evaluation import evaluate, mean, spread_order


@pytest.mark.parametrize("count", [1, 2, 3, 7, 8, 20, 200])
def test_beginnings_of_the_order_are_spread(count: int) -> None:
    order = spread_order(count)
    assert sorted(order) == list(range(count))
    for length in (2, 4, 8, 16):
        if length <= count // 2:
            gaps = np.diff(sorted(order[:length]))
            assert gaps.min() >= count / (2 * length)


class Images:
    """A dataset like nerfstudio's with two photos of 8 x 8 pixels, half-transparent black."""

    def __init__(self, size: int = 8) -> None:
        pose = torch.eye(4)[:3].repeat(2, 1, 1)
        self.cameras = Cameras(pose, 10.0, 10.0, 4.0, 4.0, width=8, height=8)
        self.image_filenames = [Path("a.png"), Path("b.png")]
        self.size = size

    def __len__(self) -> int:
        return 2

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        image = torch.zeros(self.size, self.size, 4)
        image[..., 3] = 0.5
        return {"image": image}


class Gray(torch.nn.Module):
    """Renders a constant gray, and draws random numbers while doing so."""

    def __init__(self, value: float) -> None:
        super().__init__()
        self.value = value

    def get_outputs_for_camera(self, camera: Cameras) -> dict[str, Tensor]:
        torch.rand(3)
        return {"rgb": torch.full((int(camera.height), int(camera.width), 3), self.value)}


def pipeline(value: float, size: int = 8) -> Any:
    module: Any = torch.nn.Module()
    module.model = Gray(value)
    module.datamanager = SimpleNamespace(eval_dataset=Images(size))
    module.device = torch.device("cpu")
    return module


def test_transparent_photos_are_compared_on_white() -> None:
    """Black at half opacity on white is a medium gray, which rounds to 128, as 127.5 of 255 does."""
    (row,) = evaluate(pipeline(0.5), [1])
    assert row["view"] == 1
    assert row["psnr"] == evaluation.PSNR_OF_EQUAL_IMAGES
    assert row["ssim"] == pytest.approx(1)
    (darker,) = evaluate(pipeline(0.4), [0])
    assert darker["psnr"] == pytest.approx(-20 * np.log10((128 - 102) / 255))


@pytest.mark.parametrize("background", ["last_sample", "random", "black"])
def test_methods_that_show_black_are_refused_beside_others(background: str) -> None:
    """By default, nerfstudio's nerfacto trains transparent pixels to be black."""
    ours = pipeline(0.0)
    evaluation.check_background(ours)
    ours.model.config = SimpleNamespace(background_color=background)
    with pytest.raises(UserError, match=r"a\.png: is transparent.*override pipeline\.model\.background_color: white"):
        evaluation.check_background(ours)
    assert evaluate(ours, [0])[0]["psnr"] == evaluation.PSNR_OF_EQUAL_IMAGES  # alone, on its own background
    ours.model.config.background_color = "white"
    evaluation.check_background(ours)


def test_a_model_that_has_diverged_is_no_black_one() -> None:
    ours = pipeline(np.nan)
    with pytest.raises(UserError, match=r"prediction.* contains NaN in 64 of 64 pixels"):
        evaluate(ours, [0])
    ours.model.get_outputs_for_camera_ray_bundle = lambda rays: {"rgb": torch.full((*rays.shape, 3), np.nan)}
    with pytest.raises(UserError, match="contains NaN in 16 of 16"):
        evaluation.quick_psnr(ours, [0, 1], 16)


def test_the_fine_pass_is_what_a_model_with_two_passes_shows() -> None:
    ours = pipeline(0.5)
    ours.model.get_outputs_for_camera = lambda camera: {
        "rgb_coarse": torch.zeros(8, 8, 3),
        "rgb_fine": torch.ones(8, 8, 3),
    }
    assert evaluation.render_view(ours, None).min() == 1  # type: ignore[arg-type]


def test_evaluation_leaves_mode_and_random_numbers_alone() -> None:
    ours = pipeline(0.5)
    torch.manual_seed(0)
    expected = torch.rand(5)
    torch.manual_seed(0)
    ours.train()
    evaluate(ours, [0, 1])
    assert torch.equal(torch.rand(5), expected)
    assert ours.training


def test_an_evaluation_that_is_interrupted_leaves_the_mode_alone() -> None:
    ours = pipeline(0.5)
    ours.train()
    context = evaluation.evaluating(ours)
    context.__enter__()
    assert not ours.training
    assert not context.__exit__(KeyboardInterrupt, KeyboardInterrupt(), None)
    assert ours.training


class Directions(torch.nn.Module):
    """Renders the direction of every ray as a color."""

    def get_outputs_for_camera_ray_bundle(self, rays: RayBundle) -> dict[str, Tensor]:
        assert rays.directions.dim() == 3
        return {"rgb": rays.directions / 2 + 0.5}

    def get_outputs_for_camera(self, camera: Cameras) -> dict[str, Tensor]:
        return self.get_outputs_for_camera_ray_bundle(camera.generate_rays(camera_indices=0, keep_shape=True))


def test_some_pixels_are_those_of_the_whole_picture() -> None:
    ours = pipeline(0.5)
    ours.model = Directions()
    camera = ours.datamanager.eval_dataset.cameras[0:1]
    places = torch.tensor([63, 0, 17])
    whole = evaluation.render_view(ours, camera).reshape(64, 3)
    assert torch.equal(evaluation.render_pixels(ours, camera, places), whole[places])
    # All pixels, in any order, have the PSNR of the image.
    expected = mean(evaluate(ours, [0, 1]), "psnr")
    assert evaluation.quick_psnr(ours, [0, 1], 64) == pytest.approx(expected)
    assert evaluation.quick_psnr(ours, [0, 1]) == expected
    some = evaluation.quick_psnr(ours, [0, 1], 8)
    assert some != expected
    torch.rand(1)
    assert evaluation.quick_psnr(ours, [0, 1], 8) == some  # the same pixels again


def test_pictures_of_the_first_views_are_kept(tmp_path: Path) -> None:
    reports: list[float] = []
    evaluate(pipeline(0.4), [1, 0], None, reports.append, tmp_path, 1)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["0001-truth.png", "0001.png"]
    with Image.open(tmp_path / "0001.png") as image:
        assert image.getpixel((0, 0)) == (102, 102, 102)
    assert reports == [0.5, 1.0]


def test_photos_of_another_size_than_the_camera_are_refused() -> None:
    with pytest.raises(UserError, match=r"a.png: is read at 16x16, but its camera has 8x8.*downscaling"):
        evaluate(pipeline(0.5, size=16), [0])


def test_mean_needs_the_metric_of_every_view() -> None:
    rows = [{"psnr": 20.0, "lpips": 0.1}, {"psnr": 30.0}]
    assert mean(rows, "psnr") == 25
    assert mean(rows, "lpips") is None
    assert mean([], "psnr") is None


def test_lpips_is_used_only_where_its_weights_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    assert evaluation.lpips_if_on_disk() is None
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / "alexnet-owt-7be5be79.pth").write_text("")
    assert evaluation.lpips_if_on_disk() is not None

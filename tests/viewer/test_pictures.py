"""The browser renders the same images as the Python renderer."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from eugen_nerf.export.web import Options, export_web
from eugen_nerf.ops import StepRule
from eugen_nerf.plugin.runs import load_run
from tests.viewer.chromium import Page
from tests.viewer.conftest import Train, expected, psnr, rendered

pytestmark = pytest.mark.slow

SIDE = 96
VIEWS = (0, 4, 8, 12, 16)
Serve = Callable[[Path], str]


def check_pictures(page: Page, config: Path, address: str, views: tuple[int, ...] = VIEWS) -> None:
    pipeline = load_run(config)
    page.open(address)
    for view in views:
        truth = expected(pipeline, view, SIDE)["rgb"]
        assert truth.std() > 10  # the image is not empty
        quality = psnr(rendered(page, view, SIDE)[..., :3], truth)
        assert quality >= 38, f"view {view}: {quality:.2f} dB"


def test_demo_scene(page: Page, demo_run: Path, page_folder: Path, serve: Serve) -> None:
    check_pictures(page, demo_run, serve(page_folder))


@pytest.mark.parametrize("factor", [0.3, 3.0])
def test_nearer_and_further_than_the_photos(
    page: Page, demo_run: Path, page_folder: Path, tmp_path: Path, serve: Serve, factor: float
) -> None:
    """The whole object is visible, with the colors and distances of Python's image."""
    folder = shutil.copytree(page_folder, tmp_path / "page")
    description = json.loads((folder / "scene" / "scene.json").read_text())
    for row in description["views"][0]["camera_to_world"]:
        row[3] *= factor
    (folder / "scene" / "scene.json").write_text(json.dumps(description))
    pipeline = load_run(demo_run)
    position = pipeline.datamanager.eval_dataset.cameras.camera_to_worlds[0, :, 3]
    position *= factor
    page.open(serve(folder))
    truth = expected(pipeline, 0, SIDE)
    solid = truth["accumulation"][..., 0] > 0.5
    assert solid.sum() > 100
    assert truth["depth"][..., 0][solid].min() < position.norm()  # also its front
    assert psnr(rendered(page, 0, SIDE)[..., :3], truth["rgb"]) >= 38
    distance = rendered(page, 0, SIDE, "distance").copy().view(np.float32)[..., 0]
    assert np.abs(distance - truth["depth"][..., 0])[solid].mean() < 0.01 * max(factor, 1)
    depth = rendered(page, 0, SIDE, "depth")[..., :3]
    assert len(np.unique(depth[solid], axis=0)) > 20


def test_depth_opacity_and_normals(page: Page, demo_run: Path, page_folder: Path, serve: Serve) -> None:
    page.open(serve(page_folder))
    truth = expected(load_run(demo_run), 0, 32)
    opacity = rendered(page, 0, 32, "opacity")[..., 0] / 255
    assert np.abs(opacity - truth["accumulation"][..., 0]).mean() < 0.01
    distance = rendered(page, 0, 32, "distance").copy().view(np.float32)[..., 0]
    solid = truth["accumulation"][..., 0] > 0.5
    assert solid.sum() > 100
    assert np.abs(distance - truth["depth"][..., 0])[solid].mean() < 0.01
    normals = rendered(page, 0, 32, "normals")[..., :3] / 127.5 - 1
    facing = normals[..., 2][truth["accumulation"][..., 0] > 0.6]
    assert (facing > 0).mean() > 0.75  # visible surfaces face the camera
    depth = rendered(page, 0, 32, "depth")[..., :3].astype(int)
    assert len(np.unique(depth[solid].reshape(-1, 3), axis=0)) > 20


@pytest.mark.parametrize(
    "options",
    [
        ["order=2", "norm=True", "phi=gelu", "features-per-level=4"],
        ["phi=softplus", "num-features=10", "features-per-level=1", "geometry-features=6", "norm=True"],
        ["order=2", "shared=True", "phi=identity", "feature-bias=True", "num-features=8", "candidate-features=12"],
        ["phi=sin", "order=3", "num-features=6", "features-per-level=8", "num-levels=2"],
    ],
    ids=["order 2, norm, gelu", "odd widths", "products", "order 3, sin"],
)
def test_every_kind_of_layer(
    page: Page, ball_scene: Path, train_run: Train, tmp_path: Path, serve: Serve, options: list[str]
) -> None:
    config = train_run(ball_scene, 25, *(f"--pipeline.model.field.{option}" for option in options))
    export_web([config], tmp_path / "page", Options())
    page.open(serve(tmp_path / "page"))
    pipeline = load_run(config)
    assert psnr(rendered(page, 0, 24)[..., :3], expected(pipeline, 0, 24)["rgb"]) >= 38


def test_a_large_network(page: Page, ball_scene: Path, train_run: Train, tmp_path: Path, serve: Serve) -> None:
    config = train_run(ball_scene, 10, "--pipeline.model.field.num-features=128")
    export_web([config], tmp_path / "page", Options())
    assert json.loads((tmp_path / "page" / "scene" / "scene.json").read_text())["fields"][0]["multiply_adds"] > 20_000
    page.size(8, 8)
    page.open(serve(tmp_path / "page"))
    assert psnr(rendered(page, 0, 8)[..., :3], expected(load_run(config), 0, 8)["rgb"]) >= 38


@pytest.mark.parametrize(("method", "budget"), [("eugen-nerf-low-rank", 0.056), ("eugen-nerf-snnk", 0.036)])
def test_other_networks_and_bytes(
    page: Page, ball_scene: Path, train_run: Train, tmp_path: Path, serve: Serve, method: str, budget: float
) -> None:
    config = train_run(ball_scene, 25, method=method)
    export_web([config], tmp_path / "page", Options(size_budget=budget))
    description = json.loads((tmp_path / "page" / "scene" / "scene.json").read_text())
    assert description["fields"][0]["bytes"] <= 1e6 * budget
    page.open(serve(tmp_path / "page"))
    assert psnr(rendered(page, 0, 24)[..., :3], expected(load_run(config), 0, 24)["rgb"]) >= 30


def test_a_capture_with_a_background(
    page: Page, ball_scene: Path, train_run: Train, tmp_path: Path, serve: Serve
) -> None:
    config = train_run(ball_scene, 25, "--pipeline.model.contraction=True", "--pipeline.model.cone-angle=0.03")
    export_web([config], tmp_path / "page", Options())
    field = json.loads((tmp_path / "page" / "scene" / "scene.json").read_text())["fields"][0]
    assert field["space"]["contracted"]
    assert field["step"]["cone_angle"] == 0.03
    page.open(serve(tmp_path / "page"))
    pipeline = load_run(config)
    exact = expected(pipeline, 0, 24)["rgb"]
    assert psnr(rendered(page, 0, 24)[..., :3], exact) >= 38
    # Longer steps everywhere, also far away, where they grow with distance.
    rule = pipeline.model.renderer.rule
    pipeline.model.renderer.rule = StepRule(8 * rule.step_size, 8 * rule.cone_angle)
    coarse = expected(pipeline, 0, 24)["rgb"]
    assert psnr(coarse, exact) < 40
    assert psnr(rendered(page, 0, 24, step=8)[..., :3], coarse) >= 50


def test_lego(
    page: Page, train_run: Train, tmp_path: Path, serve: Serve, published_scene: Callable[[str], Path]
) -> None:
    config = train_run(published_scene("lego_small"), 150)
    export_web([config], tmp_path / "page", Options())
    check_pictures(page, config, serve(tmp_path / "page"), (0, 40, 80, 120, 160))

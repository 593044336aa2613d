"""eugen-nerf behind the interface of nerfbaselines, tested with the installed package and its python backend."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from eugen_nerf import metrics
from eugen_nerf.errors import UserError
from tests.bench.conftest import SMALL

nerfbaselines = pytest.importorskip(
    "nerfbaselines", reason="needs nerfbaselines: pip install --no-deps nerfbaselines plyfile"
)
SIZE = 16
STEPS = 200
OPTIONS = {
    **SMALL,
    "pipeline.model.field.num_features": 16,
    "pipeline.target_num_samples": 8192,
    "optimizers.networks.optimizer.lr": 1e-2,
}


@pytest.fixture(scope="module")
def scene(ball_scene: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The ball as a Blender scene of nerfbaselines, which expects 800 x 800 pixels by default."""
    folder = tmp_path_factory.mktemp("nerfbaselines") / "ball"
    shutil.copytree(ball_scene, folder)
    for path in folder.glob("transforms_*.json"):
        path.write_text(json.dumps({**json.loads(path.read_text()), "w": SIZE, "h": SIZE}))
    loader = "nerfbaselines.datasets.blender:load_blender_dataset"
    info = {"loader": loader, "id": "blender", "scene": "ball", "evaluation_protocol": "nerf"}
    (folder / "nb-info.json").write_text(json.dumps(info))
    return folder


def load(scene: Path, split: str, method: Any) -> Any:
    from nerfbaselines.datasets import load_dataset

    info = method.get_method_info()
    return load_dataset(
        str(scene),
        split,
        features=info["required_features"],
        supported_camera_models=info["supported_camera_models"],
        load_features=True,
    )


@pytest.fixture(scope="module")
def method_class() -> Any:
    """The method as nerfbaselines finds it, through its registry and this package's entry point."""
    if "eugen-nerf" not in nerfbaselines.get_supported_methods():
        pytest.skip("needs eugen-nerf installed, not only on the path, so that its entry point is there")
    with nerfbaselines.build_method_class(nerfbaselines.get_method_spec("eugen-nerf"), backend="python") as found:
        yield found


@pytest.fixture(scope="module")
def trained(method_class: Any, scene: Path) -> Any:
    torch.manual_seed(0)
    method = method_class(train_dataset=load(scene, "train", method_class), config_overrides=OPTIONS)
    method.losses = [method.train_iteration(step)["loss"] for step in range(STEPS)]
    return method


def test_it_is_a_method(method_class: Any) -> None:
    assert isinstance(method_class.__new__(method_class), nerfbaselines.Method)
    assert method_class.get_method_info()["method_id"] == "eugen-nerf"
    registered = {"eugen-nerf", "eugen-nerf-order2", "eugen-nerf-mlp"}
    assert registered <= set(nerfbaselines.get_supported_methods())
    for name in registered:
        with nerfbaselines.build_method_class(nerfbaselines.get_method_spec(name), backend="python") as found:
            assert found.get_method_info()["method_id"] == found.name == name


def test_training_learns_and_evaluation_writes_its_images(trained: Any, scene: Path) -> None:
    """Like its evaluation, except for LPIPS, whose weights it would download."""
    from nerfbaselines.evaluation import NerfEvaluationProtocol
    from nerfbaselines.metrics import psnr
    from nerfbaselines.utils import convert_image_dtype, image_to_srgb

    assert np.mean(trained.losses[-5:]) < 0.7 * np.mean(trained.losses[:5])
    test = load(scene, "test", trained)
    white = np.full((SIZE, SIZE, 3), 255, dtype=np.uint8)
    for index in range(len(test["images"])):
        one = {**test, "images": test["images"][index : index + 1], "cameras": test["cameras"][index : index + 1]}
        output = NerfEvaluationProtocol().render(trained, one)
        assert output["color"].shape == (SIZE, SIZE, 3)
        assert output["depth"].shape == (SIZE, SIZE)
        background = test["metadata"]["background_color"]
        images = [image_to_srgb(image, np.uint8, background_color=background) for image in (one["images"][0], white)]
        truth, nothing = (convert_image_dtype(image, np.float32) for image in images)
        assert psnr(output["color"], truth) > psnr(nothing, truth) + 3


def test_a_checkpoint_renders_the_same_and_goes_on(
    trained: Any, method_class: Any, scene: Path, tmp_path: Path
) -> None:
    trained.save(str(tmp_path / "saved"))
    camera = load(scene, "test", trained)["cameras"][0]
    expected = trained.render(camera)
    loaded = method_class(checkpoint=str(tmp_path / "saved"))
    assert loaded.get_info()["loaded_step"] == STEPS
    found = loaded.render(camera)
    assert expected.keys() == found.keys()
    for name in expected:
        np.testing.assert_array_equal(found[name], expected[name])
    again = method_class(checkpoint=str(tmp_path / "saved"), train_dataset=load(scene, "train", method_class))
    assert again.train_iteration(STEPS)["loss"] < np.mean(trained.losses[:5])
    # nerfbaselines continues to the last step, so steps count as if there had been no interruption.
    assert again.trainer.pipeline.spent(STEPS) == STEPS / again.config.max_num_iterations


def test_pictures_lie_on_the_datasets_background(method_class: Any, scene: Path, tmp_path: Path) -> None:
    dataset = load(scene, "train", method_class)
    camera = dataset["cameras"][0]
    corners = {}
    for name, color in (("white", (255, 255, 255)), ("black", (0, 0, 0))):
        torch.manual_seed(0)
        told = {**dataset, "metadata": {**dataset["metadata"], "background_color": color}}
        method = method_class(train_dataset=told, config_overrides=OPTIONS)
        method.save(str(tmp_path / name))
        loaded = method_class(checkpoint=str(tmp_path / name))
        pictures = [each.render(camera) for each in (method, loaded)]
        np.testing.assert_array_equal(pictures[0]["color"], pictures[1]["color"])
        corners[name] = pictures[0]["color"]
        left = 1 - pictures[0]["accumulation"]
    # Untrained fields with the same seed; the background is visible where light passes through them.
    np.testing.assert_allclose(
        corners["white"] - corners["black"], np.broadcast_to(left, corners["white"].shape), atol=1e-4
    )


def test_options_hold_for_a_checkpoint_too(trained: Any, method_class: Any, scene: Path, tmp_path: Path) -> None:
    trained.save(str(tmp_path / "saved"))
    steps = trained.config.max_num_iterations + 1000
    options = {"max_num_iterations": str(steps)}
    dataset = load(scene, "train", method_class)
    longer = method_class(checkpoint=str(tmp_path / "saved"), train_dataset=dataset, config_overrides=options)
    assert longer.get_info()["num_iterations"] == steps
    assert longer.config.optimizers["networks"]["scheduler"].max_steps == steps
    with pytest.raises(UserError, match="has no option 'levels'"):
        method_class(checkpoint=str(tmp_path / "saved"), config_overrides={"pipeline.model.field.levels": "2"})


def test_what_cannot_be_trained_on_is_refused(method_class: Any, scene: Path) -> None:
    dataset = load(scene, "train", method_class)
    with pytest.raises(UserError, match="not on linear"):
        method_class(train_dataset={**dataset, "metadata": {**dataset["metadata"], "color_space": "linear"}})
    with pytest.raises(UserError, match="has no option 'levels'"):
        method_class(train_dataset=dataset, config_overrides={"pipeline.model.field.levels": "2"})


def test_metrics_agree() -> None:
    """nerfbaselines truncates values to 8 bits and this package rounds them, hence the tolerance."""
    from nerfbaselines.metrics import dmpix_ssim, psnr
    from nerfbaselines.utils import convert_image_dtype

    generator = np.random.default_rng(0)
    truth = generator.random((40, 50, 3), dtype=np.float32)
    noisy = np.clip(truth + 0.05 * generator.standard_normal(truth.shape, dtype=np.float32), 0, 1)
    ours = metrics.image_metrics(torch.from_numpy(noisy), torch.from_numpy(truth))
    theirs = [convert_image_dtype(convert_image_dtype(image, np.uint8), np.float32) for image in (noisy, truth)]
    assert ours["psnr"] == pytest.approx(float(psnr(*theirs)), abs=0.01)
    assert ours["ssim"] == pytest.approx(float(dmpix_ssim(*theirs)), abs=5e-4)

"""nerfstudio's own models with EUGen layers: replacement, training, evaluation without internet, refusals."""

from __future__ import annotations

import copy
import json
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import tyro
from nerfstudio.cameras.rays import RayBundle
from nerfstudio.configs.method_configs import AnnotatedBaseConfigUnion, method_configs
from nerfstudio.data.datamanagers.base_datamanager import variable_res_collate
from nerfstudio.data.scene_box import SceneBox
from nerfstudio.data.utils.nerfstudio_collate import nerfstudio_collate
from nerfstudio.scripts import eval as ns_eval
from nerfstudio.scripts.train import main
from PIL import Image

from eugen_nerf.errors import SceneError, UserError
from eugen_nerf.layers import EUGen, LayerStack
from eugen_nerf.metrics import SSIM_MIN_SIDE
from eugen_nerf.ops import operators
from eugen_nerf.plugin import methods
from eugen_nerf.plugin.averages import AveragingPipeline
from eugen_nerf.plugin.dataparsers import SceneDataParserConfig
from eugen_nerf.plugin.methods import converted_method_config
from eugen_nerf.plugin.run_config import read_config
from eugen_nerf.plugin.runs import build_pipeline
from eugen_nerf.scenes import load_scene
from tests.plugin.test_methods import flat
from tests.scenes import builders

STEPS = 60
NERF_SAMPLES = ["--pipeline.model.num-coarse-samples=12", "--pipeline.model.num-importance-samples=12"]
TRUNK = ["1", "3", "5"]
# Each method: nerfstudio's name, its configuration, small options, and the paths of the layers that are replaced.
METHODS: dict[str, tuple[str, Any, list[str], list[str]]] = {
    "eugen-vanilla-nerf": (
        "vanilla-nerf",
        methods.eugen_vanilla_nerf.config,
        NERF_SAMPLES,
        [f"field_{kind}.mlp_base.layers.{i}" for kind in ("coarse", "fine") for i in TRUNK],
    ),
    "eugen-mipnerf": (
        "mipnerf",
        methods.eugen_mipnerf.config,
        NERF_SAMPLES,
        [f"field.mlp_base.layers.{i}" for i in TRUNK],
    ),
    "eugen-nerfacto": (
        "nerfacto",
        methods.eugen_nerfacto.config,
        [
            "--pipeline.model.log2-hashmap-size=10",
            "--pipeline.model.num-proposal-samples-per-ray",
            "16",
            "8",
            "--pipeline.model.num-nerf-samples-per-ray=8",
        ],
        ["field.mlp_head.layers.0"],
    ),
}


def parse(method: str, scene: Path, output: Path, *options: str) -> Any:
    words = [
        method,
        f"--data={scene}",
        f"--output-dir={output}",
        "--timestamp=t",
        "--machine.device-type=cpu",
        "--logging.local-writer.enable=False",
        "--pipeline.datamanager.train-num-rays-per-batch=64",
        "--steps-per-eval-image=1000",
        *METHODS[method][2],
        *options,
    ]
    return tyro.cli(AnnotatedBaseConfigUnion, args=words)  # type: ignore[call-overload]


@pytest.mark.parametrize("device", ["cpu", "cuda"])
@pytest.mark.parametrize("method", METHODS)
def test_nothing_but_the_layers_differs_from_nerfstudios_method(method: str, device: Any) -> None:
    original, registered, _, _ = METHODS[method]
    ours = flat(converted_method_config(method, original, type(registered.pipeline.model), device))
    theirs = flat(method_configs[original])
    different = {name for name in theirs if not name.startswith("pipeline.datamanager.dataparser.")}
    different = {name for name in different if ours[name] != theirs[name] and not name.endswith("_target")}
    assert different <= {
        "method_name",
        "machine.device_type",
        "mixed_precision",
        "vis",
        "pipeline.model.implementation",
    }
    added = {name for name in set(ours) - set(theirs) if ".dataparser" not in name}
    assert {name.rpartition(".")[0] for name in added} == {"", "pipeline.model.eugen"}
    assert ours["mixed_precision"] == (theirs["mixed_precision"] and device == "cuda")


@pytest.mark.parametrize("method", METHODS)
def test_the_layers_that_are_replaced(method: str) -> None:
    _, config, _, paths = METHODS[method]
    lines = config.pipeline.model.describe_conversion().splitlines()
    assert [line.split(":")[0] for line in lines if "-> EUGen" in line] == paths
    assert all(line.endswith(": kept") for line in lines if "-> EUGen" not in line)


@pytest.mark.slow
@pytest.mark.parametrize("method", METHODS)
def test_trains_and_is_evaluated(
    method: str, ball_scene: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    config = parse(method, ball_scene, tmp_path, f"--max-num-iterations={STEPS}")
    main(config)
    run = config.get_base_dir()
    assert "EUGen m=" in capsys.readouterr().out
    state = torch.load(run / "nerfstudio_models" / f"step-{STEPS - 1:09d}.ckpt")["pipeline"]
    for path in METHODS[method][3]:
        assert f"_model.{path}.projections" in state
    # ns-eval, on a machine without the weights of AlexNet.
    result = tmp_path / "result.json"
    arguments = ["ns-eval", f"--load-config={run / 'config.yml'}", f"--output-path={result}"]
    monkeypatch.setattr(sys, "argv", arguments)
    ns_eval.entrypoint()
    scores = json.loads(result.read_text())["results"]
    assert not any("lpips" in name for name in scores)  # images of 16 pixels are too small for it
    untrained = build_pipeline(read_config(run / "config.yml"), run / "config.yml", torch.device("cpu"))
    assert scores["psnr"] > untrained.get_average_eval_image_metrics()["psnr"] + 0.8


@pytest.mark.parametrize("method", METHODS)
def test_a_picture_too_small_for_metrics(method: str) -> None:
    box = SceneBox(torch.tensor([[-1.0] * 3, [1.0] * 3]))
    model: Any = METHODS[method][1].pipeline.model.setup(scene_box=box, num_train_data=1)
    for size, known in ((SSIM_MIN_SIDE, True), (SSIM_MIN_SIDE - 1, False)):
        kinds = ("", "_coarse", "_fine")
        outputs = {f"rgb{kind}": torch.full((size, size, 3), 0.5) for kind in kinds}
        outputs |= {f"{name}{kind}": torch.ones(size, size, 1) for name in ("accumulation", "depth") for kind in kinds}
        outputs |= {f"prop_depth_{i}": torch.ones(size, size, 1) for i in range(2)}
        metrics, _ = model.get_image_metrics_and_images(outputs, {"image": torch.rand(size, size, 3)})
        assert metrics["psnr"] > 0
        assert any("ssim" in name for name in metrics) == known
        assert not any("lpips" in name for name in metrics)


def test_averages_do_without_metrics_that_a_picture_lacks() -> None:
    for _, config, _, _ in METHODS.values():
        assert config.pipeline._target is AveragingPipeline


def test_a_converted_field_computes_merged() -> None:
    box = SceneBox(torch.tensor([[-1.0] * 3, [1.0] * 3]))
    model = METHODS["eugen-vanilla-nerf"][1].pipeline.model.setup(scene_box=box, num_train_data=1)
    trunk = model.field_fine.mlp_base
    assert isinstance(trunk, LayerStack)
    assert [i for i, layer in enumerate(trunk.layers) if isinstance(layer, EUGen)] == [1, 3, 5]
    # Two products of 256 x 256 become 256 x 128 and 128 x 256, with a column for the norm and the norm itself.
    # The 63 inputs enter at the first layer and at the skip connection.
    dense = 2 * 63 * 256 + 7 * 256 * 256
    assert trunk.multiply_adds() == dense - 3 * 256 * 256 + 3 * (128 + 256)


def test_a_converted_field_runs_on_native_code(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two calls of the op: up to the skip connection, and after it."""
    box = SceneBox(torch.tensor([[-1.0] * 3, [1.0] * 3]))
    torch.manual_seed(0)
    model: Any = METHODS["eugen-vanilla-nerf"][1].pipeline.model.setup(scene_box=box, num_train_data=1)
    trunk = model.field_fine.mlp_base
    x = torch.randn(37, 63)
    specs: list[tuple[int, ...]] = []
    run = operators.network

    def counted(x: torch.Tensor, parameters: torch.Tensor, spec: tuple[int, ...], eps: Any) -> torch.Tensor:
        specs.append(spec)
        return run(x, parameters, spec, eps)

    monkeypatch.setattr(operators, "network", counted)
    native = trunk(x)
    native.square().mean().backward()
    gradients = {name: value.grad for name, value in trunk.named_parameters()}
    assert [spec[0] for spec in specs] == [4, 3]
    exact = copy.deepcopy(trunk).double()
    exact.zero_grad()
    expected = exact(x.double())
    expected.square().mean().backward()
    assert len(specs) == 2  # float64 has no native code
    torch.testing.assert_close(native.double(), expected, rtol=1e-4, atol=1e-5)
    for name, value in exact.named_parameters():
        found = gradients[name].double()
        assert (found - value.grad).norm() <= 1e-4 * value.grad.norm(), name


class TestRefusals:
    @pytest.mark.parametrize(
        ("option", "message"),
        [
            ("--pipeline.model.eugen.num-features=257", "layers.1, Linear.256, 256.: 257 features .* its 256 units"),
            ("--pipeline.model.eugen.layers", r"\.layers is empty: this would be nerfstudio's own method"),
            ("--pipeline.model.eugen.order=0", "order must be at least 1, got 0"),
            (
                "--pipeline.model.eugen.layers=trunk.*",
                "'trunk.*' matches no feed-forward layer; .*field_coarse.mlp_base",
            ),
        ],
    )
    def test_a_plan_that_does_not_fit_leaves_nothing_behind(
        self, option: str, message: str, ball_scene: Path, tmp_path: Path
    ) -> None:
        with pytest.raises(UserError, match=r"pipeline\.model\.eugen.*" + message):
            main(parse("eugen-vanilla-nerf", ball_scene, tmp_path / "out", option))
        assert not (tmp_path / "out").exists()

    def test_a_downscale_factor_that_nerfstudio_would_ignore(self, ball_scene: Path, tmp_path: Path) -> None:
        options = ["eugen-scene", "--downscale-factor=2"]
        with pytest.raises(UserError, match=r"use --pipeline.datamanager.camera-res-scale-factor 0\.5"):
            main(parse("eugen-nerfacto", ball_scene, tmp_path / "out", *options))
        assert not (tmp_path / "out").exists()

    @pytest.mark.parametrize("split", ["train", "val"])
    def test_a_damaged_picture_is_named_and_leaves_nothing_behind(
        self, split: str, ball_scene: Path, tmp_path: Path
    ) -> None:
        scene = tmp_path / "scene"
        shutil.copytree(ball_scene, scene)
        file = scene / split / "r_1.png"
        content = bytearray(file.read_bytes())
        start = content.index(b"IDAT") + 4
        content[start : start + 40] = bytes(40)  # the file keeps its header and its end
        file.write_bytes(content)
        with pytest.raises(UserError, match=rf"{split}/r_1\.png: the image cannot be decoded"):
            main(parse("eugen-nerfacto", scene, tmp_path / "out"))
        assert not (tmp_path / "out").exists()

    @pytest.mark.parametrize(
        ("damage", "message"),
        [
            (
                lambda folder: Image.open(folder / "r_1.png").convert("RGB").save(folder / "r_1.png"),
                r"r_1\.png: only one of it and .*r_0\.png has an alpha channel",
            ),
            (
                lambda folder: [Image.open(f).convert("P").save(f) for f in folder.iterdir()],
                r"has Pillow mode P, and this method reads images through nerfstudio",
            ),
            (lambda folder: edit(folder, 0, mask="L"), r"r_1\.png: has no mask while others have one"),
            (lambda folder: [edit(folder, i, mask="RGB") for i in range(16)], r"m\.png: has Pillow mode RGB"),
            (
                lambda folder: [edit(folder, i, dark=60) for i in range(16)],
                r"m\.png: has gray values between black and white",
            ),
        ],
        ids=["alpha in some", "palette", "masks for some", "masks in color", "masks in gray"],
    )
    def test_pictures_that_nerfstudio_would_misread(
        self, damage: Any, message: str, ball_scene: Path, tmp_path: Path
    ) -> None:
        """The first would block training forever, palettes would be read as gray, and masks would be dropped."""
        scene = tmp_path / "scene"
        shutil.copytree(ball_scene, scene)
        damage(scene / "train")
        with pytest.raises(UserError, match=message):
            main(parse("eugen-nerfacto", scene, tmp_path / "out"))
        assert not (tmp_path / "out").exists()


def edit(folder: Path, index: int, mask: str = "L", dark: int | None = None) -> None:
    """Give a training photo a mask in one of Pillow's modes, white except for a corner that may be dark."""
    image = Image.new(mask, (16, 16), "white")
    if dark is not None:
        image.paste(dark, (0, 0, 4, 4))
    image.save(folder.parent / "m.png")
    listing = json.loads((folder.parent / "transforms_train.json").read_text())
    listing["frames"][index]["mask_path"] = "m.png"
    (folder.parent / "transforms_train.json").write_text(json.dumps(listing))


@pytest.mark.parametrize("method", ["eugen-vanilla-nerf", "eugen-mipnerf"])
def test_both_passes_have_outputs_that_nerfstudios_commands_know(method: str) -> None:
    """The viewer composites `depth`, ns-render writes `rgb`, and meshes are textured with `rgb` and `accumulation`."""
    model = METHODS[method][1].pipeline.model.setup(
        scene_box=SceneBox(torch.tensor([[-1.0] * 3, [1.0] * 3])), num_train_data=1
    )
    rays = RayBundle(
        torch.zeros(4, 3), torch.eye(4, 3) + 0.1, torch.ones(4, 1), nears=torch.ones(4, 1), fars=2 * torch.ones(4, 1)
    )
    outputs = model.eval()(rays)
    for name in ("rgb", "depth", "accumulation"):
        assert torch.equal(outputs[name], outputs[f"{name}_fine"])
    assert model.get_rgba_image(outputs).shape == (4, 4)
    assert "rgb" not in model.train()(rays)


def parsed(method: str, scene: Path, output: Path) -> Any:
    """The configuration as ns-train completes it."""
    config = parse(method, scene, output)
    config.pipeline.datamanager.data = config.data
    return config


@pytest.mark.parametrize(
    ("method", "starts"), [("eugen-vanilla-nerf", True), ("eugen-mipnerf", True), ("eugen-nerfacto", False)]
)
def test_rays_of_captures_start_in_front_of_them(method: str, starts: bool, ball_scene: Path, tmp_path: Path) -> None:
    capture = builders.make_transforms(tmp_path / "capture")
    config = parsed(method, capture, tmp_path)
    scene = load_scene(capture)
    config.save_config()
    assert (config.pipeline.model.collider_params["near_plane"] == scene.near) == starts
    chosen = parsed(method, capture, tmp_path / "chosen")
    chosen.pipeline.model.collider_params = {"near_plane": 0.5, "far_plane": 3.0}
    chosen.save_config()
    assert chosen.pipeline.model.collider_params["near_plane"] == 0.5
    bounded = parsed(method, ball_scene, tmp_path / "bounded")
    bounded.save_config()
    assert bounded.pipeline.model.collider_params["near_plane"] == 2


def test_a_resumed_training_keeps_its_rays(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    capture = builders.make_transforms(tmp_path / "capture")
    config = parsed("eugen-vanilla-nerf", capture, tmp_path)
    config.max_num_iterations, config.vis = 1, "tensorboard"
    main(config)
    folder = config.get_base_dir() / "nerfstudio_models"
    resumed = parsed("eugen-vanilla-nerf", capture, tmp_path / "resumed")
    resumed.load_dir = folder
    resumed.save_config()
    assert resumed.pipeline.model.collider_params == config.pipeline.model.collider_params
    assert resumed.pipeline.model.collider_params["near_plane"] != 2
    capsys.readouterr()
    other = parsed("eugen-vanilla-nerf", capture, tmp_path / "other")
    other.load_dir = folder
    other.pipeline.model.collider_params = {"near_plane": 0.5, "far_plane": 3.0}
    other.save_config()
    assert "collider_params.near_plane is 0.5, but step-000000000.ckpt was" in " ".join(capsys.readouterr().out.split())


def test_masks_that_nerfstudios_sampler_fails_at(tmp_path: Path) -> None:
    """Found before anything is written; nerfstudio would fail, or wait for a dead process, after it has begun."""

    def mask(capture: Path, index: int, share: float, size: tuple[int, int]) -> None:
        pixels = np.zeros(size[::-1], dtype=np.uint8)
        pixels[: round(size[1] * share)] = 255
        Image.fromarray(pixels).save(capture / f"mask{index}.png")
        builders.edit_frame(capture / "transforms.json", index, mask_path=f"mask{index}.png")

    def refused(capture: Path, message: str) -> None:
        config = parsed("eugen-vanilla-nerf", capture, tmp_path / "out")
        with pytest.raises(SceneError, match=message):
            config.save_config()
        assert not (tmp_path / "out").exists()

    whole = (builders.WIDTH, builders.HEIGHT)
    capture = builders.make_transforms(tmp_path / "capture")
    for index in range(9):
        mask(capture, index, 0.0 if index else 0.5, whole)
    refused(capture, r"draws 64 different pixels in each step, and the masks leave 0; .*train-num-rays-per-batch")
    for index in range(9):
        mask(capture, index, 0.5, whole)
    parsed("eugen-vanilla-nerf", capture, tmp_path / "fine").save_config()
    image = Image.open(capture / "images" / "003.png")
    image.transpose(Image.Transpose.ROTATE_90).save(capture / "images" / "003.png")
    builders.edit_frame(capture / "transforms.json", 3, w=builders.HEIGHT, h=builders.WIDTH)
    mask(capture, 3, 0.5, whole[::-1])
    refused(capture, "needs photos of one size for that")


def test_photos_of_several_sizes_are_collated_as_such(tmp_path: Path) -> None:
    capture = builders.make_transforms(tmp_path / "capture")
    for name, collate in (("alike", nerfstudio_collate), ("mixed", variable_res_collate)):
        config = parsed("eugen-vanilla-nerf", capture, tmp_path / name)
        config.save_config()
        assert config.pipeline.datamanager.collate_fn is collate
        image = Image.open(capture / "images" / "000.png")  # held out
        image.transpose(Image.Transpose.ROTATE_90).save(capture / "images" / "000.png")
        builders.edit_frame(capture / "transforms.json", 0, w=builders.HEIGHT, h=builders.WIDTH)


def test_cameras_have_the_metadata_that_exporting_them_wants(ball_scene: Path) -> None:
    parser: Any = SceneDataParserConfig(data=ball_scene).setup()
    assert parser.get_dataparser_outputs("train").cameras.metadata == {}

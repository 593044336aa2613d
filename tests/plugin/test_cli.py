"""nerfstudio's commands on this package's methods: train, resume, evaluate, render, export, view, and refusals."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import imageio_ffmpeg
import numpy as np
import pytest
import torch
from nerfstudio.engine.trainer import Trainer
from nerfstudio.scripts import eval as ns_eval
from nerfstudio.scripts import render as ns_render
from nerfstudio.scripts import train as ns_train
from PIL import Image

from eugen_nerf.errors import UserError
from tests.viewer.chromium import find_chromium

pytestmark = pytest.mark.slow

Command = Callable[..., None]
MODULES = {"ns-train": "nerfstudio.scripts.train", "ns-viewer": "nerfstudio.scripts.viewer.run_viewer"}


def start(command: str, *arguments: str | Path, cwd: Path) -> subprocess.Popen[str]:
    """Run the command in a separate process."""
    return subprocess.Popen(
        [sys.executable, "-m", MODULES[command], *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=cwd,
        env={**os.environ, "PYTHONWARNINGS": "ignore"},
    )


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch) -> Command:
    """Run the entry point of a nerfstudio script in this process, which avoids seconds of imports."""

    def run(module: Any, *arguments: str | Path) -> None:
        monkeypatch.setattr(sys, "argv", [module.__name__, *map(str, arguments)])
        module.entrypoint()

    return run


@pytest.fixture
def config(trained_run: Path) -> Path:
    return trained_run / "config.yml"


def frames(video: Path) -> np.ndarray:
    """[N, H, W, 3] uint8."""
    reader = imageio_ffmpeg.read_frames(str(video))
    width, height = next(reader)["size"]
    return np.stack([np.frombuffer(frame, dtype=np.uint8).reshape(height, width, 3) for frame in reader])


def shows_something(image: np.ndarray) -> bool:
    """A white background and a ball of many colors in front of it."""
    return bool(image.max() > 240 and image.std() > 10)


class TestTraining:
    def test_ends_by_itself_with_a_checkpoint(self, ball_scene: Path, tmp_path: Path, small_options: list[str]) -> None:
        options = ["--data", ball_scene.name, "--output-dir", tmp_path, "--timestamp=t", "--max-num-iterations=3"]
        process = start("ns-train", "eugen-nerf-mlp", *small_options, *options, cwd=ball_scene.parent)
        output, errors = process.communicate(timeout=300)
        assert process.returncode == 0, errors
        assert "Traceback" not in output + errors
        assert "Training Finished" in output
        run = tmp_path / "ball" / "eugen-nerf-mlp" / "t"
        assert (run / "config.yml").is_file()
        assert [path.name for path in (run / "nerfstudio_models").iterdir()] == ["step-000000002.ckpt"]

    def test_resumes_where_it_ended(self, parse: Any, ball_scene: Path, trained_run: Path, tmp_path: Path) -> None:
        old = torch.load(trained_run / "nerfstudio_models" / "step-000000299.ckpt")
        options = ["--data", ball_scene, "--output-dir", tmp_path, "--timestamp=t", "--max-num-iterations=2"]
        ns_train.main(parse(*options, "--load-dir", trained_run / "nerfstudio_models"))
        folder = tmp_path / "ball" / "eugen-nerf" / "t" / "nerfstudio_models"
        new = torch.load(folder / "step-000000301.ckpt")
        assert new["step"] == 301
        steps = {int(state["step"]) for group in new["optimizers"].values() for state in group["state"].values()}
        assert steps == {302}
        for name, tensor in old["pipeline"].items():
            if tensor.is_floating_point() and tensor.numel():
                assert (new["pipeline"][name] - tensor).abs().max() < 0.1, name

    def test_learning_rates_of_a_run_that_goes_on(
        self, parse: Any, ball_scene: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        rates: dict[str, dict[int, float]] = {}
        original = Trainer.train_iteration

        def noting(trainer: Any, step: int) -> Any:
            rate = trainer.optimizers.optimizers["networks"].param_groups[0]["lr"]
            rates.setdefault(trainer.config.timestamp, {})[step] = rate
            return original(trainer, step)

        monkeypatch.setattr(Trainer, "train_iteration", noting)

        def run(name: str, steps: int, *options: str | Path) -> Path:
            config = parse(
                "--data", ball_scene, "--output-dir", tmp_path, f"--timestamp={name}", f"--max-num-iterations={steps}",
                "--steps-per-save=16", "--save-only-latest-checkpoint=False", *options,
            )  # fmt: skip
            ns_train.main(config)
            folder: Path = config.get_checkpoint_dir()
            return folder

        saved = run("whole", 40)
        first = rates["whole"][0]
        assert rates["whole"][39] == pytest.approx(first * (1 - 29 / 30 * 39 / 40))
        # An interrupted run with the missing steps gives the same result as an uninterrupted one.
        run("interrupted", 23, "--load-dir", saved, "--load-step=16")
        assert rates["interrupted"] == pytest.approx({step: rates["whole"][step] for step in range(17, 40)})
        # A finished run with as many steps again gives the same result as if all had been planned from the start.
        run("longer", 40, "--load-dir", saved)
        assert list(rates["longer"]) == list(range(40, 80))
        for step in range(41, 80):
            assert rates["longer"][step] == pytest.approx(first * (1 - 29 / 30 * step / 80))

    def test_features_are_selected_on_the_way(
        self, command: Command, parse: Any, ball_scene: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        options = ["--data", ball_scene, "--output-dir", tmp_path]
        options += [f"--pipeline.model.field.{name}" for name in ("num-features=8", "candidate-features=24")]
        short = ["--max-num-iterations=40", "--steps-per-save=16", "--save-only-latest-checkpoint=False"]
        ns_train.main(parse(*options, "--timestamp=a", *short))
        assert "Kept 8 of 24 features" in " ".join(capsys.readouterr().out.split())
        run = tmp_path / "ball" / "eugen-nerf" / "a"

        def features(checkpoint: Path) -> set[int]:
            state = torch.load(checkpoint)["pipeline"]
            return {value.shape[1] for name, value in state.items() if name.endswith("projections")}

        saved = run / "nerfstudio_models"
        found = {file.name: features(file) for file in sorted(saved.iterdir())}
        assert found == {"step-000000016.ckpt": {24}, "step-000000032.ckpt": {8}, "step-000000039.ckpt": {8}}
        command(ns_eval, "--load-config", run / "config.yml", "--output-path", tmp_path / "metrics.json")
        assert json.loads((tmp_path / "metrics.json").read_text())["results"]["psnr"] > 5
        # Continued from before the selection and from after it.
        for step in (16, 32):
            name = f"from-{step}"
            more = [f"--load-step={step}", "--max-num-iterations=16", f"--timestamp={name}"]
            ns_train.main(parse(*options, "--load-dir", saved, *more))
            (last,) = (tmp_path / "ball" / "eugen-nerf" / name / "nerfstudio_models").iterdir()
            assert features(last) == {8}
            command(
                ns_eval, "--load-config", last.parents[1] / "config.yml", "--output-path", tmp_path / f"{step}.json"
            )

    def test_with_a_scene_of_nerfstudios_own_parser(self, parse: Any, ball_scene: Path, tmp_path: Path) -> None:
        options = ["--output-dir", tmp_path, "--timestamp=t", "--max-num-iterations=2"]
        ns_train.main(parse(*options, "blender-data", "--data", ball_scene))
        run = tmp_path / "ball" / "eugen-nerf" / "t"
        assert (run / "nerfstudio_models" / "step-000000001.ckpt").is_file()


class TestRefusals:
    def test_a_folder_without_a_scene_is_one_message_and_status_1(self, tmp_path: Path) -> None:
        (tmp_path / "photos").mkdir()
        process = start("ns-train", "eugen-nerf", "--data=photos", "--output-dir=outputs", cwd=tmp_path)
        output, errors = process.communicate(timeout=300)
        assert process.returncode == 1
        assert "Traceback" not in output + errors
        (message,) = [line for line in errors.splitlines() if line.strip()]
        assert message.startswith("Error: ")
        assert "photos: holds no scene. Looked for transforms_train.json" in message
        assert [path.name for path in tmp_path.iterdir()] == ["photos"]  # no run folder

    @pytest.mark.parametrize(
        ("damage", "message"),
        [
            (lambda scene: (scene / "train" / "r_3.png").write_bytes(b"\x89PNG\r\n\x1a\n cut off"), r"train/r_3\.png"),
            (lambda scene: shutil.rmtree(scene / "val"), r"transforms_val\.json"),
            (lambda scene: (scene / "transforms_train.json").write_text("{"), r"transforms_train\.json"),
        ],
        ids=["damaged image", "missing images", "damaged listing"],
    )
    def test_a_damaged_scene_leaves_no_run_folder(
        self, parse: Any, ball_scene: Path, tmp_path: Path, damage: Callable[[Path], None], message: str
    ) -> None:
        scene = tmp_path / "scene"
        shutil.copytree(ball_scene, scene)
        damage(scene)
        with pytest.raises(UserError, match=message):
            ns_train.main(parse("--data", scene, "--output-dir", tmp_path / "outputs"))
        assert not (tmp_path / "outputs").exists()

    @pytest.mark.parametrize(
        ("backend", "device", "message"),
        [
            ("auto", "cuda", "PyTorch finds no NVIDIA GPU; train with --machine.device-type cpu"),
            ("cuda", "cpu", "EUGEN_BACKEND requests cuda, but this training runs on cpu"),
            ("quick", "cpu", "EUGEN_BACKEND is 'quick', but the backends are auto"),
        ],
    )
    def test_a_machine_that_is_not_there_leaves_no_run_folder(
        self,
        parse: Any,
        ball_scene: Path,
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
        backend: str,
        device: str,
        message: str,
    ) -> None:
        monkeypatch.setenv("EUGEN_BACKEND", backend)
        monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
        options = ["--data", ball_scene, "--output-dir", tmp_path / "outputs", f"--machine.device-type={device}"]
        with pytest.raises(UserError, match=message):
            ns_train.main(parse(*options))
        assert not (tmp_path / "outputs").exists()


def test_evaluation(command: Command, config: Path, tmp_path: Path) -> None:
    pictures = tmp_path / "pictures"
    results = tmp_path / "results.json"
    command(ns_eval, "--load-config", config, "--output-path", results, "--render-output-path", pictures)
    written = json.loads(results.read_text())
    assert written["method_name"] == "eugen-nerf"
    assert written["checkpoint"].endswith("step-000000299.ckpt")
    assert 17 < written["results"]["psnr"] < 60
    assert 0.6 < written["results"]["ssim"] <= 1
    assert "lpips" not in written["results"]  # the images are too small for it
    # Truth and rendering side by side, for both test views.
    assert Image.open(pictures / "eval_img_0001.png").size == (32, 16)


class TestRendering:
    def test_interpolated_path_as_a_video(self, command: Command, config: Path, tmp_path: Path) -> None:
        video = tmp_path / "path.mp4"
        options = ["--pose-source=eval", "--interpolation-steps=4", "--frame-rate=4"]
        names = ["--rendered-output-names", "rgb", "depth"]
        command(ns_render, "interpolate", "--load-config", config, "--output-path", video, *options, *names)
        images = frames(video)
        assert images.shape == (4, 16, 32, 3)
        assert all(shows_something(image[:, :16]) for image in images)

    def test_spiral_as_a_video(self, command: Command, config: Path, tmp_path: Path) -> None:
        video = tmp_path / "spiral.mp4"
        command(
            ns_render, "spiral", "--load-config", config, "--output-path", video, "--seconds=1", "--frame-rate=3"
        )  # fmt: skip
        images = frames(video)
        assert images.shape == (3, 16, 16, 3)
        assert all(shows_something(image) for image in images)

    def test_dataset_as_images(self, command: Command, config: Path, ball_scene: Path, tmp_path: Path) -> None:
        names = ["rgb", "gt-rgb", "rgba", "depth", "accumulation"]
        options = ["--split=train+test", "--image-format=png", "--rendered-output-names", *names]
        command(ns_render, "dataset", "--load-config", config, "--output-path", tmp_path, *options)
        for split, count in (("train", 16), ("test", 2)):
            for name in names:
                assert len(list((tmp_path / split / name).glob("*.png"))) == count, (split, name)
            truth = np.asarray(Image.open(tmp_path / split / "gt-rgb" / "r_1.png")).astype(float)
            file = Image.open(ball_scene / split / "r_1.png")
            expected = Image.alpha_composite(Image.new("RGBA", file.size, "white"), file).convert("RGB")
            assert np.abs(truth - np.asarray(expected)).max() <= 1
            rendered = np.asarray(Image.open(tmp_path / split / "rgb" / "r_1.png")).astype(float)
            assert np.abs(rendered - truth).mean() < 25
            rgba = np.asarray(Image.open(tmp_path / split / "rgba" / "r_1.png"))
            assert rgba.shape == (16, 16, 4)
            assert rgba[8, 8, 3] > 200 > 55 > rgba[0, 0, 3]

    def test_reduced_dataset(self, command: Command, config: Path, tmp_path: Path) -> None:
        options = ["--downscale-factor=2", "--image-format=png", "--rendered-output-names", "rgb", "gt-rgb"]
        command(ns_render, "dataset", "--load-config", config, "--output-path", tmp_path, *options)
        for name in ("rgb", "gt-rgb"):
            assert Image.open(tmp_path / "test" / name / "r_0.png").size == (8, 8)

    def test_camera_path_with_a_crop_box(self, command: Command, config: Path, tmp_path: Path) -> None:
        poses = [[1, 0, 0, x, 0, 0, -1, -3, 0, 1, 0, 0, 0, 0, 0, 1] for x in (0.0, 0.2)]
        path = {
            "camera_type": "perspective",
            "render_height": 12,
            "render_width": 20,
            "fps": 2,
            "seconds": 1,
            "is_cycle": False,
            "smoothness_value": 0.0,
            "camera_path": [{"camera_to_world": pose, "fov": 40.0, "aspect": 20 / 12} for pose in poses],
        }
        crop = {
            "crop_bg_color": {"r": 255, "g": 0, "b": 0},
            "crop_center": [0.0, 0.0, 0.0],
            "crop_scale": [0.5, 3.0, 3.0],
            "crop_rot": [0.0, 0.0, 0.0],
        }
        images = {}
        for name, content in (("whole", path), ("cropped", {**path, "crop": crop})):
            file = tmp_path / f"{name}.json"
            file.write_text(json.dumps(content))
            output = tmp_path / name
            options = ["--camera-path-filename", file, "--output-format=images", "--image-format=png"]
            command(ns_render, "camera-path", "--load-config", config, "--output-path", output, *options)
            assert len(list(output.glob("*.png"))) == 2
            images[name] = np.asarray(Image.open(output / "00000.png")).astype(int)
            assert images[name].shape == (12, 20, 3)
        assert shows_something(images["whole"])
        red = (images["cropped"] == [255, 0, 0]).all(axis=-1)
        assert red[:, :5].all()  # beside the box
        assert not red[5:7, 10].any()  # in front of the ball
        white = (images["whole"] > 230).all(axis=-1)
        assert red.sum() > white.sum()


def test_point_cloud(command: Command, config: Path, tmp_path: Path) -> None:
    o3d = pytest.importorskip("open3d", exc_type=ImportError, reason="ns-export needs Open3D and its system libraries")
    from nerfstudio.scripts import exporter

    options = ["--num-points=500", "--normal-method=open3d", "--num-rays-per-batch=512", "--save-world-frame=True"]
    command(exporter, "pointcloud", "--load-config", config, "--output-dir", tmp_path, *options)
    cloud = o3d.io.read_point_cloud(str(tmp_path / "point_cloud.ply"))
    points = np.asarray(cloud.points)
    assert len(points) > 200
    radius = np.linalg.norm(points, axis=1)
    assert abs(np.median(radius) - 0.8) < 0.15
    # The ball's color is its normal, of which half is above 0.5.
    normal = points / radius[:, None]
    assert np.abs(np.asarray(cloud.colors) - (0.5 + 0.5 * normal)).mean() < 0.15


@pytest.mark.skipif(find_chromium() is not None, reason="tests/viewer looks at it in a browser")
def test_viewer_serves_the_run(config: Path, tmp_path: Path) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    options = ["--viewer.websocket-host=127.0.0.1", f"--viewer.websocket-port={port}"]
    process = start("ns-viewer", "--load-config", config, *options, cwd=tmp_path)
    try:
        page, deadline = "", time.monotonic() + 240
        while not page and process.poll() is None and time.monotonic() < deadline:
            try:
                with urllib.request.urlopen(f"http://127.0.0.1:{port}/", timeout=5) as answer:
                    page = answer.read().decode()
            except (urllib.error.URLError, ConnectionError, TimeoutError):
                time.sleep(0.2)
        assert "<html" in page, process.communicate() if process.poll() is not None else "no answer"
        assert process.poll() is None  # it keeps serving
    finally:
        process.terminate()
        _, errors = process.communicate(timeout=60)
    assert "Traceback" not in errors

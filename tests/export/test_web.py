"""eugen-export web: its output and its refusals."""

from __future__ import annotations

import json
import random
import re
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from nerfstudio.cameras.cameras import Cameras, CameraType
from PIL import Image
from safetensors.numpy import load_file

from eugen_nerf.errors import UserError
from eugen_nerf.export import views
from eugen_nerf.export.cli import export_main, view_main
from eugen_nerf.export.server import Server
from eugen_nerf.export.web import Options, export_web
from eugen_nerf.ops import RadianceField
from eugen_nerf.plugin.model import EugenModel
from eugen_nerf.plugin.runs import load_run
from tests.viewer.conftest import train_run  # noqa: F401  (a fixture)

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def run(ball_scene: Path, train_run) -> Path:  # type: ignore[no-untyped-def]  # noqa: F811
    """config.yml of a short run."""
    path: Path = train_run(ball_scene, 250)
    return path


def test_writes_the_field_as_it_is(run: Path, tmp_path: Path) -> None:
    export_web([run], tmp_path / "page", Options(with_images=True))
    scene = json.loads((tmp_path / "page" / "scene" / "scene.json").read_text())
    tensors = load_file(tmp_path / "page" / "scene" / "scene.safetensors")
    model = load_run(run).model
    with torch.no_grad():
        field = model.field.evaluator()
    assert isinstance(field, RadianceField)
    assert np.array_equal(tensors["table"], field.table.numpy().astype(np.float16))
    assert np.array_equal(tensors["occupancy"], model.occupancy.bits.numpy())
    assert np.array_equal(tensors["density.0.projections"], field.density.stages[0].projections.detach().numpy())
    assert np.array_equal(tensors["color.bias"], field.color.bias.detach().numpy())
    entry = scene["fields"][0]
    assert entry["multiply_adds"] == model.field.multiply_adds()
    assert entry["near"] == pytest.approx(model.renderer.near)
    assert entry["encoding"]["resolutions"] == list(field.layout.resolutions)
    assert scene["title"] == "ball"
    np.testing.assert_allclose(scene["focus"], 0, atol=1e-3)  # all cameras look at the origin
    assert [view["split"] for view in scene["views"]] == ["test"] * 2 + ["train"] * 16
    photo = np.asarray(Image.open(tmp_path / "page" / "scene" / scene["views"][0]["photo"]))
    assert photo.shape == (16, 16, 3)
    assert photo[0, 0].min() > 240  # on white
    built = Path(views.__file__).parent / "web"
    for file in (file for file in built.iterdir() if file.name != "sources.sha256"):
        assert (tmp_path / "page" / file.name).read_bytes() == file.read_bytes()


def test_other_files_are_kept_and_not_counted_as_the_pages(run: Path, tmp_path: Path) -> None:
    page = tmp_path / "page"
    export_web([run], page, Options(with_images=True))
    # A version that drops one of these names has to remove it from an older page.
    names = {"index.html", "viewer.js", "viewer.css", "icon.svg", "scene"}
    assert {path.name for path in page.iterdir()} == names
    (page / "talk.pdf").write_bytes(bytes(3_000_000))
    (page / "sources.sha256").write_text("written by earlier versions")
    size = export_web([run], page, Options(overwrite=True))
    assert {path.name for path in page.iterdir()} == {*names, "talk.pdf"}
    assert not (page / "scene" / "photos").exists()
    assert size == sum(file.stat().st_size for file in page.rglob("*") if file.is_file()) - 3_000_000


def test_a_copied_run_keeps_its_title(run: Path, tmp_path: Path) -> None:
    shutil.copytree(run.parent, tmp_path / "copied")
    export_web([tmp_path / "copied" / "config.yml"], tmp_path / "page", Options())
    assert json.loads((tmp_path / "page" / "scene" / "scene.json").read_text())["title"] == "ball"


def test_rays_without_an_end_end_beyond_the_box(run: Path, tmp_path: Path) -> None:
    config = copied(run, tmp_path / "endless")
    text = config.read_text()
    assert "    far: null\n" in text
    config.write_text(text.replace("    far: null\n", "    far: .inf\n"))
    export_web([config], tmp_path / "page", Options())
    (entry,) = json.loads((tmp_path / "page" / "scene" / "scene.json").read_text())["fields"]
    assert entry["far"] == pytest.approx(1e6 * max(entry["space"]["box"][1]))


def copied(run: Path, folder: Path) -> Path:
    """config.yml of a copy of a run in another folder."""
    shutil.copytree(run.parent, folder)
    return folder / "config.yml"


def test_networks_of_a_kind_are_told_apart(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By method and time, and by more of the path if these are equal."""

    def names(first: Path, second: Path) -> list[str]:
        export_web([first, second], tmp_path / "page", Options(overwrite=True))
        return [
            field["name"] for field in json.loads((tmp_path / "page" / "scene" / "scene.json").read_text())["fields"]
        ]

    plain = copied(run, tmp_path / "ball" / "eugen-nerf" / "t1")
    second_order = copied(run, tmp_path / "ball" / "eugen-nerf-order2" / "t1")
    elsewhere = copied(run, tmp_path / "drum" / "eugen-nerf" / "t1")
    monkeypatch.chdir(plain.parent)
    assert names(Path("config.yml"), second_order) == ["EUGen eugen-nerf/t1", "EUGen eugen-nerf-order2/t1"]
    assert names(Path("../t1/config.yml"), elsewhere) == ["EUGen ball/eugen-nerf/t1", "EUGen drum/eugen-nerf/t1"]
    assert names(plain, Path("config.yml")) == ["EUGen eugen-nerf/t1"] * 2


def test_where_the_page_is_told_unless_it_goes_with_the_command(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    export_main(["web", "--load-config", str(run), "--output", str(tmp_path / "page")])
    assert f"Look at it with: eugen-view {tmp_path / 'page'}\n" in capsys.readouterr().out

    def interrupted(server: Server) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Server, "serve_forever", interrupted)
    view_main([str(run), "--port=0", "--no-browser"])
    output = capsys.readouterr().out
    assert "Wrote" not in output
    assert "eugen-view-" not in output  # a folder that has been removed
    assert f"Serving {run} on http://127.0.0.1:" in output


@pytest.mark.parametrize("budget", [0.036, 0.0185], ids=["bytes", "smaller table"])
def test_a_budget_is_kept_and_its_price_told(run: Path, tmp_path: Path, budget: float) -> None:
    told: list[str] = []
    export_web([run], tmp_path / "page", Options(size_budget=budget), told.append)
    assert (tmp_path / "page" / "scene" / "scene.safetensors").stat().st_size <= budget * 1e6
    price = re.search(r"PSNR (\d+\.\d+) dB before, (\d+\.\d+) dB after \(([+-]\d+\.\d+) dB\)", " ".join(told))
    assert price
    before, after, change = map(float, price.groups())
    assert before > 15
    assert after - before == pytest.approx(change, abs=0.011)
    assert change > (-0.3 if budget > 0.03 else -3)
    tensors = load_file(tmp_path / "page" / "scene" / "scene.safetensors")
    assert tensors["table"].dtype == np.uint8


def test_the_same_run_gives_the_same_files(run: Path, tmp_path: Path) -> None:
    """A smaller table is trained for some steps, on photos that nerfstudio caches in random order."""
    pages = [tmp_path / name for name in ("first", "second")]
    for seed, page in enumerate(pages):
        random.seed(seed)
        export_web([run], page, Options(size_budget=0.0185))
    first, second = ((page / "scene" / "scene.safetensors").read_bytes() for page in pages)
    assert first == second


class TestRefusals:
    def test_a_budget_nothing_fits_into(self, run: Path, tmp_path: Path) -> None:
        with pytest.raises(UserError, match=r"--size-budget leaves .* and its smallest form takes"):
            export_web([run], tmp_path / "page", Options(size_budget=0.0095))
        assert list(tmp_path.iterdir()) == []

    def test_no_run(self, tmp_path: Path) -> None:
        with pytest.raises(UserError, match=r"config\.yml: does not exist"):
            export_web([tmp_path / "config.yml"], tmp_path / "page", Options())

    def test_a_damaged_config(self, run: Path, tmp_path: Path) -> None:
        shutil.copytree(run.parent, tmp_path / "run")
        (tmp_path / "run" / "config.yml").write_text("pipeline: [")
        with pytest.raises(UserError, match=r"config\.yml: is not a configuration written by ns-train"):
            export_web([tmp_path / "run" / "config.yml"], tmp_path / "page", Options())

    def test_a_damaged_checkpoint(self, run: Path, tmp_path: Path) -> None:
        copy = tmp_path / "run"
        shutil.copytree(run.parent, copy)
        (checkpoint,) = (copy / "nerfstudio_models").glob("*.ckpt")
        checkpoint.write_bytes(checkpoint.read_bytes()[:20_000])
        with pytest.raises(UserError, match=r"step-\d+\.ckpt: cannot be read"):
            export_web([copy / "config.yml"], tmp_path / "page", Options())
        assert not (tmp_path / "page").exists()

    def test_another_file_of_a_run(self, run: Path, tmp_path: Path) -> None:
        with pytest.raises(UserError, match=r"transforms\.json: is not a configuration written by ns-train"):
            export_web([run.parent / "dataparser_transforms.json"], tmp_path / "page", Options())
        assert list(tmp_path.iterdir()) == []

    @pytest.mark.parametrize(
        ("model", "says"),
        [
            (SimpleNamespace(), "has no shader for"),
            (SimpleNamespace(field=SimpleNamespace(evaluator=lambda: print)), "tiny-cuda-nn"),
        ],
        ids=["another method", "tiny-cuda-nn"],
    )
    def test_methods_that_cannot_be_shown(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, model: SimpleNamespace, says: str
    ) -> None:
        if says == "tiny-cuda-nn":
            shown = EugenModel.__new__(EugenModel)
            torch.nn.Module.__init__(shown)
            object.__setattr__(shown, "field", model.field)
        else:
            shown = model  # type: ignore[assignment]
        monkeypatch.setattr("eugen_nerf.export.web.load_run", lambda path: SimpleNamespace(model=shown))
        config = tmp_path / "scene" / "nerfacto" / "t" / "config.yml"
        with pytest.raises(UserError, match=says):
            export_web([config], tmp_path / "page", Options())
        assert list(tmp_path.iterdir()) == []

    def test_a_network_too_large(self, run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("eugen_nerf.export.web.MAX_MULTIPLY_ADDS", 500)
        with pytest.raises(
            UserError, match=r"take \d+ multiply-adds a sample, and the web viewer's shader has room for 500"
        ):
            export_web([run], tmp_path / "page", Options())

    def test_an_occupancy_grid_too_fine(self, run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("eugen_nerf.export.web.MAX_OCCUPANCY", 8)
        with pytest.raises(UserError, match=r"cells a side, and .* textures for 8\. Train with a smaller"):
            export_web([run], tmp_path / "page", Options())

    def test_an_output_that_is_not_empty_is_found_before_loading(self, tmp_path: Path) -> None:
        (tmp_path / "file").write_text("x")
        with pytest.raises(UserError, match="exists and is not empty"):
            export_web([tmp_path / "no-run.yml"], tmp_path, Options())


def test_commands_end_with_one_line_and_status_1(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for command, words in (
        (export_main, ["web", "--load-config", str(tmp_path / "x.yml"), "--output", str(tmp_path / "page")]),
        (view_main, [str(tmp_path / "x.yml"), "--no-browser"]),
        (view_main, [str(tmp_path), "--no-browser"]),
    ):
        with pytest.raises(SystemExit) as ended:
            command(words)
        assert ended.value.code == 1
        output = capsys.readouterr().out
        assert output.startswith("Error: ")
        assert output.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_help_needs_no_nerfstudio() -> None:
    code = (
        "import sys; from eugen_nerf.export import cli\n"
        "try: cli.export_main(['web', '--help'])\n"
        "except SystemExit: print('nerfstudio' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "--size-budget" in done.stdout
    assert done.stdout.strip().endswith("False")


def test_photos_lose_their_distortion() -> None:
    """A pixel of the result shows what the distorted camera sees along the pinhole camera's ray."""
    distortion = torch.tensor([[1.0, 0.2, 0.0, 0.0, 0.05, -0.02]])
    intrinsics = (60.0, 62.0, 33.0, 23.0, 64, 48)
    camera = Cameras(torch.eye(4)[None, :3], *intrinsics, distortion_params=distortion)  # type: ignore[arg-type]
    directions = camera.generate_rays(camera_indices=0).directions.numpy()
    # A photo whose color encodes the ray of each pixel.
    seen = -directions / directions[..., 2:]
    photo = np.round(127.5 + 200 * seen[..., :2]).clip(0, 255)
    pixels = np.concatenate([photo, np.zeros((48, 64, 1))], axis=-1).astype(np.uint8)
    result = views.undistorted(pixels, camera, 0).astype(float)
    pinhole = Cameras(torch.eye(4)[None, :3], *intrinsics).generate_rays(camera_indices=0)  # type: ignore[arg-type]
    wanted = -pinhole.directions.numpy() / pinhole.directions.numpy()[..., 2:]
    inner = (slice(8, -8), slice(8, -8), slice(0, 2))
    error = ((result[..., :2] - 127.5) / 200 - wanted[..., :2])[inner]
    assert np.abs(error).max() < 0.005  # one 8-bit level
    assert np.abs(error.mean(axis=(0, 1))).max() < 5e-4  # detects a center that is half a pixel off
    assert np.abs(pixels[inner].astype(float) - result[inner]).max() > 1  # there was something to undo
    assert CameraType.PERSPECTIVE.value == int(camera.camera_type[0])


@pytest.mark.parametrize(("background", "level"), [((1.0, 1.0, 1.0), 255), ((0.0, 0.0, 0.0), 0)])
def test_photos_lie_on_the_background_they_are_compared_on(
    tmp_path: Path, background: tuple[float, float, float], level: int
) -> None:
    class Photos(list[dict[str, torch.Tensor]]):
        cameras = Cameras(torch.eye(4)[None, :3], 10.0, 10.0, 4.0, 4.0, width=8, height=8)

    transparent = Photos([{"image": torch.zeros(8, 8, 4)}])
    views.write_photo(transparent, 0, tmp_path / "photo.jpg", background)
    photo = np.asarray(Image.open(tmp_path / "photo.jpg")).astype(int)
    assert np.abs(photo - level).max() <= 2  # JPEG


@pytest.mark.parametrize("given", [None, torch.zeros(1, 6)], ids=["no coefficients", "coefficients of zero"])
def test_photos_of_fisheyes_are_undistorted_whatever_their_coefficients(given: torch.Tensor | None) -> None:
    """A fisheye image grows with the angle, a pinhole image with its tangent."""
    camera = Cameras(
        torch.eye(4)[None, :3], 60.0, 60.0, 32.0, 24.0, 64, 48,
        distortion_params=given, camera_type=CameraType.FISHEYE,
    )  # type: ignore[arg-type]  # fmt: skip
    column = np.arange(64)[None, :, None] + 0.5
    angle = np.broadcast_to((column - 32) / 60, (48, 64, 3))
    pixels = np.round(127.5 + 200 * angle).clip(0, 255).astype(np.uint8)
    result = views.undistorted(pixels, camera, 0).astype(float)
    wanted = np.arctan((column[0, :, 0] - 32) / 60)
    assert np.abs((result[24, 6:-6, 0] - 127.5) / 200 - wanted[6:-6]).max() < 0.006
    assert np.abs(pixels[24, 6:-6, 0] - result[24, 6:-6, 0]).max() > 4  # there was something to undo

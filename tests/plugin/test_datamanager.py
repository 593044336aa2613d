"""SceneDataManager: pixels from the package's loaders, alpha only for training, masks, nerfstudio's own parsers."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from nerfstudio.cameras.cameras import CameraType
from nerfstudio.data.pixel_samplers import PixelSampler
from nerfstudio.model_components.ray_generators import RayGenerator
from PIL import Image

from eugen_nerf.errors import UserError
from eugen_nerf.plugin.datamanager import SceneDataManager
from eugen_nerf.plugin.recording import training_masks
from tests.pretended_gpu import WAITS, OnGpu, pretended_gpu


def build(parse: Any, *arguments: str | Path, test_mode: str = "val", device: str = "cpu") -> SceneDataManager:
    config = parse(*arguments)
    if config.data is not None:
        config.pipeline.datamanager.data = config.data
    return config.pipeline.datamanager.setup(device=device, test_mode=test_mode)


def pixels(path: Path) -> torch.Tensor:
    return torch.from_numpy(np.array(Image.open(path)).astype(np.float32) / 255)


@pytest.fixture
def capture(ball_scene: Path, tmp_path: Path) -> Path:
    """The ball's training images as a capture in one transforms.json, on gray, with masks for the first two."""
    listing = json.loads((ball_scene / "transforms_train.json").read_text())
    frames = []
    for index, frame in enumerate(listing["frames"]):
        name = f"images/{index:02d}.png"
        (tmp_path / "images").mkdir(exist_ok=True)
        rgba = Image.open(ball_scene / f"{frame['file_path']}.png")
        gray = Image.new("RGBA", rgba.size, (128, 128, 128, 255))
        Image.alpha_composite(gray, rgba).convert("RGB").save(tmp_path / name)
        frames.append({"file_path": name, "transform_matrix": frame["transform_matrix"]})
        if index < 2:
            mask = np.full((16, 16), 255, dtype=np.uint8)
            mask[:, :6] = 0
            Image.fromarray(mask).save(tmp_path / f"mask_{index}.png")
            frames[-1]["mask_path"] = f"mask_{index}.png"
    size = {"w": 16, "h": 16, "cx": 8.0, "cy": 8.0, "fl_x": 21.9, "fl_y": 21.9}
    (tmp_path / "transforms.json").write_text(json.dumps({**size, "frames": frames}))
    return tmp_path


def unmask_all(capture: Path, but: int | None = None) -> None:
    listing = json.loads((capture / "transforms.json").read_text())
    for index, frame in enumerate(listing["frames"]):
        if index != but:
            frame.pop("mask_path", None)
    (capture / "transforms.json").write_text(json.dumps(listing))


class TestAlpha:
    @pytest.mark.parametrize(("name", "value"), [("white", 1.0), ("black", 0.0)])
    def test_training_gets_it_and_evaluation_a_background(
        self, parse: Any, ball_scene: Path, name: str, value: float
    ) -> None:
        manager = build(parse, "--data", ball_scene, f"--pipeline.datamanager.eval-background={name}")
        _, batch = manager.next_train(0)
        assert batch["image"].shape == (manager.get_train_rays_per_batch(), 4)
        shown = pixels(ball_scene / "train" / "r_3.png")
        blended = shown[..., :3] * shown[..., 3:] + value * (1 - shown[..., 3:])
        # The viewer shows these images; raw colors under transparent pixels would be visible there.
        torch.testing.assert_close(manager.train_dataset[3]["image"], blended)
        _, batch = manager.next_eval(0)
        assert batch["image"].shape[1] == 3
        assert manager.eval_image_dataloader.cached_collated_batch["image"].dtype == torch.uint8
        images = torch.stack([manager.eval_dataset[index]["image"] for index in range(2)])
        drawn = images[tuple(batch["indices"].T)]
        torch.testing.assert_close(batch["image"], drawn, rtol=0, atol=1.01 / 255)  # blended in bytes
        rgba = pixels(ball_scene / "val" / "r_1.png")
        blended = rgba[..., :3] * rgba[..., 3:] + value * (1 - rgba[..., 3:])
        torch.testing.assert_close(manager.eval_dataset[1]["image"], blended)
        assert manager.train_dataset.metadata["eval_background"] == name

    def test_rendering_gets_a_background_for_the_training_images_too(self, parse: Any, ball_scene: Path) -> None:
        """ns-render sets up no training; the truth it shows must be an image."""
        manager = build(parse, "--data", ball_scene, test_mode="inference")
        image = manager.train_dataset[0]["image"]
        assert image.shape == (16, 16, 3)
        assert (image[0, 0] == 1).all()


class TestMetadata:
    def test_the_model_learns_about_the_scene_but_is_not_handed_its_frames(self, parse: Any, ball_scene: Path) -> None:
        metadata = build(parse, "--data", ball_scene).train_dataset.metadata
        assert metadata["bounded"] is True
        assert 0 < metadata["near"] < metadata["far"]
        assert "frames" not in metadata

    def test_the_test_split_is_for_evaluation_only(self, parse: Any, ball_scene: Path) -> None:
        expected = {"val": "val", "test": "test", "inference": "test"}
        for mode, split in expected.items():
            files = build(parse, "--data", ball_scene, test_mode=mode).eval_dataset.image_filenames
            assert {file.parent.name for file in files} == {split}


class TestSize:
    def test_images_are_reduced_with_their_cameras(self, parse: Any, ball_scene: Path) -> None:
        manager = build(parse, "--data", ball_scene, "eugen-scene", "--downscale-factor=2")
        item = manager.train_dataset[0]
        assert item["image"].shape == (8, 8, 3)
        camera = manager.train_dataset.cameras[0]
        assert (int(camera.width), int(camera.height)) == (8, 8)
        rgba = pixels(ball_scene / "train" / "r_0.png").double()
        alpha = rgba[..., 3].view(8, 2, 8, 2).mean(dim=(1, 3))
        read = manager.train_dataset.get_numpy_image(0)
        torch.testing.assert_close(torch.from_numpy(read[..., 3]) / 255.0, alpha.float(), rtol=0, atol=0.6 / 255)

    def test_nerfstudios_own_scale_factor_works_as_well(self, parse: Any, ball_scene: Path) -> None:
        manager = build(parse, "--data", ball_scene, "--pipeline.datamanager.camera-res-scale-factor=0.5")
        assert manager.train_dataset[0]["image"].shape == (8, 8, 3)
        assert int(manager.train_dataset.cameras[0].width) == 8


class TestMasks:
    def test_only_usable_pixels_are_trained_on(self, parse: Any, capture: Path) -> None:
        unmask_all(capture, but=1)
        manager = build(parse, "--data", capture)
        names = [file.name for file in manager.train_dataset.image_filenames]
        masked = names.index("01.png")
        for index in range(len(names)):
            mask = manager.train_dataset[index]["mask"]
            assert mask.shape == (16, 16, 1)
            assert mask[:, :6].any() == (index != masked)
            assert mask[:, 6:].all()
            assert torch.equal((training_masks(manager.train_dataset) or [])[index], mask[..., 0])
        for step in range(30):
            _, batch = manager.next_train(step)
            image, _, column = batch["indices"].unbind(-1)
            assert not (column[image == masked] < 6).any()

    def test_one_photo_at_a_time(self, parse: Any, capture: Path) -> None:
        options = [f"--pipeline.datamanager.train-num-{which}=1" for which in
                   ("images-to-sample-from", "times-to-repeat-images")]  # fmt: skip
        manager = build(parse, "--data", capture, *options)
        photos = [manager.next_train(step)[1]["indices"][:, 0].unique().tolist() for step in range(20)]
        assert all(len(each) == 1 for each in photos)
        assert len({each[0] for each in photos}) > 1

    @pytest.mark.parametrize(("options", "drawn"), [((), 2), (("--pipeline.datamanager.steps-drawn-at-once=1",), 32)])
    def test_pixels_are_drawn_for_several_steps(
        self, parse: Any, capture: Path, options: tuple[str, ...], drawn: int, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        unmask_all(capture)
        manager = build(parse, "--data", capture, *options)
        sampler, sizes = manager.train_pixel_sampler, []
        assert sampler is not None
        sampler.set_num_rays_per_batch(70)
        sample = sampler.sample
        monkeypatch.setattr(
            sampler, "sample", lambda images: sizes.append(sampler.num_rays_per_batch) or sample(images)
        )
        seen = []
        for step in range(32):
            bundle, batch = manager.next_train(step)
            assert bundle.origins.shape == batch["image"].shape == (70, 3)
            camera, row, column = batch["indices"].unbind(-1)
            photo = manager.train_dataset[int(camera[3])]["image"]
            torch.testing.assert_close(batch["image"][3], photo[row[3], column[3]])
            expected = RayGenerator(manager.train_dataset.cameras)(batch["indices"])
            torch.testing.assert_close(bundle.directions, expected.directions)
            torch.testing.assert_close(bundle.origins, expected.origins)
            seen.append(batch["indices"])
        assert sizes == [70 * 32 // drawn] * drawn
        assert sampler.num_rays_per_batch == 70
        assert manager.train_count == 32
        assert not torch.equal(seen[0], seen[1])

    def test_that_leave_nothing_are_refused(self, parse: Any, capture: Path) -> None:
        listing = json.loads((capture / "transforms.json").read_text())
        for frame in listing["frames"]:
            frame["mask_path"] = "nothing.png"
        (capture / "transforms.json").write_text(json.dumps(listing))
        Image.fromarray(np.zeros((16, 16), dtype=np.uint8)).save(capture / "nothing.png")
        with pytest.raises(UserError, match="masks of the training photos leave no pixel"):
            build(parse, "--data", capture).next_train(0)

    def test_they_are_scaled_like_the_images(self, parse: Any, capture: Path) -> None:
        manager = build(parse, "--data", capture, "--pipeline.datamanager.camera-res-scale-factor=0.25")
        names = [file.name for file in manager.train_dataset.image_filenames]
        mask = manager.train_dataset[names.index("01.png")]["mask"]
        # Columns of four pixels; the second one is half masked, so it counts as masked.
        assert mask[..., 0].tolist() == [[False, False, True, True]] * 4

    def test_a_scene_without_any_has_none(self, parse: Any, capture: Path) -> None:
        unmask_all(capture)
        assert "mask" not in build(parse, "--data", capture).train_dataset[0]


class TestSizesThatDiffer:
    @staticmethod
    def shrink(capture: Path, small: int) -> Path:
        """Give every pixel of every photo a unique color, and one photo half the height."""
        listing = json.loads((capture / "transforms.json").read_text())
        for index, frame in enumerate(listing["frames"]):
            height = 8 if index == small else 16
            row, column = np.mgrid[:height, :16]
            colors = np.stack([np.full_like(row, 10 * index), 10 * row, 10 * column], axis=-1)
            Image.fromarray(colors.astype(np.uint8)).save(capture / frame["file_path"])
            frame.update(w=16, h=height, cx=8.0, cy=height / 2)
        (capture / "transforms.json").write_text(json.dumps(listing))
        return capture

    @pytest.fixture
    def mixed(self, capture: Path) -> Path:
        """Make the last training photo smaller."""
        return self.shrink(capture, 15)

    @pytest.mark.parametrize("masks", [False, True])
    @pytest.mark.parametrize("rays", [1, 65, 4000])
    def test_every_pixel_is_drawn_alike(self, parse: Any, mixed: Path, masks: bool, rays: int) -> None:
        torch.manual_seed(rays)
        if not masks:
            unmask_all(mixed)
        manager = build(parse, "--data", mixed)
        assert manager.train_pixel_sampler is not None
        manager.train_pixel_sampler.set_num_rays_per_batch(rays)
        names = [int(file.stem) for file in manager.train_dataset.image_filenames]
        counts = torch.zeros(len(names), 16, 16)
        for step in range(max(1, 4000 // rays)):
            bundle, batch = manager.next_train(step)
            camera, row, column = batch["indices"].unbind(-1)
            expected = 10 * torch.stack([torch.tensor(names)[camera], row, column], dim=-1) / 255
            torch.testing.assert_close(batch["image"], expected)
            assert torch.equal(bundle.camera_indices[:, 0], camera)
            counts.index_put_((camera, row, column), torch.ones(rays), accumulate=True)
        usable = torch.ones_like(counts, dtype=torch.bool)
        usable[names.index(max(names)), 8:] = False
        if masks:
            usable[names.index(1), :, :6] = False
        assert not counts[~usable].any()
        # The Poisson spread of each count about the mean, and of each photo's share of the rays.
        mean = counts.sum() / usable.sum()
        assert (counts[usable] <= mean + 8 * mean.sqrt()).all()
        shares, areas = counts.sum(dim=(1, 2)), usable.sum(dim=(1, 2))
        assert ((shares - mean * areas).abs() <= 5 * (mean * areas).sqrt()).all()

    def test_few_usable_pixels(self, parse: Any, mixed: Path) -> None:
        listing = json.loads((mixed / "transforms.json").read_text())
        for index, frame in enumerate(listing["frames"]):
            mask = np.zeros((frame["h"], 16), dtype=np.uint8)
            mask[2, index] = 255
            Image.fromarray(mask).save(mixed / f"mask_{index}.png")
            frame["mask_path"] = f"mask_{index}.png"
        (mixed / "transforms.json").write_text(json.dumps(listing))
        manager = build(parse, "--data", mixed)
        _, batch = manager.next_train(0)
        names = torch.tensor([int(file.stem) for file in manager.train_dataset.image_filenames])
        camera, row, column = batch["indices"].unbind(-1)
        assert (row == 2).all()
        assert torch.equal(column, names[camera])

    def test_equirectangular_photos_keep_the_sampler_that_knows_of_poles(self, parse: Any, mixed: Path) -> None:
        manager = build(parse, "--data", mixed)
        manager.train_dataset.cameras.camera_type[:] = CameraType.EQUIRECTANGULAR.value
        sampler = manager._get_pixel_sampler(manager.train_dataset, 64)
        assert type(sampler) is PixelSampler
        assert sampler.config.is_equirectangular

    def test_only_a_photo_that_is_held_out_differs(self, parse: Any, capture: Path) -> None:
        unmask_all(self.shrink(capture, 8))
        manager = build(parse, "--data", capture)
        sizes = [
            {tuple(d[i]["image"].shape[:2]) for i in range(len(d))}
            for d in (manager.train_dataset, manager.eval_dataset)
        ]
        assert sizes == [{(16, 16)}, {(16, 16), (8, 16)}]
        assert manager.next_train(0)[1]["image"].isfinite().all()
        assert manager.next_eval(0)[1]["image"].isfinite().all()


class TestPhotosOnTheGpu:
    @pytest.mark.parametrize(("mixed", "masks"), [(False, False), (True, False), (True, True)])
    def test_drawing_does_not_wait_for_it(
        self, parse: Any, capture: Path, mixed: bool, masks: bool, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        if not masks:
            unmask_all(capture)
        if mixed:
            TestSizesThatDiffer.shrink(capture, 15)
        with pretended_gpu(monkeypatch):
            manager = build(parse, "--data", capture, device="cuda")
            manager.next_train(0)
            WAITS.clear()
            for step in range(1, 20):  # pixels are drawn in one of these steps
                bundle, batch = manager.next_train(step)
            assert WAITS == []
            assert {type(value) for value in (*batch.values(), bundle.origins)} == {OnGpu}
            camera, row, column = batch["indices"].cpu().unbind(-1)
            for drawn in range(0, len(camera), 50):
                photo = manager.train_dataset[int(camera[drawn])]["image"]
                torch.testing.assert_close(batch["image"][drawn].cpu(), photo[row[drawn], column[drawn]])

    def test_masks(self, parse: Any, capture: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        unmask_all(capture, but=1)
        with pretended_gpu(monkeypatch):
            manager = build(parse, "--data", capture, device="cuda")
            names = [file.name for file in manager.train_dataset.image_filenames]
            for step in range(10):
                camera, _, column = manager.next_train(step)[1]["indices"].cpu().unbind(-1)
                assert not (column[camera == names.index("01.png")] < 6).any()

    @pytest.mark.parametrize(
        ("option", "share_of_free", "there"),
        [(None, 4, True), (None, 3, False), ("True", 1, True), ("False", 100, False)],
    )
    def test_they_stay_in_main_memory_where_they_are_too_many(
        self,
        parse: Any,
        capture: Path,
        option: str | None,
        share_of_free: int,
        there: bool,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        unmask_all(capture)
        arguments = () if option is None else (f"--pipeline.datamanager.images-on-gpu={option}",)
        with pretended_gpu(monkeypatch):
            photos = len(build(parse, "--data", capture).train_dataset)
            free = 4 * 16 * 16 * photos * share_of_free
            monkeypatch.setattr(torch.cuda, "mem_get_info", lambda *_: (free, 1 << 40))
            manager = build(parse, "--data", capture, *arguments, device="cuda")
            bundle, batch = manager.next_train(0)
            assert isinstance(batch["indices"], OnGpu) == there  # they are where the photos are
            assert {type(batch["image"]), type(bundle.origins)} == {OnGpu}
            assert manager.next_eval(0)[1]["image"].isfinite().all()


class TestParsersOfNerfstudio:
    def test_blender_data_keeps_alpha_and_is_bounded(self, parse: Any, ball_scene: Path) -> None:
        manager = build(parse, "blender-data", "--data", ball_scene)
        assert manager.train_dataset.metadata["bounded"] is True
        assert manager.next_train(0)[1]["image"].shape[1] == 4
        assert manager.eval_dataset[0]["image"].shape == (16, 16, 3)
        assert (manager.eval_dataset[0]["image"][0, 0] == 1).all()

    def test_blender_data_without_alpha_says_nothing_of_bounds(
        self, parse: Any, ball_scene: Path, tmp_path: Path
    ) -> None:
        scene = tmp_path / "opaque"
        shutil.copytree(ball_scene, scene)
        for file in scene.glob("*/*.png"):
            Image.open(file).convert("RGB").save(file)
        manager = build(parse, "blender-data", "--data", scene)
        assert "bounded" not in manager.train_dataset.metadata
        assert manager.next_train(0)[1]["image"].shape[1] == 3

    def test_nerfstudio_data_works(self, parse: Any, capture: Path) -> None:
        unmask_all(capture)
        manager = build(parse, "nerfstudio-data", "--data", capture)
        assert "bounded" not in manager.train_dataset.metadata
        assert manager.next_train(0)[1]["image"].shape[1] == 3
        assert manager.eval_dataset[0]["image"].shape == (16, 16, 3)


def test_an_image_damaged_after_loading_is_named(parse: Any, ball_scene: Path, tmp_path: Path) -> None:
    scene = tmp_path / "damaged"
    shutil.copytree(ball_scene, scene)
    manager = build(parse, "--data", scene, test_mode="inference")
    damaged = scene / "train" / "r_5.png"
    damaged.write_bytes(damaged.read_bytes()[:60])
    with pytest.raises(UserError, match=r"r_5\.png"):
        manager.train_dataset[5]

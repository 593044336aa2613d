"""Published captures, if a folder with them is available."""

from __future__ import annotations

import numpy as np
import pytest

from eugen_nerf.scenes import load_scene, read_image
from eugen_nerf.scenes.colmap import read_model


def poses_of(path, **options):
    """[N, 3, 4] of all frames, sorted by image, and the scene of the training split."""
    train, test = load_scene(path, "train", **options), load_scene(path, "test", **options)
    frames = sorted((*train.frames, *test.frames), key=lambda frame: frame.image_path)
    return np.array([frame.camera_to_world for frame in frames]), train


def test_lego(published_scene):
    scene = load_scene(published_scene("lego_400"))
    assert (scene.layout, scene.bounded, scene.has_alpha, scene.warnings) == ("blender", True, True, ())
    assert len(scene.frames) == 100
    assert scene.near < 2
    assert scene.far > 6
    assert scene.frames[0].fx == pytest.approx(555.5555, abs=1e-3)
    assert read_image(scene.frames[0]).shape == (400, 400, 4)


def test_fox_as_it_was_published(published_scene):
    scene = load_scene(published_scene("fox_small/transforms_as_shipped.json"))
    (warning,) = scene.warnings
    assert "17 of the 67 images it lists do not exist" in warning
    complete = load_scene(published_scene("fox_small"))
    assert complete.warnings == ()
    assert [frame.name for frame in scene.frames] == [frame.name for frame in complete.frames]
    assert scene.frames[0].camera_model == "opencv"
    np.testing.assert_allclose(scene.frames[5].camera_to_world, complete.frames[5].camera_to_world)


def test_fern_begins_at_distance_one(published_scene):
    poses, scene = poses_of(published_scene("fern_small"))
    assert (scene.layout, scene.bounded, len(poses)) == ("llff", False, 20)
    assert scene.near == pytest.approx(0.9)
    assert np.abs(poses[:, :, 3]).max() < 0.4


def test_cup_prefers_colmap(published_scene):
    path = published_scene("colmap_cup")
    scene = load_scene(path)
    assert scene.layout == "colmap"
    # The table top, which contains most of the points, is level although the photos are stored rotated.
    near = scene.points[np.linalg.norm(scene.points, axis=1) < 0.5]
    heights = near[:, 2]
    table = np.median(heights)
    assert (np.abs(heights - table) < 0.05).mean() > 0.4


def test_cup_observations_project_onto_their_pixels(published_scene):
    pycolmap = pytest.importorskip("pycolmap")
    path = published_scene("colmap_cup")
    reference = pycolmap.Reconstruction(str(path / "sparse" / "0"))
    model = read_model(path / "sparse" / "0")
    assert set(model.images) == set(reference.images)
    scene = load_scene(path)
    by_name = {frame.image_path.name: frame for frame in scene.frames}
    errors = []
    for image in reference.images.values():
        frame = by_name.get(image.name)
        if frame is None:
            continue
        seen = [point for point in image.points2D if point.has_point3D()][::20]
        world = np.array([reference.points3D[point.point3D_id].xyz for point in seen])
        moved = scene.world_scale * (world @ scene.world_transform[:, :3].T + scene.world_transform[:, 3])
        x, y, z = frame.camera_to_world[:, :3].T @ (moved - frame.camera_to_world[:, 3]).T
        pixels = np.stack([frame.cx - frame.fx * x / z, frame.cy + frame.fy * y / z], axis=1)
        errors.append(np.linalg.norm(pixels - [point.xy for point in seen], axis=1))
    # The reconstruction has a mean reprojection error of 0.6 pixels.
    assert np.concatenate(errors).mean() < 1.0


def test_cup_read_as_llff_has_the_same_cameras(published_scene):
    path = published_scene("colmap_cup")
    colmap, _ = poses_of(path)
    llff, _ = poses_of(path, layout="llff")
    np.testing.assert_allclose(llff, colmap, atol=1e-5)

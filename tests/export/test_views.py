"""Names of the dataset's views, and the point its cameras look at."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from nerfstudio.cameras.cameras import Cameras, CameraType

from eugen_nerf.export import views


def dataset(*files: str) -> Any:
    cameras = Cameras(torch.eye(4)[:3].expand(len(files), 3, 4), 10.0, 10.0, 4.0, 4.0, width=8, height=8)
    return SimpleNamespace(cameras=cameras, image_filenames=[Path(file) for file in files])


@pytest.mark.parametrize(
    ("files", "names"),
    [
        (["/s/left/0001.png", "/s/left/0002.png"], ["0001", "0002"]),
        (["/s/left/0001.png", "/s/right/0002.png"], ["0001", "0002"]),
        (["/s/left/0001.png", "/s/right/0001.png"], ["left/0001", "right/0001"]),
        (["/s/a/left/1.png", "/s/b/left/1.png", "/s/b/2.png"], ["a/left/1", "b/left/1", "b/2"]),
        (["/s/0001.png", "/s/right/0001.png"], ["0001", "right/0001"]),
        (["/s/1.png", "/s/1.jpg"], ["1.png", "1.jpg"]),
        (["left/1.v2.png", "right/1.v2.png"], ["left/1.v2", "right/1.v2"]),
    ],
    ids=["one folder", "two folders", "same names", "deeper", "folder beside", "same but for the suffix", "dots"],
)
def test_no_two_views_of_a_split_have_one_name(files: list[str], names: list[str]) -> None:
    listed = views.describe_views({"test": dataset("/s/left/0001.png"), "train": dataset(*files)})
    assert [view["name"] for view in listed] == ["test/0001", *(f"train/{name}" for name in names)]


def looking(position: tuple[float, float, float], at: tuple[float, float, float]) -> dict[str, Any]:
    back = np.subtract(position, at) / np.linalg.norm(np.subtract(position, at))
    right = np.cross((0.0, 0.0, 1.0), back)
    right /= np.linalg.norm(right)
    return {"camera_to_world": np.stack([right, np.cross(back, right), back, position], axis=1).tolist()}


RING = [looking((2 * np.cos(t), 2 * np.sin(t), 1.0), (0.3, 0.1, 0.0)) for t in np.linspace(0, 6, 9)]


def test_focus_is_what_the_cameras_look_at() -> None:
    np.testing.assert_allclose(views.focus(RING), [0.3, 0.1, 0.0], atol=1e-5)


def test_a_camera_that_looks_away_does_not_move_the_focus() -> None:
    away = looking((3.0, 1.0, 0.0), (6.0, 4.0, 0.0))
    np.testing.assert_allclose(views.focus([*RING, away]), [0.3, 0.1, 0.0], atol=1e-5)


def test_cameras_that_look_at_no_common_point_have_a_focus_nonetheless() -> None:
    parallel = [looking((x, 1.0, 0.0), (x, 0.0, 0.0)) for x in (-1.0, 1.0)]
    np.testing.assert_allclose(views.focus(parallel), [0.0, 1.0, 0.0], atol=1e-5)
    np.testing.assert_allclose(views.focus(parallel[:1]), [-1.0, 1.0, 0.0], atol=1e-5)
    # Nearly parallel cameras, as in a scene captured from one side: a point far in front of them.
    forward = [looking((x, 5.0, 0.0), (0.0, 0.0, 0.0)) for x in (-0.1, 0.0, 0.1)]
    np.testing.assert_allclose(views.focus(forward), [0.0, 0.0, 0.0], atol=0.05)
    outward = [looking((np.cos(t), np.sin(t), 0.0), (2 * np.cos(t), 2 * np.sin(t), 0.0)) for t in range(6)]
    np.testing.assert_allclose(views.focus(outward), 0, atol=1e-4)


@pytest.mark.parametrize("kind", [CameraType.PERSPECTIVE, CameraType.FISHEYE])
def test_photos_without_their_distortion_have_no_black_edges(kind: CameraType) -> None:
    distortion = torch.tensor([[0.2, 0.05, 0.0, 0.0, 0.0, 0.0]])
    pose = torch.eye(4)[None, :3]
    cameras = Cameras(pose, 40.0, 40.0, 30.0, 20.0, 60, 40, distortion_params=distortion, camera_type=kind)
    white = np.full((40, 60, 3), 255, dtype=np.uint8)
    assert views.undistorted(white, cameras, 0).min() == 255

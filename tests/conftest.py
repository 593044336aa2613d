"""Shared test configuration: collected files, number of threads, and a tiny scene in Blender layout.

The scene shows a ball, and its images follow from a formula.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

# Read when torch is imported, here and in processes that tests start: these networks are too small for several threads,
# and the suite runs in several processes.
os.environ["OMP_NUM_THREADS"] = "1"
import torch

with contextlib.suppress(ImportError):  # GPU tests do without hypothesis
    import hypothesis

    # The same examples in every run: a test that fails by chance says nothing about the change that it fails for.
    hypothesis.settings.register_profile("deterministic", derandomize=True)
    hypothesis.settings.load_profile("deterministic")


def _only_gpu(config: pytest.Config) -> bool:
    """Whether the command line asks for GPU tests alone: `-m gpu`, or `-m "gpu and ..."`."""
    return re.fullmatch(r"gpu( and .*)?", config.option.markexpr) is not None


def pytest_configure(config: pytest.Config) -> None:
    """With `-m gpu`, use all threads: the CPU only computes large reference batches in float64."""
    if _only_gpu(config):
        processes = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", 1))
        torch.set_num_threads(max(1, (os.cpu_count() or 1) // processes))


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """Skip files without GPU tests, so that `-m gpu` runs where only torch, numpy, Pillow and pytest are installed."""
    if not _only_gpu(config):
        return None
    files = collection_path.rglob("test_*.py") if collection_path.is_dir() else [collection_path]
    return not any("pytest.mark.gpu" in file.read_text() for file in files) or None


LOST = pytest.StashKey[str]()  # the test after which the GPU could no longer be used in this process


def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> None:
    """Note whether a failed test has left the GPU unusable, as an illegal access does."""
    if call.excinfo is not None and item.get_closest_marker("gpu") and torch.cuda.is_initialized():
        try:
            torch.cuda.synchronize()
        except RuntimeError:
            item.config.stash.setdefault(LOST, item.nodeid)


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Fail at once where the GPU cannot be used, instead of after computing references in float64."""
    if item.get_closest_marker("gpu") and LOST in item.config.stash:
        pytest.fail(f"the GPU cannot be used in this process since {item.config.stash[LOST]}", pytrace=False)


@pytest.fixture
def several_threads() -> Iterator[None]:
    """Three threads for native code that divides its work: few sizes divide evenly by three."""
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    yield
    torch.set_num_threads(before)


RADIUS = 0.8
DISTANCE = 3.0
ANGLE_X = 0.7
SPLITS = {"train": 16, "val": 2, "test": 2}


def camera_pose(index: int, count: int) -> np.ndarray:
    """[4, 4] camera-to-world, OpenGL axes: on a sphere around the origin, looking at it, spread by golden angles."""
    height = 1 - (2 * index + 1) / count if count > 1 else 0.0
    angle = index * math.pi * (3 - math.sqrt(5))
    ring = math.sqrt(1 - height**2)
    back = np.array([ring * math.cos(angle), ring * math.sin(angle), height])
    right = np.cross([0.0, 0.0, 1.0], back)
    right /= np.linalg.norm(right)
    pose = np.eye(4)
    pose[:3] = np.stack([right, np.cross(back, right), back, DISTANCE * back], axis=1)
    return pose


def photograph(pose: np.ndarray, size: int) -> np.ndarray:
    """[size, size, 4] uint8: the ball is opaque and colored by its normal, everything around it is transparent."""
    focal = 0.5 * size / math.tan(0.5 * ANGLE_X)
    axis = (np.arange(size) + 0.5 - size / 2) / focal
    x, y = np.meshgrid(axis, -axis)
    directions = np.stack([x, y, -np.ones_like(x)], axis=-1) @ pose[:3, :3].T
    directions /= np.linalg.norm(directions, axis=-1, keepdims=True)
    toward = -(directions @ pose[:3, 3])
    discriminant = toward**2 - DISTANCE**2 + RADIUS**2
    distance = toward - np.sqrt(np.maximum(discriminant, 0))
    normal = (pose[:3, 3] + distance[..., None] * directions) / RADIUS
    rgba = np.zeros((size, size, 4))
    hit = discriminant > 0
    rgba[hit, :3] = 0.5 + 0.5 * normal[hit]
    rgba[hit, 3] = 1
    return np.round(255 * rgba.clip(0, 1)).astype(np.uint8)


def write_ball_scene(root: Path, size: int = 16) -> Path:
    """Write transforms_{train,val,test}.json and their images, `size` pixels per side."""
    for number, (split, count) in enumerate(SPLITS.items()):
        (root / split).mkdir(parents=True)
        frames = []
        for index in range(count):
            # The cameras of the splits are interleaved.
            pose = camera_pose(index * len(SPLITS) + number, count * len(SPLITS))
            Image.fromarray(photograph(pose, size)).save(root / split / f"r_{index}.png")
            frames.append({"file_path": f"./{split}/r_{index}", "transform_matrix": pose.tolist()})
        listing = {"camera_angle_x": ANGLE_X, "frames": frames}
        (root / f"transforms_{split}.json").write_text(json.dumps(listing))
    return root


@pytest.fixture(scope="session")
def ball_scene(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """16 training images of a ball, 16 x 16 pixels each. Tests must not change it; copy it first."""
    return write_ball_scene(tmp_path_factory.mktemp("scenes") / "ball")


@pytest.fixture(scope="session")
def published_scene() -> Callable[[str], Path]:
    """Folder of a published scene in $EUGEN_DATA, by name; skips if it is not there."""
    data = os.environ.get("EUGEN_DATA")

    def find(name: str) -> Path:
        if data is None or not (Path(data) / name).exists():
            pytest.skip(f"{name} is not in EUGEN_DATA ({data})")
        return Path(data) / name

    return find

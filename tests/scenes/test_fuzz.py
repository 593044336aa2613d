"""For any content of a scene's files, `load_scene` returns a scene or raises a SceneError of one line."""

from __future__ import annotations

import shutil
import struct
import unicodedata

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from eugen_nerf.errors import SceneError
from eugen_nerf.scenes import load_scene, read_image, read_mask
from tests.scenes import builders


def make_small_transforms(root):
    builders.make_transforms(root, count=3, k1=0.1, camera_model="OPENCV", train_filenames=["images/000.png"])
    builders.edit_frame(root / "transforms.json", 0, mask_path="images/001.png")


SCENES = {
    "blender": lambda root: builders.make_blender(root, {"train": 2, "test": 1}),
    "transforms": make_small_transforms,
    "colmap-binary": lambda root: builders.make_colmap_binary(root, 3),
    "colmap-text": lambda root: builders.make_colmap_text(root, 3),
    "llff": lambda root: builders.make_llff(root, 3),
}
SPECIAL_NUMBERS = (0.0, -1.0, float("nan"), float("inf"), 1e308, 1e-308)
SPECIAL_WORDS = (
    b"NaN",
    b"-1",
    b"1e999",
    b"null",
    b"{}",
    b"[]",
    b'"x"',
    b"0",
    b"true",
    b"\xff\xfe",
    b"\0",
    b"9" * 5000,
)


@st.composite
def damages(draw):
    """A strategy for functions that damage bytes."""
    position = draw(st.floats(0, 1, exclude_max=True))
    kind = draw(st.sampled_from(["cut", "flip", "replace", "insert", "delete", "number", "word"]))
    value = draw(st.integers(0, 255))
    length = draw(st.integers(1, 40))
    number = draw(st.sampled_from(SPECIAL_NUMBERS))
    word = draw(st.sampled_from(SPECIAL_WORDS))

    def damage(data):
        at = int(position * len(data))
        if kind == "cut":
            return data[:at]
        if kind == "flip":
            return data[:at] + bytes([data[at] ^ (1 << value % 8)]) + data[at + 1 :] if data else data
        if kind == "replace":
            return data[:at] + bytes([value]) * length + data[at + length :]
        if kind == "insert":
            return data[:at] + bytes([value]) * length + data[at:]
        if kind == "delete":
            return data[:at] + data[at + length :]
        if kind == "number":
            return data[:at] + struct.pack("<d", number) + data[at + 8 :]
        # Replace a word of a text file by another kind of value.
        separators = b" ,:[]{}\n"
        start, end = at, at
        while start and data[start - 1] not in separators:
            start -= 1
        while end < len(data) and data[end] not in separators:
            end += 1
        return data[:start] + word + data[end:]

    return damage


@pytest.fixture(scope="module", params=SCENES, ids=str)
def scene_folder(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp(request.param)
    SCENES[request.param](folder)
    for split in ("train", "test"):
        if not (request.param == "transforms" and split == "test"):
            load_scene(folder, split)
    return folder


@given(
    which=st.integers(0, 1000),
    damage=st.lists(damages(), min_size=1, max_size=3),
    split=st.sampled_from(["train", "val", "test"]),
    downscale=st.integers(1, 3),
    bounded=st.sampled_from([None, True, False]),
)
@settings(
    max_examples=80,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
def test_damaged_scenes_load_or_are_refused(scene_folder, tmp_path, which, damage, split, downscale, bounded):
    folder = tmp_path / "scene"
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(scene_folder, folder)
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    # The few files with cameras matter more than the many image files.
    files = [path for path in files if path.suffix != ".png"] * 3 + [path for path in files if path.suffix == ".png"]
    path = files[which % len(files)]
    data = path.read_bytes()
    for change in damage:
        data = change(data)
    path.write_bytes(data)
    try:
        scene = load_scene(folder, split, downscale=downscale, bounded=bounded)
        assert all(np.isfinite(frame.camera_to_world).all() for frame in scene.frames)
        assert 0 < scene.near < scene.far < np.inf
        for frame in scene.frames:
            assert read_image(frame).shape == (frame.height, frame.width, frame.channels)
            assert read_mask(frame).shape == (frame.height, frame.width)
    except SceneError as error:
        message = str(error)
        assert str(folder) in message
        assert {unicodedata.category(character) for character in message}.isdisjoint({"Cc", "Cs"}), message

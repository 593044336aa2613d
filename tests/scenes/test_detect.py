from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from eugen_nerf.errors import SceneError
from eugen_nerf.scenes import detect_layout, load_scene
from tests.scenes import builders


@pytest.mark.parametrize(
    ("make", "layout"),
    [
        (builders.make_blender, "blender"),
        (builders.make_transforms, "transforms"),
        (builders.make_colmap_binary, "colmap"),
        (builders.make_colmap_text, "colmap"),
        (builders.make_llff, "llff"),
    ],
    ids=["blender", "transforms", "colmap-binary", "colmap-text", "llff"],
)
def test_each_layout_is_recognized(tmp_path, make, layout):
    assert detect_layout(make(tmp_path)) == layout


@pytest.mark.parametrize("folder", ["colmap/sparse/0", "sparse"])
def test_colmap_models_are_found_in_every_usual_folder(tmp_path, folder):
    builders.make_colmap_binary(tmp_path / "scene")
    target = tmp_path / "other" / folder
    shutil.copytree(tmp_path / "scene" / "sparse" / "0", target)
    shutil.copytree(tmp_path / "scene" / "images", tmp_path / "other" / "images")
    assert load_scene(tmp_path / "other").layout == "colmap"


def test_the_more_explicit_layout_wins(tmp_path):
    builders.make_llff(tmp_path)
    assert detect_layout(tmp_path) == "llff"
    builders.make_colmap_text(tmp_path)
    assert detect_layout(tmp_path) == "colmap"
    builders.make_transforms(tmp_path)
    assert detect_layout(tmp_path) == "transforms"
    builders.make_blender(tmp_path)
    assert detect_layout(tmp_path) == "blender"


def test_a_test_split_alone_does_not_hide_another_layout(tmp_path):
    builders.make_blender(tmp_path, {"test": 2})
    assert detect_layout(tmp_path) == "blender"
    builders.make_transforms(tmp_path)
    assert detect_layout(tmp_path) == "transforms"


def test_json_files_are_accepted_as_paths(tmp_path):
    builders.make_transforms(tmp_path)
    other = (tmp_path / "transforms.json").rename(tmp_path / "cameras.json")
    assert load_scene(other).root == tmp_path
    builders.make_blender(tmp_path)
    assert load_scene(tmp_path / "transforms_train.json").layout == "blender"
    with pytest.raises(SceneError, match=r"cameras\.json: is a file of the layout transforms; for colmap"):
        load_scene(other, layout="colmap")


def test_a_missing_path_is_named(tmp_path):
    for layout in ("auto", "llff"):
        with pytest.raises(SceneError, match="nowhere: does not exist"):
            load_scene(tmp_path / "nowhere", layout=layout)
    with pytest.raises(SceneError, match="does not exist"):
        load_scene(tmp_path / "null\0byte")


def test_a_file_is_not_a_scene(tmp_path):
    (tmp_path / "photo.png").write_bytes(b"x")
    with pytest.raises(SceneError, match=r"photo\.png: is a file; give the folder of a scene"):
        load_scene(tmp_path / "photo.png")


def test_an_unknown_folder_lists_what_was_looked_for_and_found(tmp_path):
    with pytest.raises(SceneError, match="The folder is empty"):
        load_scene(tmp_path)
    for index in range(10):
        (tmp_path / f"{index}.txt").touch()
    with pytest.raises(SceneError) as error:
        load_scene(tmp_path)
    message = str(error.value)
    for word in (
        "transforms_train.json",
        "transforms.json",
        "sparse/0",
        "poses_bounds.npy",
        "0.txt",
        "and 2 more",
    ):
        assert word in message
    assert "\n" not in message


def test_a_scene_one_folder_down_is_suggested(tmp_path):
    builders.make_llff(tmp_path / "fern")
    with pytest.raises(SceneError, match=r"did you mean .*fern\?"):
        load_scene(tmp_path)


@pytest.mark.parametrize(
    ("layout", "message"),
    [
        ("transforms", r"transforms\.json: does not exist. The folder holds images/, poses_bounds\.npy"),
        ("colmap", "no COLMAP model; looked for cameras and images as .bin or .txt in sparse/0"),
        ("blender", "none of transforms_train.json, transforms_val.json, transforms_test.json exists"),
    ],
)
def test_an_explicit_layout_names_what_is_missing(tmp_path, layout, message):
    with pytest.raises(SceneError, match=message):
        load_scene(builders.make_llff(tmp_path), layout=layout)


def test_importing_scenes_needs_neither_torch_nor_nerfstudio():
    code = "import sys, eugen_nerf.scenes; sys.exit(any(m in sys.modules for m in ('torch', 'nerfstudio')))"
    root = Path(__file__).resolve().parents[2]
    assert subprocess.run([sys.executable, "-c", code], cwd=root, check=False).returncode == 0


def test_links_that_lead_nowhere_are_no_folders(tmp_path):
    (tmp_path / "loop").symlink_to("loop")
    with pytest.raises(SceneError, match=r"holds no scene.* The folder holds loop"):
        load_scene(tmp_path)
    builders.make_colmap_text(tmp_path / "scene")
    shutil.rmtree(tmp_path / "scene" / "images")
    (tmp_path / "scene" / "images").mkdir()
    (tmp_path / "scene" / "images" / "loop").symlink_to("loop")
    with pytest.raises(SceneError, match="has no photos next to it"):
        load_scene(tmp_path / "scene")

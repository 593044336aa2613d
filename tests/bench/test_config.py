"""YAML files of benchmarks: parsing, and the messages of refusals."""

from __future__ import annotations

import dataclasses
import json
import math
from datetime import date
from pathlib import Path
from typing import Any

import pytest
import yaml

from eugen_nerf.bench.config import Budget, MethodEntry, _UniqueKeys, benchmark_from_json, find_scene, load_benchmark
from eugen_nerf.errors import UserError
from tests.bench.conftest import WriteConfig

CONFIGS = Path(__file__).parents[2] / "configs"


def test_reads_names_and_entries(write_config: WriteConfig, ball_scene: Path) -> None:
    path = write_config(
        scenes=[str(ball_scene)], methods=["eugen-nerf", {"method": "nerfacto", "name": "N"}], seeds=None
    )
    benchmark = load_benchmark(path)
    assert benchmark.scenes[0].name == "ball"
    assert benchmark.scenes[0].path == str(ball_scene.resolve())
    assert [method.name for method in benchmark.methods] == ["eugen-nerf", "N"]
    assert benchmark.title == "small"
    assert benchmark.seeds == (0,)
    assert benchmark.budget == Budget(iterations=12)
    assert str(benchmark.budget) == "12 iterations"
    assert str(Budget(seconds=90.0)) == "90 s"


def test_json_round_trip(write_config: WriteConfig) -> None:
    benchmark = load_benchmark(write_config(seeds=[0, 3]))
    assert benchmark_from_json(json.loads(json.dumps(dataclasses.asdict(benchmark))), "here") == benchmark


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"budgets": {"iterations": 3}}, "unknown key 'budgets'. Did you mean 'budget'?"),
        ({"budget": None}, "the key 'budget' is missing"),
        ({"budget": {}}, "budget must have one of the keys iterations and seconds"),
        ({"budget": {"iterations": 3, "seconds": 3}}, "budget must have one of the keys iterations and seconds"),
        ({"budget": {"iterations": 0}}, "budget must be positive"),
        ({"budget": {"seconds": math.inf}}, "budget must be positive and finite"),
        ({"budget": {"minutes": 1}}, "budget: unknown key 'minutes'"),
        ({"methods": []}, "methods must name at least one"),
        ({"methods": ["eugen-nerf", "eugen-nerf"]}, "methods has two entries called 'eugen-nerf'"),
        ({"methods": [{"methd": "x"}]}, "unknown key 'methd'. Did you mean 'method'?"),
        ({"scenes": ["nowhere"]}, "Scene 'nowhere' does not exist. Looked for .*nowhere.* Set EUGEN_DATA"),
        ({"seeds": []}, "seeds must name at least one"),
        ({"seeds": [1, 1]}, "seeds must name at least one, and none twice"),
        ({"seeds": [-1]}, "seeds must be from 0"),
        ({"seeds": [2**32]}, r"seeds must be from 0 to 2\^32 - 1"),
        ({"seeds": ["a"]}, r"seeds\[0\]: must be a whole number"),
        ({"curve": {"at": [0.5, 1.5]}}, "curve.at takes shares of the budget"),
        ({"curve": {"at": [0.5], "views": 0}}, "curve.views must be at least 1, not 0"),
        ({"timed_frames": 0}, "timed_frames must be at least 1, not 0"),
        ({"methods": [{"method": "eugen-nerf", "eval_images": 0}]}, "eval_images of eugen-nerf must be at least 1"),
        ({"pictures": -1}, "pictures must not be negative"),
        ({"target_psnr": [math.inf]}, "cannot be stored with the results .* Numbers must be finite"),
        ({"overrides": {"pipeline.model.far": math.nan}}, "cannot be stored with the results"),
        ({"overrides": {"timestamp": date(2026, 1, 1)}}, "cannot be stored with the results .* dates in quotes"),
    ],
)
def test_refuses(
    write_config: WriteConfig, monkeypatch: pytest.MonkeyPatch, changes: dict[str, Any], message: str
) -> None:
    monkeypatch.delenv("EUGEN_DATA", raising=False)
    with pytest.raises(UserError, match=message):
        load_benchmark(write_config(**changes))


def test_refuses_what_is_no_yaml(tmp_path: Path) -> None:
    path = tmp_path / "bad.yaml"
    with pytest.raises(UserError, match="cannot be read"):
        load_benchmark(path)
    path.write_text("scenes: [a\nmethods: ]")
    with pytest.raises(UserError, match=r"is not valid YAML: .*line 2"):
        load_benchmark(path)
    path.write_text("- a\n- b\n")
    with pytest.raises(UserError, match="must be a mapping"):
        load_benchmark(path)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "budget: {iterations: 3}\nscenes: [a]\nmethods: [b]\nscenes: [c]",
            "is not valid YAML: 'scenes' appears twice .*line 4",
        ),
        ("methods: [{method: a, overrides: {x: 1, x: 2}}]", "'x' appears twice"),
        ("title: 2024-02-30", "is not valid YAML: day is out of range"),
        ("title: " + "[" * 5000, "is not valid YAML"),
    ],
    ids=["key", "inner key", "date", "nesting"],
)
def test_refuses_what_yaml_would_take_or_choke_on(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "bad.yaml"
    path.write_text(text)
    with pytest.raises(UserError, match=message):
        load_benchmark(path)


def test_keys_that_yaml_merges_are_not_repeated(write_config: WriteConfig) -> None:
    path = write_config(pictures=None, curve=None)
    text = "pictures: &n 1\ncurve: &c {<<: &b {views: 2, pixels: *n}, views: 3}\n"
    path.write_text(path.read_text() + text)
    curve = load_benchmark(path).curve
    assert (curve.views, curve.pixels) == (3, 1)
    nested = "scenes: [{path: a, overrides: &o {<<: &p {x: 1}, x: 2}}]\noverrides: {<<: *o}\n"
    assert yaml.load(nested, Loader=_UniqueKeys)["overrides"].keys() == {"x"}


def test_scenes_are_looked_for_beside_the_file_and_in_eugen_data(
    write_config: WriteConfig, ball_scene: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "near").mkdir()
    assert load_benchmark(write_config(scenes=["near"])).scenes[0].path == str((tmp_path / "near").resolve())
    monkeypatch.setenv("EUGEN_DATA", str(ball_scene.parent))
    assert load_benchmark(write_config(scenes=["ball"])).scenes[0].path == str(ball_scene.resolve())


@pytest.mark.parametrize("path", ["x" * 300, "~nobody-has-this-name/scene"])
def test_a_path_that_no_file_can_have_is_a_scene_that_is_not_there(tmp_path: Path, path: str) -> None:
    with pytest.raises(UserError, match=rf"Scene '{path}' does not exist"):
        find_scene(path, tmp_path)


def test_links_to_one_scene_are_scenes_of_their_own(
    write_config: WriteConfig, ball_scene: Path, tmp_path: Path
) -> None:
    for name in ("chair", "drums"):
        (tmp_path / name).symlink_to(ball_scene)
    assert [scene.name for scene in load_benchmark(write_config(scenes=["chair", "drums"])).scenes] == [
        "chair",
        "drums",
    ]


def test_shipped_configs_are_valid(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Everything except the scenes, which may be missing and are replaced by empty folders."""
    from eugen_nerf.bench.runner import check_rows

    for path in CONFIGS.glob("*.yaml"):
        for scene in yaml.safe_load(path.read_text())["scenes"]:
            name = scene if isinstance(scene, str) else scene["path"]
            if not name.startswith(".."):
                (tmp_path / name).mkdir(exist_ok=True)
    monkeypatch.setenv("EUGEN_DATA", str(tmp_path))
    names = {path.stem for path in CONFIGS.glob("*.yaml")}
    assert names == {"demo", "lego", "paper_synthetic", "real_captures", "mipnerf360", "equal_cost", "nerfacto"}
    for path in sorted(CONFIGS.glob("*.yaml")):
        benchmark = load_benchmark(path)
        check_rows(benchmark)
        assert isinstance(benchmark.methods[0], MethodEntry)


def test_a_scene_that_does_not_exist_is_told_with_the_nearest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "scenes" / "lego_small").mkdir(parents=True)
    monkeypatch.setenv("EUGEN_DATA", str(tmp_path / "scenes"))
    with pytest.raises(UserError, match=r"Scene 'lego_smal' does not exist.* Did you mean 'lego_small'\?$"):
        find_scene("lego_smal", tmp_path)
    assert find_scene("lego_small", tmp_path) == tmp_path / "scenes" / "lego_small"

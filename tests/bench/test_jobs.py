"""Rows of a benchmark, their identity, and the files shared by worker and runner."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path

import pytest

from eugen_nerf.bench.config import load_benchmark
from eugen_nerf.bench.jobs import FramesJob, read_json, slug, training_jobs, write_json
from tests.bench.conftest import WriteConfig


def test_methods_alternate_and_take_turns_in_going_first(write_config: WriteConfig) -> None:
    rows = training_jobs(load_benchmark(write_config(seeds=[0, 1, 2])))
    assert [(job.name, job.seed) for job in rows] == [
        ("EUGen", 0), ("MLP", 0), ("MLP", 1), ("EUGen", 1), ("EUGen", 2), ("MLP", 2),
    ]  # fmt: skip


def test_overrides_of_the_method_win_over_the_scene_and_both_over_all(
    write_config: WriteConfig, ball_scene: Path
) -> None:
    path = write_config(
        overrides={"a": 0, "b": 0, "c": 0},
        scenes=[{"path": str(ball_scene), "overrides": {"b": 1, "c": 1}}],
        methods=[{"method": "eugen-nerf", "overrides": {"c": 2}}],
    )
    assert training_jobs(load_benchmark(path))[0].overrides == {"a": 0, "b": 1, "c": 2}


def test_a_method_may_be_evaluated_on_a_number_of_images_of_its_own(write_config: WriteConfig) -> None:
    methods = ["eugen-nerf", {"method": "nerfacto", "eval_images": 2}]
    rows = training_jobs(load_benchmark(write_config(methods=methods, eval_images=5)))
    assert [(job.name, job.eval_images) for job in rows] == [("eugen-nerf", 5), ("nerfacto", 2)]


def test_digest_follows_what_the_result_depends_on(write_config: WriteConfig) -> None:
    job = training_jobs(load_benchmark(write_config()))[0]
    moved = dataclasses.replace(job, scene_path="/elsewhere/ball")
    assert moved.digest == job.digest
    for change in ({"seed": 9}, {"overrides": {}}, {"scene_path": "/elsewhere/cube"}, {"eval_images": 1}):
        other = dataclasses.replace(job, **change)  # type: ignore[arg-type]
        assert other.digest != job.digest
        assert other.folder != job.folder  # otherwise its images would replace this one's
    frames = FramesJob("ball", 0, ("EUGen",), ("runs/x/config.yml",), (4,), (job.digest,))
    assert dataclasses.replace(frames, trained=("other",)).digest != frames.digest


def test_slugs_are_safe_and_distinct() -> None:
    assert slug("ball EUGen seed 0") == "ball-EUGen-seed-0"
    odd = [slug(text) for text in ("a/b", "a:b", "a?b", "..", "EUGen m=32", "größe", "")]
    assert len(set(odd)) == len(odd)
    assert not any("/" in name for name in odd)
    assert slug("..") not in ("..", ".")


def test_json_files_are_replaced_whole(tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    assert read_json(path) is None
    write_json(path, {"a": 1})
    write_json(path, {"a": 2})
    assert read_json(path) == {"a": 2}
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_json(path, {"a": float("nan")})
    assert read_json(path) == {"a": 2}
    assert os.listdir(tmp_path) == ["x.json"]

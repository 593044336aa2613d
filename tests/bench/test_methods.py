"""nerfstudio's configuration of a row: method, dataparser, budget, schedules and overrides."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest

from eugen_nerf.bench.config import Budget, load_benchmark
from eugen_nerf.bench.jobs import TrainingJob, training_jobs
from eugen_nerf.bench.methods import DECIDED, apply_overrides, registered_config, row_config
from eugen_nerf.errors import UserError
from tests.bench.conftest import WriteConfig


@pytest.fixture
def job(write_config: WriteConfig) -> TrainingJob:
    return training_jobs(load_benchmark(write_config(seeds=[5])))[0]


def test_row_config(job: TrainingJob, tmp_path: Path) -> None:
    config: Any = row_config(job, tmp_path, "cpu")
    assert config.max_num_iterations == 12
    assert config.machine.seed == 5
    assert config.pipeline.model.field.num_levels == 2
    assert str(config.pipeline.datamanager.data) == job.scene_path
    assert config.get_base_dir() == tmp_path / "ball" / "eugen-nerf" / f"EUGen-seed-5-{job.mark}"
    assert type(config.pipeline.datamanager.dataparser).__name__ == "SceneDataParserConfig"


@pytest.mark.parametrize("method", ["eugen-nerf", "nerfacto"])
def test_all_methods_see_photos_of_one_size(job: TrainingJob, tmp_path: Path, method: str) -> None:
    """By default, some dataparsers would reduce large images."""
    row: Any = row_config(dataclasses.replace(job, method=method, overrides={}), tmp_path, "cpu")
    assert row.pipeline.datamanager.dataparser.downscale_factor == 1
    reduced = {"pipeline.datamanager.dataparser.downscale_factor": 4}
    row = row_config(dataclasses.replace(job, method=method, overrides=reduced), tmp_path, "cpu")
    assert row.pipeline.datamanager.dataparser.downscale_factor == 4


def test_the_method_itself_is_left_alone(job: TrainingJob, tmp_path: Path) -> None:
    before = registered_config("eugen-nerf")
    row_config(job, tmp_path, "cpu")
    assert registered_config("eugen-nerf") == before


def test_schedules_are_fitted_to_iterations(job: TrainingJob, tmp_path: Path) -> None:
    fitted: Any = row_config(job, tmp_path, "cpu")
    own: Any = row_config(dataclasses.replace(job, fit_schedules=False), tmp_path, "cpu")
    assert fitted.optimizers["encoding"]["scheduler"].max_steps == 12
    for config, steps in ((fitted, 12), (own, registered_config("eugen-nerf").max_num_iterations)):
        config.save_config()  # at this point this package's methods fit their schedules themselves
        assert config.optimizers["encoding"]["scheduler"].max_steps == steps
        assert config.optimizers["networks"]["scheduler"].max_steps == steps


def test_all_step_counts_of_a_schedule_shrink_alike(job: TrainingJob, tmp_path: Path) -> None:
    nerfacto = dataclasses.replace(job, method="nerfacto", overrides={}, budget=Budget(iterations=20_000))
    config: Any = row_config(nerfacto, tmp_path, "cpu")
    assert config.optimizers["fields"]["scheduler"].max_steps == 20_000
    ngp = dataclasses.replace(nerfacto, method="neus", overrides={})
    own: Any = registered_config("neus").optimizers["fields"]["scheduler"]
    fitted: Any = row_config(ngp, tmp_path, "cpu").optimizers["fields"]["scheduler"]
    assert fitted.max_steps == 20_000
    assert fitted.warm_up_end == round(own.warm_up_end * 20_000 / own.max_steps)


def test_a_budget_in_seconds_has_no_last_step(job: TrainingJob, tmp_path: Path) -> None:
    config: Any = row_config(dataclasses.replace(job, budget=Budget(seconds=3.0)), tmp_path, "cpu")
    assert config.max_num_iterations > 10**9
    assert config.steps_per_save > config.max_num_iterations


def test_milestones_in_steps_do_not_follow_a_clock(job: TrainingJob, tmp_path: Path) -> None:
    stepped = dataclasses.replace(job, method="neus-facto", overrides={}, budget=Budget(seconds=3.0))
    with pytest.raises(UserError, match=r"milestones in steps.* budget of iterations, or fit_schedules"):
        row_config(stepped, tmp_path, "cpu")
    row_config(dataclasses.replace(stepped, fit_schedules=False), tmp_path, "cpu")


def test_overrides_reach_every_kind_of_option() -> None:
    config: Any = registered_config("nerfacto")
    apply_overrides(
        config,
        {
            "pipeline.model.near-plane": 2,
            "pipeline.model.camera_optimizer.mode": "off",
            "optimizers.fields.optimizer.lr": "5e-3",
            "pipeline.model.num_proposal_samples_per_ray": [64, 32],
            "pipeline.datamanager.patch_size": 4,
            "mixed_precision": False,
        },
    )
    assert config.pipeline.model.near_plane == 2.0
    assert isinstance(config.pipeline.model.near_plane, float)
    assert config.pipeline.model.camera_optimizer.mode == "off"
    assert config.optimizers["fields"]["optimizer"].lr == 0.005
    assert config.pipeline.model.num_proposal_samples_per_ray == (64, 32)
    assert config.mixed_precision is False


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"pipeline.model.near_plan": 2}, "pipeline.model has no option 'near_plan'. Did you mean 'near_plane'?"),
        ({"pipelin.model": 2}, "the configuration has no option 'pipelin'. Did you mean 'pipeline'?"),
        ({"pipeline.model": 2}, "is a group of options. Known are: .*near_plane"),
        ({"pipeline.model.near_plane": "close"}, "must be a number, not 'close'"),
        ({"pipeline.model.camera_optimizer.mode": "sometimes"}, "must be one of off, SO3xR3, SE3"),
        ({"optimizers.field.optimizer.lr": 1}, "optimizers has no option 'field'. Did you mean 'fields'?"),
        ({"max_num_iterations.x": 1}, "max_num_iterations has no option 'x'"),
        ({"optimizers": {"fields": {"lr": 1}}}, "is a group of options. Known are: .*fields"),
        ({"optimizers.fields": {"lr": 1}}, "is a group of options. Known are: optimizer, scheduler"),
    ],
)
def test_bad_overrides(overrides: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        apply_overrides(registered_config("nerfacto"), overrides)


@pytest.mark.parametrize(
    ("option", "instead"),
    [
        ("max_num_iterations", "the benchmark's budget"),
        ("max-num-iterations", "the benchmark's budget"),
        ("machine.seed", "the benchmark's seeds"),
        ("output_dir", "--out"),
        ("steps_per_eval_image", "the benchmark's curve"),
        ("pipeline.datamanager.data", "the scene's path"),
    ],
)
def test_what_the_benchmark_decides_cannot_be_overridden(
    job: TrainingJob, tmp_path: Path, option: str, instead: str
) -> None:
    with pytest.raises(
        UserError, match=f"Override {option}: cannot be overridden in a benchmark; it follows from {instead}"
    ):
        row_config(dataclasses.replace(job, overrides={option: 1}), tmp_path, "cpu")


def test_every_decided_option_exists() -> None:
    for option in DECIDED:
        with pytest.raises(UserError, match=rf"Override {option}: must"):
            apply_overrides(registered_config("eugen-nerf"), {option: {"no": "value"}})


def test_unknown_names(job: TrainingJob, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"Unknown method 'eugen-nef'. Did you mean 'eugen-nerf'\?"):
        registered_config("eugen-nef")
    with pytest.raises(UserError, match="'zipnerf' is not installed; ns-train zipnerf says how"):
        registered_config("zipnerf")
    with pytest.raises(UserError, match=r"Unknown dataparser 'eugen-scen'. Did you mean 'eugen-scene'\?"):
        row_config(dataclasses.replace(job, dataparser="eugen-scen"), tmp_path, "cpu")

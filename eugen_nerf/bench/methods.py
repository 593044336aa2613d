"""Prepare nerfstudio's configuration of a method for a row of a benchmark."""

from __future__ import annotations

import copy
import dataclasses
import typing
from pathlib import Path
from typing import Any

from nerfstudio.configs.dataparser_configs import all_dataparsers
from nerfstudio.configs.external_methods import ExternalMethodDummyTrainerConfig
from nerfstudio.configs.method_configs import all_methods
from nerfstudio.engine.schedulers import MultiStepSchedulerConfig
from nerfstudio.engine.trainer import TrainerConfig

from eugen_nerf.bench.config import Overrides
from eugen_nerf.bench.jobs import TrainingJob, slug
from eugen_nerf.bench.schema import convert, suggestion
from eugen_nerf.errors import UserError

# Options that the benchmark sets for every row, and what determines each: an override would make the record untrue.
DECIDED = {
    "max_num_iterations": "the benchmark's budget",
    "steps_per_eval_batch": "the benchmark's curve",
    "steps_per_eval_image": "the benchmark's curve",
    "steps_per_eval_all_images": "the benchmark's curve",
    "steps_per_save": "the rule that a row is saved at its end",
    "machine.seed": "the benchmark's seeds",
    "machine.device_type": "CUDA_VISIBLE_DEVICES",
    "machine.num_devices": "the rule that a row is trained on one device",
    "output_dir": "--out",
    "experiment_name": "the scene's name",
    "timestamp": "the method's name",
    "data": "the scene's path",
    "pipeline.datamanager.data": "the scene's path",
    "load_dir": "the rule that every row is trained from the start",
    "pipeline.datamanager.dataparser.data": "the scene's path",
    "load_step": "the rule that every row is trained from the start",
    "load_checkpoint": "the rule that every row is trained from the start",
    "load_config": "the rule that every row is trained from the start",
    "pipeline.datamanager.eval_background": "the rule that transparent images are compared on white",
}

# Options of a schedule that count steps; fitting the schedule scales all of them.
SCHEDULE_STEPS = ("max_steps", "warmup_steps", "warm_up_end", "milestones")


def registered_config(name: str) -> TrainerConfig:
    """A copy of the configuration from which ns-train starts a method.

    Raises:
        UserError: nerfstudio does not know the method, or it is not installed.
    """
    config: Any = all_methods.get(name)
    installed = [known for known, entry in all_methods.items() if _is_installed(entry)]
    if config is None:
        raise UserError(f"Unknown method {name!r}. {suggestion(name, installed)}")
    if not _is_installed(config):
        raise UserError(f"Method {name!r} is not installed; ns-train {name} says how to.")
    found: TrainerConfig = copy.deepcopy(config)
    return found


def _is_installed(config: Any) -> bool:
    return isinstance(config, TrainerConfig) and not isinstance(config, ExternalMethodDummyTrainerConfig)


def row_config(job: TrainingJob, runs: Path, device: str) -> TrainerConfig:
    """The configuration with which a row is trained.

    Args:
        job: the row.
        runs: nerfstudio's output folder.
        device: "cpu" or "cuda".

    Raises:
        UserError: an unknown method, dataparser or option, or a value that an option cannot take.
    """
    config = registered_config(job.method)
    if job.dataparser not in all_dataparsers:
        raise UserError(f"Unknown dataparser {job.dataparser!r}. {suggestion(job.dataparser, all_dataparsers)}")
    manager: Any = config.pipeline.datamanager
    manager.dataparser = copy.deepcopy(all_dataparsers[job.dataparser])
    if getattr(manager.dataparser, "downscale_factor", 1) is None:
        manager.dataparser.downscale_factor = 1  # other methods of the benchmark cannot reduce photos
    manager.data = Path(job.scene_path)
    config.data = Path(job.scene_path)
    config.output_dir = runs
    config.experiment_name = slug(job.scene)
    config.timestamp = f"{slug(f'{job.name} seed {job.seed}')}-{job.mark}"
    config.machine.seed = job.seed
    config.machine.device_type = device  # type: ignore[assignment]
    config.vis = "tensorboard"
    config.viewer.quit_on_train_completion = True
    config.logging.local_writer.enable = False
    config.logging.profiler = "none"
    # We evaluate ourselves; nerfstudio's evaluation would count as training time.
    config.steps_per_eval_batch = config.steps_per_eval_image = config.steps_per_eval_all_images = 0
    if job.budget.iterations is not None:
        config.max_num_iterations = job.budget.iterations
        if job.fit_schedules:
            _fit_schedules(config, job.budget.iterations)
    else:
        config.max_num_iterations = 1 << 40  # the clock ends the training
        if job.fit_schedules:
            _check_stretching(config)
    if not job.fit_schedules and hasattr(config, "fit_schedules"):
        config.fit_schedules = False  # our methods otherwise fit their own schedules
    config.steps_per_save = config.max_num_iterations + 1
    _check_undecided(job.overrides)
    apply_overrides(config, job.overrides)
    return config


def _fit_schedules(config: TrainerConfig, iterations: int) -> None:
    for group in config.optimizers.values():
        scheduler = group["scheduler"]
        if not hasattr(scheduler, "max_steps"):
            continue
        factor = iterations / scheduler.max_steps
        for option in SCHEDULE_STEPS:
            steps = getattr(scheduler, option, None)
            if isinstance(steps, int):
                setattr(scheduler, option, max(round(steps * factor), min(steps, 1)))
            elif steps is not None:
                setattr(scheduler, option, tuple(round(step * factor) for step in steps))


def _check_stretching(config: TrainerConfig) -> None:
    for name, group in config.optimizers.items():
        if isinstance(group["scheduler"], MultiStepSchedulerConfig):  # all others can be functions of the spent share
            raise UserError(
                f"The learning rate of {name} falls at milestones in steps, which a budget in seconds cannot stretch. "
                "Give the benchmark a budget of iterations, or fit_schedules: false."
            )


def apply_overrides(config: Any, overrides: Overrides) -> None:
    """Set options of a tree of dataclasses and mappings, given as paths with dots.

    Raises:
        UserError: an option does not exist (the message suggests the nearest), or a value has the wrong type.
    """
    for path, value in overrides.items():
        _apply(config, path, value)


def _check_undecided(overrides: Overrides) -> None:
    for path in overrides:
        decided = DECIDED.get(path.replace("-", "_"))
        if decided is not None:
            raise UserError(f"Override {path}: cannot be overridden in a benchmark; it follows from {decided}.")


def _apply(config: Any, path: str, value: Any) -> None:
    *groups, option = path.replace("-", "_").split(".")
    owner = config
    walked: list[str] = []
    for group in groups:
        owner = _member(owner, group, walked, path)
        walked.append(group)
    current = _member(owner, option, walked, path)
    # The optimizers are mappings of groups; nerfstudio's other mappings are values.
    if dataclasses.is_dataclass(current) or (path.startswith("optimizers") and isinstance(current, dict)):
        raise UserError(f"Override {path}: is a group of options. {suggestion('', _options(current))}")
    if isinstance(owner, dict):
        owner[option] = convert(type(current), value, f"Override {path}")
    else:
        annotation = typing.get_type_hints(type(owner), include_extras=True).get(option, type(current))
        setattr(owner, option, convert(annotation, value, f"Override {path}"))


def _member(owner: Any, name: str, walked: list[str], path: str) -> Any:
    options = _options(owner)
    if name not in options:
        place = ".".join(walked) or "the configuration"
        raise UserError(f"Override {path}: {place} has no option {name!r}. {suggestion(name, options)}")
    return options[name]


def _options(owner: Any) -> dict[str, Any]:
    if isinstance(owner, dict):
        # Optimizer groups have the names that the model gives them, with underscores or dashes.
        return {str(key).replace("-", "_"): value for key, value in owner.items()}
    if dataclasses.is_dataclass(owner):
        names = [field.name for field in dataclasses.fields(owner)]
        return {name: getattr(owner, name) for name in names if not name.startswith("_")}
    return {}

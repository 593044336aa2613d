"""The methods that ``ns-train`` offers, with defaults for the device at hand."""

import contextlib
import copy
import functools
import math
import os
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import torch
from nerfstudio.configs.base_config import MachineConfig, ViewerConfig
from nerfstudio.engine.optimizers import AdamOptimizerConfig, OptimizerConfig
from nerfstudio.engine.schedulers import ExponentialDecaySchedulerConfig
from nerfstudio.engine.trainer import TrainerConfig
from nerfstudio.models.base_model import ModelConfig
from nerfstudio.plugins.types import MethodSpecification
from nerfstudio.utils.rich_utils import CONSOLE

from eugen_nerf.errors import SceneError, UserError
from eugen_nerf.field import ORDER_2_LAYERS, FieldConfig, NetworkKind
from eugen_nerf.folders import check_place, refused
from eugen_nerf.ops.dispatch import native_problem, requested_backend
from eugen_nerf.optim import BETAS, SparseAdam
from eugen_nerf.plugin import compat
from eugen_nerf.plugin.averages import AveragingPipeline
from eugen_nerf.plugin.checkpoints import check_weights, read_checkpoint
from eugen_nerf.plugin.compat import without_nerfstudio_lpips
from eugen_nerf.plugin.converted import (
    EugenMipNerfModelConfig,
    EugenNerfactoModelConfig,
    EugenVanillaNerfModelConfig,
)
from eugen_nerf.plugin.datamanager import SceneDataManagerConfig
from eugen_nerf.plugin.dataparsers import (
    SceneDataParser,
    SceneDataParserConfig,
    check_readable_by_nerfstudio,
    reading_frames,
    refuse_reduction,
)
from eugen_nerf.plugin.model import EugenModelConfig
from eugen_nerf.plugin.pipeline import SampleBudgetPipelineConfig
from eugen_nerf.plugin.schedules import LinearDecaySchedulerConfig
from eugen_nerf.plugin.trainer import EugenTrainer
from eugen_nerf.scenes import Frame, Scene, read_image

compat.apply()


# Learning rates of the networks: factored layers want smaller ones than an MLP. For EUGen and MLP they are the best of
# those tried on lego and fox, for low rank on lego; snnk has the MLP's.
NETWORK_RATES: dict[NetworkKind, float] = {"eugen": 4e-3, "mlp": 1e-2, "low-rank": 1e-2, "snnk": 1e-2}


def busy_machine_hint(load: float, cores: int) -> str | None:
    """What to tell about training beside other work; None where there is nothing to tell.

    OpenMP's threads spin while they wait, and on a busy machine mostly for one that has lost its core. How they wait
    is decided when torch is imported, so all that can be done here is to say it.

    Args:
        load: processes that were running or waiting for a core over the last minute, on average.
        cores: what this process may run on.
    """
    threads = torch.get_num_threads()
    chosen = {"OMP_WAIT_POLICY", "GOMP_SPINCOUNT"} & os.environ.keys()
    if load < max(cores - threads, 0) + 0.7 or threads == 1 or chosen:
        return None
    return (
        "This machine has other work to do. With OMP_WAIT_POLICY=passive before the command training may be several "
        "times faster."
    )


@dataclass
class EugenTrainerConfig(TrainerConfig):
    """nerfstudio's trainer options, and a look at the scene before anything is written."""

    _target: type = field(default_factory=lambda: EugenTrainer)
    """Class to instantiate."""
    fit_schedules: bool = True
    """Let every learning rate decay over exactly max_num_iterations, whatever its scheduler's max_steps says. Where
    training goes on from a checkpoint with schedules, over the steps that led to it and max_num_iterations more, as if
    so many had been planned from the start."""

    def validate(self) -> None:
        """Raises UserError that names the option which cannot work, whatever the scene."""
        if self.max_num_iterations < 1:
            raise UserError(f"max_num_iterations must be at least 1, not {self.max_num_iterations}.")
        if not 0 <= self.machine.seed < 1 << 32:
            raise UserError(f"machine.seed must be a number from 0 to 2^32 - 1, not {self.machine.seed}.")
        for name, group in self.optimizers.items():
            options: Any = group["optimizer"]
            if not 0 <= options.lr < math.inf:
                raise UserError(f"optimizers.{name}.optimizer.lr must be 0 or a positive number, not {options.lr}.")
            betas = getattr(options, "betas", ())
            if not all(0 <= beta < 1 for beta in betas):
                raise UserError(f"optimizers.{name}.optimizer.betas must be 0 or more and below 1, not {betas}.")
        for config in (self.pipeline, self.pipeline.model, self.pipeline.datamanager):
            validate = getattr(config, "validate", None)
            if validate is not None:
                validate()

    def save_config(self) -> None:
        """Check options and scene, then write config.yml.

        ns-train calls this before it loads anything; what cannot work should leave no run folder behind.

        Raises:
            UserError: an option, the scene, the checkpoint or the output folder cannot be used.
        """
        self.validate()
        self._check_machine()
        # Rendering and evaluation must find run and scene from any folder.
        self.output_dir = self.output_dir.expanduser().absolute()
        manager: Any = self.pipeline.datamanager
        manager.data = manager.dataparser.data = Path(manager.data or manager.dataparser.data).expanduser().absolute()
        check_place(self.get_base_dir(), "--output-dir")
        schedules: dict[str, Any] = {}
        file = self._checkpoint_file()
        loaded = None if file is None else read_checkpoint(file)
        scenes = self._check_scene()
        if file is not None and loaded is not None:
            self._check_checkpoint(file, loaded, scenes)
            # The same by one name. A load_step in config.yml would make ns-eval look for that step in the new run.
            self.load_checkpoint, self.load_dir, self.load_step = file, None, None
            schedules = loaded.get("schedulers", {}) if self.load_scheduler else {}
        self.set_schedules(schedules)
        self._announce()
        try:
            super().save_config()
        except OSError as error:
            raise refused(self.get_base_dir(), error, "--output-dir") from error

    def _check_machine(self) -> None:
        """Raises UserError: the device is not there, or EUGEN_BACKEND asks for native code that it cannot have."""
        device = self.machine.device_type
        if device == "cuda" and not torch.cuda.is_available():
            raise UserError("PyTorch sees no NVIDIA GPU; train with --machine.device-type cpu.")
        backend = requested_backend("auto")
        if backend in ("cpu", "cuda"):
            problem = native_problem(torch.device(device)) if backend == device else f"this training is for {device}"
            if problem:
                raise UserError(f"EUGEN_BACKEND asks for {backend}, but {problem}.")

    def set_schedules(self, loaded: Mapping[str, Any] | None = None) -> None:
        """Do what `fit_schedules` says.

        Args:
            loaded: state of the schedules that training goes on with, by group of parameters.
        """
        if not self.fit_schedules:
            return
        for name, group in self.optimizers.items():
            if isinstance(group["scheduler"], LinearDecaySchedulerConfig | ExponentialDecaySchedulerConfig):
                done = int((loaded or {}).get(name, {}).get("last_epoch", 0))
                group["scheduler"].max_steps = done + self.max_num_iterations

    def _check_scene(self) -> list[Scene]:
        """The views for training and those for validation; nothing where the dataparser is nerfstudio's own.

        Raises:
            UserError: the scene, or an option with this scene, cannot be used.
        """
        manager: Any = self.pipeline.datamanager
        scenes: list[Scene] = []
        if isinstance(manager.dataparser, SceneDataParserConfig):
            parser = SceneDataParser(manager.dataparser)
            with reading_frames() if isinstance(manager, SceneDataManagerConfig) else contextlib.nullcontext():
                scenes = [parser.load(split) for split in ("train", "val")]
                try:
                    parser.load("test")
                except SceneError as error:  # training needs none of it
                    CONSOLE.print(f"Warning: ns-eval will refuse: {error}", style="bold yellow", markup=False)
        if isinstance(self.pipeline.model, EugenModelConfig):
            self.pipeline.model.limits({"near": scenes[0].near, "far": scenes[0].far} if scenes else {})
        return scenes

    def _checkpoint_file(self) -> Path | None:
        """The checkpoint that training goes on from; None to start anew.

        Raises:
            UserError: there is no such file.
        """
        if self.load_dir is None:
            if self.load_checkpoint is not None and not self.load_checkpoint.is_file():
                raise UserError(f"{self.load_checkpoint}: does not exist; load-checkpoint takes a file step-*.ckpt.")
            return self.load_checkpoint
        files = sorted(self.load_dir.glob("step-*.ckpt"))
        if not files:
            raise UserError(
                f"{self.load_dir}: holds no checkpoint (step-*.ckpt); load-dir takes the folder nerfstudio_models "
                "of a run."
            )
        if self.load_step is None:
            return files[-1]
        wanted = self.load_dir / f"step-{self.load_step:09d}.ckpt"
        if wanted not in files:
            there = ", ".join(str(int(file.stem.removeprefix("step-"))) for file in files)
            raise UserError(f"{wanted}: does not exist; {self.load_dir} has checkpoints of load-step {there}.")
        return wanted

    def _check_checkpoint(self, file: Path, loaded: Mapping[str, Any], scenes: list[Scene]) -> None:
        """Raises UserError where a checkpoint's weights do not fit the model of this configuration."""
        manager: Any = self.pipeline.datamanager
        parser = manager.dataparser.setup()
        with reading_frames():
            outputs = parser.outputs(scenes[0]) if scenes else parser.get_dataparser_outputs("train")
        with torch.random.fork_rng(), without_nerfstudio_lpips():
            model = self.pipeline.model.setup(
                scene_box=outputs.scene_box,
                num_train_data=len(outputs.image_filenames),
                metadata=outputs.metadata,
            )
        check_weights(model, loaded["pipeline"], file, str(self.method_name))

    def _announce(self) -> None:
        model: Any = self.pipeline.model
        grid = model.field
        CONSOLE.print(
            f"Training {grid.network} on {self.machine.device_type}: hash grid {grid.num_levels} x "
            f"{grid.features_per_level} features, up to 2^{grid.log2_hashmap_size} entries a level; "
            f"{self.pipeline.target_num_samples} samples a step; "  # type: ignore[attr-defined]
            f"{self.max_num_iterations} steps. Every one of these is an option, see --help."
        )
        hint = busy_machine_hint(os.getloadavg()[0], len(os.sched_getaffinity(0)))
        if self.machine.device_type == "cpu" and hint:
            CONSOLE.print(hint, style="bold yellow", markup=False)


@dataclass
class ConvertedTrainerConfig(EugenTrainerConfig):
    """Options of nerfstudio's trainer for one of its own methods with EUGen layers."""

    fit_schedules: bool = False
    """Let every learning rate decay over exactly max_num_iterations, whatever its scheduler's max_steps says."""

    def _check_scene(self) -> list[Scene]:
        scenes = super()._check_scene()
        frames = [frame for scene in scenes for frame in scene.frames]
        parser: Any = self.pipeline.datamanager.dataparser  # type: ignore[attr-defined]
        if frames:
            refuse_reduction(frames, int(parser.downscale_factor or 1))
            for scene in scenes:
                check_readable_by_nerfstudio(scene.frames)

        def decode(frame: Frame) -> None:
            read_image(frame)

        # nerfstudio's data managers name no file when they cannot decode it, and wait for it forever in a process.
        with ThreadPoolExecutor() as pool:
            for _ in pool.map(decode, frames):
                pass
        return scenes

    def _announce(self) -> None:
        model: Any = self.pipeline.model
        CONSOLE.print(f"EUGen layers in {self.method_name}:\n{model.validate()}", markup=False)


def _field(network: NetworkKind, on_gpu: bool) -> FieldConfig:
    if on_gpu:
        return FieldConfig(network=network)
    return FieldConfig(network=network, num_levels=8, features_per_level=4, log2_hashmap_size=17, max_resolution=512)


@dataclass
class SparseAdamOptimizerConfig(OptimizerConfig):
    """Options of the hash table's optimizer."""

    _target: type = SparseAdam
    """Class to instantiate."""
    betas: tuple[float, float] = BETAS
    """Decay of the running mean of gradients and of their squares, per step."""


@dataclass
class NetworkAdamOptimizerConfig(AdamOptimizerConfig):
    """Options of the networks' optimizer."""

    betas: tuple[float, float] = BETAS
    """Decay of the running mean of gradients and of their squares, per step."""
    fused: bool = True
    """One pass over each parameter instead of an operator for every term: the networks are small, and operators cost
    more than their work."""


def _optimizer(config: type[OptimizerConfig], lr: float, steps: int) -> dict[str, Any]:
    return {
        # Instant NGP's epsilon lets entries that are rarely seen move as fast as the others.
        "optimizer": config(lr=lr, eps=1e-15),
        "scheduler": LinearDecaySchedulerConfig(max_steps=steps),
    }


def method_config(name: str, network: NetworkKind, device: Literal["cpu", "cuda"] | None = None) -> EugenTrainerConfig:
    """The configuration of a method.

    Args:
        name: how ns-train lists it.
        network: kind of the field's networks; nothing else differs between methods but the networks' learning rate.
        device: whose defaults to take; None for a GPU if there is one.
    """
    on_gpu = (device or ("cuda" if torch.cuda.is_available() else "cpu")) == "cuda"
    steps = 20_000 if on_gpu else 4_000
    return EugenTrainerConfig(
        method_name=name,
        machine=MachineConfig(device_type="cuda" if on_gpu else "cpu"),
        max_num_iterations=steps,
        steps_per_save=2_000 if on_gpu else 1_000,
        steps_per_eval_batch=0,
        steps_per_eval_image=1_000 if on_gpu else 500,
        steps_per_eval_all_images=0,
        mixed_precision=False,
        pipeline=SampleBudgetPipelineConfig(
            target_num_samples=1 << 18 if on_gpu else 1 << 15,
            max_num_samples_per_ray=1024 if on_gpu else 256,
            datamanager=SceneDataManagerConfig(dataparser=SceneDataParserConfig()),
            model=EugenModelConfig(
                # A GPU draws a whole picture at once; where it lacks kernels, rendering divides the rays itself.
                eval_num_rays_per_chunk=1 << (20 if on_gpu else 14),
                field=_field(network, on_gpu),
                steps_per_diagonal=1024 if on_gpu else 384,
                cone_angle=1 / 256 if on_gpu else 1 / 64,
                occupancy_resolution=128 if on_gpu else 64,
                # Short steps put many samples behind surfaces; with long ones a look at all costs what it gains.
                skip_hidden=True if on_gpu else None,
            ),
        ),
        optimizers={
            "encoding": _optimizer(SparseAdamOptimizerConfig, 2e-2, steps),
            "networks": _optimizer(NetworkAdamOptimizerConfig, NETWORK_RATES[network], steps),
        },
        viewer=ViewerConfig(num_rays_per_chunk=1 << 14),
        # Without a viewer ns-train ends with its last step; with --vis viewer it goes on serving the scene.
        vis="tensorboard",
    )


def order_2_method_config(name: str, device: Literal["cpu", "cuda"] | None = None) -> EugenTrainerConfig:
    """`eugen-nerf` with `ORDER_2_LAYERS`.

    Args:
        name: how ns-train lists it.
        device: whose defaults to take; None for a GPU if there is one.
    """
    config = method_config(name, "eugen", device)
    model: Any = config.pipeline.model
    model.field = replace(model.field, **ORDER_2_LAYERS)
    return config


def converted_method_config(
    name: str, original: str, model: type[ModelConfig], device: Literal["cpu", "cuda"] | None = None
) -> ConvertedTrainerConfig:
    """The configuration of a method of nerfstudio, differing in its EUGen layers, and in dataparser, device and viewer.

    Args:
        name: how ns-train lists it.
        original: nerfstudio's name of the method without EUGen layers.
        model: nerfstudio's options of the model and the plan of conversion.
        device: whose defaults to take; None for a GPU if there is one.
    """
    from nerfstudio.configs.method_configs import method_configs

    on_gpu = (device or ("cuda" if torch.cuda.is_available() else "cpu")) == "cuda"
    config: Any = copy.deepcopy(method_configs[original])
    options = {key: value for key, value in vars(config.pipeline.model).items() if key != "_target"}
    if "implementation" in options:
        options["implementation"] = "torch"  # tiny-cuda-nn's weights are opaque
    config.pipeline._target = AveragingPipeline
    config.pipeline.model = model(**options)
    config.pipeline.datamanager.dataparser = SceneDataParserConfig()
    trainer = {key: value for key, value in vars(config).items() if key != "_target"}
    trainer.update(
        method_name=name,
        machine=MachineConfig(device_type="cuda" if on_gpu else "cpu"),
        mixed_precision=config.mixed_precision and on_gpu,
        vis="tensorboard",
    )
    return ConvertedTrainerConfig(**trainer)


eugen_nerf = MethodSpecification(
    config=method_config("eugen-nerf", "eugen"),
    description="Radiance field with EUGen layers, wide random-feature layers that merge into a small network exactly.",
)
eugen_nerf_order2 = MethodSpecification(
    config=order_2_method_config("eugen-nerf-order2"),
    description="eugen-nerf with products of two projections as features, for objects on a plain background.",
)
eugen_nerf_mlp = MethodSpecification(
    config=method_config("eugen-nerf-mlp", "mlp"),
    description="The twin of eugen-nerf with a standard MLP, for comparison.",
)
eugen_nerf_low_rank = MethodSpecification(
    config=method_config("eugen-nerf-low-rank", "low-rank"),
    description="The twin of eugen-nerf whose hidden layers are low-rank, for comparison.",
)
eugen_nerf_snnk = MethodSpecification(
    config=method_config("eugen-nerf-snnk", "snnk"),
    description="The twin of eugen-nerf with scalable neural network kernels, for comparison.",
)

_CONVERTED: dict[str, tuple[str, type[ModelConfig], str]] = {
    "eugen_vanilla_nerf": (
        "vanilla-nerf",
        EugenVanillaNerfModelConfig,
        "nerfstudio's vanilla-nerf with EUGen layers in place of three of its eight trunk layers.",
    ),
    "eugen_mipnerf": (
        "mipnerf",
        EugenMipNerfModelConfig,
        "nerfstudio's mipnerf with EUGen layers in place of three of its eight trunk layers.",
    ),
    "eugen_nerfacto": (
        "nerfacto",
        EugenNerfactoModelConfig,
        "nerfstudio's nerfacto with an EUGen layer at the head of its colour network.",
    ),
}


@functools.cache
def _converted(attribute: str) -> MethodSpecification:
    original, model, description = _CONVERTED[attribute]
    config = converted_method_config(attribute.replace("_", "-"), original, model)
    return MethodSpecification(config=config, description=description)


def __getattr__(attribute: str) -> MethodSpecification:
    """The methods that are made from nerfstudio's, when they are asked for.

    They need nerfstudio's list of methods, and while that is imported it looks for ours: it must not come upon a half
    of this module.
    """
    if attribute in _CONVERTED:
        return _converted(attribute)
    raise AttributeError(f"module {__name__!r} has no attribute {attribute!r}")

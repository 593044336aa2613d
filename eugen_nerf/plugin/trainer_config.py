"""The trainer options of all methods: what ns-train checks before it writes a run's config.yml."""

import contextlib
import math
import os
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import yaml
from nerfstudio.data.datamanagers.base_datamanager import variable_res_collate
from nerfstudio.engine.schedulers import ExponentialDecaySchedulerConfig
from nerfstudio.engine.trainer import TrainerConfig
from nerfstudio.models.vanilla_nerf import VanillaModelConfig
from nerfstudio.utils.rich_utils import CONSOLE

from eugen_nerf.errors import SceneError, UserError
from eugen_nerf.files import replace_text
from eugen_nerf.folders import check_place, refused
from eugen_nerf.ops.dispatch import native_problem, requested_backend
from eugen_nerf.plugin.checkpoints import (
    check_weights,
    chosen_checkpoint,
    option,
    options_changed_since,
    read_checkpoint,
    trained_config,
)
from eugen_nerf.plugin.compat import without_nerfstudio_lpips
from eugen_nerf.plugin.datamanager import SceneDataManagerConfig
from eugen_nerf.plugin.dataparsers import (
    SceneDataParser,
    SceneDataParserConfig,
    check_readable_by_nerfstudio,
    reading_frames,
    refuse_reduction,
)
from eugen_nerf.plugin.model import EugenModelConfig
from eugen_nerf.plugin.schedules import LinearDecaySchedulerConfig
from eugen_nerf.plugin.trainer import EugenTrainer
from eugen_nerf.scenes import Frame, Scene, read_image, read_mask


def busy_machine_hint(load: float, cores: int) -> str | None:
    """Hint for training on a busy machine; None if there is nothing to report.

    OpenMP's threads spin while they wait; on a busy machine they mostly wait for a thread that has lost its core. The
    wait policy is fixed when torch is imported, so this function can only report it.

    Args:
        load: average number of processes running or waiting for a core over the last minute.
        cores: number of cores available to this process.
    """
    threads = torch.get_num_threads()
    chosen = {"OMP_WAIT_POLICY", "GOMP_SPINCOUNT"} & os.environ.keys()
    if load < max(cores - threads, 0) + 0.7 or threads == 1 or chosen:
        return None
    return (
        "Other processes are using this machine. Training may be several times faster with OMP_WAIT_POLICY=passive "
        "set before the command."
    )


@dataclass
class EugenTrainerConfig(TrainerConfig):
    """nerfstudio's trainer options, with checks of options and scene before anything is written."""

    _target: type = field(default_factory=lambda: EugenTrainer)
    """Class to instantiate."""
    fit_schedules: bool = True
    """Decay every learning rate over exactly max_num_iterations steps and ignore the schedulers' max_steps. When
    training resumes from a checkpoint with schedules, decay over the steps already done plus max_num_iterations, as if
    all of them had been planned from the start."""

    def validate(self) -> None:
        """Check the options that do not depend on the scene; raise a UserError that names the first invalid one."""
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
            if not 0 <= options.eps < math.inf:
                raise UserError(f"optimizers.{name}.optimizer.eps must be 0 or a positive number, not {options.eps}.")
            schedule = group["scheduler"]
            if getattr(schedule, "max_steps", 1) < 1:
                raise UserError(f"optimizers.{name}.scheduler.max_steps must be at least 1, not {schedule.max_steps}.")
            if not 0 <= getattr(schedule, "final_fraction", 0) <= 1:
                raise UserError(
                    f"optimizers.{name}.scheduler.final_fraction must be from 0 to 1, not {schedule.final_fraction}."
                )
        for config in (self.pipeline, self.pipeline.model, self.pipeline.datamanager):
            validate = getattr(config, "validate", None)
            if validate is not None:
                validate()

    def save_config(self) -> None:
        """Check options and scene, then write config.yml.

        ns-train calls this before it loads anything, so that invalid input leaves no run folder behind.

        Raises:
            UserError: an option, the scene, the checkpoint or the output folder cannot be used.
        """
        self.validate()
        self._check_machine()
        # Absolute paths, so that rendering and evaluation find run and scene from any folder.
        self.output_dir = Path(os.path.expanduser(self.output_dir)).absolute()
        manager: Any = self.pipeline.datamanager
        data = os.path.expanduser(manager.data or manager.dataparser.data)
        manager.data = manager.dataparser.data = Path(data).absolute()
        check_place(self.get_base_dir(), "--output-dir")
        schedules: dict[str, Any] = {}
        file = chosen_checkpoint(self.load_dir, self.load_step, self.load_checkpoint)
        loaded = None if file is None else read_checkpoint(file)
        scenes = self._check_scene()
        if file is not None and loaded is not None:
            self._check_checkpoint(file, loaded, scenes)
            for warning in (*options_changed_since(file, self), *self._kept_options(loaded)):
                CONSOLE.print(f"Warning: {warning}", style="bold yellow", markup=False)
            # Name the checkpoint by its file alone. A load_step in config.yml would make ns-eval look for that step in
            # the new run.
            self.load_checkpoint, self.load_dir, self.load_step = file.absolute(), None, None
            schedules = loaded.get("schedulers", {}) if self.load_scheduler else {}
        self.set_schedules(schedules)
        self._announce()
        self._write_config()

    def _write_config(self) -> None:
        """Write config.yml as nerfstudio does, or nothing.

        Raises:
            UserError: the folder cannot be written, or the disk is full.
        """
        folder = Path(self.get_base_dir())
        made = [place for place in (folder, *folder.parents) if not place.exists()]
        file = folder / "config.yml"
        CONSOLE.log(f"Saving config to: {file}")
        try:
            folder.mkdir(parents=True, exist_ok=True)
            replace_text(file, yaml.dump(self))
        except OSError as error:
            for place in made:
                with contextlib.suppress(OSError):
                    place.rmdir()
            raise refused(folder, error, "--output-dir") from error

    def _check_machine(self) -> None:
        """Raise a UserError if the device is missing or cannot run the native code that EUGEN_BACKEND requests."""
        device = self.machine.device_type
        if device == "cuda" and not torch.cuda.is_available():
            raise UserError("PyTorch finds no NVIDIA GPU; train with --machine.device-type cpu.")
        machine, gpus = self.machine, torch.cuda.device_count()
        if machine.num_devices < 1 or machine.num_machines < 1:
            raise UserError("machine.num_devices and machine.num_machines must be at least 1.")
        if machine.num_devices > 1 and (device != "cuda" or machine.num_devices > gpus):
            raise UserError(
                f"machine.num_devices is {machine.num_devices}, but PyTorch finds {gpus} NVIDIA GPUs here; several "
                "devices must be GPUs."
            )
        if machine.num_machines > 1 and machine.dist_url == "auto":
            raise UserError("With several machines, machine.dist_url must name the first one: tcp://HOST:PORT.")
        backend = requested_backend("auto")
        if backend in ("cpu", "cuda"):
            problem = native_problem(torch.device(device)) if backend == device else f"this training runs on {device}"
            if problem:
                raise UserError(f"EUGEN_BACKEND requests {backend}, but {problem}.")

    def set_schedules(self, loaded: Mapping[str, Any] | None = None) -> None:
        """Apply `fit_schedules`.

        Args:
            loaded: state of the schedulers that training resumes with, by parameter group.
        """
        if not self.fit_schedules:
            return
        for name, group in self.optimizers.items():
            if isinstance(group["scheduler"], LinearDecaySchedulerConfig | ExponentialDecaySchedulerConfig):
                done = int((loaded or {}).get(name, {}).get("last_epoch", 0))
                group["scheduler"].max_steps = done + self.max_num_iterations

    def _check_scene(self) -> list[Scene]:
        """Load the training and the validation split; an empty list with nerfstudio's own dataparsers.

        Raises:
            UserError: the scene cannot be used, or not with these options.
        """
        manager: Any = self.pipeline.datamanager
        scenes: list[Scene] = []
        if isinstance(manager.dataparser, SceneDataParserConfig):
            parser = SceneDataParser(manager.dataparser)
            with reading_frames() if isinstance(manager, SceneDataManagerConfig) else contextlib.nullcontext():
                scenes = [parser.load(split) for split in ("train", "val")]
                try:
                    parser.load("test")
                except SceneError as error:  # training does not need the test split
                    message = f"Warning: ns-eval, ns-viewer, ns-render and ns-export will fail on this run: {error}"
                    CONSOLE.print(message, style="bold yellow", markup=False)
        if isinstance(self.pipeline.model, EugenModelConfig):
            first = scenes[:1]
            self.pipeline.model.limits({k: getattr(s, k) for s in first for k in ("near", "far", "bounded")})
        scale = float(getattr(manager, "camera_res_scale_factor", 1.0))
        for frame in (frame for scene in scenes for frame in scene.frames):
            if int(min(frame.width, frame.height) * scale) < 1:
                raise SceneError(
                    f"{frame.image_path}: no pixel is left of its {frame.width} x {frame.height} with "
                    f"camera-res-scale-factor {scale:g}; choose a larger one"
                )
        return scenes

    def _check_checkpoint(self, file: Path, loaded: Mapping[str, Any], scenes: list[Scene]) -> None:
        """Raise a UserError if the checkpoint's weights do not fit the model of this configuration."""
        manager: Any = self.pipeline.datamanager
        parser = manager.dataparser.setup()
        with reading_frames():
            outputs = parser.outputs(scenes[0]) if scenes else parser.get_dataparser_outputs("train")
        with torch.random.fork_rng(devices=[]), without_nerfstudio_lpips():
            model = self.pipeline.model.setup(
                scene_box=outputs.scene_box,
                num_train_data=len(outputs.image_filenames),
                metadata=outputs.metadata,
            )
        check_weights(model, loaded["pipeline"], file, str(self.method_name))
        gone = sorted(loaded.get("optimizers", {}).keys() - model.get_param_groups().keys())
        if gone:
            raise UserError(
                f"{file}: was trained with parameters of the group {gone[0]}, which this model does not have. Use the "
                "options that it was trained with."
            )

    def _kept_options(self, loaded: Mapping[str, Any]) -> list[str]:
        """Warnings about optimizer options whose configured values the checkpoint overrides."""
        kept = []
        for name, group in self.optimizers.items():
            for saved in loaded.get("optimizers", {}).get(name, {}).get("param_groups", [])[:1]:
                # A schedule without its state begins with the configured learning rate.
                begins = group["scheduler"] is not None and not self.load_scheduler
                for key in ("betas", "eps", "weight_decay") if begins else ("lr", "betas", "eps", "weight_decay"):
                    before = saved.get("initial_lr", saved.get("lr")) if key == "lr" else saved.get(key)
                    given = getattr(group["optimizer"], key, before)
                    if before is not None and given != (tuple(before) if isinstance(before, list) else before):
                        decays = key == "lr" and group["scheduler"] is not None
                        way = "; --load-scheduler False starts a new decay from yours" if decays else ""
                        kept.append(
                            f"optimizers.{name}.optimizer.{key} keeps the checkpoint's value {before}; {given} is "
                            f"ignored{way}."
                        )
        return kept

    def _announce(self) -> None:
        model: Any = self.pipeline.model
        grid = model.field
        CONSOLE.print(
            f"Training {grid.network} on {self.machine.device_type}: hash grid {grid.num_levels} x "
            f"{grid.features_per_level} features, up to 2^{grid.log2_hashmap_size} entries per level; "
            f"{self.pipeline.target_num_samples} samples per step; "  # type: ignore[attr-defined]
            f"{self.max_num_iterations} steps. All of these can be changed with options, see --help."
        )
        hint = busy_machine_hint(os.getloadavg()[0], len(os.sched_getaffinity(0)))
        if self.machine.device_type == "cpu" and hint:
            CONSOLE.print(hint, style="bold yellow", markup=False)


@dataclass
class ConvertedTrainerConfig(EugenTrainerConfig):
    """Trainer options of nerfstudio's own methods with EUGen layers."""

    fit_schedules: bool = False
    """Decay every learning rate over exactly max_num_iterations steps and ignore the schedulers' max_steps."""

    def _check_scene(self) -> list[Scene]:
        scenes = super()._check_scene()
        frames = [frame for scene in scenes for frame in scene.frames]
        parser: Any = self.pipeline.datamanager.dataparser  # type: ignore[attr-defined]
        if frames:
            refuse_reduction(frames, int(parser.downscale_factor or 1))
            for scene in scenes:
                check_readable_by_nerfstudio(scene.frames)
            self._check_masks(scenes[0].frames)
            held_out: list[Frame] = []
            with contextlib.suppress(SceneError):  # training does not need the test split
                held_out = list(SceneDataParser(parser).load("test").frames)
            if len({(frame.width, frame.height) for frame in (*frames, *held_out)}) > 1:
                # nerfstudio looks at the sizes of the training images alone.
                self.pipeline.datamanager.collate_fn = variable_res_collate  # type: ignore[attr-defined]
            self._set_near_limit(scenes[0])

        def decode(frame: Frame) -> None:
            read_image(frame)

        # When nerfstudio's data managers cannot decode a file, they do not name it, and wait forever for the worker
        # process that reads it.
        with ThreadPoolExecutor() as pool:
            for _ in pool.map(decode, frames):
                pass
        return scenes

    def _check_masks(self, frames: Sequence[Frame]) -> None:
        """Check what nerfstudio's sampler of masked pixels cannot do, and would fail at after the start of training.

        Raises:
            SceneError: the training photos differ in size, are one alone, or have too few usable pixels.
        """
        if frames[0].mask_path is None:
            return
        manager: Any = self.pipeline.datamanager
        where = f"{frames[0].mask_path}: this method reads masks through nerfstudio, which"
        if len({(frame.width, frame.height) for frame in frames}) > 1:
            raise SceneError(f"{where} needs photos of one size for that; resize them, or remove the masks")
        if len(frames) == 1:
            raise SceneError(f"{where} needs at least two training photos for that; remove the mask")
        usable = sum(int(read_mask(frame).sum()) for frame in frames) * float(manager.camera_res_scale_factor) ** 2
        if usable < manager.train_num_rays_per_batch:
            raise SceneError(
                f"{where} draws {manager.train_num_rays_per_batch} different pixels in each step, and the masks leave "
                f"{int(usable)}; use fewer with --pipeline.datamanager.train-num-rays-per-batch"
            )

    def _set_near_limit(self, scene: Scene) -> None:
        """Start the rays of captures in front of what they show.

        By default rays of vanilla-nerf and mipnerf start at 2, which suits Blender scenes. In captures, whose cameras
        are scaled into [-1, 1], that lies behind what the photos show. A resumed training keeps its rays.
        """
        model: Any = self.pipeline.model
        usual = dict(VanillaModelConfig().collider_params or {})
        if not isinstance(model, VanillaModelConfig) or dict(model.collider_params or {}) != usual:
            return
        file = chosen_checkpoint(self.load_dir, self.load_step, self.load_checkpoint)
        trained = None if file is None else option(trained_config(file) or {}, "pipeline.model.collider_params")
        if isinstance(trained, Mapping):
            model.collider_params = dict(trained)
        elif not scene.bounded:
            far = usual["far_plane"] if scene.near < usual["far_plane"] else scene.far
            model.collider_params = {**usual, "near_plane": scene.near, "far_plane": far}

    def _announce(self) -> None:
        model: Any = self.pipeline.model
        CONSOLE.print(f"EUGen layers in {self.method_name}:\n{model.describe_conversion()}", markup=False)

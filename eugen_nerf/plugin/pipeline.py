"""Pipeline that keeps the number of samples per training step constant and selects features during training."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, cast

import torch
from nerfstudio.data.datamanagers.base_datamanager import VanillaDataManagerConfig
from nerfstudio.engine.callbacks import TrainingCallback, TrainingCallbackAttributes, TrainingCallbackLocation
from nerfstudio.pipelines.dynamic_batch import DynamicBatchPipeline, DynamicBatchPipelineConfig
from nerfstudio.utils.rich_utils import CONSOLE
from torch.nn.parallel import DistributedDataParallel

from eugen_nerf.errors import UserError
from eugen_nerf.layers.selection import follow
from eugen_nerf.plugin.averages import AveragingPipeline
from eugen_nerf.plugin.recording import record

MIN_RAYS = 64
SELECTION_RAYS = 1 << 16  # maximum, reached if few rays hit anything
SELECTION_AGAIN = 0.1  # fraction of the training after which to try again if selection was not possible


@dataclass
class SampleBudgetPipelineConfig(DynamicBatchPipelineConfig):
    """Options of the pipeline."""

    _target: type = field(default_factory=lambda: SampleBudgetPipeline)
    """Class to instantiate."""
    max_rays_per_batch: int = 16384
    """Maximum number of rays per step, even if they need few samples."""
    selection_fraction: float = 0.5
    """Fraction of the training, 0 or more and below 1, after which features are selected if the field has
    candidate_features. When training resumes from a checkpoint, the steps before it count."""
    selection_samples: int = 1 << 17
    """Number of samples on which features are compared."""

    def validate(self) -> None:
        """Check all options; raise a UserError that names the first invalid one."""
        for name in ("target_num_samples", "max_num_samples_per_ray", "selection_samples"):
            if getattr(self, name) < 1:
                raise UserError(f"Pipeline option {name} must be at least 1, not {getattr(self, name)}.")
        if self.max_rays_per_batch < MIN_RAYS:
            raise UserError(
                f"Pipeline option max_rays_per_batch must be at least {MIN_RAYS}, not {self.max_rays_per_batch}."
            )
        for name in ("train_num_rays_per_batch", "eval_num_rays_per_batch"):
            default = getattr(VanillaDataManagerConfig, name)
            if getattr(self.datamanager, name, default) != default:
                raise UserError(
                    f"pipeline.datamanager.{name} has no effect: the number of rays per step follows from "
                    "pipeline.target_num_samples and is limited by pipeline.max_rays_per_batch. Set those instead."
                )
        patch = getattr(self.datamanager, "patch_size", 1)
        if patch**2 > self.max_rays_per_batch:
            raise UserError(
                f"pipeline.datamanager.patch_size {patch} needs {patch**2} rays per step, more than "
                f"pipeline.max_rays_per_batch ({self.max_rays_per_batch})."
            )
        if not 0 <= self.selection_fraction < 1:
            raise UserError(
                f"Pipeline option selection_fraction must be 0 or more and below 1, not {self.selection_fraction}."
            )


class SampleBudgetPipeline(AveragingPipeline, DynamicBatchPipeline):
    """Adapts the number of rays per step to the number of samples, within limits.

    nerfstudio's own rule divides by the number of samples, which is zero if a batch sees only background. It also
    starts with zero rays if the budget is smaller than the maximum number of samples per ray.
    """

    config: SampleBudgetPipelineConfig
    spent: Callable[[int], float] | None = None
    """Maps a step to the fraction of the training completed before it. None counts all steps, including those before a
    loaded checkpoint, up to the trainer's last one."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._set_rays(self.dynamic_num_rays_per_batch)
        self._update_pixel_samplers()

    def _update_dynamic_num_rays_per_batch(self, num_samples_per_batch: int) -> None:
        rays = self.dynamic_num_rays_per_batch
        wanted = rays * self.config.target_num_samples / max(num_samples_per_batch, 1)
        # The number of rays at most doubles per step, so that one batch with few samples does not blow up the next.
        self._set_rays(min(wanted, 2 * rays))

    def _set_rays(self, rays: float) -> None:
        fewest = max(MIN_RAYS, getattr(self.config.datamanager, "patch_size", 1) ** 2)
        self.dynamic_num_rays_per_batch = int(max(fewest, min(rays, self.config.max_rays_per_batch)))

    def get_training_callbacks(
        self, training_callback_attributes: TrainingCallbackAttributes
    ) -> list[TrainingCallback]:
        callbacks = super().get_training_callbacks(training_callback_attributes)
        if not self.model.field.has_candidates():
            return callbacks
        trainer: Any = training_callback_attributes.trainer
        optimizers: Any = training_callback_attributes.optimizers
        share = self.config.selection_fraction

        def spent(step: int) -> float:
            if self.spent is not None:
                return self.spent(step)
            return step / (trainer._start_step + trainer.config.max_num_iterations)

        def select(step: int) -> None:
            nonlocal share
            due = spent(step) >= share or spent(step + 1) >= 1  # before the last step at the latest
            if not due or not self.model.field.has_candidates():
                return
            try:
                self.select_features(optimizers.optimizers["networks"])
            except UserError as error:
                share = spent(step) + SELECTION_AGAIN
                CONSOLE.print(f"All features are kept for now. {error}", style="bold yellow", markup=False)

        def tell(step: int) -> None:
            if self.model.field.has_candidates():
                CONSOLE.print(
                    f"All {self.model.field.config.candidate_features} features of each EUGen layer were kept: this "
                    "training selected none.",
                    style="bold yellow",
                    markup=False,
                )

        return [
            *callbacks,
            TrainingCallback([TrainingCallbackLocation.BEFORE_TRAIN_ITERATION], select, 1),
            TrainingCallback([TrainingCallbackLocation.AFTER_TRAIN], tell),
        ]

    def load_pipeline(self, loaded_state: dict[str, Any], step: int) -> None:
        candidates = self.model.field.has_candidates()
        super().load_pipeline(loaded_state, step)
        if candidates and not self.model.field.has_candidates():  # the checkpoint was saved after the selection
            self._distribute_again()

    def _distribute_again(self) -> None:
        """Rebuild DistributedDataParallel after parameters have changed shape.

        Its buffers still have the old layout, and it would not sum the gradients of these parameters. A new wrapper
        also gives all processes the same parameters.
        """
        if isinstance(self._model, DistributedDataParallel):
            devices, self._model = self._model.device_ids, self.model
            self._model = cast(Any, DistributedDataParallel(self.model, devices, find_unused_parameters=True))

    def select_features(self, optimizer: torch.optim.Optimizer) -> None:
        """Keep the num_features features of each EUGen layer that contribute most to the training views.

        Args:
            optimizer: the networks' optimizer; its state is updated to match.

        Raises:
            UserError: the field shows nothing of the scene, or is not finite. Nothing has changed then.
        """
        field = self.model.field
        cameras = self.datamanager.train_dataset.cameras
        share = min(1.0, SELECTION_RAYS / int((cameras.height * cameras.width).sum()))
        recorded = record(self, ["field"], share, self.config.selection_samples, seed=0)
        try:
            kept = field.select_features(field.config.num_features, recorded.fields["field"].calls)
        except ValueError as error:
            raise UserError(f"Features cannot be compared ({error}).") from error
        follow(optimizer, kept)
        self._distribute_again()
        shares = ", ".join(f"{100 * one.explained:.2f}" for one in kept)
        CONSOLE.print(
            f"Kept {field.config.num_features} of {field.config.candidate_features} features in each EUGen layer. Per "
            f"layer, they explain {shares} % of the variance of the outputs."
        )

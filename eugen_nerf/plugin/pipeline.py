"""Pipeline that keeps the number of samples per training step constant."""

from dataclasses import dataclass, field
from typing import Any

from nerfstudio.pipelines.dynamic_batch import DynamicBatchPipeline, DynamicBatchPipelineConfig

MIN_RAYS = 64


@dataclass
class SampleBudgetPipelineConfig(DynamicBatchPipelineConfig):
    """Options of the pipeline."""

    _target: type = field(default_factory=lambda: SampleBudgetPipeline)
    """Class to instantiate."""
    max_rays_per_batch: int = 16384
    """Most rays of a step, however few samples each of them needs."""


class SampleBudgetPipeline(DynamicBatchPipeline):
    """Adapts the number of rays to the occupancy grid, within limits.

    nerfstudio's own rule divides by the number of samples, which is zero when a batch sees nothing but
    background, and begins without any ray when the budget is smaller than the most samples of one.
    """

    config: SampleBudgetPipelineConfig

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._set_rays(self.dynamic_num_rays_per_batch)
        self._update_pixel_samplers()

    def _update_dynamic_num_rays_per_batch(self, num_samples_per_batch: int) -> None:
        rays = self.dynamic_num_rays_per_batch
        wanted = rays * self.config.target_num_samples / max(num_samples_per_batch, 1)
        # At most doubling per step lets no single lucky batch blow up the next one.
        self._set_rays(min(wanted, 2 * rays))

    def _set_rays(self, rays: float) -> None:
        self.dynamic_num_rays_per_batch = int(max(MIN_RAYS, min(rays, self.config.max_rays_per_batch)))

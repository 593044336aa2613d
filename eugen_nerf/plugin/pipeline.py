"""Pipeline that keeps the number of samples per training step constant."""

from dataclasses import dataclass, field
from typing import Type

from nerfstudio.pipelines.dynamic_batch import DynamicBatchPipeline, DynamicBatchPipelineConfig


@dataclass
class SampleBudgetPipelineConfig(DynamicBatchPipelineConfig):
    """Options of the pipeline."""

    _target: Type = field(default_factory=lambda: SampleBudgetPipeline)
    """Class to instantiate."""
    max_rays_per_batch: int = 16384
    """Most rays of a step, however few samples each of them needs."""


class SampleBudgetPipeline(DynamicBatchPipeline):
    """Adapts the number of rays to the occupancy grid, within limits.

    nerfstudio's own rule divides by the number of samples, which is zero when a batch sees nothing but background.
    """

    config: SampleBudgetPipelineConfig

    def _update_dynamic_num_rays_per_batch(self, num_samples_per_batch: int) -> None:
        rays = self.dynamic_num_rays_per_batch
        wanted = rays * self.config.target_num_samples / max(num_samples_per_batch, 1)
        # At most doubling per step lets no single lucky batch blow up the next one.
        self.dynamic_num_rays_per_batch = int(max(64, min(wanted, 2 * rays, self.config.max_rays_per_batch)))

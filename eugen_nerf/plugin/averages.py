"""Metric averages over the images of a split in which not every image has every metric."""

from pathlib import Path
from typing import Any
from unittest import mock

import torch
from nerfstudio.pipelines.base_pipeline import VanillaPipeline
from torch import Tensor


class AveragingPipeline(VanillaPipeline):
    """Averages each metric over the images that have it.

    nerfstudio's own pipeline expects the metrics of the first image in all others, and fails with a KeyError if one of
    them is too small for LPIPS.
    """

    def get_average_image_metrics(
        self,
        data_loader: Any,
        image_prefix: str,
        step: int | None = None,
        output_path: Path | None = None,
        get_std: bool = False,
    ) -> dict[str, float]:
        """The mean of every metric and, with `get_std`, its standard deviation as NAME_std, as in nerfstudio."""
        pictures: list[dict[str, float]] = []
        measure: Any = self.model.get_image_metrics_and_images

        def noted(outputs: dict[str, Tensor], batch: dict[str, Any]) -> tuple[dict[str, float], dict[str, Tensor]]:
            metrics, images = measure(outputs, batch)
            pictures.append(metrics)
            return {}, images

        with mock.patch.object(self.model, "get_image_metrics_and_images", noted):
            speed = super().get_average_image_metrics(data_loader, image_prefix, step, output_path, get_std)
        averages: dict[str, float] = {}
        for name in dict.fromkeys(name for metrics in pictures for name in metrics):
            values = torch.tensor([metrics[name] for metrics in pictures if name in metrics])
            averages[name] = float(values.mean())
            if get_std:
                averages[f"{name}_std"] = float(values.std())
        return averages | speed

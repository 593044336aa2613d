"""Means over the pictures of a split where pictures differ in the metrics that they have."""

from pathlib import Path
from typing import Any
from unittest import mock

import torch
from nerfstudio.pipelines.base_pipeline import VanillaPipeline
from torch import Tensor


class AveragingPipeline(VanillaPipeline):
    """Averages each metric over the pictures that have it.

    nerfstudio's looks for the metrics of the first picture in all others, and ends with a KeyError where one of those
    is too small for LPIPS.
    """

    def get_average_image_metrics(
        self,
        data_loader: Any,
        image_prefix: str,
        step: int | None = None,
        output_path: Path | None = None,
        get_std: bool = False,
    ) -> dict[str, float]:
        """As nerfstudio's: the mean of every metric, with its standard deviation as NAME_std where asked for."""
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

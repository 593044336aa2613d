"""Drawing training pixels from photos of different sizes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from nerfstudio.data.pixel_samplers import PixelSampler
from torch import Tensor

from eugen_nerf.errors import UserError

# With fewer usable pixels than this share, their list is shorter than trying would be long.
FEW = 0.1


@dataclass(frozen=True, eq=False)
class _Pixels:
    """Images [H, W, C] of different sizes, row after row in one tensor."""

    source: list[Tensor]  # the images, whose memory is that of `values`
    values: Tensor  # [P, C]
    starts: Tensor  # [I + 1] int64, the first of each image and P
    widths: Tensor  # [I] int64
    usable: Tensor | None  # [P] bool; None: all
    listed: Tensor | None  # [U] int64, the usable ones where they are few

    @classmethod
    def of(cls, images: list[Tensor], masks: list[Tensor] | None) -> _Pixels:
        """The images' pixels; the lists' entries are replaced by views, so that nothing is kept twice."""
        values = _joined(images)
        usable = None if masks is None else _joined(masks)[:, 0].bool()
        listed = None
        if usable is not None:
            share = float(usable.float().mean())
            if not share:
                raise UserError("The masks of the training photos leave no pixel to train on.")
            listed = usable.nonzero()[:, 0] if share < FEW else None
        counts = torch.tensor([0, *(image.shape[0] * image.shape[1] for image in images)])
        widths = torch.tensor([image.shape[1] for image in images])
        device = values.device
        return cls(images, values, counts.cumsum(0).to(device), widths.to(device), usable, listed)

    def draw(self, number: int) -> Tensor:
        """Rows [number] of `values`, each usable one as likely as any other."""
        device = self.values.device
        if self.listed is not None:
            return self.listed[torch.randint(len(self.listed), (number,), device=device)]
        rows = torch.randint(len(self.values), (number,), device=device)
        while self.usable is not None and not (good := self.usable[rows]).all():
            rows[~good] = torch.randint(len(self.values), (int((~good).sum()),), device=device)
        return rows


def _joined(images: list[Tensor]) -> Tensor:
    joined = torch.cat([image.flatten(0, 1) for image in images])
    begin = 0
    for index, image in enumerate(images):
        end = begin + image.shape[0] * image.shape[1]
        images[index] = joined[begin:end].view(image.shape)
        begin = end
    return joined


class MixedSizesPixelSampler(PixelSampler):
    """Draws from all pixels of all photos alike, where these differ in size.

    nerfstudio's own sampler gives each photo the same even number of rays: none to most of them where a step has few
    rays, and an error where it has an odd number. It knows no masks in such scenes.
    """

    _pixels: _Pixels | None = None

    def collate_image_dataset_batch_list(
        self, batch: dict[str, Any], num_rays_per_batch: int, keep_full_image: bool = False
    ) -> dict[str, Any]:
        """A cached batch of images -> colours [R, C] of pixels, and their indices [R, 3]: camera, row, column."""
        if self._pixels is None or self._pixels.source is not batch["image"]:
            self._pixels = _Pixels.of(batch["image"], None if self.config.ignore_mask else batch.get("mask"))
        pixels = self._pixels
        rows = pixels.draw(num_rays_per_batch)
        image = torch.searchsorted(pixels.starts, rows, right=True) - 1
        local, width = rows - pixels.starts[image], pixels.widths[image]
        camera = batch["image_idx"].to(image.device)[image]
        indices = torch.stack([camera, local // width, local % width], dim=-1)
        drawn = {"image": pixels.values[rows], "indices": indices}
        return {**drawn, "full_image": batch["image"]} if keep_full_image else drawn

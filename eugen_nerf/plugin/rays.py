"""Rays of training pixels, without computing the same directions in every step."""

import torch
from nerfstudio.cameras.cameras import Cameras
from nerfstudio.cameras.rays import RayBundle


class TabulatedRays(torch.nn.Module):
    """Rays of pixels, looked up where nerfstudio's `RayGenerator` computes them anew.

    nerfstudio undoes the lens distortion of every ray of every batch by iteration. A pixel's direction in its
    camera's frame never changes, so it is computed once, for each different set of intrinsics.

    Args:
        cameras: [C] cameras.

    Raises:
        ValueError: the table would take more than `MAX_BYTES`.
    """

    MAX_BYTES = 1 << 30

    def __init__(self, cameras: Cameras) -> None:
        super().__init__()
        groups, self.group_of = self._group(cameras)
        sizes = [(int(cameras.height[i]), int(cameras.width[i])) for i in groups]
        if sum(16 * h * w for h, w in sizes) > self.MAX_BYTES:
            raise ValueError(f"{len(groups)} different cameras of up to {max(sizes)} pixels make too large a table")
        tables: list[torch.Tensor] = []
        first: list[int] = []
        for index, (height, width) in zip(groups, sizes, strict=True):
            camera = cameras[index : index + 1]
            camera.camera_to_worlds = torch.eye(4)[None, :3].to(camera.device)
            rays = camera.generate_rays(camera_indices=0, keep_shape=True)
            first.append(sum(len(table) for table in tables))
            tables.append(torch.cat([rays.directions, rays.pixel_area], dim=-1).view(height * width, 4))
        self.table = torch.cat(tables)  # [pixels of all groups, 4]: unit direction, area
        self.first = torch.tensor(first, device=self.table.device)[self.group_of]  # [C] first row of a camera
        self.width = cameras.width[:, 0]
        self.rotations = cameras.camera_to_worlds[:, :, :3]
        self.origins = cameras.camera_to_worlds[:, :, 3]

    @staticmethod
    def _group(cameras: Cameras) -> tuple[list[int], torch.Tensor]:
        """One camera of each set of intrinsics, and the set of each camera."""
        columns = [cameras.fx, cameras.fy, cameras.cx, cameras.cy, cameras.width, cameras.height, cameras.camera_type]
        if cameras.distortion_params is not None:
            columns.append(cameras.distortion_params)
        rows = torch.cat([column.double() for column in columns], dim=-1)
        unique, group_of = rows.unique(dim=0, return_inverse=True)
        representative = [int(torch.nonzero(group_of == group)[0]) for group in range(len(unique))]
        return representative, group_of

    def forward(self, ray_indices: torch.Tensor) -> RayBundle:
        """[N, 3] camera, row and column of pixels -> their rays."""
        # nerfstudio draws pixels where the images are, in main memory.
        camera, y, x = ray_indices.to(self.table.device).unbind(-1)
        entry = self.table[self.first[camera] + y * self.width[camera] + x]
        directions = (self.rotations[camera] * entry[:, None, :3]).sum(-1)
        return RayBundle(
            origins=self.origins[camera],
            directions=directions,
            pixel_area=entry[:, 3:],
            camera_indices=camera[:, None],
        )

"""Rays of training pixels and of whole images, without recomputing the same directions."""

from dataclasses import dataclass, replace

import torch
from nerfstudio.cameras.cameras import Cameras, CameraType
from nerfstudio.cameras.rays import RayBundle

# Camera types whose rays all start at one point.
CENTRAL = tuple(
    kind.value
    for kind in (CameraType.PERSPECTIVE, CameraType.FISHEYE, CameraType.EQUIRECTANGULAR, CameraType.FISHEYE624)
)


class TabulatedRays(torch.nn.Module):
    """Rays of pixels from a lookup table; nerfstudio's `RayGenerator` computes them for every batch.

    nerfstudio undoes the lens distortion of every ray of every batch iteratively. A pixel's direction in its camera's
    frame never changes, so it is computed once per distinct set of intrinsics.

    Args:
        cameras: [C] cameras.

    Raises:
        ValueError: the table would take more than `MAX_BYTES`, or the rays of a camera do not start at one point.
    """

    MAX_BYTES = 1 << 30

    def __init__(self, cameras: Cameras) -> None:
        super().__init__()
        if not torch.isin(cameras.camera_type, torch.tensor(CENTRAL, device=cameras.camera_type.device)).all():
            raise ValueError("the rays of these cameras do not start at one point each")
        groups, self.group_of = self._group(cameras)
        sizes = [(int(cameras.height[i]), int(cameras.width[i])) for i in groups]
        if sum(16 * h * w for h, w in sizes) > self.MAX_BYTES:
            raise ValueError(f"the table is too large for {len(groups)} different cameras of up to {max(sizes)} pixels")
        tables: list[torch.Tensor] = []
        first: list[int] = []
        for index, (height, width) in zip(groups, sizes, strict=True):
            rays = _in_its_own_frame(cameras[index : index + 1])
            first.append(sum(len(table) for table in tables))
            tables.append(torch.cat([rays.directions, rays.pixel_area], dim=-1).view(height * width, 4))
        self.table = torch.cat(tables)  # [pixels of all groups, 4]: unit direction, area
        self.first = torch.tensor(first, device=self.table.device)[self.group_of]  # [C] first row of a camera
        self.width = cameras.width[:, 0]
        # Indexing is several times faster in contiguous tensors.
        self.rotations = cameras.camera_to_worlds[:, :, :3].contiguous()
        self.origins = cameras.camera_to_worlds[:, :, 3].contiguous()

    @staticmethod
    def _group(cameras: Cameras) -> tuple[list[int], torch.Tensor]:
        """One camera of each set of intrinsics, and the index of each camera's set."""
        unique, group_of = _intrinsics(cameras).unique(dim=0, return_inverse=True)
        representative = [int(torch.nonzero(group_of == group)[0]) for group in range(len(unique))]
        return representative, group_of

    def forward(self, ray_indices: torch.Tensor) -> RayBundle:
        """Rays of pixels, given as [N, 3] camera, row and column."""
        # nerfstudio draws pixels in main memory, where the images are.
        camera, y, x = ray_indices.to(self.table.device).unbind(-1)
        row = self.first.index_select(0, camera) + y * self.width.index_select(0, camera) + x
        entry = self.table.index_select(0, row)
        return RayBundle(
            origins=self.origins.index_select(0, camera),
            directions=_rotated(entry[:, :3], self.rotations.index_select(0, camera)),
            pixel_area=entry[:, 3:],
            camera_indices=camera[:, None],
        )


def _rotated(directions: torch.Tensor, rotation: torch.Tensor) -> torch.Tensor:
    """Directions [..., 3] times a matrix [3, 3] or one for each, [..., 3, 3].

    Written out, since autocast would run a matrix product in half precision.
    """
    x, y, z = directions.unsqueeze(-1).unbind(-2)
    columns = rotation.unbind(-1)
    return (columns[0] * x).addcmul_(columns[1], y).addcmul_(columns[2], z)


@dataclass(frozen=True)
class ImageRays:
    """Rays [H, W] of a whole image, in an order that `in_place` undoes."""

    rays: RayBundle
    rank: torch.Tensor  # [H * W] position of each pixel in that order

    def in_place(self, values: torch.Tensor) -> torch.Tensor:
        """Reorder values of the rays, [H, W, ...], to an image."""
        return values.flatten(0, 1)[self.rank].view_as(values)


@dataclass(frozen=True)
class _Lens:
    """Ray directions in a camera's frame."""

    device: torch.device
    intrinsics: tuple[float, ...]
    rank: torch.Tensor
    directions: torch.Tensor  # [H, W, 3]
    pixel_area: torch.Tensor  # [H, W, 1]


class ImageRayGenerator:
    """Rays of whole images, ordered so that neighboring pixels follow one another.

    The cameras of a video, of a test split or of an interactive viewer differ mainly in their pose. nerfstudio
    recomputes the directions of every image, including those of two neighbors of each pixel. This class keeps the
    directions in the camera's frame from one image to the next and rotates them. Rays follow a Z-order (Morton) curve,
    in which 32 rays cover a block of 8 x 4 pixels: they read the same entries of the hash grid more often than 32 rays
    of a row.
    """

    MAX_PIXELS = 1 << 23

    def __init__(self) -> None:
        self._lens: _Lens | None = None

    def __call__(self, camera: Cameras) -> ImageRays | None:
        """Rays of one camera, of shape [1] or [].

        Returns:
            The rays, or None if nerfstudio should generate them: they do not start at one point, or are too many to
            keep.
        """
        camera = camera.flatten()
        intrinsics = tuple(_intrinsics(camera)[0].tolist())
        width, height, kind = (int(value) for value in intrinsics[:3])
        if len(camera) != 1 or kind not in CENTRAL or height * width > self.MAX_PIXELS:
            return None
        pose = camera.camera_to_worlds[0].float()
        lens = self._lens  # read once: the viewer renders in its own thread
        if lens is None or (lens.device, lens.intrinsics) != (pose.device, intrinsics):
            self._lens = lens = _look_through(camera, intrinsics)
        directions = _rotated(lens.directions, pose[:, :3])
        origins = pose[:, 3].expand(height, width, 3).contiguous()
        return ImageRays(RayBundle(origins, directions, lens.pixel_area), lens.rank)


def _look_through(camera: Cameras, intrinsics: tuple[float, ...]) -> _Lens:
    width, height, kind = (int(value) for value in intrinsics[:3])
    bent = camera.distortion_params is not None and bool(camera.distortion_params.any())
    if bent or kind != CameraType.PERSPECTIVE.value:
        rays = _in_its_own_frame(camera)
        directions, area = rays.directions, rays.pixel_area
    else:
        directions, area = _through_a_pinhole(camera, height, width)
    order = z_order(height, width, directions.device)
    rank = torch.empty_like(order)
    rank[order] = torch.arange(len(order), device=order.device)
    directions, area = (values.flatten(0, 1)[order].view(height, width, -1) for values in (directions, area))
    return _Lens(directions.device, intrinsics, rank, directions, area)


def _through_a_pinhole(camera: Cameras, height: int, width: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Directions and areas of the pixels of a pinhole camera, as nerfstudio computes them."""
    device = camera.camera_to_worlds.device
    right = (torch.arange(width + 1, device=device) + 0.5 - camera.cx[0]) / camera.fx[0]
    down = (torch.arange(height + 1, device=device) + 0.5 - camera.cy[0]) / camera.fy[0]
    # The cameras of ns-render's camera paths have focal lengths in double precision.
    x, y = torch.broadcast_tensors(right.float(), -down[:, None].float())
    directions = torch.stack([x, y, -torch.ones_like(x)], dim=-1)
    directions /= directions.norm(dim=-1, keepdim=True)
    here = directions[:-1, :-1]
    width_of, height_of = ((there - here).norm(dim=-1) for there in (directions[:-1, 1:], directions[1:, :-1]))
    return here, (width_of * height_of)[..., None]


def z_order(height: int, width: int, device: torch.device | None = None) -> torch.Tensor:
    """Row-major indices of an image's pixels in the order of a Z-order curve: [height * width]."""

    def spread(count: int) -> torch.Tensor:  # inserts a zero before each bit
        numbers = torch.arange(count, device=device)
        bits = [(numbers >> i & 1) << 2 * i for i in range(count.bit_length())]
        return torch.stack(bits).sum(0)

    return (spread(width) + 2 * spread(height)[:, None]).flatten().argsort()


def _in_its_own_frame(camera: Cameras) -> RayBundle:
    """Rays of a camera [1] with the identity pose: [H, W]."""
    camera = replace(camera, camera_to_worlds=torch.eye(4)[None, :3].to(camera.device))
    rays = camera.generate_rays(camera_indices=0, keep_shape=True)
    # nerfstudio divides 0 by 0 where a fisheye lens looks straight ahead.
    ahead = rays.directions.isnan().any(dim=-1, keepdim=True)
    rays.directions = torch.where(ahead, rays.directions.new_tensor([0.0, 0.0, -1.0]), rays.directions)
    assert rays.pixel_area is not None
    rays.pixel_area = rays.pixel_area.nan_to_num(nan=float(rays.pixel_area.nanmean()))
    return rays


def _intrinsics(cameras: Cameras) -> torch.Tensor:
    """[C, n] what determines the directions in a camera's frame: width, height, type and lens parameters."""
    columns = [cameras.width, cameras.height, cameras.camera_type, cameras.fx, cameras.fy, cameras.cx, cameras.cy]
    if cameras.distortion_params is not None:
        columns.append(cameras.distortion_params)
    return torch.cat([column.double() for column in columns], dim=-1)

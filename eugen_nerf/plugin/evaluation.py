"""Render the images of a test split and evaluate them by one protocol for every method."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from nerfstudio.cameras.cameras import Cameras
from PIL import Image
from torch import Tensor

from eugen_nerf.errors import UserError
from eugen_nerf.metrics import Lpips, check_colors, image_metrics, psnr, to_uint8

# Replaces the infinite PSNR of equal images, which JSON cannot represent. Images that differ are far below it.
PSNR_OF_EQUAL_IMAGES = 120.0


def lpips_if_on_disk() -> Lpips | None:
    """LPIPS if its weights are already on disk: a benchmark does not download 230 MB without being asked to."""
    from torchvision.models import AlexNet_Weights

    file = AlexNet_Weights.IMAGENET1K_V1.url.rpartition("/")[2]
    return Lpips() if (Path(torch.hub.get_dir()) / "checkpoints" / file).is_file() else None


def spread_order(count: int) -> list[int]:
    """0 .. count - 1 in an order in which every prefix is spread over the whole range (van der Corput)."""
    bits = max(count - 1, 1).bit_length()
    return sorted(range(count), key=lambda i: int(f"{i:0{bits}b}"[::-1], 2))


@dataclass(frozen=True)
class TestView:
    """A camera of the test split and its photo."""

    index: int
    camera: Cameras
    truth: Tensor  # [H, W, 3] in [0, 1], on the model's background where the photo is transparent


def test_view(pipeline: Any, index: int) -> TestView:
    """A view of the split that the pipeline evaluates on.

    Raises:
        UserError: the method reads the photo at a size other than its camera's.
    """
    dataset = pipeline.datamanager.eval_dataset
    camera = dataset.cameras[index : index + 1].to(pipeline.device)
    image = dataset[index]["image"].to(pipeline.device)
    size, expected = tuple(image.shape[:2]), (int(camera.height), int(camera.width))
    if size != expected:
        raise UserError(
            f"{dataset.image_filenames[index]}: is read at {size[1]}x{size[0]}, but its camera has "
            f"{expected[1]}x{expected[0]}. This method's datamanager does not apply the dataparser's downscaling; "
            "provide images of the size it should train on."
        )
    if image.shape[-1] == 4:
        image = image[..., :3] * image[..., 3:] + float(_shows_white(pipeline)) * (1 - image[..., 3:])
    return TestView(index, camera, image)


def _shows_white(pipeline: Any) -> bool:
    """Whether a model shows transparent photos on white.

    Models without a background_color do. With one, only the value white does: nerfstudio's models show black also for
    last_sample and for random.
    """
    return getattr(getattr(pipeline.model, "config", None), "background_color", "white") == "white"


def check_background(pipeline: Any) -> None:
    """Refuse to compare images on different backgrounds.

    Raises:
        UserError: the photos are transparent, and the model shows them on black.
    """
    dataset = pipeline.datamanager.eval_dataset
    if not _shows_white(pipeline) and dataset[0]["image"].shape[-1] == 4:
        raise UserError(
            f"{dataset.image_filenames[0]}: is transparent, and this method shows it on black (background_color "
            f"{pipeline.model.config.background_color}) while the others show it on white. Add the override "
            "pipeline.model.background_color: white."
        )


@torch.no_grad()
def render_view(pipeline: Any, camera: Cameras) -> Tensor:
    """Render the image of a camera: [H, W, 3]."""
    return _shown(pipeline.model.get_outputs_for_camera(camera))


def render_pixels(pipeline: Any, camera: Cameras, places: Tensor) -> Tensor:
    """Render some pixels of the image of a camera.

    Args:
        places: [n] indices of pixels, row by row.

    Returns:
        [n, 3].
    """
    rays = camera.generate_rays(camera_indices=0, keep_shape=True).flatten()[places]
    # Models render ray bundles that have the shape of an image.
    outputs = pipeline.model.get_outputs_for_camera_ray_bundle(rays.reshape((1, len(places))))
    return _shown(outputs)[0]


def _shown(outputs: dict[str, Tensor]) -> Tensor:
    # Models with a coarse and a fine pass call their image rgb_fine.
    return outputs["rgb"] if "rgb" in outputs else outputs["rgb_fine"]


def forked_rng(device: torch.device | str) -> AbstractContextManager[None]:
    """Restore the random state of the CPU and of this device at the end. By default torch asks all GPUs, and warns."""
    device = torch.device(device)
    in_use = device.type == "cuda" and torch.cuda.is_initialized()
    return torch.random.fork_rng(devices=[device] if in_use else [])


@contextmanager
def evaluating(pipeline: Any) -> Iterator[None]:
    """Evaluation mode. Training continues afterwards with the random numbers it would have used otherwise."""
    was_training = pipeline.training
    pipeline.eval()
    try:
        with forked_rng(pipeline.device), torch.no_grad():
            yield
    finally:
        pipeline.train(was_training)


def num_test_views(pipeline: Any) -> int:
    """Size of the split that the pipeline evaluates on."""
    return len(pipeline.datamanager.eval_dataset)


def test_split(pipeline: Any) -> str:
    """Identify the photos that the pipeline evaluates on, and their order.

    The folders and endings of their names are ignored, because dataparsers keep downscaled copies under other ones.
    """
    names = [Path(file).stem for file in pipeline.datamanager.eval_dataset.image_filenames]
    return hashlib.sha256("\0".join(names).encode("utf8", "surrogateescape")).hexdigest()[:16]


def check_held_out(pipeline: Any) -> None:
    """Refuse to evaluate on training images.

    Raises:
        UserError: a photo of the split that the pipeline evaluates on is also in the training split.
    """
    manager = pipeline.datamanager
    trained = set(manager.train_dataset.image_filenames)
    shown = [file for file in manager.eval_dataset.image_filenames if file in trained]
    if shown:
        raise UserError(
            f"{shown[0]}: is in both the training and the test split, like {len(shown)} of the "
            f"{num_test_views(pipeline)} test views. A benchmark evaluates on held-out photos; leave the "
            "dataparser's eval_interval (eval_mode in nerfstudio's) at its default, or list other photos for testing."
        )


def evaluate(
    pipeline: Any,
    views: Sequence[int],
    lpips: Lpips | None = None,
    report: Callable[[float], None] = lambda fraction: None,
    pictures: Path | None = None,
    num_pictures: int = 0,
) -> list[dict[str, float]]:
    """Metrics of each view.

    Args:
        views: indices into the split.
        report: called with the fraction that is done.
        pictures: folder for the images of the first `num_pictures` views.
    """
    rows = []
    with evaluating(pipeline):
        for done, index in enumerate(views, start=1):
            view = test_view(pipeline, index)
            prediction = render_view(pipeline, view.camera)
            metrics = image_metrics(prediction, view.truth, lpips)
            metrics["psnr"] = min(metrics["psnr"], PSNR_OF_EQUAL_IMAGES)
            rows.append({"view": index, **metrics})
            if pictures is not None and done <= num_pictures:
                save_picture(prediction, pictures / f"{index:04d}.png")
                save_picture(view.truth, pictures / f"{index:04d}-truth.png")
            report(done / len(views))
    return rows


def quick_psnr(pipeline: Any, views: Sequence[int], pixels: int | None = None) -> float:
    """Mean PSNR of some views, of whole images or of `pixels` pixels in each, which depend only on the view."""
    if pixels is None:
        found = mean(evaluate(pipeline, views), "psnr")
        assert found is not None
        return found
    total = 0.0
    with evaluating(pipeline):
        for index in views:
            view = test_view(pipeline, index)
            count = view.truth.shape[0] * view.truth.shape[1]
            places = torch.randperm(count, generator=torch.Generator().manual_seed(index))[:pixels]
            prediction = render_pixels(pipeline, view.camera, places.to(pipeline.device))
            truth = view.truth.reshape(count, 3)[places.to(pipeline.device)]
            check_colors(prediction, truth)
            total += min(psnr(to_uint8(prediction), to_uint8(truth)), PSNR_OF_EQUAL_IMAGES)
    return total / len(views)


def save_picture(image: Tensor, path: Path) -> None:
    """Save [H, W, 3] in [0, 1] as an 8-bit PNG."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(to_uint8(image).cpu().numpy()).save(path)


def mean(rows: Sequence[dict[str, float]], metric: str) -> float | None:
    """Mean of a metric over the views; None if a view lacks it."""
    values = [row[metric] for row in rows if metric in row]
    return sum(values) / len(values) if values and len(values) == len(rows) else None

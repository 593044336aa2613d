"""The measured values in results.jsonl that a report requires."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from eugen_nerf.bench.schema import convert
from eugen_nerf.errors import UserError

# Values of a training record that are averaged over seeds and scenes.
AVERAGED = (
    "psnr",
    "ssim",
    "lpips",
    "training_seconds",
    "rays_per_second",
    "stored_parameters",
    "merged_network_parameters",
    "multiply_adds_per_sample",
    "samples_per_ray",
    "peak_resident_bytes",
    "peak_device_bytes",
)

# Values that are read from a record. Those that older records lack (picture_size, test_split, cameras) are not listed.
TRAINING: dict[str, Any] = {
    **dict.fromkeys(AVERAGED, float | None),
    "psnr": float,
    "load_config": str,
    "views": list[dict[str, Any]],
    "num_test_views": int,
    "curve": list[dict[str, Any]],
    "pictures": list[int],
}
VIEW = {"view": int, "psnr": float}
POINT = {"seconds": float, "psnr": float}
FRAMES = {"frames": dict[str, list[dict[str, Any]]]}
FRAME = {"view": int, "seconds": float}
MACHINE: dict[str, Any] = {
    **dict.fromkeys(("gpu", "cuda", "cpu", "python", "torch", "nerfstudio", "eugen_nerf", "git_revision"), Any),
    **dict.fromkeys(("date", "command"), str),
    **dict.fromkeys(("cpu_cores", "threads", "memory_gib"), float),
}


def check_values(kind: Literal["training", "frames"], values: dict[str, Any], where: str) -> None:
    """Check that the record of a successful job has all values that are read from it. Other keys are allowed.

    Raises:
        UserError: a value is missing or invalid; the message begins with `where`.
    """
    if kind == "training":
        _check(TRAINING, values, where)
        for name, shape in (("views", VIEW), ("curve", POINT)):
            for i, entry in enumerate(values[name]):
                _check(shape, entry, f"{where}.{name}[{i}]")
    else:
        _check(FRAMES, values, where)
        for method, frames in values["frames"].items():
            for i, frame in enumerate(frames):
                _check(FRAME, frame, f"{where}.frames.{method}[{i}]")
    if "machine" in values:
        machine = convert(dict[str, Any], values["machine"], f"{where}.machine")
        _check(MACHINE, machine, f"{where}.machine")


def _check(shape: Mapping[str, Any], values: Mapping[str, Any], where: str) -> None:
    for key, kind in shape.items():
        if key not in values:
            raise UserError(f"{where}: the key {key!r} is missing.")
        convert(kind, values[key], f"{where}.{key}")

"""The sections of the GPU benchmark, as their processes run them piece by piece."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import gpu_timing
import torch
from gpu_kernels import FEW_CELLS, WIDTHS, gradient_rows, hash_rows, network_rows, ray_rows, tile_rows
from gpu_processes import BROKEN, DONE, Row, Task, Tell
from gpu_timing import DEVICE, failure
from gpu_training import Trainings

from eugen_nerf.errors import UserError
from eugen_nerf.ops import dispatch
from eugen_nerf.tcnn_modules import load_tcnn

TRAININGS = {"training": "eugen-nerf", "training-mlp": "eugen-nerf-mlp", "nerfacto": "nerfacto"}
MARGIN = 10  # seconds before a process is killed, in which it reports its results

Pieces = dict[str, Callable[[], Iterator[Row]]]


def work(task: Task, tell: Tell) -> None:
    """Run a section from piece ``task.first`` on.

    A failure affects its piece only. After a kernel's crash nothing works in this process, so it ends.
    """
    pieces = _pieces(task, tell, task.until - MARGIN)
    for number, (name, rows) in enumerate(pieces.items()):
        if number < task.first:
            continue
        tell({"piece": number, "pieces": len(pieces), "doing": name})
        try:
            for row in rows():
                tell({"row": row})
        except Exception as error:
            tell({"row": (f"{task.section}, {name}", "", "", "", failure(error))})
        try:
            torch.cuda.synchronize()
        except RuntimeError:
            tell({"end": BROKEN})
            return
        torch.cuda.empty_cache()
    tell({"end": DONE})


def _pieces(task: Task, tell: Tell, deadline: float) -> Pieces:
    batch, gpu, tcnn = task.batch, task.gpu, task.tcnn
    step = batch // 4  # with the default batch, the samples of a training step
    if task.section == "start":
        return {
            "measuring the GPU": lambda: measured(tell),
            "importing tiny-cuda-nn": lambda: imported_tcnn(tell),
            "checking the kernels": lambda: checked(tell),
        }
    if task.section == "networks":
        return {f"{w} wide": lambda w=w: network_rows(w, batch, gpu, tcnn) for w in WIDTHS}  # type: ignore[misc]
    if task.section == "tiles":
        return {f"{w} wide": lambda w=w: tile_rows(w, batch) for w in WIDTHS}  # type: ignore[misc]
    if task.section == "hash-grid":
        return {"hash_encode": lambda: hash_rows(batch, gpu, tcnn)}
    if task.section == "rays":
        return {
            "all cells occupied": lambda: ray_rows(step, 1),
            "few cells occupied": lambda: ray_rows(step, FEW_CELLS),
            "rays to gradients": lambda: gradient_rows(step),
        }
    if task.section == "torch.compile":
        return {f"{w} wide": lambda w=w: network_rows(w, batch, gpu, tcnn, deadline) for w in WIDTHS}  # type: ignore[misc]
    assert task.scene is not None
    method = TRAININGS[task.section]
    trainings = Trainings(Path(task.scene), task.iterations, tcnn, deadline, Path(task.folder), dict(task.speeds), tell)
    return {method: lambda: trainings.rows(method)}


def measured(tell: Tell) -> Iterator[Row]:
    if not torch.cuda.is_available():
        tell({"gpu": None})
        return
    tell({"gpu": vars(gpu_timing.measure_gpu())})
    yield from ()


def checked(tell: Tell) -> Iterator[Row]:
    """Report why ops on this GPU would run on eager PyTorch, so that other processes need not check again."""
    if torch.cuda.is_available():
        tell({"problem": dispatch.native_problem(torch.device(DEVICE))})
    yield from ()


def imported_tcnn(tell: Tell) -> Iterator[Row]:
    try:
        load_tcnn()
        tell({"tcnn": True})
    except UserError as error:
        yield "tiny-cuda-nn", "", "", "", f"not measured: {failure(error.__cause__ or error).removeprefix('failed: ')}"

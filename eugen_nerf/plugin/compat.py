"""Patches that nerfstudio 1.1.5 needs to run with current torch versions and without system packages."""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from traceback import walk_stack
from types import SimpleNamespace, TracebackType
from typing import Any
from unittest import mock

import numpy as np
import torch
from nerfstudio.configs import external_methods
from torch import nn

from eugen_nerf.errors import UserError
from eugen_nerf.quiet import hide_warnings_about_nerfstudio


def allow_numpy_scalars_in_checkpoints() -> None:
    """Let ``torch.load`` read nerfstudio's checkpoints.

    Since torch 2.6, ``torch.load`` by default rejects all types except tensors and plain containers.
    nerfstudio's learning-rate schedulers leave numpy scalars in the optimizer state.
    """
    scalar: Any = np.float64(0).__reduce__()[0]
    # By the names that NumPy 1 and NumPy 2 write, whichever is installed here.
    by_name = [(scalar, f"numpy.{core}.multiarray.scalar") for core in ("core", "_core")]
    torch.serialization.add_safe_globals([*by_name, np.dtype, np.float64, type(np.dtype(np.float64))])


def print_user_errors_without_traceback() -> None:
    """Print an uncaught `UserError` as its message alone; the exit status stays 1."""
    if getattr(sys.excepthook, "hides_user_errors", False):
        return
    previous = sys.excepthook

    def hook(kind: type[BaseException], error: BaseException, traceback: TracebackType | None) -> None:
        if isinstance(error, UserError):
            print(f"\nError: {error}", file=sys.stderr)
        else:
            previous(kind, error, traceback)

    hook.hides_user_errors = True  # type: ignore[attr-defined]
    sys.excepthook = hook


def provide_ffmpeg() -> None:
    """If the system has no ffmpeg, put the one shipped with imageio-ffmpeg on PATH.

    ns-render writes its videos with a program called ffmpeg; the shipped binary has another name.
    """
    if shutil.which("ffmpeg"):
        return
    try:
        import imageio_ffmpeg

        program = Path(imageio_ffmpeg.get_ffmpeg_exe())
    except (ImportError, RuntimeError):
        return  # ns-render then reports that ffmpeg is missing
    user = os.getuid() if hasattr(os, "getuid") else 0
    try:
        folder = Path(tempfile.gettempdir()) / f"eugen-nerf-ffmpeg-{user}"
        link = folder / "ffmpeg"
        folder.mkdir(mode=0o700, exist_ok=True)
        if folder.stat().st_uid != user:
            return  # do not put another user's folder on PATH
        if not link.exists():
            temporary = folder / f"ffmpeg-{os.getpid()}"
            temporary.symlink_to(program)
            os.replace(temporary, link)
    except OSError:
        return
    os.environ["PATH"] = f"{os.environ.get('PATH', '')}{os.pathsep}{folder}"


def callers() -> list[SimpleNamespace]:
    """Like `inspect.stack`, but each frame has only `function`, its name."""
    return [SimpleNamespace(function=frame.f_code.co_name) for frame, _ in walk_stack(sys._getframe(1))]


def start_sooner() -> None:
    """Shorten the start of every nerfstudio command by a quarter.

    For each known method that is not installed, nerfstudio inspects the whole stack to read a single name, and Python
    then searches all modules for the source file of every frame.
    """
    external_methods.inspect = SimpleNamespace(stack=callers)  # type: ignore[assignment]


class NoLpips(nn.Module):
    """Replaces the LPIPS module that nerfstudio's models create in their constructor."""

    def __init__(self, *_: Any, **__: Any) -> None:
        super().__init__()


@contextmanager
def without_nerfstudio_lpips() -> Iterator[None]:
    """Build models without nerfstudio's LPIPS, whose weights are downloaded.

    Otherwise no model could be trained on a machine without a network. The metrics of this package do not use it.
    """
    with mock.patch("torchmetrics.image.lpip.LearnedPerceptualImagePatchSimilarity", NoLpips):
        yield


def apply() -> None:
    """Apply all patches that affect the whole process; safe to call repeatedly."""
    allow_numpy_scalars_in_checkpoints()
    print_user_errors_without_traceback()
    provide_ffmpeg()
    start_sooner()
    hide_warnings_about_nerfstudio()

"""What nerfstudio 1.1.5 needs to run with today's torch and without system packages."""

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

    Since torch 2.6 it refuses, unless told otherwise, every type but tensors and plain containers.
    nerfstudio's learning-rate schedules leave numpy scalars in the optimizer state.
    """
    scalar: Any = np.float64(0).__reduce__()[0]
    torch.serialization.add_safe_globals([scalar, np.dtype, np.float64, type(np.dtype(np.float64))])


def print_user_errors_without_traceback() -> None:
    """Show a `UserError` that reaches the top of a program as its message alone; exit status stays 1."""
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
    """Put the ffmpeg that imageio-ffmpeg ships on PATH where the system has none.

    ns-render writes its videos through a program called ffmpeg; the shipped one carries another name.
    """
    if shutil.which("ffmpeg"):
        return
    try:
        import imageio_ffmpeg

        program = Path(imageio_ffmpeg.get_ffmpeg_exe())
    except (ImportError, RuntimeError):
        return  # ns-render then tells the user that ffmpeg is missing
    user = os.getuid() if hasattr(os, "getuid") else 0
    folder = Path(tempfile.gettempdir()) / f"eugen-nerf-ffmpeg-{user}"
    link = folder / "ffmpeg"
    try:
        folder.mkdir(mode=0o700, exist_ok=True)
        if folder.stat().st_uid != user:
            return  # somebody else's folder is not to be put on PATH
        if not link.exists():
            temporary = folder / f"ffmpeg-{os.getpid()}"
            temporary.symlink_to(program)
            os.replace(temporary, link)
    except OSError:
        return
    os.environ["PATH"] = f"{os.environ.get('PATH', '')}{os.pathsep}{folder}"


def callers() -> list[SimpleNamespace]:
    """What `inspect.stack` returns, but of each frame only `function`, its name."""
    return [SimpleNamespace(function=frame.f_code.co_name) for frame, _ in walk_stack(sys._getframe(1))]


def start_sooner() -> None:
    """Save every nerfstudio command a quarter of the time it takes to start.

    For each method that it knows but that is not installed, nerfstudio asks for the whole stack to read one name from
    it, and Python then looks for every frame's source file among all modules.
    """
    external_methods.inspect = SimpleNamespace(stack=callers)  # type: ignore[assignment]


class NoLpips(nn.Module):
    """Stands in for the LPIPS module that nerfstudio's models construct together with themselves."""

    def __init__(self, *_: Any, **__: Any) -> None:
        super().__init__()


@contextmanager
def without_nerfstudio_lpips() -> Iterator[None]:
    """Build models without their own LPIPS, for which nerfstudio downloads weights: a machine without a network
    could train none of them. Our metrics do not use it."""
    with mock.patch("torchmetrics.image.lpip.LearnedPerceptualImagePatchSimilarity", NoLpips):
        yield


def apply() -> None:
    """Everything that holds for a whole process; safe to call again."""
    allow_numpy_scalars_in_checkpoints()
    print_user_errors_without_traceback()
    provide_ffmpeg()
    start_sooner()
    hide_warnings_about_nerfstudio()

"""Helpers shared by the command-line programs."""

from __future__ import annotations

import io
import shlex
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from rich.console import Console

from eugen_nerf.errors import UserError
from eugen_nerf.quiet import hide_warnings_about_nerfstudio


def make_console() -> Console:
    """A console that prints text as it is: no emoji codes, and escapes for what the terminal cannot encode."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # file names need not be UTF-8
    return Console(emoji=False)


def command_line() -> str:
    """The command the user typed, in a form that can be run again."""
    module = getattr(sys.modules["__main__"], "__spec__", None)
    program = ["python", "-m", module.name] if module is not None else [Path(sys.argv[0]).name]
    return shlex.join([*program, *sys.argv[1:]])


@contextmanager
def exit_on_user_error(console: Console, interrupted: str = "Interrupted.") -> Iterator[None]:
    """Print a `UserError` as its message and exit with status 1; print `interrupted` on Ctrl-C and exit with 130.

    SIGTERM and, unless nohup ignores it, SIGHUP are handled like Ctrl-C, so that a terminated program also leaves no
    partial or temporary files behind.
    Importing nerfstudio inside this context does not show torch's warnings about it.
    """
    hide_warnings_about_nerfstudio()
    in_main = threading.current_thread() is threading.main_thread()  # only this thread may set handlers
    ends = [s for s in (signal.SIGTERM, signal.SIGHUP) if in_main and signal.getsignal(s) != signal.SIG_IGN]
    before = {number: signal.signal(number, signal.default_int_handler) for number in ends}
    try:
        yield
    except UserError as error:
        console.print(f"Error: {error}", style="bold red", markup=False, soft_wrap=True)
        sys.exit(1)
    except KeyboardInterrupt:
        console.print(interrupted, markup=False, soft_wrap=True)
        sys.exit(130)
    except RuntimeError as error:
        if type(error).__name__ != "OutOfMemoryError":  # torch's, which this module does not import
            raise
        reason = str(error).splitlines()[0]
        advice = "Free memory of the GPU, or hide the GPU with CUDA_VISIBLE_DEVICES= to use the CPU."
        console.print(f"Error: {reason} {advice}", style="bold red", markup=False, soft_wrap=True)
        sys.exit(1)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)

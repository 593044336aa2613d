"""What the command-line programs share."""

from __future__ import annotations

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


def command_line() -> str:
    """What the user typed, as one can type it again."""
    module = getattr(sys.modules["__main__"], "__spec__", None)
    program = ["python", "-m", module.name] if module is not None else [Path(sys.argv[0]).name]
    return shlex.join([*program, *sys.argv[1:]])


@contextmanager
def exit_on_user_error(console: Console, interrupted: str = "Interrupted.") -> Iterator[None]:
    """Print a `UserError` as its message and exit with status 1; print `interrupted` on Ctrl-C and exit with 130.

    SIGTERM is taken for Ctrl-C, so that whatever ends the program leaves nothing half done or temporary behind. Inside,
    nerfstudio may be imported without torch's remarks on it.
    """
    hide_warnings_about_nerfstudio()
    in_main = threading.current_thread() is threading.main_thread()  # no other may say what signals do
    before = signal.signal(signal.SIGTERM, signal.default_int_handler) if in_main else None
    try:
        yield
    except UserError as error:
        console.print(f"Error: {error}", style="bold red", markup=False, soft_wrap=True)
        sys.exit(1)
    except KeyboardInterrupt:
        console.print(interrupted, markup=False, soft_wrap=True)
        sys.exit(130)
    finally:
        if in_main:
            signal.signal(signal.SIGTERM, before)

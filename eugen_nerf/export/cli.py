"""The commands eugen-export and eugen-view."""

from __future__ import annotations

import contextlib
import functools
import os
import shlex
import tempfile
import threading
import webbrowser
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import tyro
from rich.console import Console

from eugen_nerf.cli_support import exit_on_user_error, make_console
from eugen_nerf.errors import UserError
from eugen_nerf.export.server import Server, check_export, make_server, url, url_elsewhere


@dataclass
class Web:
    """Write a static page that renders a trained scene in the visitor's browser. Any web host can serve it."""

    load_config: Path
    """config.yml of the run, as ns-train leaves it."""
    output: Path
    """Folder for the page."""
    compare: Path | None = None
    """config.yml of a second run on the same scene, for example the MLP baseline. The page can switch between both."""
    size_budget: float | None = None
    """Maximum size of each network's scene file in megabytes. The resulting loss of PSNR is printed."""
    with_images: bool = False
    """Add the dataset's photos, to compare them with the rendered images."""
    overwrite: bool = False
    """Replace the page in the folder, including scene/. Other files stay."""


@dataclass
class View:
    """Serve a page that eugen-export wrote, or a run, and open it in the browser. Ctrl-C stops the server."""

    path: tyro.conf.Positional[Path]
    """The exported folder, or config.yml of a run."""
    host: str = "127.0.0.1"
    """Address to listen on; 0.0.0.0 also serves other machines."""
    port: int = 7008
    """Port to listen on; 0 for any free one."""
    browser: bool = True
    """Whether to open the page in the browser."""


def export_main(arguments: list[str] | None = None) -> None:
    """Entry point of eugen-export."""
    options = tyro.extras.subcommand_cli_from_dict(
        {"web": Web}, prog="eugen-export", args=arguments, description="Export a trained scene."
    )
    console = make_console()
    with exit_on_user_error(console, "Interrupted; nothing was written."):
        size = _export(options, console)
        look = shlex.join(["eugen-view", str(options.output)])
        wrote = f"Wrote {options.output} ({size / 1e6:.1f} MB). Look at it with: {look}"
        console.print(wrote, markup=False, soft_wrap=True)


def view_main(arguments: list[str] | None = None) -> None:
    """Entry point of eugen-view."""
    options = tyro.cli(View, prog="eugen-view", args=arguments)
    console = make_console()
    with exit_on_user_error(console):
        _view(options, console)


def _export(options: Web, console: Console) -> int:
    # Importing nerfstudio takes seconds, and --help should not.
    from eugen_nerf.export.web import Options, export_web

    runs = [options.load_config, *([] if options.compare is None else [options.compare])]
    return export_web(
        runs,
        options.output,
        Options(options.size_budget, options.with_images, options.overwrite),
        functools.partial(console.print, markup=False, soft_wrap=True),
    )


def _view(options: View, console: Console) -> None:
    if os.path.isdir(options.path):
        check_export(options.path)
        with make_server(options.path, options.host, options.port) as server:
            _serve(server, options, console)
        return
    if not os.path.isfile(options.path):
        raise UserError(
            f"{options.path}: does not exist. Give a folder that eugen-export web wrote, or the config.yml of a run."
        )
    with _temporary_folder() as folder:
        page = Path(folder) / "page"
        # Open the port first, since the export takes a while and the port may be in use.
        with make_server(page, options.host, options.port) as server:
            _export(Web(options.path, page, with_images=True), console)
            _serve(server, options, console)


@contextlib.contextmanager
def _temporary_folder() -> Iterator[str]:
    try:
        folder = tempfile.TemporaryDirectory(prefix="eugen-view-")
    except OSError as error:
        raise UserError(
            f"No temporary folder can be written ({error.strerror}). Name one in the environment variable TMPDIR, or "
            "export the page with eugen-export."
        ) from error
    with folder as path:
        yield path


def _serve(server: Server, options: View, console: Console) -> None:
    others = url_elsewhere(server)
    where = url(server) if others is None else f"{url(server)}, for other machines on {others}"
    console.print(f"Serving {options.path} on {where}. Ctrl-C ends it.", markup=False, soft_wrap=True)
    if options.browser:
        # A browser in the terminal blocks its caller, and itself waits for the server.
        threading.Thread(target=webbrowser.open, args=(url(server),), daemon=True).start()
    with contextlib.suppress(KeyboardInterrupt):  # the way to stop it
        server.serve_forever()

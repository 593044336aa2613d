"""A web server for an exported folder. By default it serves this machine only."""

from __future__ import annotations

import functools
import http.server
import os
import socket
import sys
import urllib.parse
from pathlib import Path
from typing import Any

from eugen_nerf.errors import UserError
from eugen_nerf.export.folder import MARK

# The page needs nothing else, and a host may send the same policy. index.html repeats it for hosts that send none.
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob:; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)


# On some systems the type table has a script type that browsers do not run.
TYPES = {".js": "text/javascript", ".css": "text/css", ".json": "application/json", ".svg": "image/svg+xml"}


class Handler(http.server.SimpleHTTPRequestHandler):
    """Serves the files of a folder without logging to the terminal."""

    protocol_version = "HTTP/1.1"

    def guess_type(self, path: Any) -> str:
        """The type of a file, by its extension."""
        return TYPES.get(Path(path).suffix) or super().guess_type(path)

    def end_headers(self) -> None:
        self.send_header("Content-Security-Policy", POLICY)
        self.send_header("X-Content-Type-Options", "nosniff")
        self.send_header("Cache-Control", "no-store")
        super().end_headers()

    def send_head(self) -> Any:
        """Always send the file: a browser may have cached a newer file of this name from another folder."""
        del self.headers["If-Modified-Since"]
        # A published folder may be a repository.
        if any(part.startswith(".") for part in urllib.parse.unquote(self.path).split("/")):
            self.send_error(404)
            return None
        try:
            return super().send_head()
        except ValueError:  # a null byte, which no file name has
            self.send_error(404)
            return None

    def list_directory(self, path: Any) -> None:
        """Refuse listings: an exported folder has an index.html."""
        self.send_error(404)

    def log_message(self, format: str, *args: Any) -> None:
        """Do not log requests."""


def check_export(folder: Path) -> None:
    """Raise UserError unless `eugen-export web` wrote the folder."""
    for part in (Path("index.html"), MARK):
        if not os.path.isfile(folder / part):
            raise UserError(
                f"{folder}: holds no {part}. Give a folder that eugen-export web wrote, or the config.yml of a run."
            )


class Server(http.server.ThreadingHTTPServer):
    """Serves a folder, over IPv6 if the address is an IPv6 address."""

    def __init__(self, folder: Path, host: str, port: int) -> None:
        self.address_family = socket.AF_INET6 if ":" in host else socket.AF_INET
        super().__init__((host, port), functools.partial(Handler, directory=str(folder)))

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Ignore visitors who close the page while it loads."""
        if not isinstance(sys.exc_info()[1], ConnectionError):
            super().handle_error(request, client_address)


def make_server(folder: Path, host: str, port: int) -> Server:
    """Create a server for the folder, bound but not yet running.

    Args:
        host: IPv4 or IPv6 address, or a name that resolves to an IPv4 address.
        port: 0 for any free one.

    Raises:
        UserError: the address is not available.
    """
    try:
        return Server(folder, host, port)
    except (OSError, OverflowError) as error:
        reason = (error.strerror if isinstance(error, OSError) and error.strerror else str(error)).rstrip(".")
        raise UserError(
            f"Cannot serve on {host} port {port}: {reason}. Choose another with --port (0 for any free one) or --host."
        ) from None


# Wildcard addresses, and the loopback address of each.
EVERYWHERE = {"0.0.0.0": "127.0.0.1", "::": "::1"}


def url(server: Server) -> str:
    """The URL of the page for a browser on this machine."""
    host, port = str(server.server_address[0]), server.server_address[1]
    shown = EVERYWHERE.get(host, host)
    return f"http://{shown}:{port}/" if server.address_family == socket.AF_INET else f"http://[{shown}]:{port}/"


def url_elsewhere(server: Server) -> str | None:
    """The URL of the page for other machines, by this machine's name; None if the server has a single address."""
    host, port = str(server.server_address[0]), server.server_address[1]
    return f"http://{socket.gethostname()}:{port}/" if host in EVERYWHERE else None

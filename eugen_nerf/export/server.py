"""A web server for an exported folder, for this machine alone unless told otherwise."""

from __future__ import annotations

import functools
import http.server
import socket
import sys
from pathlib import Path
from typing import Any

from eugen_nerf.errors import UserError
from eugen_nerf.export.folder import MARK

# The page needs no more; a host may send the same. index.html repeats it for hosts that send none.
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob:; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)


# Some systems' tables give scripts a type that browsers do not run.
TYPES = {".js": "text/javascript", ".css": "text/css", ".json": "application/json", ".svg": "image/svg+xml"}


class Handler(http.server.SimpleHTTPRequestHandler):
    """Files of a folder, and nothing about it in the terminal."""

    protocol_version = "HTTP/1.1"

    def guess_type(self, path: Any) -> str:
        """The type of a file, by its suffix."""
        return TYPES.get(Path(path).suffix) or super().guess_type(path)

    def end_headers(self) -> None:
        self.send_header("Content-Security-Policy", POLICY)
        self.send_header("X-Content-Type-Options", "nosniff")
        self.send_header("Cache-Control", "no-store")
        super().end_headers()

    def send_head(self) -> Any:
        """Always the file itself: a browser may remember a newer one of this name from a folder served before."""
        del self.headers["If-Modified-Since"]
        try:
            return super().send_head()
        except ValueError:  # a null byte, which no name of a file has
            self.send_error(404)
            return None

    def list_directory(self, path: Any) -> None:
        """No listings: an exported folder has an index.html."""
        self.send_error(404)

    def log_message(self, format: str, *args: Any) -> None:
        """Silence: a request is no news."""


def check_export(folder: Path) -> None:
    """Raises UserError if a folder is none that `eugen-export web` wrote."""
    for part in (Path("index.html"), MARK):
        if not (folder / part).is_file():
            raise UserError(
                f"{folder}: holds no {part}. Give a folder that eugen-export web wrote, or the config.yml of a run."
            )


class Server(http.server.ThreadingHTTPServer):
    """Serves a folder; IPv6 where the address is one."""

    def __init__(self, folder: Path, host: str, port: int) -> None:
        self.address_family = socket.AF_INET6 if ":" in host else socket.AF_INET
        super().__init__((host, port), functools.partial(Handler, directory=str(folder)))

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A visitor who closes the page while it loads is no error."""
        if not isinstance(sys.exc_info()[1], ConnectionError):
            super().handle_error(request, client_address)


def make_server(folder: Path, host: str, port: int) -> Server:
    """A server of the folder that is bound but not yet running.

    Args:
        host: IPv4 or IPv6 address, or a name that stands for an IPv4 address.
        port: 0 for any free one.

    Raises:
        UserError: the address cannot be had.
    """
    try:
        return Server(folder, host, port)
    except (OSError, OverflowError) as error:
        reason = (error.strerror if isinstance(error, OSError) and error.strerror else str(error)).rstrip(".")
        raise UserError(
            f"Cannot serve on {host} port {port}: {reason}. Choose another with --port (0 for any free one) or --host."
        ) from None


# Addresses that stand for all of this machine's, and the one among these that is its own.
EVERYWHERE = {"0.0.0.0": "127.0.0.1", "::": "::1"}


def url(server: Server) -> str:
    """Where a browser on this machine finds the page."""
    host, port = str(server.server_address[0]), server.server_address[1]
    shown = EVERYWHERE.get(host, host)
    return f"http://{shown}:{port}/" if server.address_family == socket.AF_INET else f"http://[{shown}]:{port}/"


def url_elsewhere(server: Server) -> str | None:
    """Where other machines find the page by this one's name; None if the server listens on a single address."""
    host, port = str(server.server_address[0]), server.server_address[1]
    return f"http://{socket.gethostname()}:{port}/" if host in EVERYWHERE else None

"""The server of exported folders."""

from __future__ import annotations

import email.utils
import http.client
import queue
import re
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.parse
import webbrowser
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from eugen_nerf.errors import UserError
from eugen_nerf.export import cli
from eugen_nerf.export.server import Server, check_export, make_server, url


@pytest.fixture
def address(tmp_path: Path) -> Iterator[tuple[str, int]]:
    (tmp_path / "index.html").write_text("<html>")
    (tmp_path / "viewer.js").write_text("1")
    (tmp_path / "scene").mkdir()
    (tmp_path / "scene" / "scene.safetensors").write_bytes(b"123")
    with make_server(tmp_path, "127.0.0.1", 0) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield "127.0.0.1", server.server_address[1]
        server.shutdown()


def get(address: tuple[str, int], path: str, **headers: str) -> tuple[int, dict[str, str], bytes]:
    connection = http.client.HTTPConnection(*address, timeout=10)
    connection.request("GET", path, headers=headers)
    answer = connection.getresponse()
    return answer.status, {name.lower(): value for name, value in answer.getheaders()}, answer.read()


def test_files_with_types_and_a_strict_policy(address: tuple[str, int]) -> None:
    for path, kind in (
        ("/", "text/html"),
        ("/viewer.js", "text/javascript"),
        ("/scene/scene.safetensors", "octet-stream"),
    ):
        status, headers, _ = get(address, path)
        assert status == 200
        assert kind in headers["content-type"]
        assert headers["content-security-policy"].startswith("default-src 'none'; script-src 'self'")
        assert "unsafe" not in headers["content-security-policy"]


HIDDEN = ["/.git/config", "/%2egit/config", "/scene/.hidden"]


@pytest.mark.parametrize(
    "path", ["/scene/", "/missing", "/../secret", "/%2e%2e/secret", "/%00", "/index.html%00.png", *HIDDEN]
)
def test_nothing_else(address: tuple[str, int], tmp_path: Path, path: str, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path.parent / "secret").write_text("x")
    (tmp_path / ".git").mkdir()
    for name in (".git/config", "scene/.hidden"):
        (tmp_path / name).write_text("x")
    assert get(address, path)[0] == 404
    assert capsys.readouterr().err == ""


def test_what_a_browser_remembers_of_another_folder_is_no_answer(address: tuple[str, int]) -> None:
    tomorrow = email.utils.formatdate(time.time() + 86400, usegmt=True)
    status, headers, content = get(address, "/scene/scene.safetensors", **{"If-Modified-Since": tomorrow})
    assert (status, content) == (200, b"123")
    assert headers["cache-control"] == "no-store"


def test_a_visitor_who_leaves_is_no_news(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with make_server(tmp_path, "127.0.0.1", 0) as server:
        for error, told in ((ConnectionResetError(), False), (ValueError("x"), True)):
            try:
                raise error
            except (OSError, ValueError):
                server.handle_error(None, ("127.0.0.1", 1))
            assert ("Traceback" in capsys.readouterr().err) == told


def test_address_in_use(address: tuple[str, int], tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"port \d+: Address already in use. Choose another with --port"):
        make_server(tmp_path, *address)


def test_urls(tmp_path: Path) -> None:
    with make_server(tmp_path, "0.0.0.0", 0) as server:
        assert url(server) == f"http://127.0.0.1:{server.server_address[1]}/"
    try:
        server = make_server(tmp_path, "::1", 0)
    except UserError:
        pytest.skip("a system without IPv6")
    with server:
        assert url(server) == f"http://[::1]:{server.server_address[1]}/"


@pytest.mark.parametrize("host", ["0.0.0.0", "::"])
def test_who_lets_other_machines_in_is_told_where_they_find_the_page(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], host: str
) -> None:
    for part in ("index.html", "scene/scene.json"):
        (tmp_path / part).parent.mkdir(exist_ok=True)
        (tmp_path / part).write_text("here")
    try:
        make_server(tmp_path, host, 0).server_close()
    except UserError:
        pytest.skip("a system without IPv6")

    def interrupted(server: Server) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Server, "serve_forever", interrupted)
    cli.view_main([str(tmp_path), f"--host={host}", "--port=0", "--no-browser"])
    here, name = re.escape("127.0.0.1" if host == "0.0.0.0" else "[::1]"), re.escape(socket.gethostname())
    said = rf"on http://{here}:(\d+)/, for other machines on http://{name}:\1/\. Ctrl-C"
    assert re.search(said, capsys.readouterr().out)


def test_a_browser_that_keeps_its_opener_waiting_is_served(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Like a browser in the terminal, which returns when the user leaves it."""
    for part in ("index.html", "scene/scene.json"):
        (tmp_path / part).parent.mkdir(exist_ok=True)
        (tmp_path / part).write_text("here")
    servers: list[Server] = []
    seen: queue.Queue[bytes] = queue.Queue()

    def remembered(*arguments: Any) -> Server:
        servers.append(make_server(*arguments))
        return servers[0]

    def look(address: str) -> None:
        parts = urllib.parse.urlsplit(address)
        assert parts.hostname is not None
        assert parts.port is not None
        seen.put(get((parts.hostname, parts.port), "/")[2])

    monkeypatch.setattr(cli, "make_server", remembered)
    monkeypatch.setattr(webbrowser, "open", look)
    serving = threading.Thread(target=cli.view_main, args=([str(tmp_path), "--port=0"],), daemon=True)
    serving.start()
    assert seen.get(timeout=30) == b"here"
    servers[0].shutdown()
    serving.join(timeout=30)
    assert not serving.is_alive()


def test_a_run_is_not_exported_where_it_cannot_be_served(
    address: tuple[str, int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "config.yml").write_text("")
    monkeypatch.setattr(cli, "_export", lambda *_: pytest.fail("it was exported"))
    with pytest.raises(SystemExit) as ended:
        cli.view_main([str(tmp_path / "config.yml"), f"--port={address[1]}", "--no-browser"])
    assert ended.value.code == 1
    assert "Choose another with --port" in capsys.readouterr().out


def test_only_exports_are_served(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"holds no index\.html"):
        check_export(tmp_path)
    (tmp_path / "index.html").write_text("")
    with pytest.raises(UserError, match=r"holds no scene/scene\.json"):
        check_export(tmp_path)


def test_eugen_view_serves_until_it_is_interrupted(tmp_path: Path) -> None:
    (tmp_path / "scene").mkdir()
    for part in ("index.html", "scene/scene.json"):
        (tmp_path / part).write_text("here")
    # A test run in the shell's background passes on an ignored SIGINT.
    code = (
        "import signal, sys; signal.signal(signal.SIGINT, signal.default_int_handler); "
        "from eugen_nerf.export.cli import view_main; view_main(sys.argv[1:])"
    )
    process = subprocess.Popen(
        [sys.executable, "-u", "-c", code, str(tmp_path), "--port=0", "--no-browser"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        found = re.search(r"on http://(127\.0\.0\.1):(\d+)/\.", line)
        assert found, line
        assert get((found[1], int(found[2])), "/")[2] == b"here"
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=30) == 0
    finally:
        process.kill()
        _, errors = process.communicate()
    assert errors == ""

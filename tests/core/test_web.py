"""Tests of fetching: a limit of time and of bytes, hosts that may be asked, and addresses as people write them."""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import Any, ClassVar

import pytest

from mme5core import web
from mme5core.web import HostRefused, HostRule, TooLarge, Unreachable, encoded_url, fetch

HERE = HostRule(("127.0.0.1",))
PUBLIC = HostRule()


class Handler(BaseHTTPRequestHandler):
    asked: ClassVar[list[tuple[str, str | None]]] = []

    def do_GET(self) -> None:
        self.asked.append((self.path, self.headers.get("Authorization")))
        if self.path.startswith("/to?"):
            self.send_response(302)
            self.send_header("Location", self.path.removeprefix("/to?"))
            self.end_headers()
            return
        if self.path == "/slow_head":
            for letter in b"HTTP/1.1 200 OK\r\nX-Never: ends":
                self.wfile.write(bytes([letter]))
                self.wfile.flush()
                time.sleep(0.1)
            return
        self.send_response(200)
        if self.path == "/cut":
            self.send_header("Content-Length", "100")
        self.end_headers()
        if self.path == "/drip":
            for _ in range(60):
                self.wfile.write(b"x")
                self.wfile.flush()
                time.sleep(0.1)
        else:
            self.wfile.write(b"y" * 50)

    def log_message(self, *_: object) -> None: ...


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    monkeypatch.setattr(web, "_WAITS_S", (0.01, 0.01))
    Handler.asked = []
    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as running:
        running.daemon_threads = True
        Thread(target=running.serve_forever, args=(0.02,), daemon=True).start()
        yield f"http://127.0.0.1:{running.server_address[1]}"
        running.shutdown()


@pytest.mark.parametrize("path", ["/drip", "/slow_head"])
def test_a_server_that_never_ends_is_left_at_the_deadline(path: str, server: str) -> None:
    begun = time.monotonic()
    with pytest.raises(Unreachable, match=r"not complete after 0\.5 s"):
        fetch(f"{server}{path}", within_s=0.5)
    assert 0.4 < time.monotonic() - begun < 2


def test_a_body_above_the_limit_is_not_read_on(server: str) -> None:
    assert fetch(f"{server}/a", max_bytes=50) == b"y" * 50
    with pytest.raises(TooLarge, match="49 bytes"):
        fetch(f"{server}/a", max_bytes=49)
    assert len(Handler.asked) == 2  # it is not asked for again


def test_a_body_that_breaks_off_is_asked_for_again_and_then_unreachable(server: str) -> None:
    with pytest.raises(Unreachable, match="50 of 100 bytes"):
        fetch(f"{server}/cut")
    assert len(Handler.asked) == 3


def test_a_host_of_this_machine_is_asked_only_where_it_is_listed(server: str) -> None:
    for rule in (PUBLIC, HostRule(("*",)), HostRule(("example.org",)), HostRule(())):
        with pytest.raises(HostRefused, match="allow_hosts"):
            fetch(f"{server}/a", rule)
    assert not Handler.asked
    assert fetch(f"{server}/a", HERE) == fetch(f"{server}/a", HostRule(("127.*",))) == b"y" * 50


@pytest.mark.parametrize(
    "host", ["localhost", "10.0.0.7", "169.254.169.254", "[::1]", "[::ffff:127.0.0.1]", "0.0.0.0", "192.168.1.1"]
)
def test_addresses_of_private_networks_are_refused_before_anything_is_sent(host: str) -> None:
    with pytest.raises(HostRefused, match="this machine or its network"):
        fetch(f"http://{host}:9/a", PUBLIC)


def test_a_public_name_with_a_private_address_is_refused(server: str, monkeypatch: pytest.MonkeyPatch) -> None:
    port = server.rpartition(":")[2]
    resolve = socket.getaddrinfo
    monkeypatch.setattr(socket, "getaddrinfo", lambda host, *a, **k: resolve("127.0.0.1", *a, **k))
    with pytest.raises(HostRefused):
        fetch(f"http://pictures.example.org:{port}/a", PUBLIC)
    assert not Handler.asked
    assert fetch(f"http://pictures.example.org:{port}/a", HostRule(("*.example.org",))) == b"y" * 50


def test_a_redirect_is_checked_like_the_address_itself(server: str) -> None:
    with pytest.raises(HostRefused, match=r"10\.0\.0\.7"):
        fetch(f"{server}/to?http://10.0.0.7/b", HERE)
    with pytest.raises(FileNotFoundError, match="HTTP 302"):
        fetch(f"{server}/to?file:///etc/hostname", HERE)
    assert fetch(f"{server}/to?{server}/b", HERE) == b"y" * 50


def test_a_password_is_not_sent_on_to_another_host(server: str) -> None:
    host, elsewhere = server.removeprefix("http://"), server.replace("127.0.0.1", "localhost")
    fetch(f"http://me:secret@{host}/to?{server}/same")
    fetch(f"http://me:secret@{host}/to?{elsewhere}/other")
    sent = {path: authorization for path, authorization in Handler.asked if not path.startswith("/to?")}
    assert sent["/same"] is not None and sent["/other"] is None


def test_a_host_that_does_not_exist_is_no_host_and_one_that_cannot_be_looked_up_may_be_there_later(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(web, "_WAITS_S", ())
    for number, error in ((socket.EAI_NONAME, FileNotFoundError), (socket.EAI_AGAIN, Unreachable)):

        def fail(*_: Any, code: int = number, **__: Any) -> Any:
            raise socket.gaierror(code, "cannot resolve")

        monkeypatch.setattr(socket, "getaddrinfo", fail)
        with pytest.raises(error):
            fetch("http://pictures.example.org/a", PUBLIC)


def test_addresses_are_sent_as_a_browser_would_send_them(server: str) -> None:
    for path in ("/my cat.png", "/café.png", "/a%20b.png?x=1&y=ü#part"):
        assert fetch(f"{server.upper()}{path}") == b"y" * 50
    host = server.removeprefix("http://")
    assert fetch(f"http://me:p%40ss@{host}/private") == b"y" * 50
    assert Handler.asked == [
        ("/my%20cat.png", None),
        ("/caf%C3%A9.png", None),
        ("/a%20b.png?x=1&y=%C3%BC", None),
        ("/private", "Basic bWU6cEBzcw=="),
    ]


@pytest.mark.parametrize("url", ["http://", "http:///path", "http://[::1/a", "http://host:port/"])
def test_what_is_no_address_is_a_value_error(url: str) -> None:
    with pytest.raises(ValueError):
        encoded_url(url)

"""One file from a web server: within a time, up to a size, and from hosts that may be asked."""

from __future__ import annotations

import base64
import contextlib
import fnmatch
import http.client
import ipaddress
import os
import socket
import ssl
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

from mme5core.errors import first_line

FETCH_S = 60.0
"""For one file, attempts and waits included."""
MAX_BYTES = 1 << 26
_SILENCE_S, _WAITS_S = 20.0, (0.5, 2.0)
_HEADERS = {"User-Agent": "mme5"}  # some servers refuse Python's default
_MAY_PASS = (408, 425, 429)
_PORTS = {"http": 80, "https": 443}
ALLOW_HOSTS = (
    "hosts that addresses of pictures may name, or patterns of them; null: any with a public address; "
    "a host of this machine or of a private network must be listed"
)
"""What a setting that becomes a `HostRule` means."""
# IPv6 addresses that hold one of IPv4, and how far from the right: mapped, translated (NAT64), 6to4, compatible.
_AROUND_IPV4 = [
    (ipaddress.IPv6Network(network), shift)
    for network, shift in (
        ("::ffff:0:0/96", 0),
        ("::ffff:0:0:0/96", 0),
        ("64:ff9b::/96", 0),
        ("2002::/16", 80),
        ("::/96", 0),
    )
]
_NOT_PUBLIC = [ipaddress.IPv6Network(network) for network in ("fec0::/10", "64:ff9b:1::/48")]
Connect = Callable[..., socket.socket]
_SAFE_IN_PATH, _SAFE_IN_QUERY = "%/:=&~+!$,;'@()*[]|", "%/:=&?~+!$,;'@()*[]|{}"


class Unreachable(OSError):
    """A file that may exist: the server did not answer, or asked to retry later."""


class TooLarge(OSError):
    """A file of more than MAX_BYTES."""


class HostRefused(OSError):
    """A host that the rule does not allow."""


@dataclass(frozen=True, slots=True)
class HostRule:
    """The hosts that addresses in a corpus may name.

    Args:
        allow_hosts: names or patterns (`*.example.org`); None: any host with a public address. A host of this machine
            or of a private network is asked only where it is listed; `*` alone does not list it.
    """

    allow_hosts: tuple[str, ...] | None = None

    def check(self, host: str, address: str | None = None) -> None:
        """
        Args:
            address: that the host's name has; None: not known yet.

        Raises:
            HostRefused: the host may not be asked.
        """
        listed = [pattern for pattern in self.allow_hosts or () if fnmatch.fnmatch(host.lower(), pattern.lower())]
        if self.allow_hosts is not None and not listed:
            raise HostRefused(f"{host} is not listed in allow_hosts")
        if any(pattern != "*" for pattern in listed):
            return
        if not _is_public(address or host):
            raise HostRefused(f"{host} is an address of this machine or its network; list it in allow_hosts to use it")


def _is_public(address: str) -> bool:
    """True also of a name: its address is checked when it is known."""
    text = address.strip("[]").partition("%")[0]
    try:
        ip = ipaddress.ip_address(text)
    except ValueError:
        try:
            ip = ipaddress.ip_address(socket.inet_aton(text))  # 2130706433, 0x7f.1
        except OSError:
            return address.lower().rstrip(".") != "localhost"
    if isinstance(ip, ipaddress.IPv6Address):
        inner = next((shift for network, shift in _AROUND_IPV4 if ip in network), None)
        if inner is not None:
            ip = ipaddress.IPv4Address(int(ip) >> inner & 0xFFFF_FFFF)
        elif any(ip in network for network in _NOT_PUBLIC):
            return False
    return ip.is_global and not ip.is_multicast


def encoded_url(url: str) -> str:
    """The address as a request needs it: what browsers encode is encoded, user and password are left out.

    Raises:
        ValueError: it names no host.

    >>> encoded_url("HTTP://bücher.example/my cat.png?a=ü")
    'http://xn--bcher-kva.example/my%20cat.png?a=%C3%BC'
    """
    parts = urllib.parse.urlsplit(url.strip())
    host = parts.hostname
    if not host:
        raise ValueError("the address names no host")
    if not host.isascii():
        host = host.encode("idna").decode()
    netloc = (f"[{host}]" if ":" in host else host) + (f":{parts.port}" if parts.port is not None else "")
    path = urllib.parse.quote(parts.path, safe=_SAFE_IN_PATH)
    return urllib.parse.urlunsplit(
        (parts.scheme.lower(), netloc, path, urllib.parse.quote(parts.query, safe=_SAFE_IN_QUERY), "")
    )


def fetch(url: str, rule: HostRule | None = None, *, within_s: float = FETCH_S, max_bytes: int = MAX_BYTES) -> bytes:
    """The body of a web server's reply; a failure that may pass is retried twice.

    Args:
        rule: which hosts may be asked, also by redirects; None: any.
        within_s: for all attempts together.

    Raises:
        FileNotFoundError: the server refuses the address, or there is no such host.
        HostRefused: the rule does not allow the host.
        TooLarge: the body has more than `max_bytes`.
        Unreachable: the server did not answer in time, or asked to retry later.
        ValueError: it is no address.
    """
    request = urllib.request.Request(encoded_url(url), headers=_HEADERS | _authorization(url))
    deadline = time.monotonic() + within_s
    problem = ""
    for wait_s in (0.0, *_WAITS_S):
        if time.monotonic() + wait_s >= deadline:
            break
        time.sleep(wait_s)
        try:
            return _attempt(request, rule, deadline, max_bytes)
        except urllib.error.HTTPError as error:
            problem = f"HTTP {error.code}"
            if error.code not in _MAY_PASS and error.code < 500:
                raise FileNotFoundError(problem) from None
        except (HostRefused, TooLarge):
            raise
        except (ValueError, http.client.InvalidURL) as error:
            raise FileNotFoundError(f"no address: {first_line(error)}") from None
        except (OSError, http.client.HTTPException) as error:
            cause = getattr(error, "reason", None)
            cause = cause if isinstance(cause, BaseException) else error
            if isinstance(cause, HostRefused):
                raise cause from None
            if isinstance(cause, ssl.SSLCertVerificationError):
                raise FileNotFoundError(first_line(cause)) from None
            if isinstance(cause, socket.gaierror) and cause.errno in (socket.EAI_NONAME, -5):  # -5: no address
                raise FileNotFoundError("no such host") from None
            problem = first_line(cause)
    if time.monotonic() >= deadline:
        problem = f"not complete after {within_s:g} s" + (f" ({problem})" if problem else "")
    raise Unreachable(problem)


def _authorization(url: str) -> dict[str, str]:
    parts = urllib.parse.urlsplit(url)
    if parts.username is None:
        return {}
    pair = f"{urllib.parse.unquote(parts.username)}:{urllib.parse.unquote(parts.password or '')}"
    return {"Authorization": f"Basic {base64.b64encode(pair.encode()).decode()}"}


def _attempt(request: urllib.request.Request, rule: HostRule | None, deadline: float, max_bytes: int) -> bytes:
    connections = _Connections(rule, deadline)
    opener = urllib.request.build_opener(connections.handler(), _Redirects(rule))
    if rule is not None:
        _check(rule, _host(request.full_url))
    body = bytearray()
    with connections.closed_at_deadline(), opener.open(request, timeout=connections.silence_s()) as response:
        while chunk := response.read1(1 << 16):
            body += chunk
            if len(body) > max_bytes:
                raise TooLarge(f"more than {max_bytes:,} bytes")
        if time.monotonic() >= deadline:
            raise OSError("the time is over")
        length = response.headers.get("Content-Length", "")
        if length.isdigit() and len(body) < int(length):
            raise OSError(f"the connection ended after {len(body):,} of {int(length):,} bytes")
    return bytes(body)


def _check(rule: HostRule, host: str) -> None:
    """As `HostRule.check`; behind a proxy, which connects for us, with the addresses that the name has here too."""
    rule.check(host)
    if not urllib.request.getproxies():
        return  # they are checked as we connect
    with contextlib.suppress(socket.gaierror, UnicodeError):
        for *_, address in socket.getaddrinfo(host, None, type=socket.SOCK_STREAM):
            rule.check(host, str(address[0]))


def _host(url: str) -> str:
    return urllib.parse.urlsplit(url).hostname or ""


class _Redirects(urllib.request.HTTPRedirectHandler):
    """Follows redirects to addresses that the rule allows."""

    def __init__(self, rule: HostRule | None) -> None:
        self._rule = rule

    def redirect_request(self, request: Any, file: Any, code: int, message: str, headers: Any, url: str) -> Any:
        url = encoded_url(url)
        if not url.startswith(("http://", "https://")):
            raise HostRefused(f"a redirect to {url.partition(':')[0]}:")
        if self._rule is not None:
            _check(self._rule, _host(url))
        following = super().redirect_request(request, file, code, message, headers, url)
        if following is not None and _host(following.full_url) != _host(request.full_url):
            following.remove_header("Authorization")
        return following


class _Connections:
    """Connects to the very addresses that were checked, and ends its connections when the time is over."""

    def __init__(self, rule: HostRule | None, deadline: float) -> None:
        self._rule, self._deadline = rule, deadline
        self._sockets: list[socket.socket] = []
        parts = [urllib.parse.urlsplit(p if "://" in p else f"//{p}") for p in urllib.request.getproxies().values()]
        self._proxies = {(part.hostname, part.port or _PORTS.get(part.scheme, 80)) for part in parts}

    def silence_s(self) -> float:
        return max(0.01, min(_SILENCE_S, self._deadline - time.monotonic()))

    @contextlib.contextmanager
    def closed_at_deadline(self) -> Iterator[None]:
        timer = threading.Timer(self._deadline - time.monotonic(), self._close)
        timer.daemon = True
        timer.start()
        try:
            yield
        finally:
            timer.cancel()
            for own in self._sockets:
                own.close()

    def _close(self) -> None:
        for own in self._sockets:
            with contextlib.suppress(OSError):
                own.shutdown(socket.SHUT_RDWR)  # a server that sends a byte now and then is never silent

    def connect(self, place: tuple[str, int], timeout: Any = None, source: Any = None) -> socket.socket:
        host, port = place
        problem: OSError = OSError(f"no address of {host}")
        for family, kind, protocol, _, address in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM):
            if self._rule is not None and place not in self._proxies:
                self._rule.check(host, str(address[0]))
            connection = socket.socket(family, kind, protocol)
            try:
                connection.settimeout(self.silence_s())
                connection.connect(address)
            except OSError as error:
                connection.close()
                problem = error
                continue
            # A handle of its own: TLS takes the socket away from whoever holds it.
            self._sockets.append(socket.socket(fileno=os.dup(connection.fileno())))
            return connection
        raise problem

    def handler(self) -> urllib.request.BaseHandler:
        return _Handler(self.connect)


class _Handler(urllib.request.HTTPHandler, urllib.request.HTTPSHandler):
    """Opens both kinds of addresses over connections that `connect` makes."""

    def __init__(self, connect: Connect) -> None:
        super().__init__()
        self._connect = connect

    def http_open(self, request: Any) -> Any:
        return self.do_open(partial(_connection, http.client.HTTPConnection, self._connect), request)  # type: ignore[arg-type]

    def https_open(self, request: Any) -> Any:
        return self.do_open(partial(_connection, http.client.HTTPSConnection, self._connect), request)  # type: ignore[arg-type]


def _connection(kind: Callable[..., Any], connect: Connect, host: str, **options: Any) -> Any:
    connection = kind(host, **options)
    connection._create_connection = connect
    return connection

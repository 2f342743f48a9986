"""Connections to web servers: those of urllib3, but watched from their first step, and through the configured proxy.

Proxies and certificates are configured as for `requests`: with `http_proxy`, `https_proxy`, `all_proxy`, `no_proxy`,
`REQUESTS_CA_BUNDLE`, `CURL_CA_BUNDLE`, and with `SSL_CERT_FILE`, which OpenSSL itself reads.
"""

import ipaddress
import os
import socket
import urllib.request
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, NamedTuple
from urllib.parse import unquote, urlsplit

import urllib3
from urllib3.connection import HTTPConnection, HTTPSConnection
from urllib3.exceptions import ConnectTimeoutError

from ...core.errors import InvalidArgumentError, MissingExtraError
from ...core.threads import call_aside
from .credentials import basic
from .watchdog import Watch

CERTIFICATES = ("REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE", "SSL_CERT_FILE")
"""Variables that name a file or a folder of trusted certificates; the first one that is set is used."""


class Exchange(NamedTuple):
    """One request in progress, with the values that its connection needs.

    Attributes:
        watch: Can end the request.
        read_timeout: Seconds for each of the steps: name lookup and connection, proxy and TLS handshakes, all headers.
        query: Appended to the path of the request only; unlike the address, it never appears in errors and logs.
        authorization: Value of the Authorization header, or empty.
    """

    watch: Watch
    read_timeout: float
    query: str = ""
    authorization: str = ""


_exchange: ContextVar[Exchange] = ContextVar("exchange")


@contextmanager
def exchanging(exchange: Exchange) -> Iterator[None]:
    """Use this exchange for all requests that this thread sends within the context."""
    token = _exchange.set(exchange)
    try:
        yield
    finally:
        _exchange.reset(token)


class _Watched:
    """Mixin for a connection: its exchange can be ended at any step, and supplies the secret parts of the request."""

    sock: Any
    _line: socket.socket | None = None

    def _new_conn(self) -> socket.socket:
        """Look up the name and connect; neither step can be ended from outside, so both run on a separate thread."""
        exchange = _exchange.get()
        try:
            connect = super()._new_conn  # type: ignore[misc]  # it is a mixin
            sock: socket.socket = call_aside(connect, exchange.read_timeout, socket.socket.close)
        except TimeoutError as error:
            raise ConnectTimeoutError(self, "There was no connection in time.") from error
        self._line = sock.dup()  # TLS takes over the socket, and exposes none before its handshake is complete
        exchange.watch.uses(self._line)
        exchange.watch.allow(exchange.read_timeout)
        return sock

    def connect(self) -> None:
        exchange = _exchange.get()
        try:
            super().connect()  # type: ignore[misc]  # it is a mixin
        finally:
            exchange.watch.uses(self.sock)
            if self._line:
                self._line.close()
                self._line = None
        exchange.watch.allow(exchange.read_timeout)

    def putrequest(self, method: str, url: str, *args: Any, **options: Any) -> None:
        exchange = _exchange.get()
        exchange.watch.uses(self.sock)
        exchange.watch.allow(exchange.read_timeout)
        query = f"?{exchange.query}" if exchange.query else ""
        super().putrequest(method, url + query, *args, **options)  # type: ignore[misc]  # it is a mixin
        if exchange.authorization:
            self.putheader("Authorization", exchange.authorization)  # type: ignore[attr-defined]  # it is a mixin


class _HttpConnection(_Watched, HTTPConnection):
    pass


class _HttpsConnection(_Watched, HTTPSConnection):
    pass


class _HttpPool(urllib3.HTTPConnectionPool):
    ConnectionCls = _HttpConnection


class _HttpsPool(urllib3.HTTPSConnectionPool):
    ConnectionCls = _HttpsConnection


def open_pool(url: str, connections: int, headers: Mapping[str, str]) -> urllib3.PoolManager:
    """Return a pool of at most `connections` connections to the server of a URL; further requests wait for a free one.

    Raises:
        InvalidArgumentError: The proxy's address is not valid.
        MissingExtraError: The proxy uses SOCKS, and PySocks is not installed.
    """
    options: dict[str, Any] = {"maxsize": connections, "block": True, "headers": headers}
    bundle = _certificates()[1]
    if bundle:
        options["ca_cert_dir" if os.path.isdir(bundle) else "ca_certs"] = bundle
    proxy = _proxy_of(url)
    if not proxy:
        pool = urllib3.PoolManager(**options)
    elif proxy.startswith("socks"):
        return _socks_pool(proxy, options)
    else:
        pool = _proxy_pool(proxy, options)
    pool.pool_classes_by_scheme = {"http": _HttpPool, "https": _HttpsPool}
    return pool


def check_certificates() -> None:
    """Raise InvalidArgumentError if the environment names certificates that do not exist."""
    variable, bundle = _certificates()
    if bundle and not os.path.exists(bundle):
        raise InvalidArgumentError(f"{variable}={bundle} names no file of certificates; correct it, or unset it.")


def _certificates() -> tuple[str, str]:
    return next(((name, os.environ[name]) for name in CERTIFICATES if os.environ.get(name)), ("", ""))


def _proxy_of(url: str) -> str:
    """Return the proxy's address with its scheme; empty if there is no proxy for this URL."""
    parts = urlsplit(url)
    proxies = urllib.request.getproxies()
    proxy = proxies.get(parts.scheme) or proxies.get("all")
    if not proxy or urllib.request.proxy_bypass(parts.netloc) or _is_in_excepted_network(parts.hostname or ""):
        return ""
    return proxy if "://" in proxy else f"http://{proxy}"


def _is_in_excepted_network(host: str) -> bool:
    """Return whether a network in `no_proxy` (10.0.0.0/8) contains the host; Python's own check ignores networks."""
    excepted = (os.environ.get("no_proxy") or os.environ.get("NO_PROXY") or "").replace(" ", "").split(",")
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return False
    for network in (entry for entry in excepted if "/" in entry):
        try:
            if address in ipaddress.ip_network(network, strict=False):
                return True
        except ValueError:
            continue
    return False


def _proxy_pool(proxy: str, options: dict[str, Any]) -> urllib3.PoolManager:
    user, host = _split_proxy(proxy)
    headers = {"Proxy-Authorization": basic(*map(unquote, user.partition(":")[::2]))} if user else {}
    try:
        return urllib3.ProxyManager(host, proxy_headers=headers, **options)
    except (urllib3.exceptions.HTTPError, ValueError):
        raise InvalidArgumentError(f"The proxy {host} is none of http, https or socks5; see http_proxy.") from None


def _socks_pool(proxy: str, options: dict[str, Any]) -> urllib3.PoolManager:
    user, host = _split_proxy(proxy)
    try:
        with warnings.catch_warnings(action="ignore"):  # the warning repeats the error
            from urllib3.contrib import socks
    except ImportError as error:
        raise MissingExtraError(f"The proxy {host} speaks SOCKS ({error}): pip install PySocks.") from error

    class _SocksConnection(_Watched, socks.SOCKSConnection):
        pass

    class _SocksHttpsConnection(_Watched, socks.SOCKSHTTPSConnection):
        pass

    class _SocksPool(socks.SOCKSHTTPConnectionPool):
        ConnectionCls = _SocksConnection

    class _SocksHttpsPool(socks.SOCKSHTTPSConnectionPool):
        ConnectionCls = _SocksHttpsConnection

    name, _, password = map(unquote, user.partition(":"))
    try:
        pool = socks.SOCKSProxyManager(host, username=name or None, password=password or None, **options)
    except ValueError:
        raise InvalidArgumentError(f"The proxy {host} is none of socks4, socks5 or socks5h; see http_proxy.") from None
    pool.pool_classes_by_scheme = {"http": _SocksPool, "https": _SocksHttpsPool}
    return pool


def _split_proxy(proxy: str) -> tuple[str, str]:
    """Return the user of a proxy's address, and the address without the user."""
    scheme, _, rest = proxy.partition("://")
    user, _, host = rest.rstrip("/").rpartition("@")
    return user, f"{scheme.lower()}://{host}"

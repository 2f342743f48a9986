"""A WSGI application that sends each request on to another HTTP server, as it came, and answers what that one does."""

import http.client
from collections.abc import Iterable
from contextlib import closing
from typing import Any
from urllib.parse import urlsplit

HOP_BY_HOP = {"connection", "keep-alive", "transfer-encoding", "proxy-connection", "te", "trailer", "upgrade"}


class Forwarding:
    """Sends requests on, with the Host that the client asked for, because signatures hold for it.

    Args:
        url: Address of the server, without a path.
    """

    def __init__(self, url: str) -> None:
        self._host = urlsplit(url).netloc

    def __call__(self, environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        """Answer one request."""
        headers = {
            name[5:].replace("_", "-").title(): value for name, value in environ.items() if name.startswith("HTTP_")
        }
        for name in ("CONTENT_TYPE", "CONTENT_LENGTH"):
            if environ.get(name):
                headers[name.replace("_", "-").title()] = environ[name]
        body = environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0))
        sent = {name: value for name, value in headers.items() if name.lower() not in HOP_BY_HOP | {"expect"}}
        with closing(http.client.HTTPConnection(self._host, timeout=60)) as connection:
            connection.request(environ["REQUEST_METHOD"], environ["REQUEST_URI"], body or None, sent)
            answer = connection.getresponse()
            content = answer.read()
        kept = [(name, value) for name, value in answer.getheaders() if name.lower() not in HOP_BY_HOP]
        if answer.getheader("Content-Length") is None and environ["REQUEST_METHOD"] != "HEAD":
            kept.append(("Content-Length", str(len(content))))
        start_response(f"{answer.status} {answer.reason}", kept)
        return [content]

"""Secret parts of an address: kept separate from it, sent to its own host only, never shown and never stored."""

import base64
import netrc
import os
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import SplitResult, quote, unquote, urlsplit

from ...core.addresses import OF_A_USER

UNQUOTED = "!$%&'()*+,/:;=?@[]~"
"""Characters that stay unchanged in a query; all others except letters, digits and `_.-` are escaped."""


@dataclass(frozen=True)
class Secret:
    """Credentials for an archive.

    Attributes:
        user: `user:password` of the address, exactly as written there.
        query: The text after the question mark.
    """

    user: str = field(default="", repr=False)
    query: str = field(default="", repr=False)

    @property
    def authorization(self) -> str:
        """The value of a request's Authorization header, or empty."""
        return basic(*(unquote(part) for part in self.user.partition(":")[::2])) if self.user else ""

    def into(self, url: str) -> str:
        """Return the address with its user inserted again, as file systems need it."""
        return url.replace("://", f"://{self.user}@", 1) if self.user else url

    def hidden(self, text: object) -> str:
        """Return the text with all parts of the secret masked."""
        shown = str(text)
        password = self.user.partition(":")[2]
        for part in sorted(
            {self.query, f"{self.user}@", password, unquote(password)} - {"", "@"}, key=len, reverse=True
        ):
            shown = shown.replace(part, "***")
        return shown


def basic(user: str, password: str) -> str:
    """Return the value of a header for HTTP Basic authentication."""
    return "Basic " + base64.b64encode(f"{user}:{password}".encode()).decode()


def split_secret(address: str) -> tuple[str, Secret]:
    """Return an address without its secret parts, and the secret parts.

    Raises:
        ValueError: The address is not valid.
    """
    parts = urlsplit(address)
    if parts.scheme in ("http", "https"):
        return _without_user(parts).split("?")[0].split("#")[0], Secret(_user_of(parts), quote(parts.query, UNQUOTED))
    user = _user_of(parts)
    if ":" in user or (user and parts.scheme in OF_A_USER):
        return address.replace(f"{user}@", "", 1), Secret(user)
    return address, Secret()


def netrc_authorization(host: str) -> str:
    """Return the Authorization header for a host from the user's `.netrc` (or the file NETRC), or empty."""
    candidates = [os.environ["NETRC"]] if os.environ.get("NETRC") else ["~/.netrc", "~/_netrc"]
    try:
        path = next(path for path in (Path(name).expanduser() for name in candidates) if path.is_file())
        user, account, password = netrc.netrc(path).authenticators(host) or ("", "", "")
    except (StopIteration, RuntimeError, OSError, netrc.NetrcParseError, UnicodeError):
        return ""  # as in `requests`: an unreadable file counts as missing
    return basic(user or account or "", password or "") if user or account or password else ""


def _user_of(parts: SplitResult) -> str:
    return parts.netloc.rpartition("@")[0]


def _without_user(parts: SplitResult) -> str:
    return parts._replace(netloc=parts.netloc.rpartition("@")[2]).geturl()

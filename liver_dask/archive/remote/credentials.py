"""What of an address is secret: kept apart from it, sent to its own host alone, never shown and never stored."""

import base64
import netrc
import os
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import SplitResult, quote, unquote, urlsplit

OF_A_USER = {"ftp", "sftp", "ssh", "smb"}
"""Protocols whose addresses name a user; in those of others what stands before an `@` may be a folder's name."""

UNQUOTED = "!$%&'()*+,/:;=?@[]~"
"""Stays in a query as it is; all else that is not a letter, a digit or one of `_.-` is escaped."""


@dataclass(frozen=True)
class Secret:
    """What opens an archive.

    Attributes:
        user: `user:password` of the address, as it stood there.
        query: What stood behind the question mark.
    """

    user: str = field(default="", repr=False)
    query: str = field(default="", repr=False)

    @property
    def authorization(self) -> str:
        """The value of a request's header, or nothing."""
        return basic(*(unquote(part) for part in self.user.partition(":")[::2])) if self.user else ""

    def into(self, url: str) -> str:
        """The address with its user again, as file systems want it."""
        return url.replace("://", f"://{self.user}@", 1) if self.user else url

    def hidden(self, text: object) -> str:
        """The text without the secret, should it hold it."""
        shown = str(text)
        password = self.user.partition(":")[2]
        for part in sorted(
            {self.query, f"{self.user}@", password, unquote(password)} - {"", "@"}, key=len, reverse=True
        ):
            shown = shown.replace(part, "***")
        return shown


def basic(user: str, password: str) -> str:
    """HTTP's simplest way to say who asks."""
    return "Basic " + base64.b64encode(f"{user}:{password}".encode()).decode()


def split_secret(address: str) -> tuple[str, Secret]:
    """An address without what is secret of it, and that.

    Raises:
        ValueError: It is no address at all.
    """
    parts = urlsplit(address)
    if parts.scheme in ("http", "https"):
        return _without_user(parts).split("?")[0].split("#")[0], Secret(_user_of(parts), quote(parts.query, UNQUOTED))
    user = _user_of(parts)
    if ":" in user or (user and parts.scheme in OF_A_USER):
        return address.replace(f"{user}@", "", 1), Secret(user)
    return address, Secret()


def netrc_authorization(host: str) -> str:
    """What the user's `.netrc` (or the file that NETRC names) has for a host, as a request's header; or nothing."""
    candidates = [os.environ["NETRC"]] if os.environ.get("NETRC") else ["~/.netrc", "~/_netrc"]
    try:
        path = next(path for path in (Path(name).expanduser() for name in candidates) if path.is_file())
        user, account, password = netrc.netrc(path).authenticators(host) or ("", "", "")
    except (StopIteration, RuntimeError, OSError, netrc.NetrcParseError, UnicodeError):
        return ""  # as `requests`: a file that cannot be read is none
    return basic(user or account or "", password or "") if user or account or password else ""


def _user_of(parts: SplitResult) -> str:
    return parts.netloc.rpartition("@")[0]


def _without_user(parts: SplitResult) -> str:
    return parts._replace(netloc=parts.netloc.rpartition("@")[2]).geturl()

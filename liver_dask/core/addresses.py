"""Addresses in texts: where one is, and which parts of it are not shown.

A user may give an address, with a password or a signed query, where something else is wanted. Then the message quotes
it, or another library's message does, so every text is masked that is shown.
"""

import re

HIDDEN = "***"

SCHEME = r"(?<![a-z0-9+.-])[a-z0-9+.-]{2,}:/"
"""The beginning of an address. It has one slash if pathlib made one of two."""

OF_A_USER = ("ftp", "sftp", "ssh", "smb")
"""Protocols whose addresses name a user, as those of the web may. In addresses of other protocols, text without a colon
before an `@` may belong to a folder's name."""

USER = re.compile(
    rf"((?:https?|{'|'.join(OF_A_USER)}):/+(?=[^/?#\n]*@)|{SCHEME}/*(?=[^/?#\n]*:))"
    r"(?:[^/?#\n]*|[^\s:/?#]*:(?:(?!:/)\S)*)@",
    re.IGNORECASE,
)
"""What is before the `@` of an address. A password may have spaces, or slashes, which should have been escaped."""

USER_ALONE = re.compile(r"(?<![^\s'\"(/=,:])[^\s/:@'\"(=]+:(?![/:])(?:(?!:/)\S)+@")
"""`user:password@` of an address that lacks its scheme."""

END = r"(?=[.,;:)'\"\]]*(?:\s|$))"
"""Where a word ends, without the punctuation of the sentence that it is in."""

QUERY = re.compile(rf"({SCHEME}[^\s?]*)\?\S+?{END}", re.IGNORECASE)
"""An address to its `?`, and its query."""

NAMED_QUERY = re.compile(rf"\?[\w.~%-]+=\S+?{END}")
"""A query that has names, of an address that lacks its scheme."""


def is_address(text: str) -> bool:
    """Return whether a text is an address rather than a path, also if pathlib has made one slash of two."""
    return re.match(rf"{SCHEME}|{USER_ALONE.pattern}", text, re.IGNORECASE) is not None


def without_secrets(text: str) -> str:
    """Return a text with user, password and query of all addresses in it masked, as `https://***@host/x?***`."""
    if "@" in text:
        text = USER_ALONE.sub(f"{HIDDEN}@", USER.sub(rf"\1{HIDDEN}@", text))
    if "?" in text:
        text = NAMED_QUERY.sub(f"?{HIDDEN}", QUERY.sub(rf"\1?{HIDDEN}", text))
    return text

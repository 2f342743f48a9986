"""Secret parts of addresses in texts."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from liver_dask.core.addresses import is_address, without_secrets


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("https://me:s3cret@host/x?sig=SIG", "https://***@host/x?***"),
        ("https:/me:s3cret@host/x?sig=SIG", "https:/***@host/x?***"),
        ("me:s3cret@host:9/x?sig=SIG is no place.", "***@host:9/x?*** is no place."),
        ("/folder/me:s3cret@host", "/folder/***@host"),
        ("zip://me:s3cret@x::http://u:s3cret@h/x", "zip://***@x::http://***@h/x"),
        ("simplecache::https://me:s3cret@host/x", "simplecache::https://***@host/x"),
        ("[Errno 2] No such file: 'ftp://me:s3cret@h/x'.", "[Errno 2] No such file: 'ftp://***@h/x'."),
        ("of https://h/a?SIG, and HTTPS://h/b?c=SIG).", "of https://h/a?***, and HTTPS://h/b?***)."),
        ("https://me:s3/cr?e#t@host/x", "https://***@host/x"),
        ("https://me:s3 cret@host/x", "https://***@host/x"),
        ("https://s3cret@host/x", "https://***@host/x"),
        ("http://a:80/x differs from http://h/y", "http://a:80/x differs from http://h/y"),
        ("abfs://box@account.net/b", "abfs://box@account.net/b"),
        ("abfs://key:s3cret@account.net/b", "abfs://***@account.net/b"),
        ("s3://bucket/a@b/x.zarr is complete", "s3://bucket/a@b/x.zarr is complete"),
        ("/data/a@b #?%/x.zarr is complete", "/data/a@b #?%/x.zarr is complete"),
        ("Really? At 12:30, me@host said: yes", "Really? At 12:30, me@host said: yes"),
    ],
)
def test_what_is_secret_in_a_text_is_masked(text: str, shown: str) -> None:
    """User, password and query of each address are masked, however it is written, and nothing else."""
    assert without_secrets(text) == shown
    assert without_secrets(shown) == shown


@given(st.sampled_from(["http", "s3", "file", "ftp"]), st.text(min_size=1).filter(lambda text: "\n" not in text))
def test_no_password_is_left(scheme: str, rest: str) -> None:
    """Whatever an address has behind its `@`, what was before is not shown; and masking it again changes nothing."""
    shown = without_secrets(f"{scheme}://me:PASSWORD@{rest}")
    assert "PASSWORD" not in shown
    assert without_secrets(shown) == shown


@pytest.mark.parametrize("text", ["s3://a/b", "http:/a", "me:word@host/x", "file:///a"])
def test_an_address_is_told_from_a_path(text: str) -> None:
    """An address is one also with a single slash, or without its scheme."""
    assert is_address(text)
    assert not is_address(f"./{text}")


@pytest.mark.parametrize("path", ["a", "C:/a", "/a:/b", "a b/c@d", "12:30"])
def test_a_path_is_no_address(path: str) -> None:
    """Paths with colons and other signs stay paths."""
    assert not is_address(path)

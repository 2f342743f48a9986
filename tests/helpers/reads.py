"""What is read and decoded of stores, for tests that count it."""

import os

import pytest

from liver_dask.store import array


def count_bytes(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Return a list that gets the number of bytes of each `os.pread` from now on."""
    sizes: list[int] = []
    pread = os.pread

    def counted(*args: int) -> bytes:
        data = pread(*args)
        sizes.append(len(data))
        return data

    monkeypatch.setattr(os, "pread", counted)
    return sizes


def note_decoded(monkeypatch: pytest.MonkeyPatch) -> list[bytes]:
    """Return a list that gets the bytes of each chunk that a StoredArray decodes from now on."""
    decoded: list[bytes] = []
    decode = array.decode_planes

    def noted(data, *args, **options):
        decoded.append(data)
        return decode(data, *args, **options)

    monkeypatch.setattr(array, "decode_planes", noted)
    return decoded

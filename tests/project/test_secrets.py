"""Addresses with a password and a signature where something else is wanted: nothing shows them."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import xarray as xr

import liver_dask as ld
from helpers.archive import SHAPE
from helpers.chains import chain_of
from helpers.command import run_here

WORD, SIGNATURE = "s3cret", "SIGNED"
REST = f"me:{WORD}@host.invalid/x?sig={SIGNATURE}"
WEB = f"https://{REST}"
ADDRESSES = [WEB, f"https:/{REST}", REST, f"file://{REST}", f"s3://{REST}", f"ftp:/{REST}", f"zip://{REST}::{WEB}"]

COMMANDS = [
    "verify {}", "clean {}", "annotate {} --voxel-size 1 1 1", "pyramid {}", "download {} --full",
    "download a.zarr --full --dry-run --facts {}", "download a.zarr --full --dry-run --cache-dir {}",
    "download a.zarr --full --dry-run --archive {}", "doctor --save {}",
    "doctor --archive {}", "snapshot . --z 1 -o {}", "snapshot . --z 1 -o {}.png", "cache info {}", "cache clear {}",
    "predict {} m.pt", "predict . {} a.zarr", "predict . m.pt {}", "measure . {} --label mito", "verify . --source {}",
    "info . --archive {}", "{}", "info {} more", "--{}", "--no={}", "view --port {}", "download {} --on-error {}",
]  # fmt: skip

OPENING = ["info {}", "doctor {}", "snapshot {} --z 1 -o a.png", "measure {} a.csv --label mito", "predict {} m.pt b"]
"""Commands that read an archive over the web."""


def assert_hidden(text: str, *what: object) -> None:
    """Assert that neither the password nor the signature is shown."""
    assert WORD not in text, what
    assert SIGNATURE not in text, what


@pytest.mark.parametrize("command", [*COMMANDS, *OPENING])
def test_a_command_shows_no_secrets(command: str, tmp_path: Path) -> None:
    """The message about an address that was given for something else masks what is secret."""
    for address in ADDRESSES:
        if command in OPENING and address == WEB:
            continue
        done = run_here(*command.format(*[address] * command.count("{}")).split(), cwd=tmp_path)
        assert_hidden(done.stdout + done.stderr, address)
    assert not list(tmp_path.iterdir()), "a folder was made of the address"


def test_a_scheduler_that_is_none_shows_no_secrets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nor does the error of a client, which may quote a part of the address."""

    def client(where: str, **_: object) -> None:
        raise ValueError(f"unknown address {where}, and no port: {where.rpartition(':')[2]}")

    monkeypatch.setattr("distributed.Client", client)
    for address in ADDRESSES:
        done = run_here("download", "a.zarr", "--full", "--scheduler", address, cwd=tmp_path)
        assert "There is no cluster at" in done.stderr
        assert_hidden(done.stdout + done.stderr, address)


CALLS: dict[str, Callable[[xr.Dataset, str], Any]] = {
    "to_zarr": ld.to_zarr,
    "verify": lambda ds, at: ld.verify(at),
    "add_variables": lambda ds, at: ld.add_variables(at, {"a": ds.mito}),
    "add_pyramid": lambda ds, at: ld.add_pyramid(at),
    "annotate": lambda ds, at: ld.annotate(at, voxel_size_nm=(1, 1, 1)),
    "image_statistics": lambda ds, at: ld.image_statistics(at),
    "predict": lambda ds, at: ld.predict(at, ds.raw, block=(2, 64, 64)),
    "measure": lambda ds, at: ld.measure(ds.mito, path=f"{at}.csv"),
    "facts": lambda ds, at: ld.open_human_liver_em(ds.attrs["source"], shape=SHAPE, facts=at),
    "cache_dir": lambda ds, at: ld.open_human_liver_em(ds.attrs["source"], shape=SHAPE, cache_dir=at),
    "open_archive": lambda ds, at: ld.open_archive(at),
    "get_human_liver_em_dataset": lambda ds, at: ld.get_human_liver_em_dataset(
        at, patch_shape=(2, 64, 64), bounding_boxes=[(0, 100, 0, 100, 0, 4)], label_choice="mito"
    ),
}


@pytest.mark.parametrize("name", CALLS)
def test_a_call_shows_no_secrets(name: str, archive: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither the error of a call nor what it was caused by has what is secret of an address."""
    monkeypatch.chdir(tmp_path)
    ds = ld.open_human_liver_em(archive, shape=SHAPE)
    for address in ADDRESSES:
        with pytest.raises((ld.LiverDaskError, OSError)) as told:
            CALLS[name](ds, address)
        assert_hidden(chain_of(told.value), address)
        seen = told.value
        while seen:  # what was being handled, too
            assert_hidden(f"{seen!r}", address)
            seen = seen.__context__
    assert not list(tmp_path.iterdir()), "a folder was made of the address"


def test_the_address_of_an_archive_may_have_a_user(tmp_path: Path) -> None:
    """An address with a user is that of an archive where it may be, and otherwise the error says where."""
    done = run_here("doctor", f"s3://{REST}")
    assert "if it begins with http, https, ftp, sftp, ssh, smb" in " ".join(done.stderr.split())
    done = run_here("doctor", f"ftp://me:{WORD}@127.0.0.1:9/x")
    assert "127.0.0.1:9/x" in done.stderr + done.stdout
    assert "store" not in done.stderr
    assert_hidden(done.stderr + done.stdout)

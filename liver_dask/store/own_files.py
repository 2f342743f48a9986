"""What a command makes in a user's folder: made anew each time, and replaced only if it is as the command left it.

The folder `.MAKER` beside it holds `lock`, which whoever is at it holds; `new/`, what is being made; `old/`, what is
being replaced; and `made.json`, the SHA-256 of what was made last.
"""

import fcntl
import hashlib
import json
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from ..core.disk import files_in
from ..core.errors import StoreExistsError
from .durable import DurableFile
from .shards import TORN
from .writer import CANNOT_LOCK


@contextmanager
def replacing(folder: Path, names: Sequence[str], maker: str) -> Iterator[Path]:
    """Make files or folders anew; they get their places together when all are made, or none does.

    A kill at any moment leaves what the next call replaces, and nothing of anybody else's is touched.

    Args:
        folder: Where they are to be; made if it is not there.
        names: All that is going to be made.
        maker: The name of what makes them.

    Yields:
        The folder to make them in.

    Raises:
        StoreExistsError: Something has one of the names that was not made so, or was changed since; or another call is
            at it. (FileExistsError)
    """
    own = folder / f".{maker}"
    folder.mkdir(parents=True, exist_ok=True)
    _check(folder, names, own)
    own.mkdir(exist_ok=True)
    with _file_lock(own):
        new, old = own / "new", own / "old"
        for rest in (new, old):  # of a run that was killed
            shutil.rmtree(rest, ignore_errors=True)
            rest.mkdir()
        for torn in [path for path in files_in(own) if TORN.fullmatch(path.name)]:
            torn.unlink()
        try:
            yield new
            _check(folder, names, own)
            for name in names:
                if os.path.lexists(folder / name):
                    (folder / name).replace(old / name)
            with DurableFile(own / "made.json") as file:
                file.write(json.dumps({name: _digest(new / name) for name in names}).encode())
            for name in names:
                (new / name).replace(folder / name)
        finally:
            for rest in (new, old):
                shutil.rmtree(rest, ignore_errors=True)


def _check(folder: Path, names: Sequence[str], own: Path) -> None:
    """Refuse to replace what was not made so, or was changed since."""
    made = _made(own)
    foreign = [folder / name for name in names if os.path.lexists(folder / name)]
    foreign = [path for path in foreign if made.get(path.name) != _digest(path)]
    is_own = own.is_dir() and not own.is_symlink() and ((own / "lock").exists() or not any(own.iterdir()))
    if os.path.lexists(own) and not is_own:
        foreign.append(own)
    if foreign:
        raise StoreExistsError(
            f"{foreign[0]} was not made by this command, or was changed since; move it away, or choose another folder."
        )


def _made(own: Path) -> Mapping[str, str]:
    try:
        made = json.loads((own / "made.json").read_bytes())
    except (FileNotFoundError, NotADirectoryError, ValueError):
        return {}
    return made if isinstance(made, dict) else {}


def _digest(path: Path) -> str:
    """Of the names and bytes of a file, or of all that is in a folder; links are not followed."""
    digest = hashlib.sha256()
    for entry in [path, *sorted(path.rglob("*"))] if path.is_dir() and not path.is_symlink() else [path]:
        if entry.is_symlink():
            content = os.fsencode(f"link to {entry.readlink()}")
        else:
            content = b"folder" if entry.is_dir() else hashlib.sha256(entry.read_bytes()).digest()
        digest.update(hashlib.sha256(os.fsencode(entry.relative_to(path.parent))).digest() + content)
    return digest.hexdigest()


@contextmanager
def _file_lock(own: Path) -> Iterator[None]:
    """Keep others from it, as long as this process lives."""
    descriptor = os.open(own / "lock", os.O_RDWR | os.O_CREAT, 0o666)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise StoreExistsError(f"Another process is at work in {own.parent}; wait for it to end.") from None
        except OSError as error:
            if error.errno not in CANNOT_LOCK:
                raise
        yield
    finally:
        os.close(descriptor)

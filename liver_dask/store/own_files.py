"""Files that a command creates in a user's folder, and replaces only if nobody has changed them since.

The command creates its files anew on each call. Its working folder `.MAKER`, in the same folder, contains:

- `lock`: the lock file; the running process holds the lock.
- `new/`: the files that are being created.
- `old/`: the files that are being replaced.
- `made.json`: the SHA-256 of each file or folder that the last call created.
"""

import hashlib
import json
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from ..core.disk import files_in
from ..core.errors import StoreExistsError
from .durable import TORN, DurableFile
from .locks import open_locked


@contextmanager
def replacing(folder: Path, names: Sequence[str], maker: str) -> Iterator[Path]:
    """Create files or folders anew, and move all of them to their final places only when all are complete.

    If the process is killed at any moment, the next call replaces what it left. Files that this command did not create
    are never touched.

    Args:
        folder: Destination folder. It is created if it does not exist.
        names: Names of all files and folders that will be created.
        maker: Name of the command that creates them.

    Yields:
        The folder to create them in.

    Raises:
        StoreExistsError: A file or folder with one of the names was not created by this command or was changed since,
            or another process is running the same command in this folder. (FileExistsError)
    """
    own = folder / f".{maker}"
    folder.mkdir(parents=True, exist_ok=True)
    _check(folder, names, own)
    own.mkdir(exist_ok=True)
    with _file_lock(own):
        new, old = own / "new", own / "old"
        for rest in (new, old):  # left by a run that was killed
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
    """Raise StoreExistsError if this command did not create one of the files or folders, or if one has changed."""
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
    """SHA-256 of the name and bytes of a file, or of everything in a folder. Symbolic links are not followed."""
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
    """Hold the lock against other processes; the system releases it when this process ends."""
    busy = f"Another process is at work in {own.parent}; wait for it to end."
    descriptor = open_locked(own / "lock", busy=busy)
    try:
        yield
    finally:
        os.close(descriptor)

"""The commands that look at a cache folder, and clear it."""

from collections.abc import Callable
from pathlib import Path

import click
from rich.filesize import decimal

from .archive.remote.cache import WHAT_IS_KEPT, FolderCache
from .cli_errors import OneSentenceGroup
from .core.config import setting


@click.group(cls=OneSentenceGroup)
def cache() -> None:
    """Inspect or clear a cache folder (`cache_dir`)."""


def folder_argument(command: Callable[..., None]) -> Callable[..., None]:
    """Add the argument FOLDER of the cache commands, and check it."""

    def checked(_context: click.Context, _parameter: click.Parameter, given: Path | None) -> Path:
        folder = given or setting("cache-dir")
        if not folder:
            raise click.UsageError("Give the folder, or set `liver-dask.cache-dir` in dask's configuration.")
        if not Path(folder).expanduser().is_dir():
            raise click.BadParameter(f"There is no folder {folder}.")
        return Path(folder).expanduser()

    return click.argument("folder", type=click.Path(path_type=Path), required=False, callback=checked)(command)


@cache.command("info")
@folder_argument
def cache_info(folder: Path) -> None:
    """Show what is cached in FOLDER.

    The default is `liver-dask.cache-dir` in dask's configuration.
    """
    for kind, what in WHAT_IS_KEPT.items():
        sizes = [size for _, size, _ in FolderCache(str(folder)).entries(kind)]
        click.echo(f"{decimal(sum(sizes)):>10}  {what} ({len(sizes)} files)")


@cache.command("clear")
@folder_argument
def cache_clear(folder: Path) -> None:
    """Remove this package's cached files from FOLDER, and nothing else.

    The default is `liver-dask.cache-dir` in dask's configuration.
    """
    cached = FolderCache(str(folder))
    sizes = [size for kind in WHAT_IS_KEPT for _, size, _ in cached.entries(kind)]
    cached.clear()
    click.echo(f"{folder}: {decimal(sum(sizes))} in {len(sizes)} files removed.")

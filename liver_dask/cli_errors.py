"""Errors of the command line: one sentence, without a traceback."""

import errno
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import click

from .core.documents import reason_of
from .core.errors import InvalidArgumentError, LiverDaskError
from .core.interrupts import interrupts_noted


class OneSentenceGroup(click.Group):
    """A command group that shows errors of this package and of the system as one sentence."""

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command, and convert its errors to those of click."""
        try:
            with interrupts_noted(), _warnings_on_one_line():
                return super().invoke(ctx)
        except (LiverDaskError, OSError, KeyboardInterrupt) as error:
            said = "Interrupted." if isinstance(error, KeyboardInterrupt) else sentence_of(error)
            kind = click.UsageError if isinstance(error, InvalidArgumentError) else click.ClickException
            raise kind(" ".join([said, *getattr(error, "__notes__", [])])) from error
        except (click.ClickException, click.exceptions.Exit, click.Abort):
            raise
        except Exception as error:  # from other packages, such as zarr's for a damaged chunk
            how_to_know = "Of a store, `liver-dask verify STORE` says what is damaged."
            raise click.ClickException(f"{reason_of(error).rstrip('. ')}. {how_to_know}") from error


def sentence_of(error: LiverDaskError | OSError) -> str:
    """Return the message of an error; that of the system as a sentence with its path, without its number."""
    if isinstance(error, LiverDaskError) or error.filename is None or not error.strerror:
        return str(error)
    advice = "choose another path"
    if "://" in str(error.filename):
        advice = "look at the address, the credentials and the network"
    elif isinstance(error, PermissionError) or error.errno == errno.EROFS:
        advice += ", or change its permissions"
    reason = error.strerror[:1].lower() + error.strerror[1:]
    return f"Cannot use {os.fsdecode(str(error.filename))} ({reason}); {advice}."


@contextmanager
def _warnings_on_one_line() -> Iterator[None]:
    """Show warnings to users without the file and the line of code that they come from."""
    usual = warnings.formatwarning

    def format_warning(
        message: Warning | str, category: type[Warning], filename: str, lineno: int, line: str | None = None
    ) -> str:
        if category is not UserWarning:
            return usual(message, category, filename, lineno, line)
        return f"Warning: {' '.join(str(message).split())}\n"

    warnings.formatwarning = format_warning
    try:
        yield
    finally:
        warnings.formatwarning = usual

"""Errors of the command line: one sentence, without a traceback."""

import errno
import os
import signal
import threading
from collections.abc import Sequence
from typing import Any

import click

from .core.documents import reason_of
from .core.errors import InvalidArgumentError, LiverDaskError
from .core.interrupts import interrupts_noted


class OneSentenceGroup(click.Group):
    """A command group that shows errors of this package and of the system as one sentence."""

    def main(self, args: Sequence[str] | None = None, *more: Any, **options: Any) -> Any:
        """Run the command line; if it is that of the process, a Ctrl-C after its end kills, without a traceback."""
        try:
            return super().main(args, *more, **options)
        finally:
            if args is None and threading.current_thread() is threading.main_thread():
                signal.signal(signal.SIGINT, signal.SIG_DFL)

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command, and convert its errors to those of click."""
        try:
            with interrupts_noted():
                return super().invoke(ctx)
        except (LiverDaskError, OSError, KeyboardInterrupt) as error:
            said = "Interrupted." if isinstance(error, KeyboardInterrupt) else sentence_of(error)
            kind = click.UsageError if isinstance(error, InvalidArgumentError) else click.ClickException
            raise kind(" ".join([said, *_notes_of(error)])) from error
        except (click.ClickException, click.exceptions.Exit, click.Abort):
            raise
        except Exception as error:  # from other packages, such as zarr's for a damaged chunk
            how_to_know = "Of a store, `liver-dask verify STORE` says what is damaged."
            raise click.ClickException(f"{reason_of(error).rstrip('. ')}. {how_to_know}") from error


def _notes_of(error: BaseException) -> list[str]:
    """Return the notes of an error; those of an interrupt also where another one came while it was handled."""
    notes: list[str] = getattr(error, "__notes__", [])
    if not notes and isinstance(error, KeyboardInterrupt) and isinstance(error.__context__, KeyboardInterrupt):
        return _notes_of(error.__context__)
    return notes


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

"""What the command line says of errors and warnings: one sentence, without a traceback and without secrets."""

import logging
import signal
import threading
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import click

from .core.addresses import without_secrets
from .core.documents import reason_of
from .core.errors import InvalidArgumentError, LiverDaskError, sentence_of
from .core.interrupts import interrupts_noted

SILENT = ("tifffile",)
"""Loggers of other packages that log what this package reports as an error."""


class OneSentenceGroup(click.Group):
    """A command group that shows errors of this package and of the system as one sentence."""

    def main(self, args: Sequence[str] | None = None, *more: Any, **options: Any) -> Any:
        """Run the command line; if it is that of the process, a Ctrl-C after its end kills, without a traceback."""
        try:
            return super().main(args, *more, **options)
        finally:
            if args is None and threading.current_thread() is threading.main_thread():
                signal.signal(signal.SIGINT, signal.SIG_DFL)

    def make_context(self, *args: Any, **kwargs: Any) -> click.Context:
        """Take the arguments, and show no secrets in an error about them."""
        with _secrets_masked():
            return super().make_context(*args, **kwargs)

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command, and convert its errors to those of click."""
        with _secrets_masked(), warnings_as_sentences(), silent():
            return self._invoke(ctx)

    def _invoke(self, ctx: click.Context) -> Any:
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


@contextmanager
def _secrets_masked() -> Iterator[None]:
    """Mask addresses in the message of an error, which may quote an argument."""
    try:
        yield
    except click.ClickException as error:
        masked = without_secrets(error.format_message())
        if masked == error.format_message():
            raise
        if isinstance(error, click.UsageError):
            raise click.UsageError(masked, error.ctx) from None
        raise click.ClickException(masked) from None


@contextmanager
def warnings_as_sentences() -> Iterator[None]:
    """Show warnings as sentences, without the line of code that warns. Filters such as `-W error` stay as they are."""
    before = warnings.formatwarning
    warnings.formatwarning = lambda message, *_, **__: f"Warning: {without_secrets(' '.join(str(message).split()))}\n"
    try:
        yield
    finally:
        warnings.formatwarning = before


@contextmanager
def silent() -> Iterator[None]:
    """Drop what other packages log about damaged files: the command says it in a sentence about each."""
    loggers = [logging.getLogger(name) for name in SILENT]
    before = [logger.disabled for logger in loggers]
    for logger in loggers:
        logger.disabled = True
    try:
        yield
    finally:
        for logger, was_disabled in zip(loggers, before, strict=True):
            logger.disabled = was_disabled

"""The text of an error, for tests of what it reveals."""

import traceback


def chain_of(error: BaseException) -> str:
    """Return all text of an error's traceback and of its chain of causes, with their arguments."""
    shown = "".join(traceback.format_exception(error))
    seen = []
    while error and error not in seen:
        seen.append(error)
        shown += f"{error!r} {error.args!r}"
        error = error.__cause__ or error.__context__
    return shown

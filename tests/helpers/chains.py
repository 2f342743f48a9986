"""What an error shows and holds."""

import traceback


def chain_of(error: BaseException) -> str:
    """All that a traceback and its causes would show, and all that they hold."""
    shown = "".join(traceback.format_exception(error))
    seen = []
    while error and error not in seen:
        seen.append(error)
        shown += f"{error!r} {error.args!r}"
        error = error.__cause__ or error.__context__
    return shown

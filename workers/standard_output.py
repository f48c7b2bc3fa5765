"""Standard output, which is for programs: what they are to get is there, or it is told that it is not."""

import os
import sys

from poqueue.errors import PoqueueError


def put_out(text: str, end: str = "\n") -> None:
    """As print, but at once.

    Raises:
        BrokenPipeError: nobody listens any more.
        PoqueueError: it cannot be written.
    """
    try:
        if sys.stdout is not None:  # started without one (>&-)
            if text or end:  # a full device refuses to take nothing, too
                sys.stdout.write(text + end)
            sys.stdout.flush()
    except OSError as error:
        leave_stdout()
        if isinstance(error, BrokenPipeError):
            raise
        raise PoqueueError(f"standard output cannot be written: {error.strerror}") from None


def leave_stdout() -> None:
    """What it still holds goes nowhere, and disturbs no exit code."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)

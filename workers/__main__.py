"""The command line's front door: `poqueue`, and `python -m workers`. A Ctrl-C counts from the first line on."""

import _signal  # type: ignore[import-not-found]  # signal imports more, and a Ctrl-C would show a traceback meanwhile
import sys


def main() -> int:
    """Run the command line; returns the exit code."""
    _end_at_interrupts()
    from workers.cli import main as run_command

    return run_command()


def _end_at_interrupts() -> None:
    """Ctrl-C ends this process as TERM does, at once, until a command has something to clean up (signals.py).

    An exception would be lost if it came in the callback of a weak reference, and each import has one.
    """
    if _signal.getsignal(_signal.SIGINT) is _signal.default_int_handler:  # not if whoever started it ignores Ctrl-C
        _signal.signal(_signal.SIGINT, _signal.SIG_DFL)


if __name__ == "__main__":
    sys.exit(main())

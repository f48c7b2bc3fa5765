"""Measurements that take turns: a pool waits, open and idle, until the runner lets it go on for a moment.

What is compared is then measured within the same second or two. The word goes over standard input, a socket there; a
measurement that is started by hand has none, and goes on at once.
"""

import os
import stat


def await_turn() -> None:
    """Say that this pool waits, and wait; a runner that has ended lets it go on as well."""
    if stat.S_ISSOCK(os.fstat(0).st_mode):
        os.write(0, b".")
        os.read(0, 1)

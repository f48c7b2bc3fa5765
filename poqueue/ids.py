"""New ids for tasks; apart from the queue, so that whoever feeds one can give them without loading it."""

import itertools
import os

_PAIRS = [f"{byte:02x}" for byte in range(256)]


class Ids:
    """UUIDs of version 8 (RFC 9562, 5.8): 74 random bits of this process, and a count of 48 bits from a random one on."""

    def __init__(self) -> None:
        self._begin()
        os.register_at_fork(after_in_child=self._begin)  # else both processes would give the same ones

    def _begin(self) -> None:
        digits = os.urandom(10).hex()
        prefix = f"{digits[:8]}-{digits[8:12]}-8{digits[12:15]}-{'89ab'[int(digits[15], 16) & 3]}{digits[16:19]}-"
        counts = itertools.product([prefix], *(_PAIRS[first:] + _PAIRS[:first] for first in os.urandom(6)))
        self.new = map("".join, counts).__next__  # no Python is run for one


ids = Ids()

"""The clock of a worker's limits and accounts, by which a processor cannot go wrong that stops or replaces `time.monotonic`.

Tools such as freezegun do so, and replace it in each module that has taken it from there; these are objects of our own.
"""

import time
from functools import partial

monotonic = partial(time.monotonic)
monotonic_ns = partial(time.monotonic_ns)

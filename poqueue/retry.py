"""When a failed attempt may run again: exponential backoff, as a value."""

from collections.abc import Callable

_MAX_DOUBLINGS = 64


def backoff_s(
    retry: int, base_s: float, cap_s: float, jitter: float = 0.0, random: Callable[[], float] = lambda: 0.0
) -> float:
    """Seconds to wait before the `retry`-th retry (from 1): base * 2**(retry-1), at most `cap_s`.

    Jitter only lengthens: up to `jitter` (a share) of the delay, by `random()` in 0..1. Before jitter the cap holds.
    """
    doublings = min(retry - 1, _MAX_DOUBLINGS)  # a float overflows long before a patient caller does
    delay_s = min(cap_s, base_s * 2.0**doublings)
    return delay_s * (1.0 + jitter * random()) if jitter else delay_s

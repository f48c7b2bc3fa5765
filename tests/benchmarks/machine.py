"""What else the machine does: a number that was measured beside other work is not one."""

import os
import resource
import time
from dataclasses import dataclass

QUIET_CORES = 0.15  # what others may use, of all cores together
_TICKS_A_S = os.sysconf("SC_CLK_TCK")


def busy_s() -> float:
    """CPU seconds that all processes of the machine have used, stolen ones included."""
    with open("/proc/stat") as file:
        fields = [int(text) for text in file.readline().split()[1:]]
    user, nice, system, _, _, irq, softirq, steal = fields[:8]
    return (user + nice + system + irq + softirq + steal) / _TICKS_A_S


def own_s() -> float:
    """CPU seconds of this process and of all descendants that were waited for."""
    spent = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(one.ru_utime + one.ru_stime for one in spent)


@dataclass(slots=True)
class Noise:
    """What others took, in cores: before a measurement and during it; and the load average before."""

    load: float
    before: float
    during: float = 0.0

    @property
    def is_quiet(self) -> bool:
        """Whether the measurement had the machine to itself."""
        return max(self.before, self.during) <= QUIET_CORES


class Watch:
    """Looks before, waits for a quiet moment, and counts during."""

    def __init__(self, patience_s: float) -> None:
        deadline = time.monotonic() + patience_s
        while True:
            others = self._look(0.3)
            if others <= QUIET_CORES or time.monotonic() >= deadline:
                break
        self.noise = Noise(os.getloadavg()[0], others)
        self._since, self._busy_s, self._own_s = time.monotonic(), busy_s(), own_s()

    def stop(self, more_own_s: float) -> Noise:
        """The measurement is over; `more_own_s` is what its processes used that nobody has waited for."""
        seconds = time.monotonic() - self._since
        others_s = busy_s() - self._busy_s - (own_s() - self._own_s) - more_own_s
        self.noise.during = max(0.0, others_s) / max(seconds, 0.001)
        return self.noise

    @staticmethod
    def _look(seconds: float) -> float:
        since, busy = time.monotonic(), busy_s()
        time.sleep(seconds)
        return (busy_s() - busy) / (time.monotonic() - since)

"""When a run is to stop early: a count of ends, and the numbers at which it has seen enough."""


class HaltPolicy:
    """Counts ends from now on; without numbers it never strikes. It strikes once."""

    def __init__(self, failed: int | None = None, succeeded: int | None = None, done: int | None = None) -> None:
        self._limits = {"failed": failed, "succeeded": succeeded, "done": done}
        for name, limit in self._limits.items():
            if limit is not None and (type(limit) is not int or limit < 1):
                raise ValueError(f"halt: {name} must be a whole number from 1, got {limit!r}")
        self._counts = dict.fromkeys(self._limits, 0)
        self._has_struck = False
        self.is_set = any(self._limits.values())

    def count(self, *, succeeded: bool) -> str:
        """Note an end; says why to stop if it is the one too many, else nothing."""
        for name in ("succeeded" if succeeded else "failed", "done"):
            self._counts[name] += 1
            if self._counts[name] == self._limits[name] and not self._has_struck:
                self._has_struck = True
                return f"{self._counts[name]} {name}"
        return ""

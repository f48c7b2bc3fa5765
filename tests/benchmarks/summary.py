"""Medians, ranges and ratios of many measurements."""

from statistics import median

from tests.benchmarks.runner import Measurement


class Summary:
    """Answers questions on the measurements of one run of the benchmarks.

    A round that others have disturbed counts in a median or a ratio only where there is no quiet one. Which rounds these
    are is decided by what others used, never by the figure, and for all pools alike; the range is always that of all.
    """

    def __init__(self, measurements: list[Measurement]) -> None:
        self.measurements = measurements
        self.is_disturbed = False  # set by an answer for which there was no quiet round; whoever asks unsets it

    def values(self, case: str, pool: str, figure: str, *, is_quiet: bool = False) -> dict[int, float]:
        """A figure by round, of all rounds or of the quiet ones."""
        return {
            one.round: one.figures[figure]
            for one in self.measurements
            if one.case == case and one.pool == pool and figure in one.figures and (one.noise.is_quiet or not is_quiet)
        }

    def median(self, case: str, pool: str, figure: str) -> float | None:
        """The median over the rounds; None if it was not measured."""
        for is_quiet in (True, False):
            if values := self.values(case, pool, figure, is_quiet=is_quiet):
                self.is_disturbed |= not is_quiet
                return median(values.values())
        return None

    def span(self, case: str, pool: str, figure: str) -> tuple[float, float] | None:
        """The smallest and the largest of all rounds."""
        values = self.values(case, pool, figure).values()
        return (min(values), max(values)) if values else None

    def worst(self, case: str, pool: str, figure: str) -> float | None:
        """The largest: of what is lost no median is taken."""
        span = self.span(case, pool, figure)
        return span[1] if span else None

    def ratio(self, case: str, pool: str, other: str, figure: str) -> float | None:
        """The median of the ratios within each round; those that were quiet for both, if there are any."""
        return self.ratio_of((case, pool), (case, other), figure)

    def ratio_of(self, mine: tuple[str, str], other: tuple[str, str], figure: str) -> float | None:
        """The same for any two, each a case and a pool."""
        for is_quiet in (True, False):
            ours, theirs = (self.values(*which, figure, is_quiet=is_quiet) for which in (mine, other))
            if both := [ours[number] / theirs[number] for number in ours.keys() & theirs.keys() if theirs[number]]:
                self.is_disturbed |= not is_quiet
                return median(both)
        return None

    def noisy_rounds(self, case: str, pool: str) -> int:
        """How many rounds others have disturbed."""
        return sum(
            not one.noise.is_quiet and not one.reason
            for one in self.measurements
            if (one.case, one.pool) == (case, pool)
        )

    def reason(self, case: str, pool: str) -> str:
        """Why there is nothing, if there is nothing."""
        return next(
            (one.reason for one in self.measurements if (one.case, one.pool) == (case, pool) and one.reason), ""
        )

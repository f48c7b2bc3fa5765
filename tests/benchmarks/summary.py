"""Medians, ranges and ratios of many measurements."""

from statistics import median

from tests.benchmarks.runner import Measurement


class Summary:
    """Answers questions on the measurements of one run of the benchmarks."""

    def __init__(self, measurements: list[Measurement]) -> None:
        self.measurements = measurements

    def values(self, case: str, pool: str, figure: str) -> dict[int, float]:
        """A figure by round."""
        return {
            one.round: one.figures[figure]
            for one in self.measurements
            if one.case == case and one.pool == pool and figure in one.figures
        }

    def median(self, case: str, pool: str, figure: str) -> float | None:
        """The median over the rounds; None if it was not measured."""
        values = self.values(case, pool, figure)
        return median(values.values()) if values else None

    def span(self, case: str, pool: str, figure: str) -> tuple[float, float] | None:
        """The smallest and the largest."""
        values = self.values(case, pool, figure).values()
        return (min(values), max(values)) if values else None

    def worst(self, case: str, pool: str, figure: str) -> float | None:
        """The largest: of what is lost no median is taken."""
        span = self.span(case, pool, figure)
        return span[1] if span else None

    def ratio(self, case: str, pool: str, other: str, figure: str) -> float | None:
        """The median of the ratios within each round."""
        mine, theirs = self.values(case, pool, figure), self.values(case, other, figure)
        both = [mine[number] / theirs[number] for number in mine.keys() & theirs.keys() if theirs[number]]
        return median(both) if both else None

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

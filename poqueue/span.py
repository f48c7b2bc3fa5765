"""Times and rates as people read them."""

from math import inf


def span_text(seconds: float) -> str:
    """Seconds for people, to three digits."""
    units = ((0.9995, 0.001, "ms"), (120.0, 1.0, "s"), (7200.0, 60.0, "min"), (inf, 3600.0, "h"))
    size, unit = next((size, unit) for limit, size, unit in units if seconds < limit)
    return f"{float(f'{seconds / size:.3g}'):g} {unit}"


def rate_text(per_second: float) -> str:
    """POs a second, a minute or an hour, for people, to three digits and no exponent."""
    unit, factor = next(((u, f) for u, f in (("s", 1), ("min", 60)) if per_second * f >= 1), ("h", 3600))
    rate = per_second * factor
    return f"{rate:,.0f} POs/{unit}" if rate >= 100 else f"{rate:.3g} POs/{unit}"

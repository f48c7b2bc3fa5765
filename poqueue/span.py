"""Times as people read them."""

from math import inf


def span_text(seconds: float) -> str:
    """Seconds for people, to three digits."""
    units = ((0.9995, 0.001, "ms"), (120.0, 1.0, "s"), (7200.0, 60.0, "min"), (inf, 3600.0, "h"))
    size, unit = next((size, unit) for limit, size, unit in units if seconds < limit)
    return f"{float(f'{seconds / size:.3g}'):g} {unit}"

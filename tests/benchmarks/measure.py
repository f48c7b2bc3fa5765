"""One measurement in this process: `python -m tests.benchmarks.measure CASE POOL SIZE FILE` writes its figures as JSON.

It leaves without tidying up after itself: whatever a pool leaves running is its caller's to end, and to see. Worker
processes import this file again, as they do any program's, so it imports nothing of a pool at its top.
"""

import json
import os
import sys
from pathlib import Path
from typing import Any


def measure(case: str, pool: str, size: int) -> dict[str, Any]:
    """The figures, or the reason why there are none."""
    from tests.benchmarks.cases import CASES
    from tests.benchmarks.pools import PoolUnavailable

    try:
        return {"figures": CASES[case].measure(pool, size)}
    except PoolUnavailable as error:
        return {"reason": str(error)}


if __name__ == "__main__":
    case_name, pool_name, size_text, file_name = sys.argv[1:]
    text = json.dumps(measure(case_name, pool_name, int(size_text)))
    Path(file_name).write_text(text, encoding="utf-8")
    sys.stdout.flush()
    os._exit(0)  # some pools wait for ever for what they have lost

"""One measurement in this process: `python -m tests.benchmarks.measure CASE POOL SIZE FILE` writes its figures as JSON.

It leaves without tidying up after itself: whatever a pool leaves running is its caller's to end, and to see.
"""

import json
import os
import sys
from pathlib import Path
from typing import Any

from tests.benchmarks.cases import CASES
from tests.benchmarks.pools import PoolUnavailable


def measure(case: str, pool: str, size: int) -> dict[str, Any]:
    """The figures, or the reason why there are none."""
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

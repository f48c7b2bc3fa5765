"""What the fork server imports for those that it forks: first what the queue's process, its first one, needs too; the rest
of what workers need when that one has been forked, and goes on by itself.
"""

import hmac  # noqa: F401  (who connects proves that it has the key)
import os

from poqueue import config, events, failpoint, hosting, packing, parent, wire  # noqa: F401


def _import_rest() -> None:
    import ctypes  # noqa: F401  (each worker asks the kernel something that Python has no word for)

    import workers.worker  # noqa: F401


os.register_at_fork(after_in_parent=_import_rest)

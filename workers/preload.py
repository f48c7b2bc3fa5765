"""What the fork server imports for those that it forks: first what the queue's process, its first one, needs too; the rest
of what workers need when that one has been forked, and goes on by itself.

Nothing is looked through for cycles meanwhile: what modules make stays.
"""

import gc
import importlib
import os

_server_pid = os.getpid()


def _import(*names: str) -> None:
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        for name in names:
            importlib.import_module(name)
    finally:
        gc.freeze()  # nor is it later, in those that are forked
        if was_enabled:
            gc.enable()


def _import_rest() -> None:
    global _server_pid
    if os.getpid() != _server_pid:  # those that are forked may fork as well, and hold what is not ours
        return
    _server_pid = 0  # it has them all
    _import(
        "workers.worker",
        "ctypes",  # each worker asks the kernel something that Python has no word for
        "typing",  # hardly a processor does without it
    )


_import(
    "hmac",  # who connects proves that it has the key
    *(f"poqueue.{name}" for name in ("config", "events", "failpoint", "hosting", "packing", "parent", "wire")),
)
os.register_at_fork(after_in_parent=_import_rest)

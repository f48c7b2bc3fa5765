"""A script without a guard would start a batch of its own in each process that is started, as each imports it again."""

import os
import sys
from multiprocessing import current_process

from poqueue.errors import ConfigError

NO_GUARD_EXIT = 64
NO_GUARD = (
    "each process that is started imports the script again, and so would start a batch of its own; "
    'put what starts the batch below a line: if __name__ == "__main__":'
)


def leave_if_imported_again(start_method: str = "spawn") -> None:
    """End this process if it is one of ours that still imports the script: without a guard, the script ends up here.

    Raises:
        ConfigError: the script cannot be imported at all, since it came through standard input or its file is gone.
    """
    if getattr(current_process(), "_inheriting", False):
        os._exit(NO_GUARD_EXIT)  # the parent, which sees the exit code, tells it once
    main = sys.modules["__main__"]
    path = getattr(main, "__file__", None)
    if start_method != "fork" and path and not getattr(main, "__spec__", None) and not os.path.exists(path):
        raise ConfigError(
            f"each process that is started imports the script again, and {path} cannot be imported: save it as a file"
        )

"""Processes that are started while the orders are still read: they import, and wait to be told what they are for."""

import logging
from multiprocessing import get_context

from poqueue.errors import PoqueueError
from poqueue.service import ManagerProcess
from workers import process_control as control
from workers.own_process import Adoption, usable_cores
from workers.queue_keeper import OWN_CLIENTS
from workers.worker_process import WorkerStart

logger = logging.getLogger(__name__)


CORES_LEFT = 2  # and so at most as many workers are started later, while the manager opens the queue


def early_workers(jobs: int) -> int:
    """How many workers to start beside the manager: one core reads the orders meanwhile, and loses more than they win."""
    return max(0, min(jobs, usable_cores() - CORES_LEFT))


class EarlyStart:
    """A manager and some workers of a run that is likely to come; a supervisor takes them out of here.

    They have no name, no folder and no processor yet. What nobody has taken ends when this is closed, or with this process,
    which must be the command's own: each imports the script of its program, once more and at any moment.

    Args:
        start_method: how they are started; a fork has nothing to import, and is started when it is needed.
        workers: how many.
    """

    def __init__(self, start_method: str, workers: int) -> None:
        self.managers: list[ManagerProcess] = []
        self.workers: list[WorkerStart] = []
        self._adoption = Adoption()
        if start_method == "fork":
            return
        self._adoption.hold()  # else where ends of children are ignored nobody could wait for these
        try:
            if start_method == "forkserver":
                control.start_forkserver()
            with control.quiet_start():
                manager = ManagerProcess(start_method, lines=OWN_CLIENTS + workers + CORES_LEFT)
                self.managers.append(manager)
            control.note_childless(manager.process)
            for _ in range(workers):
                self.workers.append(WorkerStart(get_context(start_method), line=manager.lines.pop()))
        except (OSError, PoqueueError) as error:  # the run will have to start them itself, or tell why it cannot
            logger.debug("no process can be started ahead: %s", error)
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> "EarlyStart":
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def close(self) -> None:
        """End those that nobody has taken; harmless when repeated."""
        while self.managers:
            self.managers.pop().end()
        while self.workers:
            self.workers.pop().end()
        self._adoption.let_go()

"""What becomes of dead workers: proof that they and all they started are gone, and then their accounts with the queue.

What a dead worker had finished counts, what it ran is charged to the PO, what it held behind that goes back. Each step may
be repeated, after an answer was lost for instance: a report or a charge counts only while its lease is live.
"""

import contextlib
import logging
import time

from poqueue import failpoint
from poqueue.error_log import described
from poqueue.errors import JournalError, TaskNotFoundError, WorkerMismatchError
from poqueue.task import Report
from workers import process_control as control
from workers.log import OUTPUT_LOGGER, ShieldedLogger
from workers.post_mortem import describe_death, describe_timeout
from workers.queue_keeper import QueueKeeper
from workers.staff import Staff
from workers.worker_files import Phase, Status, Usage
from workers.worker_process import WorkerProcess

logger = ShieldedLogger(__name__)
output_logger = ShieldedLogger(OUTPUT_LOGGER)

ORPHAN_CHECK_S = 5.0
ORPHAN_CHECK_AFTER_DEATH_S = 1.0
_LEVELS = {"DEBUG": 10, "INFO": 20, "WARNING": 30, "ERROR": 40, "CRITICAL": 50}


class Reaper:
    """Buries those of the staff that have ended, and settles what they leave with the queue.

    Attributes:
        dead: they have ended, and are not settled with the queue yet.
        usage: of the workers that have ended by themselves.
    """

    def __init__(self, staff: Staff, keeper: QueueKeeper) -> None:
        self._staff = staff
        self._keeper = keeper
        self._ask = keeper.ask
        self.dead: list[WorkerProcess] = []
        self.usage = Usage()
        self._oom_kills = 0
        self._next_orphan_check = time.monotonic() + ORPHAN_CHECK_S

    def begin(self) -> None:
        """What the kernel has killed for want of memory up to now was no worker."""
        self._oom_kills = control.oom_kills()

    def reap(self, now: float, *, is_draining: bool) -> None:
        """Hand on what workers have written, bury the dead, and settle with the queue what can be written down."""
        for worker in self._staff.workers:
            _hand_on_output(worker, is_dead=False)
        self._reap_orphans(now)
        for worker in self._staff.remove_dead():
            if not is_draining and (worker.kill is None or worker.kill.reason != "stop"):
                self._staff.note_end(worker, now)
            self.dead.append(worker)
        for worker in self.dead:
            worker.bury()
        while self.dead:
            worker = self.dead[0]
            try:
                if worker.worker_id:
                    self._settle(worker, now)
            except JournalError:  # nothing can be written for now: it is settled later, from its files
                return
            worker.forget()
            self.dead.pop(0)
            self._next_orphan_check = min(self._next_orphan_check, now + ORPHAN_CHECK_AFTER_DEATH_S)

    def forget(self, *, keep_files: bool) -> None:
        """Nothing more can be settled."""
        for worker in self.dead:
            worker.forget(keep_files=keep_files)
        self.dead = []

    def _reap_orphans(self, now: float) -> None:
        """Orphans that end by themselves, of workers alive and dead, would otherwise stay as zombies."""
        if now >= self._next_orphan_check:
            self._next_orphan_check = now + ORPHAN_CHECK_S
            control.reap_orphans()

    def _settle(self, worker: WorkerProcess, now: float) -> None:
        """After proof of death, and only then."""
        status = worker.status()
        is_out_of_memory = self._was_out_of_memory()
        _hand_on_output(worker, is_dead=True)
        failpoint.hit("reaper.before_settle")
        self._keeper.report_for(worker.worker_id, worker.files.untold_reports())
        if status.token:
            self._close_attempt(worker, status, is_out_of_memory, now)
        failpoint.hit("reaper.before_release")
        self._ask("release_worker", worker.worker_id)
        self.usage = self.usage.with_other(worker.files.usage() or Usage())
        level = logging.WARNING if status.phase is Phase.WORKING else logging.INFO  # of a bad start the staff has told
        logger.log(level, "worker ended (%s)", worker.how_it_ended(), extra=worker.ids(status))

    def _close_attempt(self, worker: WorkerProcess, status: Status, is_out_of_memory: bool, now: float) -> None:
        """What it had in hand: charged to the PO, unless the worker was ended for another reason."""
        reason = worker.why_killed(status.token)
        if reason == "cancel":
            record = self._ask("get_leases", brings_data=False).get(status.token)
            if record is None:
                return  # its end was recorded meanwhile, and wins
            seconds = max(0.0, now - status.started)
            details = {
                "error_type": "Cancelled", "message": "cancelled while it ran", "worker_id": worker.worker_id,
                "seconds": round(seconds, 3),
            }  # fmt: skip
            report = Report(record.task_id, status.token, seconds, error=details, give_up=True)
            self._keeper.report_for(worker.worker_id, [report])
        elif reason in ("stop", "another"):
            why = "the run was stopped" if reason == "stop" else "its worker was ended for the PO before it"
            self._ask("interrupt_leases", [status.token], why, is_crash=False)
        elif reason in ("", "timeout"):
            self._charge(worker, status, is_out_of_memory, now)

    def _charge(self, worker: WorkerProcess, status: Status, is_out_of_memory: bool, now: float) -> None:
        record = self._ask("get_leases", brings_data=False).get(status.token)
        if record is None:
            return  # its end was recorded meanwhile, and wins
        if worker.kill is not None and worker.why_killed(status.token):
            details = describe_timeout(
                status.task_timeout, now - status.started, worker.how_it_ended(), worker.kill.stack
            )
        else:
            details = describe_death(worker.exit_code, is_out_of_memory, worker.files.stack())
        details |= {
            "worker_id": worker.worker_id,
            "pid": worker.pid,
            "seconds": round(max(0.0, now - status.started), 3),
            "po_number": status.po_number,
        }
        error = described(details)
        with contextlib.suppress(TaskNotFoundError, WorkerMismatchError):  # repeated, after an answer was lost
            self._ask("retry_task", record.task_id, error)

    def _was_out_of_memory(self) -> bool:
        kills = control.oom_kills()
        is_more = kills > self._oom_kills
        self._oom_kills = kills
        return is_more


def _hand_on_output(worker: WorkerProcess, is_dead: bool) -> None:
    for line in worker.files.output(is_dead):
        ids = {
            "worker_id": worker.worker_id, "po_number": line.po_number, "task_id": line.task_id, "attempt": line.attempt,
        }  # fmt: skip
        text = f"{line.logger}: {line.text}" if line.logger else line.text
        output_logger.log(_LEVELS.get(line.level, logging.INFO), "%s", text, extra=ids)

"""What a supervisor makes a run of, in one place: it takes its time to import, and the queue's process may start meanwhile."""

from poqueue.client import REPORT_TIMEOUT_S
from poqueue.packing import unpack_run
from poqueue.wire import wait_readable
from workers.feeder import ADD_AT_ONCE, Feeder
from workers.log import ShieldedLogger, log_each
from workers.post_mortem import is_whole_stack, signal_name
from workers.processing import ProcessorSpec
from workers.reaper import Reaper
from workers.staff import Staff
from workers.time_limits import TEARDOWN_S, TICK_S, TimeLimits, tokens_by_worker
from workers.worker import WorkerSettings
from workers.worker_files import Phase
from workers.worker_process import EVIDENCE_S, EVIDENCE_STEP_S

__all__ = [
    "ADD_AT_ONCE",
    "EVIDENCE_S",
    "EVIDENCE_STEP_S",
    "REPORT_TIMEOUT_S",
    "TEARDOWN_S",
    "TICK_S",
    "Feeder",
    "Phase",
    "ProcessorSpec",
    "Reaper",
    "ShieldedLogger",
    "Staff",
    "TimeLimits",
    "WorkerSettings",
    "is_whole_stack",
    "log_each",
    "signal_name",
    "tokens_by_worker",
    "unpack_run",
    "wait_readable",
]

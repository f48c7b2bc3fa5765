"""One worker process as the supervisor holds it: started, employed under a worker id, watched, killed, buried."""

import contextlib
import os
import shutil
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from multiprocessing.context import BaseContext
from weakref import WeakSet

from poqueue.hints import Any
from poqueue.parent import UNKNOWN_EXIT, end_untold, has_ended, join, tell_first
from workers import process_control as control
from workers.post_mortem import ended_by, is_whole_stack
from workers.worker import WorkerSettings, main
from workers.worker_files import Phase, Status, WorkerReader

EVIDENCE_S = 0.5  # how long to wait at most for the whole stack of a hung worker
EVIDENCE_STEP_S = 0.001
EVIDENCE_REST_S = 0.1  # what has not grown for so long is all there is


_lives: "WeakSet[Connection[Any, Any]]" = WeakSet()


def _hold_no_lives() -> None:
    """In a process that this one has forked: workers are not to live as long as it does."""
    for life in list(_lives):
        life.close()


os.register_at_fork(after_in_child=_hold_no_lives)


class Kill:
    """An end that has begun. `token` is the lease it is about, 0 for the worker as such; times are monotonic seconds."""

    def __init__(self, reason: str, token: int, begun: float, due: float) -> None:
        self.reason = reason
        self.token = token
        self.begun = begun
        self.due = due
        self.stage = "evidence"
        self.stack_from = 0
        self.stack = ""
        self.stack_grown = 0.0


class WorkerStart:
    """A worker's process and the pipes to it; which worker it is may be told later, so that it imports meanwhile.

    Raises:
        OSError: it cannot be started.
    """

    def __init__(
        self,
        context: BaseContext,
        settings: WorkerSettings | None = None,
        name: str = "poqueue-worker",
        line: "Connection[Any, Any] | None" = None,
    ) -> None:
        before = control.open_descriptors()
        orders, self.orders = context.Pipe(duplex=False)
        life, self.life = context.Pipe(duplex=False)  # nothing is written to it: it tells the worker of our end
        _lives.add(self.life)
        try:
            self.process: Any = context.Process(target=main, args=(settings, orders, life, line), name=name)  # type: ignore[attr-defined]  # every real context has it
            with control.quiet_start():
                self._start()
            control.note_childless(self.process, settings is None)
        except BaseException:
            self.orders.close()
            self.life.close()
            if context.get_start_method() == "fork":
                control.close_descriptors(control.open_descriptors() - {*before, orders.fileno(), life.fileno()})
            raise
        finally:
            orders.close()
            life.close()
            if line is not None:
                line.close()

    def _start(self) -> None:
        try:
            self.process.start()
        except EOFError:
            raise ConnectionError("the fork server ended in the middle of a start") from None

    def is_told(self, settings: WorkerSettings) -> bool:
        """Tell it; False if it has ended."""
        control.note_childless(self.process, False)
        if tell_first(self.process, self.orders, settings):
            return True
        self.end()
        return False

    def end(self) -> None:
        """End one that was told nothing; harmless when repeated."""
        end_untold(self.process, self.orders, self.life)


class WorkerProcess:
    """A worker process and its files. `process_id` marks everything it starts; `early` was started before, by `context`.

    One that is started here gets a connection with the queue's process that is open already, if `take_line` has one left.
    """

    def __init__(
        self,
        context: BaseContext,
        folder: str,
        process_id: str,
        run_id: str,
        settings: Callable[..., WorkerSettings],
        early: WorkerStart | None = None,
        take_line: Callable[[], "Connection[Any, Any] | None"] = lambda: None,
    ) -> None:
        self.process_id = process_id
        self.worker_id = ""
        self.slot = 0
        self.kill: Kill | None = None
        self.overdue = ""  # what it was killed for that is no PO's fault, for people
        self.is_retiring = False
        self.is_buried = False
        self.relieved = (0, 0.0)  # the lease that it was relieved in, and how old that was then, seconds
        self.started = time.monotonic()
        self.started_at = time.time()
        marks = {control.RUN_MARK: run_id, control.PROCESS_MARK: process_id}
        try:
            self.files = WorkerReader(folder)
            told = settings(folder, marks, self.files.mark)
            is_early = early is not None and early.is_told(told)
            start = early if is_early else WorkerStart(context, told, f"poqueue-{process_id}", take_line())
        except BaseException:
            shutil.rmtree(folder, ignore_errors=True)  # the pipes are closed by now: this takes descriptors as well
            raise
        assert start is not None
        self._orders, self._life, self._process = start.orders, start.life, start.process
        self.pid = int(self._process.pid)
        self._family = (self.pid, process_id, folder, control.born(self.pid))  # what belongs to it

    @property
    def sentinel(self) -> int:
        """Ready when the process ends; not surely, so is_dead is asked as well."""
        return int(self._process.sentinel)

    @property
    def exit_code(self) -> int | None:
        """Exit code, minus the signal, or UNKNOWN_EXIT; None while it lives."""
        code: int | None = self._process.exitcode
        return code

    def is_dead(self) -> bool:
        """Whether the process has ended and is reaped."""
        return has_ended(self._process)

    def join(self, at_most_s: float | None = None) -> None:
        """Wait for its end."""
        join(self._process, at_most_s)

    def status(self) -> Status:
        """What it does now."""
        return self.files.status()

    def ids(self, status: Status) -> dict[str, Any]:
        """What it is, and what it does, for the log."""
        return {
            "worker_id": self.worker_id, "po_number": status.po_number, "task_id": status.task_id, "attempt": status.attempt,
        }  # fmt: skip

    @property
    def since(self) -> float:
        """When it came to the phase it is in, monotonic seconds; before it said anything, when it was started."""
        status = self.status()
        return max(status.started, self.started) if not status.token else status.started

    @property
    def takes_more(self) -> bool:
        """Whether it may begin another PO: it is not about to end."""
        return self.kill is None and not self.is_retiring and self.status().phase <= Phase.WORKING

    def employ(self, worker_id: str, slot: int) -> None:
        """Let it work under this id."""
        self.worker_id, self.slot = worker_id, slot
        self.files.name(worker_id)
        self.started = time.monotonic()
        with contextlib.suppress(OSError):  # it is dead; the next look will find that
            self._orders.send(worker_id)

    # --- ending it

    def begin_kill(self, reason: str, token: int, now: float, wants_evidence: bool) -> None:
        """First the evidence: ask where the code is."""
        self.kill = Kill(reason, token, now, now + (EVIDENCE_S if wants_evidence else 0.0))
        if wants_evidence:
            self.kill.stack_from = len(self.files.stack())
            if not control.ask_for_stack(self.pid):
                self.kill.due = now

    def advance_kill(self, now: float, grace_s: float) -> None:
        """Go one step further when it is time: evidence, then TERM, then KILL. A PO that ended meanwhile ends the kill."""
        kill = self.kill
        if kill is None:
            return
        if kill.stage == "evidence" and (now >= kill.due or self._has_stack(kill, now)):
            self._terminate(kill, now + grace_s)
        elif kill.stage == "term" and now >= kill.due:
            if kill.token and not control.is_same_after_stop(self.pid, lambda: self.status().token == kill.token):
                self.kill = None  # the PO ended in the time of grace; whatever the worker does now is another's
                return
            kill.stage = "kill"
            control.kill_tree(*self._family)

    def kill_now(self, now: float) -> None:
        """No evidence, no grace."""
        if self.kill is None:
            self.kill = Kill("stop", 0, now, now)
        self.kill.stage = "kill"
        control.kill_tree(*self._family)

    def why_killed(self, token: int) -> str:
        """Why it was killed while it had this lease in hand, or nothing if the end was its own.

        The PO that a kill is about may have ended in the last moment. Of the next one's end it is the cause only if a signal
        had been sent by then, and then it is no fault of that one.
        """
        kill = self.kill
        if kill is None or kill.token in (0, token):
            return kill.reason if kill is not None else ""
        return "" if kill.stage == "evidence" else "another"

    def next_step(self) -> float | None:
        """When advance_kill has something to do."""
        if self.kill is None or self.kill.stage == "kill":
            return None
        if self.kill.stage == "evidence":
            return min(self.kill.due, time.monotonic() + EVIDENCE_STEP_S)
        return self.kill.due

    def _has_stack(self, kill: Kill, now: float) -> bool:
        """Unchanged since the last look, and known to be whole, or unchanged for long."""
        text = self.files.stack()[kill.stack_from :]
        if text != kill.stack:
            kill.stack, kill.stack_grown = text, now
            return False
        return is_whole_stack(text) or (bool(text) and now - kill.stack_grown >= EVIDENCE_REST_S)

    def _terminate(self, kill: Kill, due: float) -> None:
        if not kill.stack and kill.token:
            state = "it was stopped (SIGSTOP)" if control.is_stopped(self.pid) else "it did not answer"
            kill.stack = f"no stack of the worker: {state}"
        if kill.token and not control.is_same_after_stop(self.pid, lambda: self.status().token == kill.token):
            self.kill = None
            return
        kill.stage, kill.due = "term", due
        control.terminate_tree(*self._family)

    def bury(self) -> None:
        """After its death: end what it has left behind, and remove what it owned if it did not end by itself."""
        if self.is_buried:
            return
        self.is_buried = True
        control.kill_belongings(*self._family)
        is_normal = self.exit_code in (0, UNKNOWN_EXIT) and self.status().phase >= Phase.RECYCLING
        if not is_normal or self.kill is not None:
            control.remove_owned(self.files.owned(), self.started_at)

    def forget(self, *, keep_files: bool = False) -> None:
        """Let go of everything; the process must be dead."""
        self._orders.close()
        self._life.close()
        self._process.close()
        if keep_files:
            self.files.let_go()
        else:
            self.files.remove()

    def how_it_ended(self) -> str:
        """For people."""
        return ended_by(self.exit_code)

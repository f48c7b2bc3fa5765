"""The whole of a fresh program with one PO, from its start to its first result: `python -m tests.benchmarks.first ppe spawn`.

It prints the moment, on the clock that all processes share, at which it knew the result. Worker processes import this file
again, so it imports nothing of a pool at its top.
"""

import sys
import time


def run_executor(method: str) -> None:
    """ProcessPoolExecutor with two workers."""
    from concurrent.futures import ProcessPoolExecutor
    from multiprocessing import get_context

    from tests.benchmarks.work import make_po, perform

    with ProcessPoolExecutor(2, mp_context=get_context(method)) as pool:
        pool.submit(perform, make_po(1, "nothing")).result()
        print(time.monotonic(), flush=True)


def run_poqueue(method: str, has_journal: bool) -> None:
    """A Supervisor with two workers."""
    import contextlib

    from poqueue import ProcessingTask
    from poqueue.task import Event
    from tests.benchmarks.work import make_po
    from workers.supervisor import Supervisor

    def take(event: Event) -> None:
        if event.kind == "completed":
            print(time.monotonic(), flush=True)

    with contextlib.ExitStack() as stack:
        journal = {}
        if has_journal:
            from tempfile import TemporaryDirectory

            journal["journal"] = f"{stack.enter_context(TemporaryDirectory())}/journal.sqlite"
        supervisor = Supervisor("tests.benchmarks.work:process", jobs=2, start_method=method, on_event=take, **journal)  # type: ignore[arg-type]
        with supervisor:
            supervisor.queue.add_task(ProcessingTask(po_data=make_po(1, "nothing")))
            supervisor.run()


if __name__ == "__main__":
    if sys.argv[1] == "ppe":
        run_executor(sys.argv[2])
    else:
        run_poqueue(sys.argv[2], has_journal=sys.argv[1].endswith("+journal"))

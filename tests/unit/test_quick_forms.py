"""The forms in which things are kept so that Python takes its quick ways: nothing fails without them, all is only slower."""

import gc

from poqueue import ProcessingTask, TaskQueue, TaskResult
from poqueue.config import QueueConfig

SHARED_KEYS = (
    30  # attributes of an instance, up to which CPython 3.11 to 3.13 keep them beside it and find methods at once
)


def test_the_garbage_collector_does_not_look_at_tasks_that_wait_or_are_done() -> None:
    queue = TaskQueue()
    for number in range(20):
        queue.add_task(ProcessingTask(po_data={"po_number": f"PO-{number}"}))
    for _ in range(10):
        task = queue.get_next_task("w1")
        assert task is not None
        queue.complete_task(task.task_id, "w1", TaskResult(True))

    gc.collect()
    gc.collect()  # a tuple that is looked at before what it holds is let go only then

    ledger = queue._ledger
    kept = [*ledger.pending.values(), *ledger._completed.values()]
    assert len(kept) == 20
    assert not any(map(gc.is_tracked, kept))


def test_a_queue_and_its_collaborators_have_no_more_attributes_than_are_found_quickly() -> None:
    queue = TaskQueue()

    for one in (queue, queue._ledger, queue._schedule, queue._metrics, queue._moves, queue._delivery, queue._feed):
        assert len(vars(one)) <= SHARED_KEYS, type(one).__name__


def test_no_field_that_is_read_for_each_task_has_to_be_looked_for() -> None:
    """A __getattr__ makes Python 3.11 look for every field the long way; a NamedTuple's fields it never learns to find."""
    assert not hasattr(ProcessingTask, "__getattr__")
    assert not isinstance(TaskQueue()._config, tuple)
    assert type(QueueConfig.max_retries).__name__ == "member_descriptor"

"""New work goes to those who wait for it over the thread that brings it, whatever they and their connections are like."""

import os
import pickle
import select
import socket
import tempfile
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from poqueue import ProcessingTask, TaskQueue, TaskResult, wire
from poqueue import task_queue as task_queue_module
from poqueue.client import PendingCall, QueueClient
from poqueue.errors import ManagerLostError
from poqueue.hand_off import Taker
from poqueue.packing import PackedGrant, unpack_grant
from poqueue.server import QueueServer
from poqueue.task import Report
from poqueue.task_queue import HAND_OUT_AT_ONCE
from tests.contract.scene import wait_until

KEY = b"k" * 32
LONG_S = 60.0  # above what a client waits for any answer: who is not called is never heard of


def task(number: str, size: int = 0, priority: int = 5) -> ProcessingTask:
    return ProcessingTask(number, {"po_number": number, "text": "x" * size}, priority=priority)


class House:
    """A queue that is served from a thread of this process: the test sees who waits in it."""

    def __init__(self, folder: str, **settings: Any) -> None:
        self.queue = TaskQueue(open_task=lambda record: record, **settings)  # type: ignore[arg-type,return-value]
        self._address = os.path.join(folder, "s")
        server = QueueServer(self.queue, self._address, KEY)
        self.close = server.listener.close
        threading.Thread(target=server.accepter, daemon=True).start()

    def client(self) -> QueueClient:
        return QueueClient(self._address, KEY)

    def waits(
        self,
        worker_id: str,
        limit: int = 1,
        turn: int = 1,
        client: QueueClient | None = None,
        reports: Sequence[tuple[Any, ...]] = (),
    ) -> tuple[QueueClient, PendingCall]:
        """A worker that waits for something to do, from now on."""
        client, before = client or self.client(), len(self.queue._work)
        call = client.begin("exchange_packed", worker_id, reports, limit, LONG_S, turn, ())
        wait_until(lambda: len(self.queue._work) == before + 1, f"{worker_id} waits")
        return client, call


@pytest.fixture
def open_house(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., House]]:
    monkeypatch.setattr(task_queue_module, "MAX_WAIT_S", LONG_S)
    with ExitStack() as houses:

        def opened(**settings: Any) -> House:
            house = House(houses.enter_context(tempfile.TemporaryDirectory(dir="/tmp")), **settings)
            houses.callback(house.close)
            return house

        yield opened


@pytest.fixture
def house(open_house: Callable[..., House]) -> House:
    return open_house()


def numbers_of(call: PendingCall) -> list[str]:
    return [lease.po_number for lease in unpack_grant(call.result()).leases]


def test_who_adds_tells_who_waits(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    told_by = list[int]()
    at_once = wire.Stream.send_at_once

    def send_at_once(stream: wire.Stream, message: bytes) -> bool:
        told_by.append(threading.get_ident())
        return at_once(stream, message)

    monkeypatch.setattr(wire.Stream, "send_at_once", send_at_once)
    _, call = house.waits("w")

    house.queue.add_task(task("A"))

    assert numbers_of(call) == ["A"]
    assert told_by == [threading.get_ident()]


@pytest.fixture
def said(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What the connections of those who wait were told, in its order, and when a task was looked at."""
    said = list[str]()
    announce, at_once, admit = wire.Stream.announce, wire.Stream.send_at_once, task_queue_module.admit
    monkeypatch.setattr(wire.Stream, "announce", lambda *given: said.append("announced") or announce(*given))
    monkeypatch.setattr(wire.Stream, "send_at_once", lambda *given: said.append("told") or at_once(*given))
    monkeypatch.setattr(task_queue_module, "admit", lambda *given: said.append("looked at") or admit(*given))
    return said


@pytest.mark.parametrize("add", [lambda queue: queue.add_task(task("A")), lambda queue: queue.add_tasks([task("A")])])
def test_who_waits_wakes_up_while_the_task_is_looked_at(house: House, said: list[str], add: Any) -> None:
    _, call = house.waits("w")

    add(house.queue)

    assert numbers_of(call) == ["A"]
    assert said == ["announced", "looked at", "told"]


class Packed:
    """Something in a PO, and what happens while it is packed."""

    def __init__(self, happens: Callable[[], None]) -> None:
        self._happens = happens

    def __reduce__(self) -> tuple[Any, ...]:
        self._happens()
        return str, ("packed",)


def test_who_waits_wakes_up_while_a_client_still_packs(house: House) -> None:
    client = house.client()
    client.pack_tasks([])  # it asks what the queue needs, once
    _, call = house.waits("w")

    def is_heard() -> None:
        wait_until(call.is_ready, "who waits has heard of it")
        assert not house.queue.get_queue_status()["total_tasks"]

    client.add_task(ProcessingTask("A", {"po_number": "A", "text": Packed(is_heard)}))

    assert numbers_of(call) == ["A"]


def test_what_a_client_cannot_pack_is_announced_once(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    announced = list[str]()
    announce = wire.Stream.announce_request
    monkeypatch.setattr(wire.Stream, "announce_request", lambda stream: announced.append("") or announce(stream))
    client = house.client()
    client.add_task(task("A"))
    assert len(announced) == 0  # there was no connection yet
    for _ in range(1000):  # more than a connection holds, if nobody read
        with pytest.raises(ValueError, match="po_number"):
            client.add_task(ProcessingTask("bad", {}))
    assert len(announced) == 1

    client.add_task(task("B"))
    client.add_task(task("C"))
    assert len(announced) == 2

    client.begin("get_queue_status")  # nobody takes its answer: the next call begins with another connection
    client.add_task(task("D"))

    assert len(announced) == 2
    assert house.queue.get_queue_status()["pending_tasks"] == 4


def test_a_signal_handler_that_hangs_up_is_no_error_of_the_announcement(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    client = house.client()
    client.pack_tasks([])

    class Line:
        """This thread's, which is taken away while it is looked at."""

        def __init__(self) -> None:
            self._line = client._own_line()

        def __getattr__(self, name: str) -> Any:
            found = getattr(self._line, name)
            if name == "stream":
                client.hang_up()
            return found

        is_announced = False

    own_line, lines = client._own_line, [Line()]
    monkeypatch.setattr(client, "_own_line", lambda: lines.pop() if lines else own_line())

    client._announce()

    assert client.add_task(task("A")) == "A"


def test_a_lost_connection_is_told_by_the_call_and_not_by_what_announces_it(house: House) -> None:
    client = house.client()
    client.get_queue_status()
    stream = client._own_line().stream
    assert stream is not None
    with socket.socket(fileno=os.dup(stream.fileno())) as plug:
        plug.shutdown(socket.SHUT_RDWR)

    with pytest.raises(ManagerLostError, match="is gone"):
        client.add_task(task("A"))
    client.add_task(task("A"))

    assert house.queue.get_queue_status()["pending_tasks"] == 1


def test_what_comes_to_nothing_is_announced_once(house: House, said: list[str]) -> None:
    _, call = house.waits("w")
    for _ in range(3):
        with pytest.raises(ValueError, match="po_number"):
            house.queue.add_task(ProcessingTask("bad", {}))

    house.queue.add_task(task("A"))

    assert numbers_of(call) == ["A"]
    assert said.count("announced") == said.count("told") == 1


@pytest.mark.parametrize("hold", [TaskQueue.pause_queue, lambda queue: queue.hold_queue("no room")])
def test_nothing_is_announced_while_nothing_may_start(house: House, said: list[str], hold: Any) -> None:
    hold(house.queue)
    _, call = house.waits("w")

    house.queue.add_task(task("A"))
    assert said == ["looked at"]

    house.queue.resume_queue()
    house.queue.hold_queue("")
    assert numbers_of(call) == ["A"]


def test_each_gets_what_it_asked_for_and_who_waits_longest_the_first_of_it(house: House) -> None:
    calls = [house.waits(f"w{number}", limit)[1] for number, limit in enumerate((2, 1, 1))]

    house.queue.add_tasks([task("late", priority=9), task("A"), task("B"), task("first", priority=1)])

    assert [numbers_of(call) for call in calls] == [["first", "A"], ["B"], ["late"]]
    assert house.queue.get_queue_status()["processing_tasks"] == 4


def test_one_that_has_nothing_goes_on_waiting(house: House) -> None:
    calls = [house.waits(f"w{number}")[1] for number in range(3)]

    for number, call in zip("ABC", calls, strict=True):
        house.queue.add_task(task(number))
        assert numbers_of(call) == [number]


@pytest.mark.parametrize("is_served", [False, True])
def test_the_next_question_is_heard_after_an_answer_of_another_thread(house: House, is_served: bool) -> None:
    client, call = house.waits("w")
    adds: TaskQueue | QueueClient = house.client() if is_served else house.queue
    for turn in range(2, 30):
        adds.add_tasks([task(f"P{turn}")])
        (lease,) = unpack_grant(call.result()).leases
        assert lease.po_number == f"P{turn}"
        done = (lease.task_id, lease.token, 0.1, b"[true]")
        _, call = house.waits("w", turn=turn, client=client, reports=[done])

    assert house.queue.get_queue_status()["completed_tasks"] == 28


@pytest.fixture
def uncalled_at_answers(monkeypatch: pytest.MonkeyPatch, house: House) -> list[int]:
    """How many who were told had not been called yet when each answer was sent."""
    counts, send, work = list[int](), wire.Stream.send, house.queue._work

    def note(stream: wire.Stream, message: bytes) -> None:
        if stream._heed is not None:  # the queue's end
            counts.append(len(work.told))
        send(stream, message)

    monkeypatch.setattr(wire.Stream, "send", note)
    return counts


def test_the_thread_of_who_was_told_is_called_once_who_adds_has_its_answer(
    house: House, uncalled_at_answers: list[int]
) -> None:
    """It would take the worker's core for a moment, or the manager's."""
    client = house.client()
    told = [house.waits(f"w{number}") for number in range(2)]

    client.add_tasks([task("A"), task("B")])

    assert uncalled_at_answers[-1] == 2
    assert [numbers_of(call) for _, call in told] == [["A"], ["B"]]
    for number, (worker, _) in enumerate(told):
        assert worker.exchange(f"w{number}", limit=0, turn=2).leases == []


def test_who_does_not_take_its_answer_keeps_no_worker_waiting(house: House) -> None:
    client = house.client()
    worker, call = house.waits("w")
    many = [task(f"{number:0100}") for number in range(10_000)]  # whose ids no connection holds

    client.begin("add_tasks", client.pack_tasks(many))

    assert numbers_of(call) == [many[0].task_id]
    assert worker.exchange("w", limit=0, turn=2).leases == []


def test_who_hangs_up_instead_of_taking_its_answer_keeps_no_worker_waiting(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    client = house.client()
    worker, call = house.waits("w")
    send = wire.Stream.send

    def hang_up(stream: wire.Stream, message: bytes) -> None:
        if stream._heed is not None and house.queue._work.told:
            raise BrokenPipeError
        send(stream, message)

    monkeypatch.setattr(wire.Stream, "send", hang_up)

    with pytest.raises(ManagerLostError):
        client.add_tasks([task("A")])

    assert numbers_of(call) == ["A"]
    assert worker.exchange("w", limit=0, turn=2).leases == []


def test_whose_answer_cannot_even_be_made_keeps_no_worker_waiting(house: House) -> None:
    liar = house.client()
    packed = liar.pack_tasks([task("A")])
    worker, call = house.waits("w")
    stream: Any = liar._local.line.stream
    stream.send(pickle.dumps((_Unpicklable(), "add_tasks", (packed,), {})))

    assert numbers_of(call) == ["A"]
    with pytest.raises(EOFError):
        stream.receive()
    assert worker.exchange("w", limit=0, turn=2).leases == []


def test_a_signal_handler_may_call_those_who_are_just_being_called(house: House) -> None:
    queue = house.queue
    told = [house.waits(f"w{number}") for number in range(2)]

    class Told(list[Taker]):
        def pop(self, *place: Any) -> Taker:
            if len(self) == 2:  # the first is being called, and the handler does the rest
                taker = super().pop()
                queue._work.call_back()
                taker.bell.notify()
            return super().pop()

    queue._work.told = Told()
    queue.add_tasks([task("A"), task("B")])

    assert [numbers_of(call) for _, call in told] == [["A"], ["B"]]
    for number, (worker, _) in enumerate(told):
        assert worker.exchange(f"w{number}", limit=0, turn=2).leases == []


@pytest.mark.parametrize("size", [wire.AT_ONCE_BYTES - 300, wire.AT_ONCE_BYTES, 1_000_000])
def test_a_large_answer_is_left_to_the_thread_of_its_own(house: House, size: int) -> None:
    _, call = house.waits("w")

    house.queue.add_task(task("A", size))

    (lease,) = unpack_grant(call.result()).leases
    assert pickle.loads(lease.payload) == task("A", size).po_data


def test_who_reads_no_answers_holds_up_nobody(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each of its questions is answered, until its connection holds no more; a last answer may have gone in by half."""
    refused, at_once = list[bytes](), wire.Stream.send_at_once

    def send_at_once(stream: wire.Stream, message: bytes) -> bool:
        is_done = at_once(stream, message)
        if not is_done:
            refused.append(message)
        return is_done

    monkeypatch.setattr(wire.Stream, "send_at_once", send_at_once)
    lazy, busy = house.client(), house.client()
    lazy.has_journal()
    stream: Any = lazy._local.line.stream
    hung_up = select.poll()
    hung_up.register(stream.fileno(), 0)
    for number in range(100):
        stream.send(pickle.dumps((number, "exchange_packed", ("lazy", [], 1, LONG_S, 0, ()), {})))
        wait_until(lambda: len(house.queue._work), "it waits again")
        busy.add_task(task(f"P{number}", wire.AT_ONCE_BYTES - 1000))
        if refused or hung_up.poll(0):
            break
    else:
        pytest.fail("its connection has held all of them: the test asks nothing")

    busy.add_task(task("another"))
    assert [lease.po_number for lease in busy.exchange("w").leases] == ["another"]


def test_a_worker_that_died_while_it_waited_loses_nothing(house: House) -> None:
    client, _ = house.waits("dead")
    client.hang_up()

    assert house.client().add_task(task("A")) == "A"

    wait_until(lambda: not len(house.queue._work), "its call has ended")
    assert house.queue.release_worker("dead") == ["A"]
    assert [lease.po_number for lease in house.client().exchange("w").leases] == ["A"]


def test_a_call_that_was_overtaken_gets_nothing_in_the_place_of_the_one_that_did(house: House) -> None:
    _, old = house.waits("w", turn=1)
    _, new = house.waits("w", turn=2)

    house.queue.add_task(task("A"))

    assert numbers_of(new) == ["A"]
    assert numbers_of(old) == []


def test_who_has_waited_for_long_enough_is_in_no_line_any_more(house: House) -> None:
    assert unpack_grant(house.queue.exchange_packed("w", [], 1, 0.001, 1)).leases == []
    assert len(house.queue._work) == 0

    _, call = house.waits("other")
    house.queue.add_task(task("A"))

    assert numbers_of(call) == ["A"]


@pytest.mark.parametrize("how", ["paused", "held", "draining", "retired"])
def test_nothing_is_given_to_whom_nothing_may_be_given(house: House, how: str) -> None:
    queue = house.queue
    _, call = house.waits("w")
    with queue._lock:  # nobody of them wakes up before all of it is done
        _stop_starting[how](queue)
        queue.add_task(task("A"))

        assert queue.get_queue_status()["pending_tasks"] == 1

    if how in ("paused", "held"):
        assert not unpack_grant(house.queue.exchange_packed("other")).leases
        queue.resume_queue()
        queue.hold_queue("")
        assert numbers_of(call) == ["A"]
    else:
        assert unpack_grant(call.result()) == ([], True, 0)


_stop_starting: dict[str, Callable[[TaskQueue], None]] = {
    "paused": TaskQueue.pause_queue,
    "held": lambda queue: queue.hold_queue("no disk"),
    "draining": TaskQueue.drain_queue,
    "retired": lambda queue: queue.retire_worker("w"),
}


def test_each_that_is_told_hears_of_its_next_question_though_more_was_there_than_was_added(
    open_house: Callable[..., House],
) -> None:
    """A retry has become due, and whoever adds comes before the one who waits for that."""
    clock = [1000.0]
    house = open_house(clock=lambda: clock[0], retry_delay=60.0)
    house.queue.add_task(task("retried"))
    house.queue.get_next_task("other")
    house.queue.retry_task("retried", {"error": "x"})
    waiting = [house.waits(f"w{number}") for number in range(3)]
    clock[0] += 60.0

    house.queue.add_task(task("new"))

    assert [numbers_of(call) for _, call in waiting[:2]] == [["retried"], ["new"]]
    for number, (client, _) in enumerate(waiting[:2]):
        assert client.exchange(f"w{number}", limit=0, turn=2).leases == []


def test_a_worker_whose_lease_cannot_be_written_down_hears_so_and_who_adds_does_not(
    open_house: Callable[..., House], tmp_path: Path
) -> None:
    house = open_house(journal=tmp_path / "journal.sqlite")
    _, bad = house.waits("w\udc80")
    _, good = house.waits("w")

    house.queue.add_task(ProcessingTask("A", {"po_number": "A"}))

    assert numbers_of(good) == ["A"]
    house.queue.add_task(ProcessingTask("B", {"po_number": "B"}))
    with pytest.raises(ValueError, match="surrogates"):
        bad.result()
    assert house.queue.get_queue_status()["pending_tasks"] == 1


def test_who_waits_in_another_way_has_its_turn_as_well(house: House) -> None:
    """TaskQueue.exchange itself is given its lease, and answers by its own thread."""
    other = house.client()
    call = other.begin("exchange", "other", [], 1, LONG_S, 1, ())
    wait_until(lambda: len(house.queue._work) == 1, "it waits")
    client, told = house.waits("w")

    house.queue.add_task(task("A"))
    assert [lease.po_number for lease in call.result().leases] == ["A"]
    house.queue.add_task(task("B"))
    assert numbers_of(told) == ["B"]
    assert client.exchange("w", limit=0, turn=2).leases == []


class _Unpicklable:
    """Opens as something that cannot be sent again."""

    def __reduce__(self) -> Any:
        return threading.Lock, ()


def fail_once(queue: TaskQueue) -> None:
    queue.get_next_task("w0")
    assert queue.retry_task("first", {"error": "boom"}) is True


@pytest.mark.parametrize("change", [fail_once, lambda queue: queue.add_task(task("second"))])
def test_a_signal_handler_that_calls_all_who_wait_breaks_no_change_off(
    house: House, change: Callable[[TaskQueue], object]
) -> None:
    """At the worst moment: between a look at the line and the step that takes somebody out."""
    queue, signals = house.queue, ["TERM"]
    queue.pause_queue()
    queue.add_task(task("first"))
    _, call = house.waits("w1")

    class Takers(deque[Taker]):
        def popleft(self) -> Taker:
            if signals:
                signals.clear()
                queue.drain_queue()
            return super().popleft()

    queue._work.takers = Takers(queue._work.takers)
    queue._is_paused = False

    change(queue)

    assert not signals and unpack_grant(call.result()).stop
    queue.add_task(task("third"))
    assert queue.find_task(task_id="third") is not None


def test_a_client_that_lies_harms_only_its_own_connection(house: House) -> None:
    liar = house.client()
    liar.has_journal()
    stream: Any = liar._local.line.stream
    stream.send(pickle.dumps((_Unpicklable(), "exchange_packed", ("liar", [], 1, LONG_S, 1, ()), {})))
    wait_until(lambda: len(house.queue._work) == 1, "it waits")

    assert house.queue.add_task(task("A")) == "A"

    with pytest.raises(EOFError):
        stream.receive()
    assert house.queue.release_worker("liar") == ["A"]


def test_no_more_than_a_few_are_told_by_who_adds_and_the_others_see_for_themselves(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    told = list[PackedGrant]()
    tell = Taker.tell

    def note(taker: Taker, grant: PackedGrant) -> None:
        told.append(grant)
        tell(taker, grant)

    monkeypatch.setattr(Taker, "tell", note)
    count = HAND_OUT_AT_ONCE + 3
    calls = [house.waits(f"w{number}")[1] for number in range(count)]

    house.queue.add_tasks([task(f"P{number}") for number in range(count)])

    assert sorted(number for call in calls for number in numbers_of(call)) == sorted(f"P{n}" for n in range(count))
    assert len(told) == HAND_OUT_AT_ONCE


@pytest.mark.parametrize("waits_as_well", [False, True])
def test_who_knows_when_a_retry_is_due_still_waits_then(open_house: Callable[..., House], waits_as_well: bool) -> None:
    """Who was called when it was reported is not given what is added meanwhile; all others wait for as long as may be."""
    house = open_house(retry_delay=0.5)
    worker = house.client()
    house.queue.add_task(task("R"))
    (lease,) = worker.exchange("w", turn=1).leases
    calls = [house.waits(f"w{number}")[1] for number in range(2)]
    failed = Report(lease.task_id, lease.token, 0.1, None, {"error": "x"})
    worker.exchange("w", [failed], limit=0, turn=2)
    wait_until(lambda: len(house.queue._work) == 2, "who was called waits again")
    if waits_as_well:
        calls.append(house.waits("w", turn=3, client=worker)[1])

    for number in range(1, len(calls)):
        house.queue.add_task(task(f"A{number}"))

    assert {number for call in calls for number in numbers_of(call)} == {"R", "A1", *(["A2"] if waits_as_well else [])}


def test_who_knows_when_the_next_may_start_still_waits_then(open_house: Callable[..., House]) -> None:
    house = open_house(start_delay=0.3)
    calls = [house.waits(f"w{number}")[1] for number in range(3)]

    for number in "ABC":
        house.queue.add_task(task(number))
        wait_until(lambda: len(house.queue._work) == 2, "who was called waits again")

    assert sorted(number for call in calls for number in numbers_of(call)) == ["A", "B", "C"]


def test_between_two_starts_the_delay_passes(open_house: Callable[..., House]) -> None:
    house = open_house(start_delay=0.3)
    calls = [house.waits(f"w{number}")[1] for number in range(2)]
    begun = time.monotonic()

    house.queue.add_tasks([task("A"), task("B")])

    assert [numbers_of(call) for call in calls] == [["A"], ["B"]]
    assert time.monotonic() - begun >= 0.3


def test_many_who_wait_and_many_who_add_lose_nothing_and_give_nothing_twice(house: House) -> None:
    got, lock, count = list[str](), threading.Lock(), 400

    def work(worker_id: str) -> None:
        client, turn = house.client(), 0
        while True:
            turn += 1
            grant = client.exchange(worker_id, limit=2, wait_s=0.05, turn=turn, keeps=())
            if grant.stop:
                return
            for lease in grant.leases:
                with lock:
                    got.append(lease.po_number)
                house.queue.complete_task(lease.task_id, worker_id, TaskResult(True))

    def add(first: int) -> None:
        client = house.client()
        for number in range(first, count, 4):
            client.add_task(task(f"P{number}"))

    workers = [threading.Thread(target=work, args=(f"w{number}",)) for number in range(5)]
    adders = [threading.Thread(target=add, args=(number,)) for number in range(4)]
    for thread in workers + adders:
        thread.start()
    for thread in adders:
        thread.join()
    wait_until(lambda: house.queue.get_queue_status()["completed_tasks"] == count, "all is done")
    house.queue.drain_queue()
    for thread in workers:
        thread.join()

    assert sorted(got) == sorted(f"P{number}" for number in range(count))

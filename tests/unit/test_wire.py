"""Messages between the queue's process and its clients arrive whole or not at all, however the kernel cuts them."""

import os
import pickle
import socket
import threading
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from poqueue import wire
from poqueue.wire import Stream
from tests.contract.scene import wait_until

Ends = tuple[Connection, Connection]


@pytest.fixture
def ends() -> Iterator[Ends]:
    left, right = connected()
    with left, right:
        yield left, right


def connected() -> Ends:
    one, other = socket.socketpair()
    return Connection(one.detach()), Connection(other.detach())


@pytest.fixture
def default_time_limit() -> Iterator[None]:
    """As a program may set one for all its sockets."""
    socket.setdefaulttimeout(30.0)
    yield
    socket.setdefaulttimeout(None)


def sent(stream: Stream, message: bytes) -> threading.Thread:
    """A large message needs a reader while it is sent."""
    thread = threading.Thread(target=stream.send, args=(message,))
    thread.start()
    return thread


@pytest.mark.parametrize("size", [1, 7, 8, 12, 4096, 65_531, 65_532, 65_533, 1_000_003])
def test_a_message_of_any_size_arrives_whole(size: int, ends: Ends) -> None:
    message = os.urandom(size)
    thread = sent(Stream(ends[0]), message)

    assert Stream(ends[1]).receive() == message
    thread.join()


def test_a_message_that_finds_room_bit_by_bit_arrives_whole(ends: Ends, monkeypatch: pytest.MonkeyPatch) -> None:
    """As where signals come in between."""
    write = os.write
    monkeypatch.setattr(os, "writev", lambda fd, parts: write(fd, b"".join(parts)[:2]))
    monkeypatch.setattr(os, "write", lambda fd, data: write(fd, data[:3]))

    Stream(ends[0]).send(b"0123456789")

    assert Stream(ends[1]).receive() == b"0123456789"


def test_a_wait_is_never_cut_to_no_wait_at_all(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever waits for the rest of a millisecond would turn in circles meanwhile."""
    waits: list[int] = []

    class Poll:
        def poll(self, at_most_ms: int) -> list[tuple[int, int]]:
            waits.append(at_most_ms)
            return []

    monkeypatch.setattr(wire.select, "poll", Poll)
    for seconds in (0.0, 0.0002, 0.0012, 0.25):
        wire.wait_readable([], seconds)

    assert waits == [0, 1, 2, 250]


def test_requests_and_answers_alternate(ends: Ends) -> None:
    here, there = map(Stream, ends)
    for number in range(20):
        here.send(pickle.dumps(number))
        assert pickle.loads(there.receive()) == number
        there.send(pickle.dumps(-number))
        assert pickle.loads(here.receive()) == -number


def test_announcements_are_no_messages(ends: Ends) -> None:
    here, there = Stream(ends[0]), Stream(ends[1])
    for message, announced in ((b"one", 1), (b"two", 0), (b"three", 3), (b"x" * 100_000, 1)):
        for _ in range(announced):
            here.announce()
        thread = sent(here, message)
        assert there.receive() == message
        thread.join()

    here.announce()
    here.let_go()
    ends[0].close()
    with pytest.raises(EOFError):
        there.receive()


def test_an_announcement_wakes_who_waits_and_lets_them_wait_on(ends: Ends) -> None:
    here, got = Stream(ends[0]), list[bytes]()
    waits = threading.Thread(target=lambda: got.append(bytes(Stream(ends[1]).receive())))
    waits.start()

    here.announce()
    wait_until(lambda: not wire.wait_readable([ends[1].fileno()], 0.0), "it was read")
    assert waits.is_alive() and not got

    here.send(b"what was announced")
    here.let_go()
    waits.join()
    assert got == [b"what was announced"]


def test_an_announcement_is_heeded_whether_what_it_announces_is_there_or_not(ends: Ends) -> None:
    heeded = list[str]()
    here, got = Stream(ends[0]), list[bytes]()
    there = Stream(ends[1], lambda: heeded.append("heeded"))
    here.announce_request()
    here.send(b"there already")
    assert there.receive() == b"there already" and heeded == ["heeded"]
    here.send(b"not announced")
    assert there.receive() == b"not announced" and heeded == ["heeded"]
    heeded.clear()

    waits = threading.Thread(target=lambda: got.append(bytes(there.receive())))
    waits.start()
    here.announce_request()
    wait_until(lambda: bool(heeded), "it is heeded")
    here.send(b"what was announced")
    waits.join()

    assert heeded == ["heeded"]
    assert got == [b"what was announced"]


def test_to_announce_never_waits_and_never_fails(ends: Ends) -> None:
    here = Stream(ends[0])
    for _ in range(10_000):  # far more than the connection holds
        here.announce()

    ends[1].close()
    here.announce()
    here.announce_request()
    here.let_go()
    here.close()
    here.announce_request()
    Stream(ends[0]).announce()


@pytest.mark.parametrize("size", [3, 100_000])
def test_the_frames_are_those_of_multiprocessing(size: int, ends: Ends, monkeypatch: pytest.MonkeyPatch) -> None:
    message = os.urandom(size)
    thread = sent(Stream(ends[0]), message)
    assert ends[1].recv_bytes() == message
    thread.join()

    thread = threading.Thread(target=ends[1].send_bytes, args=(message,))
    thread.start()
    assert Stream(ends[0]).receive() == message
    thread.join()

    monkeypatch.setattr(wire, "_MAX_SHORT", 2)  # as if it were more than two gigabytes
    thread = sent(Stream(ends[0]), message)
    assert ends[1].recv_bytes() == message
    thread.join()


@settings(max_examples=60)
@given(size=st.integers(1, 70_000), cuts=st.lists(st.integers(0, 70_012), max_size=6), is_long=st.booleans())
def test_wherever_it_is_cut_a_message_is_the_same(size: int, cuts: list[int], is_long: bool) -> None:
    message = bytes(range(256)) * (size // 256) + bytes(size % 256)
    head = wire._LONG_HEAD.pack(-1, size) if is_long else wire._LENGTH.pack(size)
    frame, places = head + message, sorted(cuts)
    left, right = connected()
    with left, right:

        def write_in_pieces() -> None:
            for start, end in zip([0, *places], [*places, len(frame)], strict=True):
                rest = memoryview(frame)[start:end]
                while rest:
                    rest = rest[os.write(left.fileno(), rest) :]

        thread = threading.Thread(target=write_in_pieces)
        thread.start()
        assert Stream(right).receive() == message
        thread.join()


@pytest.mark.parametrize("kept", [0, 1, 3, 4, 11, 12, 50])
@pytest.mark.parametrize("is_long", [False, True])
def test_an_end_in_the_middle_is_no_message(kept: int, is_long: bool, ends: Ends) -> None:
    head = wire._LONG_HEAD.pack(-1, 100) if is_long else wire._LENGTH.pack(100)
    os.write(ends[0].fileno(), (head + bytes(100))[:kept])
    ends[0].close()

    with pytest.raises(EOFError):
        Stream(ends[1]).receive()


@pytest.mark.parametrize(
    "frame",
    [wire._LENGTH.pack(101), wire._LONG_HEAD.pack(-1, 101), wire._LONG_HEAD.pack(-1, 2**63), wire._LENGTH.pack(-2)],
    ids=["too long", "too long, in the long form", "far too long", "negative"],
)
def test_what_announces_too_much_is_refused_before_it_is_read(frame: bytes, ends: Ends) -> None:
    os.write(ends[0].fileno(), frame + bytes(200))

    with pytest.raises(OSError, match="announced"):
        Stream(ends[1]).receive(limit=100)


def test_two_messages_at_once_are_none(ends: Ends) -> None:
    """An answer that belongs to an earlier call must not be taken for the next one's."""
    Stream(ends[0]).send(b"one")
    Stream(ends[0]).send(b"two")

    with pytest.raises(OSError, match="more came"):
        Stream(ends[1]).receive()


def test_a_time_limit_ends_the_wait_for_the_rest(ends: Ends) -> None:
    wire.set_time_limit_of(ends[1], 0.05)
    os.write(ends[0].fileno(), wire._LENGTH.pack(100) + b"half")

    with pytest.raises(BlockingIOError):
        Stream(ends[1]).receive()


@pytest.mark.usefixtures("default_time_limit")
@pytest.mark.parametrize("touch", [Stream.announce, wire.lift_time_limit_of], ids=["announce", "lift"])
def test_a_time_limit_that_the_program_sets_for_its_sockets_is_none_for_ours(
    touch: Callable[[Stream], object], ends: Ends
) -> None:
    stream = Stream(ends[0])

    touch(stream)

    is_blocking = os.get_blocking(stream.fileno())
    stream.let_go()
    assert is_blocking


def test_a_stream_that_was_closed_is_of_no_use(ends: Ends) -> None:
    stream = Stream(ends[0])
    stream.close()
    stream.close()

    with pytest.raises(OSError):
        stream.send(b"x")
    with pytest.raises(OSError):
        stream.receive()

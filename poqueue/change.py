"""What makes a change of the queue whole: no other one in its middle, and none after one that was broken off."""

from poqueue.errors import QueueError


class Change:
    """From the first look that a change is decided by to its last move there must be no other. Threads wait for the lock; a
    signal handler of the same thread, which has it, is refused. So is everybody after a change that was broken off once it
    had begun: what is here, and what the journal says, may contradict each other from then on.
    """

    def __init__(self) -> None:
        self.is_open = False
        self.has_begun = False  # something is written down, or done, and something else belongs to it
        self.is_broken = False

    def open(self) -> None:
        """Begin without a `with`, which takes half the time where each PO passes.

        The caller says himself when the change has ended (has_begun = False), and closes it in a `finally`:
        `change.is_open = change.is_broken = change.has_begun`. That is no method, for a Ctrl-C may come where one begins.

        Raises:
            QueueError: a change is open; nothing was changed.
        """
        if self.is_open:
            raise QueueError(
                "called in the middle of a change by the same thread, as a signal handler may, or after a change was broken "
                "off there, by a Ctrl-C for instance: nothing was changed"
            )
        self.has_begun = False
        self.is_open = True

    def __enter__(self) -> None:
        self.open()

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        self.is_open = self.is_broken = kind is not None and self.has_begun

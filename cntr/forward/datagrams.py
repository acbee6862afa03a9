"""UDP: each sender gets its own socket on the other side, so that answers can be assigned to it. Idle sockets are
closed.
"""

from __future__ import annotations

import _socket as socket
import errno
import time
from collections import OrderedDict

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from cntr.forward.dial import Side
    from cntr.forward.sides import Answer
    from cntr.proxy.loop import Loop
    from cntr.proxy.spec import Forward

    Address = tuple[Any, ...]

LARGEST = 1 << 16
AT_ONCE = 64  # datagrams from one socket before the others get their turn
QUEUE = 16  # datagrams that wait until their socket is made
IDLE_SECONDS = 60.0
MOST = 1024  # senders; beyond that, the one that has been idle longest is dropped


class Sender:
    """A sender, and its socket on the other side; None while that is being made."""

    __slots__ = ("far", "heard", "queue")

    def __init__(self) -> None:
        self.far: socket.socket | None = None
        self.queue: list[bytes] = []
        self.heard = time.monotonic()


class Datagrams:
    """The listening side of one UDP forward."""

    def __init__(self, loop: Loop, made: socket.socket, forward: Forward, far_side: Side, most: int = MOST) -> None:
        """most: simultaneous senders."""
        self.loop, self.made, self.forward, self.far_side, self.most = loop, made, forward, far_side, most
        self.addresses, self.number = forward.connect.addresses(), 0
        self.senders: OrderedDict[Address, Sender] = OrderedDict()
        self.said_refused = False
        self.tell_refused: Callable[[Datagrams, int], object] = lambda listener, number: None
        self.sweeper = loop.after(IDLE_SECONDS, self._sweep)
        loop.add(made.fileno(), self._receive)

    def _receive(self, events: int) -> None:
        for _ in range(AT_ONCE):
            try:
                data, address = self.made.recvfrom(LARGEST)
            except BlockingIOError:
                return
            except OSError:
                continue  # an answer could not be delivered
            sender = self.senders.get(address)
            if sender is None:
                sender = self.senders[address] = Sender()
                if len(self.senders) > self.most:
                    self._drop(next(iter(self.senders)))
                self.far_side.socket(self.addresses[self.number][0], socket.SOCK_DGRAM, self._owner(address))
            else:
                self.senders.move_to_end(address)
            sender.heard = time.monotonic()
            if sender.far:
                self._send(address, sender, data)
            elif len(sender.queue) < QUEUE:
                sender.queue.append(data)

    def _owner(self, address: Address) -> Callable[[Answer], None]:
        """Return the callback that takes the new socket for ADDRESS."""

        def made(answer: Answer) -> None:
            sender = self.senders.get(address)
            if not isinstance(answer, socket.socket):
                self._drop(address)
                return
            if sender is None or sender.far:
                answer.close()
                return
            sender.far = answer
            number = answer.connect_ex(self.addresses[self.number][1])
            if number:
                self._refused(address, number)
                return
            self.loop.add(answer.fileno(), lambda events: self._answer(address, sender))
            queue, sender.queue = sender.queue, []
            for data in queue:
                if sender.far:
                    self._send(address, sender, data)

        return made

    def _send(self, address: Address, sender: Sender, data: bytes) -> None:
        assert sender.far
        try:
            sender.far.send(data)
        except BlockingIOError:
            pass  # udp(7): a datagram may be lost
        except OSError as error:
            self._refused(address, error.errno or errno.EIO)

    def _answer(self, address: Address, sender: Sender) -> None:
        for _ in range(AT_ONCE):
            if not sender.far:
                return
            try:
                data = sender.far.recv(LARGEST)
            except BlockingIOError:
                return
            except OSError as error:  # ECONNREFUSED: an ICMP message came back
                self._refused(address, error.errno or errno.EIO)
                return
            self.said_refused, sender.heard = False, time.monotonic()
            try:
                self.made.sendto(data, address)
            except OSError:
                pass

    def _refused(self, address: Address, number: int) -> None:
        """Nobody listens at that address: send the next sender's datagrams to the other address, if there are two."""
        self._drop(address)
        self.number = (self.number + 1) % len(self.addresses)
        if not self.number and not self.said_refused:
            self.said_refused = True
            self.tell_refused(self, number)

    def _drop(self, address: Address) -> None:
        sender = self.senders.pop(address, None)
        if sender and sender.far:
            self.loop.remove(sender.far.fileno())
            sender.far.close()
            sender.far = None

    def _sweep(self) -> None:
        before = time.monotonic() - IDLE_SECONDS
        for address in [address for address, sender in self.senders.items() if sender.heard < before]:
            self._drop(address)
        self.sweeper = self.loop.after(IDLE_SECONDS / 2, self._sweep)

    def back(self) -> None:
        """The container was restarted: make its sockets anew."""
        for address in list(self.senders):
            self._drop(address)

    def is_busy(self) -> bool:
        """Always False: datagrams are not waited for at the end."""
        return False

    def close(self) -> None:
        """Close all sockets."""
        self.sweeper.cancel()
        self.back()
        self.loop.remove(self.made.fileno())
        self.made.close()

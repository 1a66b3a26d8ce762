"""Operations that were begun and are driven beside others, on one thread without waiting.

A flight advances an operation as far as it goes, then remembers what it waits for: answers, a
moment, or both. Who owns flights (a file's read-ahead, a queue) waits for all of them at once.
"""

import time
from collections.abc import Callable, Sequence
from typing import Any

from hillfire.client.actions import (
    Abandon,
    Await,
    Exchange,
    Flying,
    Join,
    Operation,
    Pause,
    Spawn,
    Start,
)
from hillfire.client.connections import Connections
from hillfire.client.lanes import LOOK_S, Lanes
from hillfire.errors import Code, Error


class Flight:
    """One operation under way."""

    __slots__ = (
        "_all",
        "_error",
        "_lanes",
        "_on_end",
        "_operation",
        "_started",
        "_until",
        "_value",
        "_waiting",
        "_wires",
    )

    def __init__(
        self,
        wires: Connections,
        operation: Operation[Any],
        lanes: Lanes | None = None,
        on_end: Callable[["Flight"], None] | None = None,
    ) -> None:
        """Send the operation's first requests; by ``lanes`` if it shares them with others."""
        self._wires = wires
        self._lanes = lanes if lanes is not None else Lanes(wires)
        self._on_end = on_end
        self._operation: Operation[Any] | None = operation
        self._value: Any = None
        self._error: BaseException | None = None
        self._started: list[Flying] = []
        self._waiting: Sequence[Flying] = ()
        self._all = False
        self._until: float | None = None
        self._advance(None)

    @property
    def ended(self) -> bool:
        """Whether the operation has its result."""
        return self._operation is None

    @property
    def until(self) -> float | None:
        """When it wants to go on whatever arrives; None if only answers move it."""
        return self._until

    def poke(self) -> None:
        """Go on if what it waits for is there."""
        if self._operation is None:
            return
        if self._all:
            if all(each.outcome is not None for each in self._waiting):
                self._advance([each.outcome for each in self._waiting])
        elif any(each.outcome is not None for each in self._waiting) or (
            self._until is not None and time.monotonic() >= self._until
        ):
            self._advance(None)

    def result(self) -> Any:
        """Wait for the end on the caller's thread; raise what the operation raised."""
        while self._operation is not None:
            until = time.monotonic() + LOOK_S if self._until is None else self._until
            if self._waiting:
                self._lanes.wait(self._waiting, until - time.monotonic())
            else:
                time.sleep(max(0.0, until - time.monotonic()))
            self.poke()
        if self._error is not None:
            raise self._error
        return self._value

    def cancel(self) -> None:
        """End it now, with CANCELLED; its servers may still be at work (quarantine)."""
        if self._operation is not None:
            self._operation.close()
            self._end(None, Error(Code.CANCELLED, "the operation was cancelled"))

    def _end(self, value: Any, error: BaseException | None) -> None:
        self._operation, self._value, self._error = None, value, error
        self._until = None
        self._lanes.abandon(self._started)
        self._started, self._waiting = [], ()
        if self._on_end is not None:
            self._on_end(self)

    def _advance(self, value: Any) -> None:
        """Give the operation what it waited for and do what it asks, until it must wait."""
        operation = self._operation
        assert operation is not None
        lanes = self._lanes
        error: Error | None = None
        self._waiting, self._all, self._until = (), False, None
        try:
            while True:
                action = operation.send(value) if error is None else operation.throw(error)
                value, error = None, None
                if isinstance(action, Exchange):
                    flying = lanes.start(action.calls, self)
                    self._started = [each for each in self._started if each.outcome is None]
                    self._started += flying
                    if any(each.outcome is None for each in flying):
                        self._waiting, self._all = flying, True
                        return
                    value = [each.outcome for each in flying]
                elif isinstance(action, Start):
                    value = lanes.start(action.calls, self)
                    self._started += value
                elif isinstance(action, Await):
                    waiting = [each for each in action.flying if each.outcome is None]
                    if waiting:
                        self._waiting = waiting
                        self._until = time.monotonic() + action.timeout_s
                        return
                elif isinstance(action, Abandon):
                    lanes.abandon(action.flying)
                elif isinstance(action, Pause):
                    self._until = time.monotonic() + action.seconds
                    return
                elif isinstance(action, Spawn):
                    value = Flight(self._wires, action.operation)
                else:
                    assert isinstance(action, Join)
                    try:
                        value = action.handle.result()
                    except Error as exc:
                        error = exc
        except StopIteration as stop:
            self._end(stop.value, None)
        except BaseException as exc:
            self._end(None, exc)
            if not isinstance(exc, Error):
                raise

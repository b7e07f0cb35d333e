"""Which group of training workers has which training: an actor on the driver's node."""

from collections import Counter, deque
from collections.abc import Iterable
from typing import Literal, NamedTuple


class Event(NamedTuple):
    """What happened to a training (its fingerprint), and what people are told of it."""

    kind: Literal["running", "lost", "done", "failed"]
    training: str
    text: str


class TrainQueue:
    """Trainings in the order in which they are given out. A group that restarts gets back what it had.

    A training whose group was lost more than `most_losses` times without a new point of its curve has failed;
    so has a group that was lost as often with no training in hand.
    """

    def __init__(self, fingerprints: Iterable[str], most_losses: int) -> None:
        self._waiting = deque(fingerprints)
        self._most = most_losses
        self._taken: dict[int, str] = {}
        self._points: Counter[str] = Counter()
        self._losses: Counter[str | int] = Counter()
        self._events: list[Event] = []

    def take(self, group: int) -> str | None:
        """The group's next training; None when nothing is left."""
        self._losses.pop(group, None)
        if group not in self._taken and self._waiting:
            self._taken[group] = self._waiting.popleft()
        return self._taken.get(group)

    def progress(self, group: int, training: str, points: int, text: str) -> None:
        """The training has `points` points of its curve."""
        if points > self._points[training]:
            self._points[training] = points
            self._losses.pop(training, None)
        self._events.append(Event("running", training, text))

    def end(self, group: int, kind: Literal["done", "failed"], training: str, text: str) -> None:
        """The group is free for the next one."""
        self._taken.pop(group, None)
        self._events.append(Event(kind, training, text))

    def lost(self, group: int, reason: str) -> None:
        """A worker of the group died, or an error ended them all."""
        training = self._taken.get(group)
        self._losses[group if training is None else training] += 1
        if training is None:
            return
        if self._losses[training] > self._most:
            self.end(group, "failed", training, f"{reason} (tried {self._losses[training]} times)")
        else:
            self._events.append(Event("lost", training, reason))

    def goes_on(self, group: int) -> bool:
        """Whether a group whose run ended with an error is to be started again."""
        return group in self._taken or (bool(self._waiting) and self._losses[group] <= self._most)

    def fail(self, reason: str) -> None:
        """No group is left for what waits."""
        while self._waiting:
            self._events.append(Event("failed", self._waiting.popleft(), reason))

    def events(self) -> tuple[list[Event], int]:
        """What happened since the last call, and how many trainings wait."""
        events, self._events = self._events, []
        return events, len(self._waiting)

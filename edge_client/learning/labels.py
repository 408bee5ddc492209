"""Labels by time: what a label is about, and windows that wait for theirs."""

import json
import math
from bisect import bisect_left, bisect_right
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

from edge_client.learning.windowing import Window
from edge_client.sensors.sampling import Sample
from edge_client.settings import Labels
from pollen.errors import MessageError

LONGEST_MESSAGE: Final = 1024  # bytes
LONGEST_AGE_S: Final = 7 * 86400.0
EVENTS: Final = 256  # labels of times to come that are remembered


@dataclass(frozen=True, slots=True)
class LabelEvent:
    """`label`, a class or a target, is that of each window whose last reading lies in [`first`, `last`].

    Both are monotonic seconds, or with `wall` seconds since 1970.
    """

    label: float
    first: float
    last: float
    wall: bool = False


def parse(payload: bytes, received: float, settings: Labels) -> LabelEvent:
    """The label in a message that came at `received`, monotonic seconds.

    Plain text is a number or one of `classes`, for the last `span_s` seconds. JSON is {"label": …} with "age_s",
    seconds since it was so, and "span_s"; or with "from" and "to" in seconds since 1970. Raises MessageError.
    """
    if len(payload) > LONGEST_MESSAGE:
        raise MessageError(f"label: {len(payload)} bytes, at most {LONGEST_MESSAGE} are taken")
    try:
        text = payload.decode().strip()
        content = json.loads(text) if text.startswith("{") else {"label": text}
    except (ValueError, RecursionError) as error:
        raise MessageError(f"label: neither text nor JSON ({error})") from error
    label = class_or_target(content.get("label"), settings.classes)
    if "from" in content or "to" in content:
        first, last = _seconds(content, "from", None), _seconds(content, "to", None)
        if not 0 <= last - first <= LONGEST_AGE_S:
            raise MessageError(f"label: from {first:g} to {last:g} is no time, or more than a week")
        return LabelEvent(label, first, last, wall=True)
    last = received - _seconds(content, "age_s", 0.0)
    return LabelEvent(label, last - _seconds(content, "span_s", settings.span_s), last)


def class_or_target(value: object, classes: Sequence[str]) -> float:
    """The number that a label stands for: a class by its name in `classes`, else itself. Raises MessageError."""
    if isinstance(value, str) and value in classes:
        return float(classes.index(value))
    number = math.nan
    if isinstance(value, str | int | float) and not isinstance(value, bool):
        try:
            number = float(value)
        except (ValueError, OverflowError):
            number = math.nan
    if not abs(number) <= 1e30:
        names = f", nor one of {', '.join(classes)}" if classes else "; labels.classes names classes"
        raise MessageError(f"label: {str(value)[:64]!r} is no number{names}")
    return number


def _seconds(content: dict[str, Any], name: str, default: float | None) -> float:
    value = content.get(name, default)
    most = 1e11 if default is None else LONGEST_AGE_S  # the year 5138
    if not isinstance(value, int | float) or isinstance(value, bool) or not 0 <= value <= most:
        raise MessageError(f"label: {name} must be seconds from 0 to {most:g}")
    return float(value)


class LateLabels:
    """Brings windows and labels together by time, whichever comes first.

    A window waits `wait_s` seconds (for a topic at least `span_s`, which a label reaches back), at most `waiting` of
    them; `missed` counts those no label came for. Of the labels for times to come at most 256 are remembered, the
    last sent counts. Wall times are brought to the monotonic clock by a sample that has both, taken while the wall
    clock was known to be right; without one they are `refused`.
    """

    def __init__(self, settings: Labels) -> None:
        self._wait_s = max(settings.wait_s, settings.span_s) if settings.source == "topic" else settings.wait_s
        self._room = settings.waiting
        self._windows: list[Window] = []  # by time
        self._events: deque[LabelEvent] = deque(maxlen=EVENTS)
        self._wall_offset: float | None = None
        self._now = -math.inf
        self.missed = 0
        self.refused = 0

    def __len__(self) -> int:
        return len(self._windows)

    def saw(self, sample: Sample) -> None:
        """Time has gone on: this is the newest sample."""
        self._now = sample.monotonic
        self._wall_offset = sample.wall - sample.monotonic if sample.synchronised else None
        if self._windows and self._windows[0].reading.monotonic < self._now - self._wait_s:
            self._drop(bisect_left(self._windows, self._now - self._wait_s, key=_time))
        # Windows that are older than the newest sample have been matched.
        while self._events and self._events[0].last < self._now:
            self._events.popleft()

    def label_of(self, reading: Sample) -> float | None:
        """The label that came already for the window that `reading` completes."""
        for event in reversed(self._events):
            if event.first <= reading.monotonic <= event.last:
                return event.label
        return None

    def wait(self, window: Window) -> None:
        """Keep a window without a label until its label comes; windows come in the order of time."""
        if self._wait_s <= 0:
            self.missed += 1
            return
        if len(self._windows) >= self._room:
            self._drop(1)
        self._windows.append(window)

    def placed(self, event: LabelEvent) -> LabelEvent | None:
        """The label with its time in monotonic seconds; None, and counted, when that can't be told."""
        if not event.wall:
            return event
        if self._wall_offset is None:
            self.refused += 1
            return None
        return LabelEvent(event.label, event.first - self._wall_offset, event.last - self._wall_offset)

    def labelled(self, event: LabelEvent) -> list[Window]:
        """The windows that a label, in monotonic seconds, is about; they wait no more. Later ones get it by
        `label_of`."""
        first, last = event.first, event.last
        if last >= self._now and first <= self._now + LONGEST_AGE_S:
            self._events.append(event)
        start = bisect_left(self._windows, first, key=_time)
        end = bisect_right(self._windows, last, key=_time)
        found = self._windows[start:end]
        del self._windows[start:end]
        return found

    def _drop(self, count: int) -> None:
        self.missed += count
        del self._windows[:count]


def _time(window: Window) -> float:
    return window.reading.monotonic

"""What the demo prints: a live table on a terminal, plain lines elsewhere."""

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console, RenderableType
from rich.live import Live

_PLAIN_STATUS_S = 5.0


class Screen:
    """Everything goes through here, so that a terminal's redrawing and a log file's lines don't mix."""

    def __init__(self) -> None:
        self.console = Console(highlight=False, soft_wrap=True)
        self._live: Live | None = None
        self._last_plain = -float("inf")

    @property
    def plain(self) -> bool:
        """Whether the output is no terminal."""
        return not self.console.is_terminal

    def say(self, line: str) -> None:
        """Print one line; above the live table where there is one."""
        self.console.print(line, markup=False)
        sys.stdout.flush()

    @contextmanager
    def working(self, what: str) -> Iterator[Callable[[], None]]:
        """Show that `what` is going on; call what this yields every now and then while it lasts."""
        began = time.monotonic()
        said = began
        if self.plain:
            self.say(f"{what} …")
        spinner = None if self.plain else self.console.status(f"{what} …")

        def beat() -> None:
            nonlocal said
            now = time.monotonic()
            if spinner is not None:
                spinner.update(f"{what} … {now - began:.0f} s")
            elif now - said >= _PLAIN_STATUS_S:
                said = now
                self.say(f"{what} … {now - began:.0f} s")

        if spinner is None:
            yield beat
        else:
            with spinner:
                yield beat
            self.say(f"{what}: {time.monotonic() - began:.1f} s")

    @contextmanager
    def live(self) -> Iterator[None]:
        """A region at the bottom of the terminal that `show` redraws; its last state stays."""
        if self.plain:
            yield
            return
        with Live(console=self.console, auto_refresh=False) as live:
            self._live = live
            try:
                yield
            finally:
                self._live = None

    def show(self, picture: Callable[[], RenderableType], line: Callable[[], str]) -> None:
        """Redraw `picture` on a terminal; elsewhere print `line` every few seconds."""
        if self._live is not None:
            self._live.update(picture(), refresh=True)
            return
        now = time.monotonic()
        if now - self._last_plain >= _PLAIN_STATUS_S:
            self._last_plain = now
            self.say(line())

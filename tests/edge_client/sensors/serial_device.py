"""The far end of a serial line: a pseudo-terminal, with what a device would write."""

import contextlib
import os
import tty
from pathlib import Path


class SerialDevice:
    """`port` is what a program opens; it is a link, so that a device put back has the same name, as udev does."""

    def __init__(self, link: Path) -> None:
        self.port = link
        self._far, self._near = -1, -1
        self.plug_in()

    def plug_in(self) -> None:
        self._far, self._near = os.openpty()
        tty.setraw(self._near)
        self.port.unlink(missing_ok=True)
        self.port.symlink_to(os.ttyname(self._near))

    def write(self, text: str | bytes) -> None:
        os.write(self._far, text if isinstance(text, bytes) else text.encode())

    def unplug(self) -> None:
        for end in (self._far, self._near):
            with contextlib.suppress(OSError):
                os.close(end)
        self.port.unlink(missing_ok=True)

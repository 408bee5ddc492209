"""Ends a demo's processes when the demo itself was killed and could not do it.

Reads process ids, one a line, from stdin. Its end means that the demo is gone: whatever is still there of those
processes is killed. Each is held by a pidfd, so that a number used again can't hit a stranger. Run as a script
(`python -S guard.py`), it imports nothing but the standard library's smallest.
"""

import os
import signal
import sys


def main() -> None:
    """Collect until the end of stdin, then kill."""
    held = []
    for line in sys.stdin:
        try:
            held.append(os.pidfd_open(int(line)))
        except ProcessLookupError:
            continue
    for descriptor in held:
        try:
            signal.pidfd_send_signal(descriptor, signal.SIGKILL)
        except ProcessLookupError:
            continue


if __name__ == "__main__":
    main()

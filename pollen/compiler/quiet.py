"""Keep what TensorFlow's C++ side prints off the terminal: nobody can act on it."""

import logging
import os
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

logger = logging.getLogger(__name__)


@contextmanager
def native_stderr_to_log() -> Iterator[None]:
    """Send what is written to file descriptor 2 meanwhile to the log, at level DEBUG."""
    sys.stderr.flush()
    kept = os.dup(2)
    with tempfile.TemporaryFile() as captured:
        os.dup2(captured.fileno(), 2)
        try:
            yield
        finally:
            sys.stderr.flush()
            os.dup2(kept, 2)
            os.close(kept)
            captured.seek(0)
            text = captured.read().decode(errors="replace")
    for line in text.splitlines():
        logger.debug("%s", line)


@contextmanager
def steps_to_terminal() -> Iterator[None]:
    """Keep native output away; where stderr is a terminal, say there what the compiler is at, as it takes seconds."""
    with ExitStack() as stack:
        steps = logging.getLogger("pollen.compiler")
        if sys.stderr.isatty():
            handler = logging.StreamHandler(stack.enter_context(os.fdopen(os.dup(2), "w")))
            handler.setLevel(logging.INFO)
            stack.callback(steps.setLevel, steps.level)
            steps.setLevel(logging.INFO)
            steps.addHandler(handler)
            stack.callback(steps.removeHandler, handler)
        stack.enter_context(native_stderr_to_log())
        steps.info("loading TensorFlow")
        yield

"""Keeping what the allocator holds on to near what is in use."""

import ctypes
from typing import Final

_M_ARENA_MAX: Final = -8  # <malloc.h>
_ARENAS: Final = 2


def bound() -> None:
    """Few arenas, where glibc would give every thread of grpc's one to keep freed memory in (mallopt(3)). Its other
    settings cost more in page faults than they save; another C library needs none of it."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_M_ARENA_MAX, _ARENAS)

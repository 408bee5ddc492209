"""What the doctor found in one place."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Finding:
    """`what` was looked at, whether it is `ok`, what was seen, and the fix where it isn't."""

    what: str
    ok: bool
    seen: str
    fix: str = ""

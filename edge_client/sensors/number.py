"""Text that stands for a measured value, from sources that may say anything."""

import math
from typing import Final

# float32's largest, so that nothing becomes infinite in a reading.
_LARGEST: Final = 3.4028234663852886e38


def number(text: str) -> float:
    """The decimal number `text` says, NaN when it says none that is finite in float32."""
    # Python's own digit separators and non-ASCII digits are more likely damage than meant.
    if "_" in text or not text.isascii():
        return math.nan
    try:
        return finite(float(text))
    except ValueError:
        return math.nan


def finite(value: float) -> float:
    """`value`, NaN when it is not finite in float32."""
    return value if abs(value) <= _LARGEST else math.nan

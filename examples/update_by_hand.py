"""An update made with nothing but cbor2: what a device of your own, in any language, has to send.

    python3 examples/update_by_hand.py task.cbor weights.cbor > update.cbor

`task.cbor` is what came on the device's task topic, `weights.cbor` the model's retained snapshot. A real device trains
from the snapshot; this one moves every weight by 0.001.
"""

import math
import struct
import sys
from pathlib import Path
from typing import Any

import cbor2

FLOAT32, MULTIDIMENSIONAL = 85, 40  # RFC 8746, sections 2.1 and 3.1.1: little-endian float32, and its shape


def moved(tensor: Any, by: float) -> cbor2.CBORTag:
    """A tensor of the same shape, every number of it `by`."""
    shape, _ = tensor.value
    count = math.prod(shape)
    return cbor2.CBORTag(MULTIDIMENSIONAL, [shape, cbor2.CBORTag(FLOAT32, struct.pack(f"<{count}f", *[by] * count))])


def main() -> None:
    """Read the two files, write the update to standard output."""
    task, snapshot = (cbor2.loads(Path(name).read_bytes()) for name in sys.argv[1:3])
    update = {
        "v": 1,
        "task": task["task"],  # which task this answers: 16 bytes
        "seq": 1,  # grows with every update of this device
        "base": snapshot["version"],  # the version that was trained from
        "n": 32,  # samples it was trained on
        "steps": 2,
        "delta": {name: moved(tensor, 0.001) for name, tensor in snapshot["weights"].items()},
        "metrics": {"loss_before": 0.5, "loss_after": 0.4},
    }
    sys.stdout.buffer.write(cbor2.dumps(update))


if __name__ == "__main__":
    main()

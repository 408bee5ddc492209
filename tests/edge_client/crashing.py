"""Finds a graph that crashes the interpreter: `python tests/edge_client/crashing.py BUNDLE OUTPUT`.

The interpreters check a graph's form, but not every number in it. One small number after the other is made another one,
until a child process that runs the graph dies of a signal.
"""

import os
import random
import resource
import struct
import sys
from dataclasses import replace
from pathlib import Path

from edge_client.model.device_model import try_out
from pollen.bundle import Bundle
from pollen.interpreter import load

ATTEMPTS = 20_000
NUMBERS = (-1, 0, 7, 22, 1000)
MEMORY_BYTES = 4 << 30


def main(bundle: Bundle, output: Path) -> int:
    load(bundle)  # imports the interpreter once, for all children
    chance = random.Random(84)
    small = [
        at for at in range(0, len(bundle.graph) - 4, 4) if 1 <= struct.unpack_from("<i", bundle.graph, at)[0] <= 64
    ]
    for _ in range(ATTEMPTS):
        graph = bytearray(bundle.graph)
        struct.pack_into("<i", graph, chance.choice(small), chance.choice(NUMBERS))
        broken = replace(bundle, graph=bytes(graph))
        if crashes(broken):
            broken.write(output)
            return 0
    return 1


def crashes(bundle: Bundle) -> bool:
    child = os.fork()
    if child == 0:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
        resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        try:
            try_out(load(bundle), bundle)
        finally:
            os._exit(0)
    return os.WIFSIGNALED(os.waitpid(child, 0)[1])


if __name__ == "__main__":
    sys.exit(main(Bundle.read(sys.argv[1]), Path(sys.argv[2])))

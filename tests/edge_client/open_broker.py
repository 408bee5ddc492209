"""A broker beside the device, as in a house: Mosquitto on loopback that asks nobody for a name."""

import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def open_broker(binary: Path, folder: Path, port: int | None = None) -> Iterator[int]:
    """Runs until the block ends; gives its port."""
    if port is None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
    folder.mkdir(parents=True, exist_ok=True)
    configuration = folder / "mosquitto.conf"
    configuration.write_text(f"listener {port} 127.0.0.1\nallow_anonymous true\n")
    with (folder / "mosquitto.log").open("ab") as log:
        process = subprocess.Popen([str(binary), "-c", str(configuration)], stdout=log, stderr=log)
    try:
        deadline = time.monotonic() + 20
        while True:
            try:
                socket.create_connection(("127.0.0.1", port), timeout=1).close()
                break
            except OSError:
                assert process.poll() is None, (folder / "mosquitto.log").read_text()
                assert time.monotonic() < deadline
                time.sleep(0.02)
        yield port
    finally:
        process.terminate()
        process.wait(10)

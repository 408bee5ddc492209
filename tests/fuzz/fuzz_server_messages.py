"""Atheris on the readers of what a server sends: `python tests/fuzz/fuzz_server_messages.py READER -runs=100000`."""

import sys
from pathlib import Path

import atheris

sys.path.insert(0, str(Path(__file__).parents[2]))
with atheris.instrument_imports(include=["pollen", "edge_client.model"]):
    from tests.fuzz import readers


def main() -> None:
    name = sys.argv.pop(1)
    corpus = Path(sys.argv[1])
    (corpus / "seed").write_bytes(readers.READERS[name][1]())
    atheris.Setup(sys.argv, lambda payload: readers.holds(name, payload))
    atheris.Fuzz()


if __name__ == "__main__":
    main()

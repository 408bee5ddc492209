"""`pollen sign-key`: the keys of signed models."""

import argparse
import sys
from pathlib import Path

from pollen import signing

EXAMPLES = """examples:
  pollen sign-key keys

then, in server.toml:          signing_key = "keys/model-key.pem"
and in each device's edge.toml:
  [trust]
  key = "model-key.pub.pem"    # a copy of keys/model-key.pub.pem

Whoever has model-key.pem can give the devices any model. It has no password, since the server
signs every version; keep a copy where nobody else comes.
"""


def main(argv: list[str]) -> int:
    """Run `pollen sign-key`; returns 0. Raises SettingsError."""
    parser = argparse.ArgumentParser(
        prog="pollen sign-key",
        description="Make the pair of Ed25519 keys with which a server signs its models and devices know them.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("folder", type=Path, metavar="FOLDER", help="where model-key.pem and model-key.pub.pem go")
    private, public = signing.make_keys(parser.parse_args(argv).folder)
    sys.stdout.write(f"{private}: the server's signing_key, keep it secret\n{public}: the devices' trust.key\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))

"""Writes the shared vectors as files of a fuzzing corpus: `python seeds.py DIRECTORY`."""

from __future__ import annotations

import json
import sys
from pathlib import Path

VECTORS = Path(__file__).resolve().parents[3] / "tests" / "vectors"
LARGEST = 8192


def main(directory: str) -> int:
    corpus = Path(directory)
    corpus.mkdir(parents=True, exist_ok=True)
    seeds: list[bytes] = []
    for vector in json.loads((VECTORS / "frames.json").read_text(encoding="ascii")):
        # The first byte chooses the side, as in fuzz_channel.py.
        seeds.append(bytes([vector["receiver"] == "guest"]) + bytes.fromhex(vector["hex"]))
    for vector in json.loads((VECTORS / "sessions.json").read_text(encoding="ascii")):
        received = b"".join(bytes.fromhex(step["receive"]) for step in vector["steps"] if "receive" in step)
        seeds.append(bytes([vector["side"] == "guest"]) + received)
    for number, seed in enumerate(seeds):
        if len(seed) <= LARGEST:
            (corpus / f"vector-{number:03}").write_bytes(seed)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))

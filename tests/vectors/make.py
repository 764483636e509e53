"""Makes the vectors that both implementations of the agent channel are tested against.

Run `python tests/vectors/make.py` to write `frames.json` and `sessions.json`, and with `--check` to
fail if the files differ from what this script would write. The bytes are put together with `struct` and
`msgpack` alone, so that neither implementation vouches for itself.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from frame_vectors import frame_vectors
from session_vectors import session_vectors

HERE = Path(__file__).resolve().parent


def render(vectors: list[dict[str, Any]]) -> str:
    """One vector a line, so that a change shows as the lines that changed."""
    lines = ",\n".join(json.dumps(vector, ensure_ascii=True) for vector in vectors)
    return f"[\n{lines}\n]\n"


def main() -> int:
    wanted = {"frames.json": render(frame_vectors()), "sessions.json": render(session_vectors())}
    if "--check" not in sys.argv[1:]:
        for name, text in wanted.items():
            (HERE / name).write_text(text, encoding="ascii")
        return 0
    stale = [n for n, text in wanted.items() if (HERE / n).read_text(encoding="ascii") != text]
    for name in stale:
        sys.stderr.write(f"{name} is not what make.py writes; run it without --check\n")
    return 1 if stale else 0


if __name__ == "__main__":
    raise SystemExit(main())

"""How many basic blocks of a guest an emulated start translates: most of its time, and the same everywhere.

QEMU translates a block when it is first executed, about five instructions, and a machine
that was restored has none yet. So a start gets shorter by what is not executed, or was before it was saved.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import tempfile
from pathlib import Path

import figures
from bench_start import IMAGE, MSB, load_image
from microsandbox_core import env
from microsandbox_core.vmm._qemu import find_qemu

RUNS = 7

# QEMU, which logs what it translates if it starts from a template.
PROGRAM = """#!/bin/sh
for word; do
    [ "$word" = -incoming ] && exec {qemu} "$@" -d in_asm -D {log}
done
exec {qemu} "$@"
"""


def translated(qemu: Path, log: Path, *options: str) -> int:
    """The blocks of one `msb run -- true`; 0 if its kernel was booted."""
    log.unlink(missing_ok=True)
    command = [MSB, "run", "-q", *options, IMAGE, "--", "true"]
    environment = {**os.environ, env.MSB_QEMU: str(qemu), env.MSB_CONFINE: "off"}  # it writes a log
    subprocess.run(command, check=True, stdin=subprocess.DEVNULL, env=environment)
    if not log.exists():
        return 0
    with log.open("rb") as lines:
        return sum(line.startswith(b"IN:") for line in lines)


def main() -> None:
    """Count with a network and without."""
    load_image(env.home())
    with tempfile.TemporaryDirectory() as place:
        qemu, log = Path(place, "qemu"), Path(place, "log")
        qemu.write_text(PROGRAM.format(qemu=find_qemu(), log=log))
        qemu.chmod(0o755)
        figures.title(f"Blocks translated in a start from a template (median of {RUNS})")
        for name, options in (("with a network", ()), ("without", ("--network-policy", "none"))):
            for _ in range(2):
                translated(qemu, log, *options)  # makes the templates: this QEMU is not the usual one
            counts = [translated(qemu, log, *options) for _ in range(RUNS)]
            figures.fact(name, f"{statistics.median(counts):9.0f}  ({min(counts)} .. {max(counts)})")


if __name__ == "__main__":
    main()

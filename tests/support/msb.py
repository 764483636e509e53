"""Running `msb` as a user does: as a program, with bytes in and out."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from tests.support.host import Host
from tests.support.namespace import Namespace
from tests.support.process import Process

PROGRAM = Path(sys.executable).with_name("msb")

Argument = str | bytes | os.PathLike[str]


@dataclass(frozen=True)
class Done:
    """A command that has ended."""

    code: int
    out: bytes
    err: bytes

    @property
    def text(self) -> str:
        """Standard output as text."""
        return self.out.decode(errors="backslashreplace")

    @property
    def complaint(self) -> str:
        """Standard error as text."""
        return self.err.decode(errors="backslashreplace")

    def succeeded(self) -> Done:
        """Itself, if the exit code is 0."""
        assert self.code == 0, f"exit code {self.code}, stderr: {self.complaint}"
        return self

    def failed(self, code: int = 125, *, hint: bool = True) -> str:
        """The text of the one error, which must be as CLI.md promises: one line, then a hint."""
        lines = [line for line in self.complaint.splitlines() if not line.startswith("note: ")]
        assert self.code == code, f"exit code {self.code}, stderr: {self.complaint}"
        assert "Traceback" not in self.complaint, self.complaint
        assert [line.partition(": ")[0] for line in lines] == (["error", "hint"] if hint else ["error"]), (
            lines
        )
        return "\n".join(lines)


class Running:
    """A command that runs. As a context manager it does not outlive the test."""

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        self.process = process

    @property
    def host_process(self) -> Process:
        """As /proc shows it."""
        return Process(self.process.pid)

    @property
    def stdin(self) -> IO[bytes]:
        """Writes into the command's standard input."""
        assert self.process.stdin is not None
        return self.process.stdin

    @property
    def stdout(self) -> IO[bytes]:
        """Reads the command's standard output, unbuffered."""
        assert self.process.stdout is not None
        return self.process.stdout

    def line(self) -> bytes:
        """The next line of standard output, or what came before its end."""
        return self.stdout.readline()

    def finish(self, data: bytes | None = None, *, timeout: float = 60) -> Done:
        """Write the last input, read everything, wait for the end."""
        out, err = self.process.communicate(data, timeout=timeout)
        return Done(_shell_code(self.process.returncode), out or b"", err or b"")

    def __enter__(self) -> Running:
        return self

    def __exit__(self, *_: object) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        for stream in (self.process.stdin, self.process.stdout, self.process.stderr):
            if stream is not None:
                try:
                    stream.close()
                except BrokenPipeError:
                    pass  # what had not been read is of no interest any more


class Msb:
    """`msb` with one MSB_HOME."""

    def __init__(self, home: Path, settings: Mapping[str, str]) -> None:
        self.home = home
        self.host = Host(home)
        inherited = {name: value for name, value in os.environ.items() if not name.startswith("MSB_")}
        self.environ = {**inherited, "MSB_HOME": str(home), **settings}
        self._program: list[Argument] = [PROGRAM]

    def with_settings(self, **settings: str) -> Msb:
        """The same home, with more environment variables."""
        changed = Msb(self.home, {})
        changed.environ = {**self.environ, **settings}
        changed._program = self._program
        return changed

    def within(self, namespace: Namespace) -> Msb:
        """The same home, started in a network namespace; without a proxy from the environment."""
        changed = Msb(self.home, {})
        proxies = ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY")
        changed.environ = {name: value for name, value in self.environ.items() if name.upper() not in proxies}
        changed._program = [*namespace.command(PROGRAM)]
        return changed

    def __call__(
        self,
        *arguments: Argument,
        stdin: bytes | int | IO[bytes] | None = None,
        timeout: float = 120,
        cwd: Path | None = None,
        environ: Mapping[bytes, bytes] | None = None,
    ) -> Done:
        """Run a command to its end. `environ` adds to the environment, as bytes."""
        data = stdin if isinstance(stdin, bytes) else None
        source = (
            subprocess.DEVNULL if stdin is None else subprocess.PIPE if isinstance(stdin, bytes) else stdin
        )
        ended = subprocess.Popen(
            [*self._program, *arguments],
            stdin=source,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env={**{os.fsencode(k): os.fsencode(v) for k, v in self.environ.items()}, **(environ or {})},
            cwd=cwd,
        )
        with Running(ended) as running:
            return running.finish(data, timeout=timeout)

    def start(self, *arguments: Argument, stderr: int = subprocess.PIPE) -> Running:
        """Start a command with pipes on all three descriptors."""
        process = subprocess.Popen(
            [*self._program, *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=stderr,
            env=self.environ,
            bufsize=0,
        )
        return Running(process)

    def run(
        self,
        *command: Argument,
        options: Sequence[Argument] = (),
        stdin: bytes | int | IO[bytes] | None = None,
    ) -> Done:
        """`msb run OPTIONS busybox -- COMMAND`."""
        return self("run", *options, "busybox", "--", *command, stdin=stdin)

    def remove_everything(self) -> None:
        """End and remove every sandbox of this home, by force: after a test that failed."""
        for process in self.host.processes():
            process.kill(signal.SIGKILL)
            process.wait_gone(within=60)
        for name in self("ls", "-q").text.split():
            self("rm", "--force", name)


def _shell_code(code: int) -> int:
    """An exit code as a shell shows it."""
    return 128 - code if code < 0 else code

"""`msb` as a user with nothing: no privileges, no name, no way to write to the packages."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest
from microsandbox_core import env

from tests.support.host import Host
from tests.support.msb import Done, Running

UID = 12345
"""A user that is in no list of users."""

_CHECK = "import microsandbox_cli.app, msgpack, os, sys; assert os.access(sys.executable, os.X_OK)"
_MSB = "from microsandbox_cli.__main__ import main; main()"
_IN_GROUP = """echo $$ > "$0/cgroup.procs" && exec "$@" """


class Nobody:
    """`msb` as a user without a name, whose home is `directory`."""

    def __init__(self, directory: Path, settings: dict[str, str], umask: int) -> None:
        self.directory = directory
        self.home = directory / ".microsandbox"
        self.host = Host(self.home)
        self.umask = umask
        self.group: Path | None = None
        """The control group that it is in, if it is to be in another one than ours."""
        # Neither MSB_HOME nor XDG_RUNTIME_DIR, and no USER.
        self.environ = {
            "PATH": os.environ["PATH"], "HOME": str(directory), "TMPDIR": str(directory / "tmp"), **settings,
        }  # fmt: skip
        self.python = self._interpreter()

    def __call__(self, *arguments: str, stdin: bytes = b"", timeout: float = 120) -> Done:
        return self.program([self.python, "-c", _MSB, *arguments], stdin=stdin, timeout=timeout)

    def _interpreter(self) -> str:
        """A Python that this user may run, with the packages as they are installed; ours may be in a home."""
        self.environ["PYTHONPATH"] = ":".join(path for path in sys.path if path.endswith(("packages", "src")))
        version = f"python{sys.version_info.major}.{sys.version_info.minor}"
        for candidate in (sys.executable, f"/usr/bin/{version}", f"/usr/local/bin/{version}"):
            if self.program([candidate, "-c", _CHECK]).code == 0:
                return candidate
        pytest.skip("other users can read no Python of this version, or not the packages")

    def program(self, command: Sequence[str], *, stdin: bytes = b"", timeout: float = 120) -> Done:
        """Run a program as this user, who has no capabilities and gets none."""
        entering = [] if self.group is None else ["sh", "-c", _IN_GROUP, str(self.group)]
        process = subprocess.Popen(
            [
                *entering, "setpriv", f"--reuid={UID}", f"--regid={UID}", "--clear-groups", "--no-new-privs",
                "--inh-caps=-all", "--bounding-set=-all", *command,
            ],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
            env=self.environ, cwd=self.directory, umask=self.umask,
        )  # fmt: skip
        with Running(process) as running:
            return running.finish(stdin, timeout=timeout)


@contextmanager
def nobody_at(run_directory: Path, settings: dict[str, str], umask: int = 0o022) -> Iterator[Nobody]:
    """The user, in a home directory of their own; nothing of it is left afterwards."""
    directory = Path(tempfile.mkdtemp(dir=run_directory))
    directory.chmod(0o755)
    for path in (directory / "home", directory / "home/tmp"):
        path.mkdir()
        os.chown(path, UID, UID)
    # The kernel may be in a home that only its owner reads; this user has it from elsewhere.
    kernel = directory / "libkrunfw.so"
    shutil.copyfile(settings[env.MSB_LIBKRUNFW], kernel)
    kernel.chmod(0o644)
    user = Nobody(directory / "home", {**settings, env.MSB_LIBKRUNFW: str(kernel)}, umask)
    try:
        yield user
    finally:
        for process in user.host.processes():
            process.kill()
            process.wait_gone(within=60)
        shutil.rmtree(directory)

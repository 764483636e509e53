"""What a start does not import."""

from __future__ import annotations

import subprocess
import sys


def _modules(script: str) -> str:
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    return done.stdout


def test_a_path_is_still_a_uri_and_the_module_still_itself() -> None:
    script = "import sys; from microsandbox._slim import import_pathlib; import_pathlib()\n"
    script += "print('urllib.parse' in sys.modules)\n"
    script += "from pathlib import Path; print(Path('/a b').as_uri())\n"
    script += "from urllib.parse import urlsplit; print(urlsplit('x://y').netloc)"
    assert _modules(script).split() == ["False", "file:///a%20b", "y"]


def test_who_has_the_module_already_keeps_it() -> None:
    script = "import sys, urllib.parse as before; sys.modules.pop('pathlib', None)\n"
    script += "from microsandbox._slim import import_pathlib; import_pathlib()\n"
    script += "import urllib.parse as after; print(before is after)"
    assert _modules(script).split() == ["True"]


def test_a_supervisor_that_waits_has_not_imported_it() -> None:
    script = "import socket, sys\n"
    script += "ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET); ours.close()\n"
    script += "from microsandbox.supervisor.__main__ import main\n"
    script += "code = main(theirs.detach()); print(code, *sys.modules)"
    code, *loaded = _modules(script).split()
    assert code == "0"
    assert "microsandbox.supervisor._supervise" in loaded
    assert {"urllib.parse", "ipaddress", "asyncio", "ssl"} & set(loaded) == set()

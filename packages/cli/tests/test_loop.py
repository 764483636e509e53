"""What a command that waits for a sandbox imports, and what it leaves as it was."""

from __future__ import annotations

import subprocess
import sys


def test_waiting_for_a_sandbox_does_not_import_openssl() -> None:
    script = "import sys, microsandbox_cli.attached\n"
    script += "print('ssl' in sys.modules, '_ssl' in sys.modules)\n"
    script += "import ssl, asyncio\n"
    script += "print(ssl.OPENSSL_VERSION_NUMBER > 0, asyncio.run(asyncio.sleep(0, 'ran')))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.stdout.splitlines() == ["False False", "True ran"], done.stderr

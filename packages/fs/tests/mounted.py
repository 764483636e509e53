"""Mounts a share with this machine's kernel as its guest, and runs a script there.

    SHARE AT SCRIPT [OWNERSHIP CACHE [BYTES]]

For a mount namespace of its own, as `unshare --mount` makes it. Ends with 77 where FUSE cannot be mounted.
"""

from __future__ import annotations

import ctypes
import os
import socket
import struct
import subprocess
import sys
import threading

from microsandbox_fs import Broker, Cache, Ownership, Quota, ShareOptions

NOSUID_NODEV = 2 | 4
NOT_HERE = 77
MOST = (1 << 20) + 4096


def ask(device: int, stream: socket.socket) -> None:
    """Carries requests to the broker until the mount has ended."""
    while True:
        try:
            stream.sendall(os.read(device, MOST))
        except (FileNotFoundError, InterruptedError):
            # Interrupted before it was read.
            continue
        except OSError:
            return


def answer(device: int, stream: socket.socket) -> None:
    """Carries replies back, each whole."""
    replies = stream.makefile("rb")
    while header := replies.read(16):
        (length,) = struct.unpack_from("<I", header)
        try:
            os.write(device, header + replies.read(length - 16))
        except (FileNotFoundError, InterruptedError):
            # Interrupted before it was answered.
            continue
        except OSError:
            return


def main(
    share: str, at: str, script: str, ownership: str = "virtual", cache: str = "auto", most: str = ""
) -> int:
    try:
        device = os.open("/dev/fuse", os.O_RDWR)
    except OSError:
        return NOT_HERE
    mounted = f"fd={device},rootmode=40000,user_id=0,group_id=0,default_permissions,allow_other"
    mount = ctypes.CDLL(None).mount
    if mount(b"share", at.encode(), b"fuse.share", NOSUID_NODEV, mounted.encode()) != 0:
        return NOT_HERE
    options = ShareOptions(
        ownership=Ownership(ownership), cache=Cache(cache), quota=Quota(int(most)) if most else None
    )
    broker = Broker(share, options)
    ours, theirs = socket.socketpair()
    for carry, *what in ((broker.serve, ours), (ask, device, theirs), (answer, device, theirs)):
        threading.Thread(target=carry, args=what, daemon=True).start()
    return subprocess.run(
        ["bash", "-euo", "pipefail", "-c", script], cwd=at, check=False, timeout=300
    ).returncode


if __name__ == "__main__":
    status = main(*sys.argv[1:])
    # Ends the mount with the process, whatever still waits for it.
    os._exit(status)

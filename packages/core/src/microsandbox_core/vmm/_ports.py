"""Console ports of a machine that runs already.

They are plugged in and not part of the machine from the beginning: all that are restored from one template
have to have the ports that it had.
"""

from __future__ import annotations

import socket

from microsandbox_core.vmm._monitor import Monitor


def add_port(talk: Monitor, name: str) -> socket.socket:
    """Give the machine a port of this name; the host's end. Raises `MachineFailed`."""
    ours, theirs = socket.socketpair()
    try:
        talk.ask("getfd", {"fdname": name}, pass_on=theirs.fileno())
        address = {"type": "fd", "data": {"str": name}}
        backend = {"type": "socket", "data": {"addr": address, "server": False}}
        talk.ask("chardev-add", {"id": name, "backend": backend})
        talk.ask(
            "device_add", {"driver": "virtserialport", "id": f"port-{name}", "chardev": name, "name": name}
        )
    except BaseException:
        ours.close()
        raise
    finally:
        theirs.close()
    return ours

"""A stack in a process of its own, so that its time and memory can be told from others':

    python -m tests.support.stack_process LINK-DESCRIPTOR MTU PRESET NAMESERVER

Runs until the link ends.
"""

from __future__ import annotations

import select
import sys

from microsandbox_net import Policy, Stack

from tests.support.linux_guest import CONFIG


def main(link: str, mtu: str, preset: str, nameserver: str) -> None:
    """As above."""
    config = CONFIG._replace(mtu=int(mtu), nameservers=(nameserver,))
    with Stack(int(link), config, Policy.parse(preset)) as stack:
        while stack.running:
            select.select([stack], [], [])
            stack.audit()
        stack.check()


if __name__ == "__main__":
    main(*sys.argv[1:])

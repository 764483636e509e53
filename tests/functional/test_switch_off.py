"""A guest that switches itself off, on a machine that has no switch."""

from __future__ import annotations

import json

import pytest

from tests.support.msb import Msb

pytestmark = pytest.mark.vm


@pytest.mark.parametrize("options", [(), ("--cold",), ("--cpus", "2")], ids=["template", "cold", "two vCPUs"])
@pytest.mark.parametrize("command", ["poweroff", "halt"])
def test_a_guest_that_halts_is_seen_to(msb: Msb, command: str, options: tuple[str, ...]) -> None:
    msb("create", *options, "busybox", "--name", "dev").succeeded()
    with msb.start("exec", "dev", "--", "sh", "-c", "echo up; exec sleep 1000") as sleeping:
        assert sleeping.line() == b"up\n"
        done = msb("exec", "dev", "--", command, "-f")
        assert done.code == 125
        assert "the sandbox 'dev' ended while" in done.complaint
        assert sleeping.finish().code == 125
    # Commands hear of it before the machine has gone and that is on record.
    msb("wait", "dev").succeeded()
    (shown,) = json.loads(msb("inspect", "dev").succeeded().out)
    assert (shown["status"], shown["end"]["cause"]) == ("stopped", "guest")
    # And not found out by the heartbeat, which would say that the guest did not answer.
    assert shown["end"]["reason"] == "the guest switched itself off"
    # The disk is as after a power cut, which it gets over.
    assert msb("exec", "dev", "--", "echo", "again").succeeded().text == "again\n"
    msb("rm", "dev").succeeded()

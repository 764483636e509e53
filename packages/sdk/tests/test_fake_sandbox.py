"""`FakeSandbox` does what a sandbox does, and what only a fake can do."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Iterator

import pytest
from microsandbox import (
    ConfigError,
    ImageNotFound,
    NetworkPolicy,
    NetworkPolicyError,
    OutcomeUnknown,
    PortBinding,
    Sandbox,
    SandboxHandle,
    Stdin,
)
from microsandbox.testing import Call, FakeSandbox, FakeSandboxHandle, Result, conformance

pytestmark = pytest.mark.asyncio


@pytest.fixture(autouse=True)
def _clean() -> Iterator[None]:
    yield
    FakeSandbox.reset()


@pytest.mark.parametrize("case", conformance.CASES, ids=conformance.name_of)
async def test_it_conforms(case: conformance.Case) -> None:
    await case(FakeSandbox, "busybox")
    assert list(await FakeSandbox.list()) == []


async def test_commands_are_scripted() -> None:
    async def upper(call: Call) -> None:
        while data := await call.read():
            call.stdout(data.upper())

    def fail(call: Call) -> Result:
        return Result(stderr=f"{call.argv[1]} as {call.user} in {call.cwd}\n", exit_code=3)

    FakeSandbox.commands = {"upper": upper, "fail": fail, "seven": lambda _: 7, "say": lambda _: "said"}
    async with await FakeSandbox.create(image="anything", user="nobody") as sandbox:
        assert (await sandbox.exec("upper", stdin=b"text")).stdout_text == "TEXT"
        output = await sandbox.exec("/bin/fail", ["x"], cwd="/tmp")
        assert (output.exit_code, output.stderr_text) == (3, "x as nobody in /tmp\n")
        assert (await sandbox.exec("seven")).exit_code == 7
        assert (await sandbox.exec("sh", ["-c", "say > /tmp/f && cat /tmp/f"])).stdout_text == "said"


async def test_images_may_be_missing() -> None:
    FakeSandbox.images = {"busybox"}
    with pytest.raises(ImageNotFound, match="python"):
        await FakeSandbox.create(image="python")
    await (await FakeSandbox.create(image="busybox")).destroy()


async def test_a_scripted_command_that_fails_by_itself_is_an_error_of_the_test() -> None:
    def broken(_: Call) -> Result:
        raise ZeroDivisionError

    FakeSandbox.commands = {"broken": broken}
    async with await FakeSandbox.create(image="x") as sandbox:
        with pytest.raises(ZeroDivisionError):
            await sandbox.exec("broken")
        assert (await sandbox.exec("true")).success


async def test_reset_ends_what_runs() -> None:
    sandbox = await FakeSandbox.create("dev", image="x")
    handle = await sandbox.exec_stream("cat", stdin=Stdin.pipe())
    FakeSandbox.reset()
    with pytest.raises(OutcomeUnknown):
        await asyncio.wait_for(handle.collect(), 60)


async def test_every_public_member_is_one_of_the_fake_too() -> None:
    for real, fake in ((Sandbox, FakeSandbox), (SandboxHandle, FakeSandboxHandle)):
        for name, member in vars(real).items():
            if name.startswith("_") or not callable(getattr(real, name)) or name in ("create", "adopt"):
                continue
            if name in vars(fake) and not isinstance(member, property):
                ours, theirs = (inspect.signature(getattr(kind, name)) for kind in (fake, real))
                assert list(ours.parameters) == list(theirs.parameters), name
    # `create` takes the rest of its parameters as a whole, and refuses what the real one does not have.
    with pytest.raises(TypeError, match="no parameter 'nonsense'"):
        await FakeSandbox.create(image="x", nonsense=1)  # type: ignore[call-arg]


async def test_a_network_is_on_record_only() -> None:
    async with await FakeSandbox.create("dev", image="x", network="nonlocal", ports={8080: 80}) as sandbox:
        assert [record async for record in sandbox.audit(denied=True)] == []
        assert (await sandbox.exec("true")).denied == ()
        await sandbox.update_network(NetworkPolicy.none("allow@example.com"))
        handle = await FakeSandbox.get("dev")
        network = (await handle.config()).network
        assert (network.preset, network.rules) == ("none", ("allow@example.com",))
        assert (await handle.info()).ports == (PortBinding(8080, 80),)
        await handle.update_network("public-only")
        assert (await handle.config()).network.rules == ()
        with pytest.raises(NetworkPolicyError):
            await handle.update_network("everything")
    with pytest.raises(ConfigError, match="not a port"):
        await FakeSandbox.create(image="x", ports={0: 80})
    await FakeSandbox.remove("dev")

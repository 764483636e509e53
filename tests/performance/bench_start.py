"""What a start costs, and where: `msb run IMAGE -- true` against a bare boot of the same kernel.

Then what a running sandbox costs: exec, output, memory.
"""

from __future__ import annotations

import asyncio
import os
import re
import select
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import figures
from microsandbox import Sandbox, _config, _create
from microsandbox_core import env
from microsandbox_core.bootdisk import ensure_boot_disk
from microsandbox_core.channel import HostConnection
from microsandbox_core.kernel import ensure_kernel
from microsandbox_core.vmm import VmSpec, choose

ROOT = Path(__file__).parents[2]
IMAGE = "msb-bench-busybox"
MSB = str(Path(sys.executable).with_name("msb"))
STREAM = 200 << 20


def bare_boot(home: Path) -> float:
    """Seconds from spawning the VMM to agentd's first byte: nothing of ours but the kernel and agentd."""
    kernel, disk = ensure_kernel(home), ensure_boot_disk(home)
    driver = choose(home, kernel, disk)
    begun = time.perf_counter()
    vm = driver.start(VmSpec(kernel=kernel.path, boot_disk=disk.path))
    try:
        vm.agent.sendall(b"".join(HostConnection().output()))
        if not select.select([vm.agent], [], [], 60)[0]:
            raise SystemExit("the bare boot did not come up")
        return time.perf_counter() - begun
    finally:
        vm.kill()
        vm.reap()
        vm.agent.close()
        vm.console.close()
        vm.network.close()


def command_line() -> None:
    """The interpreter, the imports, and `msb --version`."""
    figures.title("Command line (whole processes)")
    empty = figures.row("python -I -c pass", figures.sample(lambda: figures.run(figures.python("pass")), 20))
    base = ("an empty interpreter", empty)
    figures.row("msb --version", figures.sample(lambda: figures.run([MSB, "--version"]), 20), against=base)
    parser = figures.python("import microsandbox_cli.quick, microsandbox_cli.run")
    figures.row(
        "imports before the VM is spawned", figures.sample(lambda: figures.run(parser), 20), against=base
    )


def cold_start(home: Path) -> None:
    """Whole runs against bare boots, taken in turn."""
    figures.title("Cold start (image cached, no template)")
    bare, whole = [], []
    for number in range(11):
        boot = bare_boot(home)
        begun = time.perf_counter()
        figures.run([MSB, "run", "-q", "--cold", IMAGE, "--", "true"])
        taken = time.perf_counter() - begun
        if number:  # the first pair fills the page cache
            bare.append(boot)
            whole.append(taken)
    limit = figures.row("bare boot: spawn to agentd's first byte", bare)
    figures.row("msb run --cold IMAGE -- true", whole, against=("a bare boot", limit))


async def parts(home: Path, *, cold: bool) -> None:
    """The same start in steps, through the SDK, ten times."""
    steps: dict[str, list[float]] = {}

    def note(name: str, seconds: float) -> None:
        steps.setdefault(name, []).append(seconds)

    agent: dict[str, list[float]] = {}
    for _ in range(10):
        begun = time.perf_counter()
        image = _create.resolve_image(home, IMAGE)
        note("image looked up", time.perf_counter() - begun)
        begun = time.perf_counter()
        config = _config.SandboxConfig(cold=cold)
        pending = _create.begin(home, image, config, shown_image=IMAGE, ephemeral=True)
        note("record, directory, supervisor spawned", time.perf_counter() - begun)
        launched = time.perf_counter()
        sandbox = await Sandbox.adopt(pending)
        total = time.perf_counter() - launched
        ready = sandbox.ready
        assert ready is not None
        marks = list(ready.timings.items())
        note("supervisor: interpreter, imports, handover", total - marks[-1][1] / 1e3)
        for (name, at), (_, before) in zip(marks, [("", 0.0), *marks], strict=False):
            note(f"supervisor: {name}", (at - before) / 1e3)
        for name, taken in ready.agent.items():
            agent.setdefault(name, []).append(taken / 1e6)
        begun = time.perf_counter()
        await sandbox.exec("true")
        note("first exec", time.perf_counter() - begun)
        begun = time.perf_counter()
        await sandbox.destroy()
        note("teardown", time.perf_counter() - begun)
    kind = "cold start" if cold else "start from a template"
    figures.title(f"Parts of a {kind} (through the SDK)")
    for name, values in steps.items():
        figures.row(name, values)
    figures.title("Of configure, inside the guest")
    for name, values in agent.items():
        figures.row(f"agentd: {name}", values)


async def running() -> None:
    """What a running sandbox costs."""
    async with await Sandbox.create(image=IMAGE) as sandbox:
        figures.title("A running sandbox")
        pings = [await sandbox.ping() for _ in range(1000)]
        ping = statistics.median(pings)
        figures.row("ping through the relay", pings)
        execs = []
        for _ in range(1000):
            begun = time.perf_counter()
            await sandbox.exec("true")
            execs.append(time.perf_counter() - begun)
        figures.row("exec true, there and back", execs, against=("a ping", ping))
        figures.fact("exec true, 99th percentile of 1,000", f"{figures.percentile(execs, 99) * 1e3:9.2f} ms")
        await throughput(sandbox)
        memory(sandbox)


async def throughput(sandbox: Sandbox) -> None:
    """Bytes through stdout against the same bytes through a pipe between two local processes."""
    local = local_pipe()
    begun = time.perf_counter()
    handle = await sandbox.exec_stream("head", ["-c", str(STREAM), "/dev/zero"])
    received = 0
    async for event in handle:
        received += len(event.data) if event.kind == "stdout" else 0
    assert received == STREAM
    rate = STREAM / (time.perf_counter() - begun)
    figures.fact(
        "stdout", f"{rate / 1e6:9.0f} MB/s  {rate / local:.2f} x a local pipe ({local / 1e6:.0f} MB/s)"
    )


def local_pipe() -> float:
    """Bytes per second from another process through a pipe of this machine."""
    begun = time.perf_counter()
    with subprocess.Popen(["head", "-c", str(STREAM), "/dev/zero"], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        while process.stdout.read(1 << 16):
            pass
    return STREAM / (time.perf_counter() - begun)


def memory(sandbox: Sandbox) -> None:
    """Resident memory of supervisor and VMM."""
    assert sandbox.ready is not None
    vmm = sandbox.ready.vmm_pid
    supervisor = int(re.search(r"^PPid:\s+(\d+)", status(vmm), re.MULTILINE)[1])  # type: ignore[index]
    for name, pid in (("supervisor", supervisor), ("VMM (512 MiB guest)", vmm)):
        resident = int(re.search(r"^VmRSS:\s+(\d+)", status(pid), re.MULTILINE)[1])  # type: ignore[index]
        figures.fact(f"resident memory, {name}", f"{resident / 1024:9.1f} MiB")


def status(pid: int) -> str:
    """What /proc says about a process."""
    return Path(f"/proc/{pid}/status").read_text()


def load_image(home: Path) -> None:
    """Put the demo's busybox image into the store under the name that the programs here use."""
    sys.path.insert(0, str(ROOT / "demo"))
    import busybox_image

    layout = Path(tempfile.mkdtemp(prefix="msb-bench-"))
    try:
        busybox_image.build(layout / "busybox")
        _create.image_store(home).load(f"oci:{layout / 'busybox'}", tag=IMAGE)
    finally:
        shutil.rmtree(layout)


def main() -> None:
    """Run all of it."""
    home = env.home()
    load_image(home)
    print(f"processors: {os.cpu_count()}, load: {os.getloadavg()[0]:.2f}")
    command_line()
    cold_start(home)
    asyncio.run(parts(home, cold=True))
    asyncio.run(running())


if __name__ == "__main__":
    main()

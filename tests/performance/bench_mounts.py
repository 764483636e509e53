"""Measures a shared directory: the guest's own disk, shares, virtiofsd and QEMU's 9p, in one guest.

    python tests/performance/bench_mounts.py [--files 10000] [--mib 128] [--entries 1000000] [--ninep]

All of them are mounted in the same sandbox, one after the other under the same load
(tests/support/mount_load.c). Seconds are the guest's, and shown as multiples of its own disk's; its context
switches and interrupts are for each access, and hardly depend on what else the machine does. virtiofsd and
our own virtio-fs take memory that is shared with QEMU, so the machine is booted with it. It has slots for two
devices more: with `--ninep` 9p has the one of our virtio-fs. What a guest's kernel cannot mount, and what
is not installed, is left out. At the end: what the broker needs for a directory with many entries.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import shutil
import stat
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

from bench_start import IMAGE, ROOT, load_image
from figures import fact, title
from microsandbox import Sandbox, Volume
from microsandbox_core import env
from microsandbox_core.vmm._qemu import find_qemu

sys.path.insert(0, str(ROOT))
from tests.support.programs import compiled
from tests.support.waiting import eventually

OWN, DEVICE, SHARE, ALWAYS = "own disk", "virtio-fs", "share", "cache=always"
VIRTIOFSD, NINEP = "virtiofsd", "9p"
MEMORY = 512  # MiB of the guest
_MOUNTS = {
    VIRTIOFSD: ("virtiofs", "mount -t virtiofs virtiofsd /virtiofsd"),
    NINEP: ("9p", "mount -t 9p -o trans=virtio,version=9p2000.L,msize=512000 ninep /ninep"),
}
_LISTING = """
import os, struct, sys, time
from microsandbox_fs import Broker

def call(opcode, node, body):
    header = struct.pack("<IIQQIIII", 40 + len(body), opcode, 2, node, 0, 0, 1, 0)
    return broker.answer(header + body)[16:]

def resident():
    with open("/proc/self/statm") as statm:
        return int(statm.read().split()[1]) * os.sysconf("SC_PAGESIZE") / 2**20

broker = Broker(sys.argv[1])
call(26, 0, struct.pack("<IIII48x", 7, 38, 1 << 17, 0xFFFFFFFF))
handle, = struct.unpack_from("<Q", call(27, 1, bytes(8)))
before, begun, entries, offset = resident(), time.perf_counter(), 0, 0
while listed := call(44, 1, struct.pack("<QQI20x", handle, offset, 1 << 17)):
    at = 0
    while at < len(listed):
        offset, length = struct.unpack_from("<QI", listed, at + 136)
        at += 128 + (24 + length + 7) // 8 * 8
        entries += 1
print(entries - 2, time.perf_counter() - begun, before, resident(), broker.usage()[0])
"""


class Load(NamedTuple):
    """What one load took."""

    done: int
    seconds: float
    switches: int
    interrupts: int


def virtiofsd() -> str | None:
    """The program: Debian has it in a package of its own, or with QEMU."""
    places = os.pathsep.join(("/usr/libexec", "/usr/lib/qemu", os.environ.get("PATH", "")))
    return shutil.which("virtiofsd", path=places)


def machine(directory: Path, server: Path | None, *, ninep: bool) -> Path:
    """A program that is QEMU with more devices."""
    more: list[str] = []
    if ninep:
        more += ["-fsdev", f"local,id=ninep,path={directory / 'ninep'},security_model=mapped-xattr"]
        more += ["-device", "virtio-9p-device,fsdev=ninep,mount_tag=ninep"]
    if server is not None:
        more += ["-object", f"memory-backend-memfd,id=shared,size={MEMORY}M,share=on"]
        more += ["-machine", "memory-backend=shared", "-chardev", f"socket,id=virtiofsd,path={server}"]
        more += ["-device", "vhost-user-fs-device,chardev=virtiofsd,tag=virtiofsd"]
    wrapper = directory / "qemu"
    # Asked for its version, or whether KVM boots a guest, it is the plain one.
    lines = ["#!/bin/sh", f'case "$*" in *" -m {MEMORY}M "*) set -- "$@" {" ".join(more)} ;; esac']
    wrapper.write_text("\n".join([*lines, f'exec {find_qemu()} "$@"', ""]))
    wrapper.chmod(stat.S_IRWXU)
    return wrapper


async def measure(directory: Path, files: int, size: int, *, ninep: bool) -> dict[str, dict[str, Load]]:
    """Figures of everything that the guest can mount."""
    volumes = {
        # The first one has the device, if there is one.
        "/device": Volume.bind(directory / "device"),
        "/share": Volume.bind(directory / "share"),
        "/always": Volume.bind(directory / "always", cache="always"),
        "/tools": Volume.bind(directory / "tools", readonly=True),
    }
    async with await Sandbox.create(image=IMAGE, memory=MEMORY, cold=True, volumes=volumes) as sandbox:

        async def run(line: str) -> str:
            output = await sandbox.exec("/bin/sh", ["-c", line])
            if not output.success:
                raise RuntimeError(f"{line}: {output.stderr_text.strip()}")
            return output.stdout_text

        await run("cp /tools/load /load && mkdir /own /virtiofsd /ninep")
        known = (await run("cat /proc/filesystems")).split()
        places = {OWN: "/own", SHARE: "/share", ALWAYS: "/always"}
        if not ninep:
            await run("grep -q ' /device virtiofs ' /proc/mounts")
            places[DEVICE] = "/device"
        for name, (kind, line) in _MOUNTS.items():
            if name == NINEP and not ninep:
                continue
            if kind not in known:
                print(f"left out: {name}: the guest's kernel has no {kind}")
            elif name == VIRTIOFSD and virtiofsd() is None:
                print("left out: virtiofsd is not installed")
            else:
                await run(line)
                places[name] = line.rpartition(" ")[2]
        found: dict[str, dict[str, Load]] = {}
        for name, place in places.items():
            lines = (await run(f"/load {place} {files} {size}")).splitlines()
            found[name] = {}
            for line in lines:
                load, *values = line.split(",")
                count, seconds, switches, interrupts = values
                found[name][load] = Load(int(count), float(seconds), int(switches), int(interrupts))
        return found


def show(found: dict[str, dict[str, Load]]) -> None:
    """Seconds as multiples, and what each access is made of."""
    others = [name for name in found if name != OWN]
    title("seconds, and how many times those of the guest's own disk")
    print(" " * 20 + "".join(f"{name:>18}" for name in found))
    for load, own in found[OWN].items():
        ratios = (
            f"{found[name][load].seconds:9.2f} {found[name][load].seconds / own.seconds:6.1f} x"
            for name in others
        )
        print(f"  {load:<18}{own.seconds:18.2f}" + "".join(f"{ratio:>18}" for ratio in ratios))
    title("context switches and interrupts of the guest for each")
    print(" " * 20 + "".join(f"{name:>18}" for name in found))
    for load in found[OWN]:
        each = (found[name][load] for name in found)
        texts = (f"{one.switches / one.done:9.1f} {one.interrupts / one.done:8.1f}" for one in each)
        print(f"  {load:<18}" + "".join(f"{text:>18}" for text in texts))


def crowd(directory: Path, entries: int) -> None:
    """Memory of a broker whose guest has listed a directory of so many files."""
    title(f"a directory with {entries} entries")
    directory.mkdir()
    for number in range(entries):
        os.close(os.open(directory / f"{number:08}", os.O_CREAT | os.O_WRONLY))
    done = subprocess.run(
        [sys.executable, "-c", _LISTING, directory], capture_output=True, text=True, check=True
    )
    listed, seconds, before, after, nodes = done.stdout.split()
    if int(listed) != entries:
        raise RuntimeError(f"{listed} entries were listed, of {entries}")
    fact("listed with attributes", f"{float(seconds):9.2f} s, {float(seconds) / entries * 1e6:.1f} us each")
    fact("memory of the broker", f"{float(after) - float(before):9.1f} MiB, {nodes} nodes known")


def main(arguments: list[str] | None = None) -> int:
    """All of it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--files", type=int, default=10_000)
    parser.add_argument("--mib", type=int, default=128)
    parser.add_argument("--entries", type=int, default=1_000_000)
    parser.add_argument("--ninep", action="store_true", help="9p instead of our own virtio-fs")
    options = parser.parse_args(arguments)
    print(f"processors: {os.cpu_count()}, load: {os.getloadavg()[0]:.2f}")
    load_image(env.home())
    with TemporaryDirectory(prefix="msb-bench-") as place, ExitStack() as closing:
        directory = Path(place)
        for name in ("device", "share", "always", "tools", "ninep", "virtiofsd"):
            (directory / name).mkdir()
        program = directory / "tools" / "load"
        program.write_bytes(compiled("mount_load"))
        program.chmod(stat.S_IRWXU)
        server = None
        if (binary := virtiofsd()) is not None:
            server = directory / "virtiofsd.sock"
            line = [
                binary,
                f"--socket-path={server}",
                "-o",
                f"source={directory / 'virtiofsd'}",
                "-o",
                "xattr",
            ]
            process = closing.enter_context(subprocess.Popen(line, stderr=subprocess.DEVNULL))
            closing.callback(process.kill)
            eventually(server.exists, within=10, what="virtiofsd listens")
        os.environ[env.MSB_QEMU] = str(machine(directory, server, ninep=options.ninep))
        os.environ[env.MSB_CONFINE] = "off"  # it has to reach virtiofsd
        os.environ[env.MSB_VIRTIOFS] = "0" if options.ninep else "1"
        figures = measure(directory, options.files, options.mib << 20, ninep=options.ninep)
        show(asyncio.run(figures))
        crowd(directory / "crowd", options.entries)
    return 0


if __name__ == "__main__":
    sys.exit(main())

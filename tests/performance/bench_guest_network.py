"""Measures the network of a guest: our stack, QEMU's user networking and passt, with the same machine.

    python tests/performance/bench_guest_network.py [--seconds 2] [--mtu 1500,65520] [--only passt,...]
        [--load all|own|iperf3]

The machine is that of a sandbox, emulated, with the guest kernel of sandboxes; all that runs in it is a small
program that puts load on the network, and this host's iperf3 from a disk of its own. It is started once for
each way out, in namespaces of the benchmark's own, with the same servers. QEMU's user networking knows no
other MTU than 1500, and is shown beside the others with that. The time of the processor is that of QEMU and
of what carries its frames together.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from microsandbox.supervisor.network import EMULATED_STAY_AWAKE
from microsandbox_core import env
from microsandbox_core.bootdisk import build
from microsandbox_core.kernel import ensure_kernel
from microsandbox_core.upper import mke2fs
from microsandbox_core.vmm import Disk, Isolation, VmSpec
from microsandbox_core.vmm._qemu import Qemu, QemuVm, find_qemu
from microsandbox_core.vmm._tsc import tsc_khz
from microsandbox_net import Policy, Stack
from network_contest import (
    IPERF3,
    OURS,
    ROOT,
    Figures,
    chosen,
    hold,
    iperf3_arguments,
    iperf3_figures,
    is_iperf3,
    measure,
    parser,
    processor,
)

from tests.support.internet import ROUTER, WWW, Internet
from tests.support.linux_guest import CONFIG, GATEWAY, GATEWAY_MAC, GUEST, GUEST_MAC
from tests.support.programs import compiled

PASST, USER = "passt", "QEMU user"
MODES = (
    "download", "upload", "iperf3-download", "iperf3-upload", "echo", "connect", "dns-same", "dns-new",
)  # fmt: skip
START = 60.0  # seconds until the guest is up, at most
_USER_NETWORK = f"user,id=network,ipv6=off,net={GUEST[0]}/24,host={GATEWAY[0]},dns=10.9.0.3"


class Machine(Qemu):
    """The driver of sandboxes, but for the other end of the network card."""

    netdev: str | None = None

    def _arguments(self, *given: Any, **more: Any) -> list[str]:
        arguments = super()._arguments(*given, **more)
        if self.netdev is not None:
            arguments[arguments.index("-netdev") + 1] = self.netdev
        return arguments


class Guest:
    """A machine that runs, in the namespace of this process."""

    def __init__(self, directory: Path, name: str, mtu: int, load: str) -> None:
        disk = directory / "boot"
        disk.write_bytes(build(compiled("guest_load")))
        machine = Machine(find_qemu(), kvm=False, tsc_khz=tsc_khz(env.home()))
        machine.netdev = _USER_NETWORK if name == USER else None
        kernel = ensure_kernel(env.home()).path
        disks = () if load == "own" else (Disk(programs(directory), read_only=True),)
        self.vm: QemuVm = machine.start(VmSpec(kernel, disk, disks, memory_mib=256))
        self._told = self.vm.agent.makefile("rb")
        self.vm.agent.setblocking(True)
        self.vm.agent.settimeout(START)
        if self._told.readline() != b"up\n":
            raise RuntimeError("the guest did not start")
        if self.ask(f"address {GUEST[0]} {GATEWAY[0]} {GUEST_MAC} {mtu}") != "ready":
            raise RuntimeError("the guest has no network card")

    def ask(self, line: str) -> str:
        """What the guest's program says to a line."""
        self.vm.agent.sendall(f"{line}\n".encode())
        said = self._told.readline().decode().strip()
        if said.startswith("error"):
            raise RuntimeError(f"{line}: {said}")
        return said

    def load(self, mode: str, address: str, amount: float) -> Figures:
        """What it measured."""
        if is_iperf3(mode):
            return iperf3_figures(
                self.ask(" ".join(["run", IPERF3, *iperf3_arguments(mode, address, amount)]))
            )
        found: Figures = json.loads(self.ask(f"{mode} {address} {amount}"))
        return found

    def close(self) -> None:
        self.vm.kill()
        self.vm.reap()


def programs(directory: Path) -> Path:
    """A disk with iperf3 and the libraries that it is linked with."""
    tree, disk = directory / "programs", directory / "programs.ext4"
    found = shutil.which(IPERF3)
    assert found is not None
    listed = subprocess.run(["ldd", found], check=True, capture_output=True, text=True).stdout.split()
    for source in (word for word in listed if word.startswith("/")):
        target = tree / source.lstrip("/")
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(source, target)
    shutil.copy(found, tree / IPERF3)
    for place in ("dev", "tmp"):
        (tree / place).mkdir()
    disk.touch()
    os.truncate(disk, 64 << 20)
    subprocess.run([mke2fs(), "-q", "-F", "-t", "ext4", "-d", tree, disk], check=True, capture_output=True)
    return disk


def contest(name: str, mtu: int, load: str, seconds: float) -> Figures:
    """The figures of one way out, of a machine in this process's namespace."""
    with TemporaryDirectory() as directory, ExitStack() as closing:
        guest = Guest(Path(directory), name, mtu, load)
        closing.callback(guest.close)
        link = guest.vm.network.fileno()
        carrier, nameserver = os.getpid(), ROUTER[0]
        if name == OURS:
            config = CONFIG._replace(mtu=mtu, nameservers=(ROUTER[0],))
            if guest.vm.isolation is Isolation.EMULATED:
                config = config._replace(stay_awake=EMULATED_STAY_AWAKE)
            closing.callback(Stack(link, config, Policy.public_only()).stop)
            nameserver = GATEWAY[0]
        elif name == PASST:
            line = ["passt", "-f", "-4", "-F", str(link), "-m", str(mtu), "-M", GATEWAY_MAC]
            line += ["-a", GUEST[0], "-n", "24", "-g", GATEWAY[0]]
            process = subprocess.Popen(line, pass_fds=[link], stderr=subprocess.DEVNULL)
            closing.callback(process.wait)
            closing.callback(process.kill)
            carrier = process.pid
        guest.ask(f"echo {WWW[0]} 0")

        def used() -> float:
            return processor(guest.vm.pid) + processor(carrier)

        return measure(chosen(MODES, load), guest.load, used, nameserver, seconds)


def contest_in(internet: Internet, name: str, mtu: int, load: str, seconds: float) -> Figures:
    """The same, in the host's namespace."""
    line = [sys.executable, __file__, "--inside", "--only", name, "--load", load, "--seconds", str(seconds)]
    line += ["--mtu", str(1500 if name == USER else mtu)]
    # QEMU's own network connects to where its guest wants to.
    environment = {
        **os.environ,
        env.MSB_CONFINE: "off",
        "PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path]),
    }
    done = subprocess.run(internet.host.command(*line), capture_output=True, text=True, env=environment)
    if done.returncode != 0:
        raise RuntimeError((done.stderr.splitlines() or ["no figures"])[-1])
    found: Figures = json.loads(done.stdout)
    return found


def main(arguments: list[str] | None = None) -> int:
    """All ways out that there are."""
    known = parser(__doc__, (OURS, PASST, USER))
    known.add_argument("--inside", action="store_true", help=argparse.SUPPRESS)
    options = known.parse_args(arguments)
    if options.inside:
        print(json.dumps(contest(options.only, int(options.mtu), options.load, options.seconds)))
        return 0
    hold(options, "a guest, ", {PASST: PASST}, contest_in)
    return 0


if __name__ == "__main__":
    sys.exit(main())

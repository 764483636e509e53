"""Everything that lives as long as a sandbox: its VM, the relay to its agent, its directory.

Order of a start: upper, VMM, and only then what can be done while the guest boots. Order of an
end: the VMM is dead before anything of the sandbox is removed, and the lock is let go last.
"""

from __future__ import annotations

import os
import select
import signal
import socket
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import msgpack
from microsandbox_core import env
from microsandbox_core.bootdisk import BootDisk, ensure_boot_disk
from microsandbox_core.errors import BootFailed, CoreError, StorageError
from microsandbox_core.kernel import Kernel, ensure_kernel
from microsandbox_core.templates import Template, Templates, basis_of
from microsandbox_core.upper import create_upper
from microsandbox_core.vmm import Isolation, Vm, Vmm, VmSpec, choose, device, start, start_mounted

from microsandbox import _life
from microsandbox._config import MountConfig, NetworkConfig
from microsandbox._directory import SandboxDirectory
from microsandbox._launch import MESSAGE_LIMIT, Launch
from microsandbox._life import Cause, Status
from microsandbox._machine import IMAGE_DISK, UPPER_DISK, machine, root
from microsandbox.errors import MicrosandboxError, StateError
from microsandbox.supervisor._console import Console

if TYPE_CHECKING:
    from microsandbox_core.channel import Control
    from microsandbox_core.relay import Answer
    from microsandbox_core.relay_server import Timer
    from microsandbox_fs import Device

    from microsandbox.supervisor._disks import Disks
    from microsandbox.supervisor._exec_log import ExecLog
    from microsandbox.supervisor._host_limits import HostGroup
    from microsandbox.supervisor._shares import Shares
    from microsandbox.supervisor._standstill import Standstill
    from microsandbox.supervisor.network import SandboxNetwork

BOOT_DEADLINE = 60.0
"""Seconds from the VMM's start to agentd's answer. Emulated on a busy machine, a boot may take ten."""

TEMPLATE_DEADLINE = 20.0
"""Seconds for the same from a template, which takes a thirtieth of a boot; then the kernel is booted."""

CONFIGURE_DEADLINE = 30.0
CLONE_DEADLINE = 600.0
HEARTBEAT_INTERVAL = 10.0
"""Seconds between two questions to agentd. A guest that hangs tells nobody."""

HEARTBEAT_DEADLINE = 30.0
"""Seconds for an answer: far more than agentd needs on any machine that is of use."""

HALT_DEADLINE = 1.0
"""Seconds for the answer of a guest whose kernel has said that it halts."""

_HALT_TIME = 0.2  # seconds that a kernel takes from these words to the end

_PATIENCE = 5  # times that an agent which is busy may be late by as much again

_IDLE = 0.005  # seconds after which a request is on its way

_NOTE_AGAIN = 1.0  # seconds after which a record is tried again that could not be written
_ROOM = 4 << 20  # bytes below which a file system is as good as full
_REASON_LIMIT = 1000  # characters of it that are kept
_CONSOLE_LIMIT = 4096  # characters of the console's end that are kept of a start that failed

STOP_GRACE = 10.0
"""Seconds that the processes of a sandbox get to end by themselves when one of its limits is reached."""

_STOP_TIME = STOP_GRACE + 5.0  # seconds after which a guest that does not switch off is killed

_SWITCH_OFF_TIME = 2.0  # seconds between a guest's last word and its VMM's end


def read_launch(packed: bytes) -> Launch:
    """The configuration as the creator packed it."""
    values = msgpack.unpackb(packed, unicode_errors="surrogateescape")
    return Launch(**values)


class _TemplateLost(Exception):
    """The VM started from a template does not answer."""


class _ToldToEnd(BaseException):
    """A signal before there is a loop that hears of it; its number."""


_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1)
"""All end the sandbox at once; SIGUSR1 says that it makes room for another one."""


class Supervision:
    """One sandbox's life. `run` returns the process's exit code."""

    def __init__(self, launch: Launch) -> None:
        self._launch = launch
        # Inherited descriptors are open across exec(); the VMM must not get any of them.
        for descriptor in (launch.lock, launch.lifeline, launch.image_pin, launch.client):
            os.set_inheritable(descriptor, False)
        self._creator: socket.socket | None = socket.socket(fileno=launch.client)
        self._lifeline = socket.socket(fileno=launch.lifeline)
        self._lifeline.setblocking(False)
        self._home = Path(launch.home)
        self._directory = SandboxDirectory(self._home, launch.identifier)
        self._console = Console(self._directory.console_log)
        self._timings: dict[str, float] = {}
        self._began = time.monotonic()
        self._ready = False
        # Why it has been asked to stop.
        self._asked: tuple[Cause, str] | None = None
        # What is noted when nothing else was seen.
        self._status = Status.CRASHED
        self._cause = Cause.SUPERVISOR_DIED
        self._reason = "the supervisor failed"
        self._vmm_exit: int | None = None
        self._life = _life.begun()._replace(
            pid=os.getpid(),
            ticks=_life.started_at(os.getpid()),
            cpus=launch.cpus,
            memory_mib=launch.memory_mib,
        )
        self._log: ExecLog | None = None
        self._answered: Vm | None = None
        self._vm: Vm | None = None
        self._cold = ""
        self._mounting = ""
        self._fresh_upper = False
        self._patched = self._directory.patches.exists()
        self._host_group: HostGroup | None = None
        self._basis = ""
        self._network: SandboxNetwork | None = None
        self._mounts = [MountConfig.from_plain(mount) for mount in launch.mounts]
        self._shares: Shares | None = None
        self._devices: Mapping[str, Device] = {}
        self._disks: Disks | None = None
        self._standstill: Standstill | None = None
        self._silence: Timer | None = None
        # Whether its kernel has said that it halts, and agentd has been asked.
        self._doubted = False

    # ------------------------------------------------------------------------------------------- life

    def run(self) -> int:
        """Start the VM, serve it, end it."""
        try:
            _hear_at_once()
            self._note(Status.STARTING)
            self._vm = self._start_vm(cold=self._launch.cold)
            try:
                self._serve(self._vm)
            except _TemplateLost as lost:
                _hear_at_once()
                self._vm = self._start_without(self._vm, lost)
                self._serve(self._vm)
        except _ToldToEnd as told:
            self._end_as_told(int(told.args[0]))
        except (CoreError, MicrosandboxError) as error:
            self._fail(error)
        except OSError as error:
            self._fail(CoreError(f"the supervisor failed: {error}", code="supervisor"))
        finally:
            self._finish()
        return 0

    def _start_without(self, vm: Vm, lost: _TemplateLost) -> Vm:
        """Give up a template that gave a VM which does not answer, and boot."""
        self._drain_console()
        vm.kill()
        vm.reap()
        if self._network is not None:
            self._network.stop()
            self._network = None
        if vm.template is not None:
            Templates(self._home).remove(vm.template)
        if self._fresh_upper:
            # It may be a copy of the template's, and nothing of anybody's is in it.
            self._directory.upper.unlink(missing_ok=True)
        booted = self._start_vm(cold=True)
        self._cold = f"the template was given up: {lost}"
        return booted

    def _start_vm(self, *, cold: bool) -> Vm:
        launch = self._launch
        shares: tuple[str, ...] = ()
        if self._mounts:
            from microsandbox.supervisor._shares import check_sources, tags

            check_sources(self._mounts)
            shares = tags(self._mounts)
        if self._disks is None and any(mount.kind != "bind" for mount in self._mounts):
            from microsandbox.supervisor._disks import Disks

            self._disks = Disks(launch, self._mounts)
        kernel_path = env.path(env.MSB_KERNEL)
        kernel = ensure_kernel(self._home, kernel=kernel_path)
        boot_disk = ensure_boot_disk(self._home)
        driver = choose(self._home, kernel, boot_disk, name=launch.vmm, require_kvm=launch.require_kvm)
        self._mark("prepare")
        upper = self._directory.upper
        if self._patched:
            # Of a creation that was cut off: nobody has been in it yet, and half of the patches may be.
            upper.unlink(missing_ok=True)
        spec = machine(
            kernel,
            boot_disk,
            Path(launch.image_disk),
            upper,
            scratch=launch.ephemeral,
            cpus=launch.cpus,
            memory_mib=launch.memory_mib,
            more=self._disks.attached() if self._disks is not None else (),
            shares=shares,
        )
        # What a machine and a copy of it have in common, and a later installation may not.
        self._basis = basis_of(kernel.digest, boot_disk.digest, driver.binary)
        vm = None
        if launch.fork_token:
            vm = self._start_fork(driver, spec)
        elif not upper.exists():
            self._fresh_upper = True
            if launch.root_disk is not None:
                # A template has an upper of the usual size.
                self._mounting = "its root disk has a size of its own"
                create_upper(self._home, upper, size=launch.root_disk)
            elif not cold:
                vm = self._start_mounted(driver, spec, kernel, boot_disk)
            if vm is None and launch.root_disk is None:
                create_upper(self._home, upper)
        else:
            self._mounting = "the sandbox has an upper of its own already"
        self._mark("upper")
        if vm is None:
            vm = start(
                self._home, driver, spec, kernel, boot_disk,
                cold=cold, note=self._note_cold, phase=self._tell_phase,
            )  # fmt: skip
        if vm.shares:
            from microsandbox.supervisor._shares import devices

            # QEMU waits for them before the guest's first instruction.
            self._devices = devices(vm)
        self._mark("spawn")
        # What the sandbox really gets, for everyone who asks later: the choice may differ at the next start.
        self._life = self._life._replace(isolation=str(vm.isolation), vmm_pid=vm.pid)
        return vm

    def _start_fork(self, driver: Vmm, spec: VmSpec) -> Vm:
        if self._launch.fork_basis != self._basis:
            raise CoreError(
                "the sandbox that was forked runs an older kernel, agent or QEMU than those installed now",
                hint="restart that sandbox, then fork it",
                code="fork_basis",
            )
        found = [
            os.open(self._directory.fork / name, os.O_RDONLY | os.O_CLOEXEC) for name in ("memory", "state")
        ]
        try:
            return driver.start_saved(spec, Template("fork", *found))
        finally:
            for descriptor in found:
                os.close(descriptor)

    def _start_mounted(self, driver: Vmm, spec: VmSpec, kernel: Kernel, boot_disk: BootDisk) -> Vm | None:
        found = start_mounted(self._home, driver, spec, root(), kernel, boot_disk, phase=self._tell_phase)
        if isinstance(found, str):
            self._mounting = found
            return None
        return found

    def _serve(self, vm: Vm) -> None:
        # Imported while the guest boots.
        from microsandbox_core.relay import Relay
        from microsandbox_core.relay_server import RelayServer
        from microsandbox_core.unix_socket import listen_unix

        self._directory.socket.unlink(missing_ok=True)  # of an earlier life; the lock is ours
        listener = listen_unix(self._directory.socket)
        relay = Relay(
            name="supervisor",
            # Whoever can reach the socket is the user who owns the sandbox, and may stop it.
            privileged_methods=frozenset({"configure", "mount", "patch", "init", "hold", "network"}),
            on_ready=lambda hello: self._configure(),
            on_request=self._on_request,
        )
        relay.on_last = self._on_last
        relay.on_main_end = self._on_main_end
        if self._launch.fork_token:
            from microsandbox.supervisor._standstill import COPY, release

            vm.agent.sendall(release(self._launch.fork_token, COPY))
        self._server = RelayServer(relay, vm.agent, listener)
        self._relay = relay
        if self._creator is not None:
            # If this guest has to be given up its creator connects to the next one by itself.
            self._server.add_client(self._creator)
            self._creator = None
        # Before anybody can ask: the guest would get the question.
        relay.methods["network.metrics"] = self._count_network
        self._start_network(vm)
        if self._launch.logged:
            from microsandbox.supervisor._exec_log import open_log

            self._log = open_log(self._server, self._directory.logs)
        self._server.watch(self._lifeline.fileno(), self._on_lifeline)
        self._server.watch(vm.console.fileno(), self._on_console)
        self._server.watch(vm.pidfd, self._on_vm_end)
        wakeup, self._signalled = socket.socketpair()
        wakeup.setblocking(False)
        self._signalled.setblocking(False)
        signal.set_wakeup_fd(wakeup.fileno(), warn_on_full_buffer=False)
        for number in _SIGNALS:
            signal.signal(number, lambda *_: None)
        self._server.watch(self._signalled.fileno(), self._on_signal)
        seconds = BOOT_DEADLINE if vm.template is None else TEMPLATE_DEADLINE
        self._deadline = self._server.call_later(
            seconds, lambda: self._no_answer(vm, f"agentd did not answer within {seconds:.0f} s")
        )
        self._mark("serve")
        lost = self._server.run()
        if lost is not None and self._answered is not vm:
            self._no_answer(vm, f"the guest ended before it was ready ({lost})")
        if lost is not None and not self._ready:
            raise self._boot_failed("boot", f"the guest ended before it was ready ({lost})")
        if lost is not None:
            self._await_end(vm, lost)

    def _start_network(self, vm: Vm) -> None:
        """Have somebody at the other end of the network card, if anything may pass there."""
        config = NetworkConfig.unpack(self._launch.network)
        if config.is_open:
            # Else it is kept for a policy that is: the link is down until then.
            self._open_network(vm, vm.network, config)

    def _open_network(self, vm: Vm, link: socket.socket, config: NetworkConfig) -> SandboxNetwork:
        from microsandbox.supervisor.network import SandboxNetwork

        log = self._directory.network_log
        emulated = vm.isolation is Isolation.EMULATED
        self._network = SandboxNetwork(config, self._launch.identifier, link, log, emulated=emulated)
        self._network.serve(self._server, self._lose_network)
        # What was denied to a command is on record when its end is known.
        self._relay.before_exec_end = self._network.settle
        return self._network

    def _give_up_network(self) -> None:
        """One that was opened late, and that the guest did not get."""
        assert self._network is not None
        self._relay.before_exec_end = lambda: None
        self._cut_network()
        self._network.leave_loop()
        self._network.stop()
        self._network = None

    def _lose_network(self, reason: str) -> None:
        """The sandbox goes on without: nothing passes any more, and whoever runs a command hears why."""
        assert self._vm is not None
        told = f"the sandbox {self._launch.name!r} has lost its network: {reason}"
        self._relay.broken = {
            "kind": "network_lost",
            "message": told,
            "hint": f"restart it: msb restart {self._launch.name}",
        }
        sys.stderr.write(f"{told}\n")
        self._cut_network()
        if self._log is not None:
            self._log.event("network_lost", told, details={"reason": reason})

    def _cut_network(self) -> None:
        """Let the guest see that nobody is at the other end of its card."""
        assert self._vm is not None
        try:
            self._vm.cut_network()
        except CoreError as error:
            sys.stderr.write(f"the network card could not be told: {error}\n")

    def _update_network(self, params: dict[str, Any], answer: Answer) -> None:
        packed = params.get("network")
        try:
            config = NetworkConfig.unpack(packed if isinstance(packed, bytes) else b"")
        except (ValueError, TypeError, AttributeError):
            answer({"error": {"kind": "invalid_request", "message": "`network` is not a packed network"}})
            return
        if self._network is None and not config.is_open:
            return answer({})
        try:
            if self._network is None:
                self._join_network(config, answer)
            else:
                self._network.set(config)
                answer({})
        except MicrosandboxError as error:
            answer({"error": {"kind": error.code, "message": str(error), "hint": error.hint or ""}})

    def _join_network(self, config: NetworkConfig, answer: Answer) -> None:
        from microsandbox.supervisor._late_network import join

        assert self._vm is not None
        if self._is_paused():
            raise StateError(
                f"the sandbox {self._launch.name!r} is paused, and has no network yet",
                hint=f"resume it first: msb resume {self._launch.name}",
            )
        without = f"it goes on without a network; restart it, then try again: msb restart {self._launch.name}"
        if self._vm.network.fileno() < 0:
            raise StateError(
                f"the sandbox {self._launch.name!r} has failed to get a network before", hint=without
            )
        network = self._open_network(self._vm, self._vm.network.dup(), config)
        # With a stack that ends the link is gone.
        self._vm.network.close()
        join(self._vm, self._relay, network, answer, self._give_up_network, without)

    def _count_network(self, _params: dict[str, Any], answer: Answer) -> None:
        answer({} if self._network is None else {**self._network.metrics()})

    def _await_end(self, vm: Vm, lost: Exception) -> None:
        """The guest let go of its port: normally because it is switching off, which takes a moment."""
        by_itself = bool(select.select([vm.pidfd], [], [], _SWITCH_OFF_TIME)[0])
        vm.kill()
        code = self._vmm_exit = vm.reap()
        self._drain_console()
        if code != 0 and (by_itself or self._asked is None):
            self._end(Cause.VMM_DIED, f"the VMM ended {_told(code)} ({lost})")
        elif self._asked is not None:
            self._end(*self._asked)
        else:
            self._end(Cause.GUEST, "the guest switched itself off")

    # --------------------------------------------------------------------------------------- the start

    def _configure(self) -> None:
        assert self._vm is not None
        self._answered = self._vm
        self._mark("boot" if self._vm.template is None else "restore")
        self._deadline.cancel()
        # A clone's directory is copied meanwhile.
        limit = CLONE_DEADLINE if any(mount.mode == "clone" for mount in self._mounts) else CONFIGURE_DEADLINE
        self._deadline = self._server.call_later(
            limit,
            lambda: self._give_up("configure", f"agentd was not done within {limit:.0f} s"),
        )
        request: dict[str, Any] = {
            "entropy": os.urandom(256),
            "time_ns": time.time_ns(),
            "hostname": self._launch.hostname,
            "machine_id": os.urandom(16).hex(),
            "image": {"device": device(IMAGE_DISK), "fstype": "erofs"},
            "upper": {"device": device(UPPER_DISK), "fstype": "ext4"},
            "hosts": [],
            "resolv_conf": None,
            **self._launch.guest,
            "security": self._launch.security,
        }
        if self._mounts:
            from microsandbox.supervisor._shares import Shares

            shared = [mount for mount in self._mounts if mount.kind != "disk"]
            self._shares = Shares(self._vm, shared, self._launch.user, self._directory.path, self._devices)
            disks = [] if self._disks is None else self._disks.parameters(self._launch.security)
            request["mounts"] = [*self._shares.parameters(), *disks]
        if self._network is not None:
            request["network"] = self._network.parameters()
        else:
            self._server.call_later(_IDLE, self._cut_network)
        self._relay.open("configure", request, self._on_configured)
        self._server.call_later(_IDLE, self._limit_on_host)
        if self._launch.ephemeral:
            # While the guest works; not at once, because the request is sent when this has returned.
            self._server.call_later(_IDLE, _import_for_the_end)

    def _limit_on_host(self) -> None:
        from microsandbox.supervisor._host_limits import HostGroup

        assert self._vm is not None
        self._host_group = HostGroup(self._directory, self._launch, self._vm)

    def _on_configured(self, event: Any) -> None:
        from microsandbox_core.channel import Ended, Failed

        if isinstance(event, Failed):
            return  # the server's run() ends with the reason
        if not isinstance(event, Ended):
            return
        self._deadline.cancel()
        error = event.body.get("error")
        if error is not None:
            told = error if isinstance(error, dict) else {}
            stage, message = str(told.get("stage")), str(told.get("message"))
            self._give_up("configure", f"agentd could not set the sandbox up: {stage}: {message}")
        self._mark("configure")
        timings = event.body.get("timings")
        # In a fork its init runs already.
        if not self._patched and (self._launch.init is None or self._launch.fork_token):
            self._be_ready(timings)
            return
        from microsandbox.supervisor._furnish import furnish

        furnish(
            self._server,
            self._relay,
            self._directory.patches if self._patched else None,
            self._launch.init,
            lambda: self._be_ready(timings),
            self._boot_failed,
        )

    def _be_ready(self, timings: object) -> None:
        """All that comes before the first command is done."""
        self._ready = True
        assert self._vm is not None
        if not self._note(Status.RUNNING):
            if _life.read(self._directory) is not None:
                # It would be taken for one that is starting.
                raise StateError(
                    f"cannot note in {self._directory.path} that the sandbox runs",
                    hint="check the disk that MSB_HOME is on, or set MSB_HOME to a directory on another one",
                )
            self._server.call_later(_NOTE_AGAIN, self._note_again)
        if self._launch.fork_token:
            self._forget_fork()
        self._say(
            {
                "t": "ready",
                "isolation": str(self._vm.isolation),
                "cold": self._cold,
                "mounting": self._mounting,
                "timings": self._timings,
                "agent": timings if isinstance(timings, dict) else {},
                "vmm_pid": self._vm.pid,
            }
        )
        self._server.call_later(HEARTBEAT_INTERVAL, self._beat)
        for method in ("pause", "resume", "fork"):
            self._relay.methods[method] = self._served(method)
        self._relay.methods["network.update"] = self._update_network
        if self._vm.monitor is not None:
            self._server.watch(self._vm.monitor, self._on_monitor)
        launch = self._launch
        if self._log is not None:
            self._relay.observer = self._log
            isolation = str(self._vm.isolation)
            self._log.event("start", f"started ({isolation})", details={"isolation": isolation})
        if launch.max_duration is not None or launch.idle_timeout is not None:
            from microsandbox.supervisor._limits import watch_limits

            watch_limits(
                self._server, self._relay, launch.max_duration, launch.idle_timeout, self._reach_limit,
                self._is_paused,
            )  # fmt: skip
        # Last of all: what clients have asked for before this is sent to the guest, and is to be on record.
        self._relay.configured = True

    def _forget_fork(self) -> None:
        """It has become what it was to be: what it was started from is mapped, and nobody else's."""
        from microsandbox_core.artifacts import remove

        try:
            remove(self._directory.fork)
        except OSError as error:
            raise StorageError.from_os("remove", self._directory.fork, error) from error

    def _served(self, method: str) -> Callable[[dict[str, Any], Callable[[dict[str, Any]], None]], None]:
        return lambda params, answer: self._standing().serve(method, params, answer)

    def _standing(self) -> Standstill:
        if self._standstill is None:
            # Most sandboxes are neither paused nor forked.
            from microsandbox.supervisor._standstill import Standstill

            assert self._vm is not None
            self._standstill = Standstill(
                self._server,
                self._relay,
                self._vm,
                self._directory,
                name=self._launch.name,
                basis=self._basis,
                is_stopping=lambda: self._asked is not None,
                note=lambda paused: self._note(Status.PAUSED if paused else Status.RUNNING),
            )
        return self._standstill

    def _is_paused(self) -> bool:
        return self._standstill is not None and self._standstill.paused

    def _reach_limit(self, cause: Cause, reason: str) -> None:
        """Stop as `msb stop` does, and say why to whoever asks."""
        from microsandbox_core.channel import ChannelError

        def cut_off() -> None:
            self._end(cause, reason)
            self._server.stop()

        if self._asked is not None:
            # It is being stopped. Whoever asked for that may have given it longer than it may run.
            if cause is Cause.MAX_DURATION:
                self._server.call_later(_STOP_TIME, cut_off)
            return
        # Before the guest hears of it: a creator that sees its command end finds the reason there.
        if self._standstill is not None:
            self._standstill.wake()
        self._say({"t": "stopping", "cause": str(cause), "reason": reason})
        self._stop_for(cause, reason)
        self._server.call_later(_STOP_TIME, cut_off)
        try:
            self._relay.open("shutdown", {"grace_ms": round(STOP_GRACE * 1000)}, lambda _event: None)
        except ChannelError:
            cut_off()  # clients use every stream there is, or the guest is going anyway

    def _on_last(self, event: Any) -> None:
        """The command that the sandbox is there for."""
        from microsandbox_core.channel import Ended

        if not isinstance(event, Ended):
            return
        code, number = event.body.get("code"), event.body.get("signal")
        reason = "its command ended " + (f"with code {code!s}" if number is None else f"by signal {number!s}")
        if self._launch.ephemeral and not (self._disks is not None and self._disks.written):
            self._end(Cause.COMMAND_ENDED, reason)
            # Whoever has joined it hears the end of it.
            self._server.stop_when_sent()
        else:
            self._reach_limit(Cause.COMMAND_ENDED, reason)

    def _on_main_end(self, body: Control) -> None:
        """Before its client hears of it: what is then asked of the sandbox has the answer."""
        code = _life.exit_code_of(
            body.get("code"), body.get("signal"), timed_out=body.get("timed_out") is True
        )
        self._life = self._life._replace(exit_code=code)
        if not self._launch.ephemeral:
            # Not only at the end: it may not end with its command, and may end without a word.
            _life.write(self._directory, self._life)

    def _beat(self) -> None:
        """Ask agentd whether it is there; when it does not say so, the sandbox is over (A02)."""
        from microsandbox_core.channel import Ended, StreamClosed, TooManyStreams

        def answered(event: Any) -> None:
            if isinstance(event, Ended):
                self._keep_silent()
                self._server.call_later(HEARTBEAT_INTERVAL, self._beat)

        if self._is_paused():
            self._server.call_later(HEARTBEAT_INTERVAL, self._beat)
            return
        patience = _PATIENCE

        def late() -> None:
            nonlocal patience
            # One that has a thousand other things to answer first says something all the time.
            if self._has_stood_still(since=time.monotonic() - HEARTBEAT_DEADLINE):
                # It was asked before a pause, and answers after it.
                self._silence = self._server.call_later(HEARTBEAT_DEADLINE, late)
            elif patience and time.monotonic() - self._server.heard < HEARTBEAT_INTERVAL:
                patience -= 1
                self._silence = self._server.call_later(HEARTBEAT_DEADLINE, late)
            else:
                self._lose()

        self._silence = self._server.call_later(HEARTBEAT_DEADLINE, late)
        try:
            # With the time, from which a guest strays that is emulated on a busy machine.
            self._relay.open("ping", {"time_ns": time.time_ns()}, answered)
        except TooManyStreams:
            # Clients use all there are: the next time will do.
            self._keep_silent()
            self._server.call_later(HEARTBEAT_INTERVAL, self._beat)
        except StreamClosed:
            self._keep_silent()  # the connection is over, which ends the loop

    def _ask_whether_halted(self) -> None:
        """The machine has no switch: a kernel that is told to switch off halts, and the VMM goes on.

        Its word alone is not enough, for anybody in the guest who can have something printed could end it.
        """
        from microsandbox_core.channel import ChannelError, Ended

        def answered(event: Any) -> None:
            if isinstance(event, Ended):
                self._doubted = False
                expiry.cancel()

        def expired() -> None:
            self._doubted = False
            if not self._has_stood_still(since=asked):
                self._end(*(self._asked or (Cause.GUEST, "the guest switched itself off")))
                self._server.stop()

        asked = time.monotonic()
        expiry = self._server.call_later(HALT_DEADLINE, expired)
        try:
            self._relay.open("ping", None, answered)
        except ChannelError:
            self._doubted = False  # there is no room for the question, or nobody left to ask
            expiry.cancel()

    def _has_stood_still(self, since: float) -> bool:
        """Whether it was paused at some time from `since` (`time.monotonic()`) on."""
        stood = self._standstill
        return stood is not None and (stood.paused or stood.awake_since > since)

    def _keep_silent(self) -> None:
        if self._silence is not None:
            self._silence.cancel()

    def _lose(self) -> None:
        reason = f"the guest did not answer for {HEARTBEAT_DEADLINE:.0f} s"
        if _is_full(self._directory.path):
            # QEMU stops the machine at a write that finds no room, so that nothing is half written.
            reason += f": there is no room for its disk, the file system of {self._home} is full"
        self._end(Cause.SILENT, reason)
        self._server.stop()

    def _no_answer(self, vm: Vm, message: str) -> None:
        if vm.template is not None and not self._launch.fork_token:
            raise _TemplateLost(message)
        self._give_up("boot", message)

    def _note_cold(self, reason: str) -> None:
        self._cold = reason

    def _tell_phase(self, phase: str) -> None:
        self._say({"t": "phase", "phase": phase})

    def _give_up(self, stage: str, message: str) -> None:
        raise self._boot_failed(stage, message)

    def _boot_failed(self, stage: str, message: str, hint: str | None = None) -> BootFailed:
        from microsandbox.supervisor._boot_failure import hint_for

        self._drain_console()
        console = self._console.tail()
        return BootFailed(
            f"the sandbox did not start: {message} (stage: {stage})",
            stage=stage,
            console=console,
            hint=hint or hint_for(stage, console),
        )

    # ----------------------------------------------------------------------------------------- events

    def _on_request(self, method: str) -> None:
        if method == "shutdown":
            self._stop_for(Cause.REQUESTED, "it was asked to stop")

    def _stop_for(self, cause: Cause, reason: str) -> None:
        """The guest is asked to stop; who asks first counts."""
        if self._asked is None:
            self._asked = (cause, reason)
            # Whose command ends by this finds the reason there.
            self._life = self._life._replace(cause=str(cause), reason=reason)
            self._note(Status.STOPPING)

    def _on_lifeline(self) -> None:
        try:
            message = self._lifeline.recv(MESSAGE_LIMIT)
        except BlockingIOError:
            return
        except OSError:
            message = b""
        if message:
            # The creator lets go of it; whatever else a later version may say is not understood here.
            if msgpack.unpackb(message).get("t") == "leave":
                self._launch = self._launch._replace(attached=False)
            return
        self._server.unwatch(self._lifeline.fileno())
        if self._launch.attached or not self._ready:
            # The creator is gone, or has what it wanted: nobody is left who could want this sandbox.
            self._end(Cause.CREATOR_GONE, "the program that it belonged to has ended")
            self._server.stop()

    def _on_console(self) -> None:
        assert self._vm is not None
        try:
            data = self._vm.console.recv(1 << 16, socket.MSG_DONTWAIT)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            self._server.unwatch(self._vm.console.fileno())
            return
        self._console.feed(data)
        if self._ready and not self._doubted and self._console.says_halted():
            self._doubted = True
            self._server.call_later(_HALT_TIME, self._ask_whether_halted)

    def _on_monitor(self) -> None:
        assert self._vm is not None
        assert self._vm.monitor is not None
        if not self._vm.hear():
            self._server.unwatch(self._vm.monitor)

    def _on_vm_end(self) -> None:
        assert self._vm is not None
        self._server.unwatch(self._vm.pidfd)
        # What the guest had still said is in the port's socket; the relay ends when that is read.

    def _on_signal(self) -> None:
        numbers = self._signalled.recv(4096)
        self._end_as_told(signal.SIGUSR1 if signal.SIGUSR1 in numbers else numbers[0])
        self._server.stop()

    def _drain_console(self) -> None:
        if self._vm is None:
            return
        while True:
            try:
                data = self._vm.console.recv(1 << 16, socket.MSG_DONTWAIT)
            except OSError:
                return
            if not data:
                return
            self._console.feed(data)

    # -------------------------------------------------------------------------------------- the end

    def _end_as_told(self, number: int) -> None:
        if number == signal.SIGUSR1:
            self._end(Cause.REPLACED, "it made room for a new sandbox of its name")
        elif self._asked is not None:
            self._end(Cause.KILLED, "it had not stopped in the time it was given")
        else:
            self._end(Cause.KILLED, "it was ended at once")

    def _end(self, cause: Cause, reason: str) -> None:
        """Remember why it ends; what was seen first counts."""
        if self._cause is not Cause.SUPERVISOR_DIED:
            return
        crashes = (Cause.START_FAILED, Cause.VMM_DIED, Cause.SILENT, Cause.SUPERVISOR_DIED)
        self._status = Status.CRASHED if cause in crashes else Status.STOPPED
        self._cause, self._reason = cause, reason

    def _note(self, status: Status) -> bool:
        """Write down how far this life has come; False when it could not be."""
        self._life = self._life._replace(status=str(status), since_ns=time.time_ns())
        return _life.write(self._directory, self._life)

    def _note_again(self) -> None:
        """When there was no room for the record: who looks knows that it runs, but not as what."""
        if not _life.write(self._directory, self._life, quiet=True):
            self._server.call_later(_NOTE_AGAIN, self._note_again)

    def _fail(self, error: CoreError | MicrosandboxError) -> None:
        # The creator that hears of it sends one.
        _hear_nothing()
        if self._vm is not None:
            self._drain_console()
        if self._ready:
            self._reason = str(error)
        else:
            self._end(Cause.START_FAILED, str(error))
            self._life = self._life._replace(
                stage=getattr(error, "stage", None),
                hint=None if error.hint is None else error.hint[:_REASON_LIMIT],
                console=getattr(error, "console", "")[-_CONSOLE_LIMIT:],
            )
        self._say(
            {
                "t": "failed",
                "kind": type(error).__name__,
                "message": str(error),
                "hint": error.hint,
                "code": error.code,
                "stage": getattr(error, "stage", None),
                "console": getattr(error, "console", ""),
            }
        )

    def _finish(self) -> None:
        _hear_nothing()
        if self._vm is not None:
            self._vm.kill()
        if self._launch.ephemeral:
            # While the VMM dies. A directory without a record goes when its lock is free, and the upper's
            # blocks are freed when the VMM lets go of it: 20 ms while the host's disk is busy.
            try:
                self._directory.upper.unlink(missing_ok=True)
            except OSError:
                pass  # the directory cannot be removed either, which is told there
            self._forget_record()
        if self._vm is not None:
            self._vm.reap()
        if self._shares is not None:
            self._shares.join()
        if self._network is not None:
            if self._launch.ephemeral:
                self._network.leave()
            else:
                self._network.stop()
        if self._log is not None:
            details = {"cause": str(self._cause), "reason": self._reason}
            self._log.event("stop", f"ended: {self._reason}", details=details)
            self._log.close()
        self._directory.socket.unlink(missing_ok=True)
        if self._host_group is not None:
            self._host_group.release()
        if self._launch.ephemeral:
            self._forget_directory()
        else:
            self._life = self._life._replace(
                cause=str(self._cause), reason=self._reason[:_REASON_LIMIT], vmm_exit=self._vmm_exit
            )
            self._note(self._status)
        self._say({"t": "ended", "cause": str(self._cause), "reason": self._reason})
        # The lock and the pin on the image go with the process.

    def _forget_record(self) -> None:
        from microsandbox._state import State

        try:
            state = State(self._home)
            state.remove(self._launch.identifier)
            state.close()
        except MicrosandboxError as error:
            # The next command that looks removes it; here nobody may be left to read this.
            sys.stderr.write(f"could not remove the record of {self._launch.identifier}: {error}\n")

    def _forget_directory(self) -> None:
        try:
            self._directory.remove()
        except MicrosandboxError as error:
            sys.stderr.write(f"could not clean up {self._directory.path}: {error}\n")

    def _say(self, message: dict[str, Any]) -> None:
        try:
            self._lifeline.send(msgpack.packb(message, unicode_errors="surrogateescape"))
        except OSError:
            pass  # the creator is gone; the lock says what there is to say

    def _mark(self, step: str) -> None:
        """Note how many milliseconds have passed since the supervisor began."""
        self._timings[step] = round((time.monotonic() - self._began) * 1000, 2)


def _hear_at_once() -> None:
    """Until there is a loop: a signal ends what is being done, and the sandbox."""
    signal.set_wakeup_fd(-1)

    def told(number: int, _frame: object) -> NoReturn:
        _hear_nothing()
        raise _ToldToEnd(number)

    for number in _SIGNALS:
        signal.signal(number, told)


def _hear_nothing() -> None:
    """From now on it ends anyway, and nothing may disturb that."""
    for number in _SIGNALS:
        signal.signal(number, signal.SIG_IGN)


def _import_for_the_end() -> None:
    import sqlite3  # noqa: F401 - what an end would have to wait for


def _is_full(path: Path) -> bool:
    try:
        found = os.statvfs(path)
    except OSError:
        return False
    return found.f_bavail * found.f_frsize < _ROOM


def _told(code: int) -> str:
    return f"by signal {-code}" if code < 0 else f"with exit code {code}"

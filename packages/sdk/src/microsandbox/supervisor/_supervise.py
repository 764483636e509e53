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
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import msgpack
from microsandbox_core import env
from microsandbox_core.bootdisk import BootDisk, ensure_boot_disk
from microsandbox_core.errors import BootFailed, CoreError
from microsandbox_core.kernel import Kernel, ensure_kernel
from microsandbox_core.templates import Templates
from microsandbox_core.upper import create_upper
from microsandbox_core.vmm import Vm, Vmm, VmSpec, choose, device, start, start_mounted

from microsandbox import _life
from microsandbox._directory import SandboxDirectory
from microsandbox._launch import MESSAGE_LIMIT, Launch
from microsandbox._life import Cause, Status
from microsandbox._machine import IMAGE_DISK, UPPER_DISK, machine, root
from microsandbox.errors import MicrosandboxError
from microsandbox.supervisor._console import Console

if TYPE_CHECKING:
    from microsandbox.supervisor._exec_log import ExecLog

BOOT_DEADLINE = 60.0
"""Seconds from the VMM's start to agentd's answer. Emulated on a busy machine, a boot may take ten."""

TEMPLATE_DEADLINE = 20.0
"""Seconds for the same from a template, which takes a thirtieth of a boot; then the kernel is booted."""

CONFIGURE_DEADLINE = 30.0
HEARTBEAT_INTERVAL = 10.0
"""Seconds between two questions to agentd. A guest that halts its processors tells nobody."""

HEARTBEAT_DEADLINE = 30.0
"""Seconds for an answer: far more than agentd needs on any machine that is of use."""

_IDLE = 0.005  # seconds after which a request is on its way

_REASON_LIMIT = 1000  # characters of it that are kept

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
        for descriptor in (launch.lock, launch.lifeline, launch.image_pin):
            os.set_inheritable(descriptor, False)
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
        self._life = _life.begun()._replace(pid=os.getpid(), ticks=_life.started_at(os.getpid()))
        self._log: ExecLog | None = None
        self._answered: Vm | None = None
        self._vm: Vm | None = None
        self._cold = ""
        self._mounting = ""
        self._fresh_upper = False

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
        kernel_path = env.path(env.MSB_KERNEL)
        kernel = ensure_kernel(self._home, kernel=kernel_path)
        boot_disk = ensure_boot_disk(self._home)
        driver = choose(self._home, kernel, boot_disk, name=launch.vmm, require_kvm=launch.require_kvm)
        self._mark("prepare")
        upper = self._directory.upper
        spec = machine(
            kernel,
            boot_disk,
            Path(launch.image_disk),
            upper,
            scratch=launch.ephemeral,
            cpus=launch.cpus,
            memory_mib=launch.memory_mib,
        )
        vm = None
        if not upper.exists():
            self._fresh_upper = True
            if not cold:
                vm = self._start_mounted(driver, spec, kernel, boot_disk)
            if vm is None:
                create_upper(self._home, upper)
        else:
            self._mounting = "the sandbox has an upper of its own already"
        self._mark("upper")
        if vm is None:
            vm = start(self._home, driver, spec, kernel, boot_disk, cold=cold, note=self._note_cold)
        self._mark("spawn")
        # What the sandbox really gets, for everyone who asks later: the choice may differ at the next start.
        self._life = self._life._replace(isolation=str(vm.isolation), vmm_pid=vm.pid)
        return vm

    def _start_mounted(self, driver: Vmm, spec: VmSpec, kernel: Kernel, boot_disk: BootDisk) -> Vm | None:
        found = start_mounted(self._home, driver, spec, root(), kernel, boot_disk)
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
            privileged_methods=frozenset({"configure", "mount"}),
            on_ready=lambda hello: self._configure(),
            on_request=self._on_request,
        )
        self._server = RelayServer(relay, vm.agent, listener)
        self._relay = relay
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
        self._vm.started()
        self._answered = self._vm
        self._mark("boot" if self._vm.template is None else "restore")
        self._deadline.cancel()
        self._deadline = self._server.call_later(
            CONFIGURE_DEADLINE,
            lambda: self._give_up("configure", f"agentd was not done within {CONFIGURE_DEADLINE:.0f} s"),
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
        }
        self._relay.open("configure", request, self._on_configured)
        if self._launch.ephemeral:
            # While the guest works; not at once, because the request is sent when this has returned.
            self._server.call_later(_IDLE, _import_for_the_end)

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
        self._relay.configured = True
        self._ready = True
        timings = event.body.get("timings")
        assert self._vm is not None
        self._note(Status.RUNNING)
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
        launch = self._launch
        if self._log is not None:
            # A command that was asked for before this has been refused.
            self._relay.observer = self._log
            isolation = str(self._vm.isolation)
            self._log.event("start", f"started ({isolation})", details={"isolation": isolation})
        if launch.max_duration is not None or launch.idle_timeout is not None:
            from microsandbox.supervisor._limits import watch_limits

            watch_limits(
                self._server, self._relay, launch.max_duration, launch.idle_timeout, self._reach_limit
            )

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
        self._say({"t": "stopping", "cause": str(cause), "reason": reason})
        self._stop_for(cause, reason)
        self._server.call_later(_STOP_TIME, cut_off)
        try:
            self._relay.open("shutdown", {"grace_ms": round(STOP_GRACE * 1000)}, lambda _event: None)
        except ChannelError:
            cut_off()  # clients use every stream there is, or the guest is going anyway

    def _beat(self) -> None:
        """Ask agentd whether it is there; when it does not say so, the sandbox is over (A02)."""
        from microsandbox_core.channel import Ended, StreamClosed, TooManyStreams

        def answered(event: Any) -> None:
            if isinstance(event, Ended):
                deadline.cancel()
                self._server.call_later(HEARTBEAT_INTERVAL, self._beat)

        deadline = self._server.call_later(HEARTBEAT_DEADLINE, self._lose)
        try:
            # With the time, from which a guest strays that is emulated on a busy machine.
            self._relay.open("ping", {"time_ns": time.time_ns()}, answered)
        except TooManyStreams:
            # Clients use all there are: the next time will do.
            deadline.cancel()
            self._server.call_later(HEARTBEAT_INTERVAL, self._beat)
        except StreamClosed:
            deadline.cancel()  # the connection is over, which ends the loop

    def _lose(self) -> None:
        self._end(Cause.SILENT, f"the guest did not answer for {HEARTBEAT_DEADLINE:.0f} s")
        self._server.stop()

    def _no_answer(self, vm: Vm, message: str) -> None:
        if vm.template is not None:
            raise _TemplateLost(message)
        self._give_up("boot", message)

    def _note_cold(self, reason: str) -> None:
        self._cold = reason

    def _give_up(self, stage: str, message: str) -> None:
        raise self._boot_failed(stage, message)

    def _boot_failed(self, stage: str, message: str) -> BootFailed:
        self._drain_console()
        return BootFailed(
            f"the sandbox did not start: {message}",
            stage=stage,
            console=self._console.tail(),
            hint="`msb doctor` checks this machine; with --log-level debug the console is shown",
        )

    # ----------------------------------------------------------------------------------------- events

    def _on_request(self, method: str) -> None:
        if method == "shutdown":
            self._stop_for(Cause.REQUESTED, "it was asked to stop")

    def _stop_for(self, cause: Cause, reason: str) -> None:
        """The guest is asked to stop; who asks first counts."""
        if self._asked is None:
            self._asked = (cause, reason)
            self._note(Status.STOPPING)

    def _on_lifeline(self) -> None:
        try:
            message = self._lifeline.recv(MESSAGE_LIMIT)
        except BlockingIOError:
            return
        except OSError:
            message = b""
        if message:
            return  # the creator has nothing to say yet; a later version may, and is not understood here
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
        if data:
            self._console.feed(data)
        else:
            self._server.unwatch(self._vm.console.fileno())

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

    def _note(self, status: Status) -> None:
        """Write down how far this life has come."""
        self._life = self._life._replace(status=str(status), since_ns=time.time_ns())
        _life.write(self._directory, self._life)

    def _fail(self, error: CoreError | MicrosandboxError) -> None:
        # The creator that hears of it sends one.
        _hear_nothing()
        if self._vm is not None:
            self._drain_console()
        if self._ready:
            self._reason = str(error)
        else:
            self._end(Cause.START_FAILED, str(error))
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
            # While the VMM dies. A directory without a record is removed when its lock is free.
            self._forget_record()
        if self._vm is not None:
            self._vm.reap()
        if self._log is not None:
            details = {"cause": str(self._cause), "reason": self._reason}
            self._log.event("stop", f"ended: {self._reason}", details=details)
            self._log.close()
        self._directory.socket.unlink(missing_ok=True)
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


def _told(code: int) -> str:
    return f"by signal {-code}" if code < 0 else f"with exit code {code}"

"""Pausing a sandbox, letting it go on, and forking it: what its clients ask of the supervisor itself.

Before the machine is stopped its agent is asked to hold: it freezes the workload and sends all that is under
way, so a copy of the machine has nothing of this connection in it. It goes on when it is told which of the
two it is, by bytes past the channel (docs/agent-channel.md). Requests are carried out one after the other.
Nobody but this process stops the machine, and nobody has to be there for it to go on.
"""

from __future__ import annotations

import _thread
import os
import re
import struct
from collections import deque
from collections.abc import Callable
from pathlib import Path
from time import monotonic, time_ns
from typing import Any, TypeVar

from microsandbox_core.errors import CoreError, MachineFailed
from microsandbox_core.relay import Answer, Relay
from microsandbox_core.relay_server import RelayServer
from microsandbox_core.vmm import DiskCopy, Vm
from microsandbox_core.vmm.saved import Capture, shares_blocks

from microsandbox._directory import SandboxDirectory
from microsandbox._machine import UPPER_DISK

HOLD_DEADLINE = 5.0
"""Seconds in which the agent has to hold. A machine whose agent does not can be paused, but not forked."""

_RELEASE_DEADLINE = 5.0  # seconds in which the port takes a few bytes

MIRRORED = 32 << 20
"""Bytes on an upper disk beyond which it is copied while it is in use."""

MIRROR_DEADLINE = 120.0
"""Seconds for that. A machine that goes on writing faster than that can be copied is not forked."""

_MIRROR_PAUSE = 0.02  # seconds between two looks at it

_MARGIN = 16 << 20  # bytes

ORIGINAL, COPY = 0, 1

_Result = TypeVar("_Result")


def release(token: bytes, role: int) -> bytes:
    """What ends the hold with this token, in the machine that was held or in the copy of it."""
    return token + struct.pack(">BQ", role, time_ns())


class Standstill:
    """Serves the methods `pause`, `resume` and `fork` of a sandbox that runs."""

    def __init__(
        self,
        server: RelayServer,
        relay: Relay,
        vm: Vm,
        directory: SandboxDirectory,
        *,
        name: str,
        basis: str,
        is_stopping: Callable[[], bool],
        note: Callable[[bool], object],
    ) -> None:
        """`basis`: what a machine must have in common with its copy. `note` is told of every change,
        whether it is paused now."""
        self._server = server
        self._relay = relay
        self._vm = vm
        self._directory = directory
        self._name = name
        self._basis = basis
        self._is_stopping = is_stopping
        self._note = note
        self._jobs: deque[Callable[[], None]] = deque()
        self._busy = False
        self._token: bytes | None = None
        self._held = False
        self._began = 0.0
        self._mirror: DiskCopy | None = None
        self._narrow: Callable[[], None] | None = None
        self.paused = False
        """Whether its processors stand still because somebody has asked for that."""
        self.awake_since = monotonic()
        """`time.monotonic()` when it last began to run."""
        relay.gate = self._refuse

    def serve(self, method: str, params: dict[str, Any], answer: Answer) -> None:
        """Carry out a request, when those before it are done."""
        jobs: dict[str, Callable[[], None]] = {
            "pause": lambda: self._pause(answer),
            "resume": lambda: self._resume(answer),
            "fork": lambda: self._fork(params, answer),
        }
        self._jobs.append(jobs[method])
        if not self._busy:
            self._next()

    def wake(self) -> None:
        """Let it go on if it is paused, because it has to do something: stop, for example."""
        if not self.paused:
            return
        try:
            self._go_on()
        except CoreError:
            pass  # whoever waits for what it has to do ends it when that does not come

    # ------------------------------------------------------------------------------------- requests

    def _refuse(self, method: str) -> dict[str, Any] | None:
        if not self.paused:
            return None
        if method == "shutdown":
            self.wake()
            return None
        return _error("paused", f"the sandbox {self._name!r} is paused", f"msb resume {self._name}")

    def _next(self) -> None:
        self._busy = bool(self._jobs)
        if self._busy:
            self._jobs.popleft()()

    def _done(self, answer: Answer, body: dict[str, Any]) -> None:
        if self._mirror is not None:
            self._mirror.give_up()
            self._mirror = None
        if self._narrow is not None:
            self._narrow()
            self._narrow = None
        answer(body)
        self._next()

    def _pause(self, answer: Answer) -> None:
        def stop() -> None:
            self._vm.pause()
            self.paused = True
            self._note(True)
            self._done(answer, {})

        if self.paused:
            self._done(answer, {})
        else:
            self._hold(answer, stop)

    def _resume(self, answer: Answer) -> None:
        if self.paused:
            try:
                self._go_on()
            except CoreError as error:
                self._fail(answer, error)
                return
        self._done(answer, {})

    def _go_on(self) -> None:
        self._vm.resume()
        self.paused = False
        self.awake_since = self._relay.active_at = monotonic()
        self._note(False)
        self._release()

    # ----------------------------------------------------------------------------------------- hold

    def _hold(
        self, answer: Answer, then: Callable[[], None], give_up: Callable[[], None] = lambda: None
    ) -> None:
        """Ask the agent to hold, and do `then`; or `give_up`, when it does not come to that."""
        from microsandbox_core.channel import ChannelError, Ended, Opened

        token = self._token = os.urandom(16)
        self._held = False
        self._began = monotonic()
        settled = False

        def refused(error: Any) -> None:
            nonlocal settled
            settled = True
            late.cancel()
            self._token = None
            give_up()
            self._done(answer, {"error": error})

        def go_on() -> None:
            nonlocal settled
            settled = True
            late.cancel()
            if self._is_stopping():
                self._release()
                give_up()
                self._done(answer, {"error": _error("stopping", "it is being stopped")})
            else:
                self._attempt(answer, then)

        def hear(event: Any) -> None:
            if isinstance(event, Opened):
                if self._token is not token:
                    # It was given up meanwhile.
                    self._let_go(token)
                    return
                self._held = True
            if settled:
                return
            if isinstance(event, Opened):
                go_on()
            elif isinstance(event, Ended):
                refused(event.body.get("error") or _error("internal", "the agent does not hold"))

        late = self._server.call_later(HOLD_DEADLINE, go_on)
        try:
            self._relay.open("hold", {"token": token}, hear)
        except ChannelError as error:
            refused(_error("busy", str(error)))

    def _attempt(self, answer: Answer, then: Callable[[], None]) -> None:
        try:
            then()
        except (CoreError, OSError) as error:
            if not self.paused:
                self._release()
            self._fail(answer, error)

    def _release(self) -> None:
        """Let the agent go on. One that does not hold yet has to say so before: until then a release might
        overtake the request, and would be taken for a part of the connection."""
        token, self._token = self._token, None
        if token is not None and self._held:
            self._let_go(token)

    def _let_go(self, token: bytes) -> None:
        try:
            self._server.send_past(release(token, ORIGINAL), _RELEASE_DEADLINE)
        except OSError:
            pass  # the guest takes nothing any more, which the heartbeat will find

    # ----------------------------------------------------------------------------------------- fork

    def _fork(self, params: dict[str, Any], answer: Answer) -> None:
        into = params.get("into")
        if not isinstance(into, str) or not re.fullmatch("[0-9a-f]{16}", into):
            self._done(answer, {"error": _error("invalid_request", "`into` is not the id of a sandbox")})
            return
        copy = SandboxDirectory(self._directory.path.parent.parent, into)

        def hold(capture: Capture) -> None:
            if self.paused:
                self._attempt(answer, lambda: self._copy(copy, capture, answer))
            else:
                self._hold(answer, lambda: self._copy(copy, capture, answer), capture.close)

        def go_on(capture: Capture | None, error: OSError | None) -> None:
            if capture is None:
                self._fail(answer, error)
            elif self._mirror is None:
                hold(capture)
            else:
                self._await_mirror(answer, capture, lambda: hold(capture))

        try:
            room = self._room(copy)
        except (CoreError, OSError) as error:
            self._fail(answer, error)
            return
        free = _available()
        if room > free // 4 * 3:
            told = f"that needs {room >> 20} MiB of host memory for a moment, and {free >> 20} MiB are free"
            hint = "stop it: a fork of what is stopped has its disk"
            self._done(answer, {"error": _error("no_memory", told, hint)})
            return
        try:
            self._widen(room)
        except OSError as error:
            self._fail(answer, error)
            return
        self._on_thread(lambda: Capture(room), go_on)

    def _room(self, copy: SandboxDirectory) -> int:
        """Bytes to make ready for a capture: a little more than there is, for what is written until then.

        A disk with much on it is copied while it is in use, and is no part of it.
        """
        found = self._directory.upper.stat()
        upper = found.st_blocks * 512
        if upper > MIRRORED and not shares_blocks(self._directory.upper, copy.upper):
            self._mirror = self._vm.copy_disk(UPPER_DISK, found.st_size, copy.upper)
            upper = 0
        return (self._vm.written() + upper) * 5 // 4 + _MARGIN

    def _widen(self, room: int) -> None:
        """Have so many bytes beside what the host allows the sandbox, until the request is done: its limit is
        for the guest, and a machine that uses all of that would be killed by a copy of it."""
        from microsandbox_core import cgroup

        group = self._directory.cgroup
        limit = None if group is None else cgroup.widen(group, room)
        if group is None or limit is None:
            return

        def narrow() -> None:
            try:
                cgroup.narrow(group, limit)
            except OSError:
                pass  # the group has gone, with all that it limited

        self._narrow = narrow

    def _await_mirror(self, answer: Answer, capture: Capture, then: Callable[[], None]) -> None:
        end = monotonic() + MIRROR_DEADLINE

        def look() -> None:
            assert self._mirror is not None
            try:
                if self._mirror.is_ready():
                    then()
                elif monotonic() > end:
                    raise MachineFailed("it writes to its disk faster than that can be copied")
                else:
                    self._server.call_later(_MIRROR_PAUSE, look)
            except CoreError as error:
                capture.close()
                self._fail(answer, error)

        look()

    def _copy(self, copy: SandboxDirectory, capture: Capture, answer: Answer) -> None:
        try:
            token, facts = self._capture(copy, capture)
        except BaseException:
            capture.close()
            raise

        def written(_: None, error: OSError | None) -> None:
            capture.close()
            if error is not None:
                self._fail(answer, error)
            else:
                self._done(answer, {"token": token, "basis": self._basis, **facts})

        self._on_thread(capture.write, written)

    def _capture(self, copy: SandboxDirectory, capture: Capture) -> tuple[bytes, dict[str, int]]:
        """Take everything of the machine; the token of the hold in the copy, and what it was."""
        token = self._token
        if token is None or not self._held:
            raise MachineFailed(f"the agent did not answer within {HOLD_DEADLINE:.0f} s")
        if self.paused:
            return token, {"pause_us": 0, **self._take(copy, capture)}
        try:
            self._vm.pause()
            facts = self._take(copy, capture)
        finally:
            self._vm.resume()
            self._release()
        return token, {"pause_us": round((monotonic() - self._began) * 1e6), **facts}

    def _take(self, copy: SandboxDirectory, capture: Capture) -> dict[str, int]:
        self._vm.save(copy.fork, capture)
        memory, upper = capture.size, 0
        if self._mirror is None:
            upper = capture.add_file(self._directory.upper, copy.upper)
        else:
            self._mirror.finish()
        return {"memory": memory, "upper": upper}

    def _on_thread(
        self, work: Callable[[], _Result], done: Callable[[_Result | None, OSError | None], None]
    ) -> None:
        """Do what takes long while everything goes on for the clients; `done` is called by the loop."""
        signal = os.eventfd(0, os.EFD_CLOEXEC)
        result: list[_Result] = []
        failure: list[OSError] = []

        def run() -> None:
            try:
                result.append(work())
            except OSError as error:
                failure.append(error)
            finally:
                os.eventfd_write(signal, 1)

        def finished() -> None:
            self._server.unwatch(signal)
            os.close(signal)
            done(result[0] if result else None, failure[0] if failure else None)

        self._server.watch(signal, finished)
        _thread.start_new_thread(run, ())

    # ------------------------------------------------------------------------------------------ rest

    def _fail(self, answer: Answer, error: CoreError | OSError | None) -> None:
        if isinstance(error, CoreError):
            told = _error(error.code, str(error), error.hint)
        elif error is None:
            told = _error("internal", "a thread of the supervisor failed")
        else:
            where = f"{Path(os.fsdecode(error.filename)).name}: " if error.filename else ""
            told = _error("storage", f"{where}{error.strerror}")
        self._done(answer, {"error": told})


def _available() -> int:
    """Bytes of memory that the host can give (proc_meminfo(5))."""
    found = re.search(rb"MemAvailable:\s+(\d+) kB", Path("/proc/meminfo").read_bytes())
    return int(found[1]) << 10 if found else 0


def _error(kind: str, message: str, hint: str | None = None) -> dict[str, Any]:
    return {"kind": kind, "message": message, **({"hint": hint} if hint else {})}

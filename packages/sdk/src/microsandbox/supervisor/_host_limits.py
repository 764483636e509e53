"""The control group of a sandbox's processes, from the supervisor's side; see `microsandbox_core.cgroup`.

`$MSB_HOME/sandboxes/<id>/cgroup` is a link to it, by which it is found when the supervisor was killed.
"""

from __future__ import annotations

import os
import sys
import threading

from microsandbox_core import cgroup, env
from microsandbox_core.vmm import Isolation, Vm

from microsandbox._directory import SandboxDirectory
from microsandbox._launch import Launch
from microsandbox.errors import StateError


class HostGroup:
    """Puts this process and the VMM into a group with limits, where there is a place for one.

    On a thread, because nobody should wait for the kernel that long. Where groups were asked for and cannot
    be had, the reason goes to the supervisor's log.
    """

    def __init__(self, directory: SandboxDirectory, launch: Launch, vm: Vm) -> None:
        self._directory = directory
        self._identifier = launch.identifier
        self._thread: threading.Thread | None = None
        self._release_link()  # of an earlier life that was killed, and had its group elsewhere perhaps
        setting = env.value(env.MSB_CGROUP)
        found = cgroup.place(setting)
        if found.directory is None:
            if setting not in (None, cgroup.OFF):
                _complain(found.reason)
            return
        limits = cgroup.limits_for(
            launch.memory_mib, launch.cpus, emulated=vm.isolation is Isolation.EMULATED
        )
        self._thread = threading.Thread(target=self._make, args=(found.directory, limits, vm.pid))
        self._thread.start()

    def release(self) -> None:
        """Leave the group, in which no other process is any more, and remove it."""
        if self._thread is None:
            return
        self._thread.join()
        group = self._directory.cgroup
        if group is not None:
            cgroup.leave(group)  # also if the VMM was not moved, because it had ended
        self._release_link()

    def _release_link(self) -> None:
        try:
            self._directory.release_cgroup()
        except StateError as error:
            _complain(str(error))

    def _make(self, place: str, limits: cgroup.Limits, vmm: int) -> None:
        link = f"{self._directory.path}/cgroup"
        try:
            # The link first: whoever finds it alone removes it, a group without it nobody would find.
            os.symlink(f"{place}/{cgroup.PREFIX}{self._identifier}", link)  # noqa: PTH211
            cgroup.enter(place, self._identifier, limits, [os.getpid(), vmm])
        except OSError as error:
            _complain(str(error))


def _complain(reason: str) -> None:
    sys.stderr.write(f"no limits of the host for this sandbox: {reason}\n")

"""`--security restricted`: what root tries for real in the guest is refused there, and not by default."""

from __future__ import annotations

import errno
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
from microsandbox_oci import ImageConfig

from tests.support.images import tar_of, write_layout
from tests.support.msb import Msb
from tests.support.probe import Call, program

pytestmark = pytest.mark.vm

NEW_USER, NEW_MOUNTS, NEW_NETWORK = 0x1000_0000, 0x2_0000, 0x4000_0000
SIGCHLD = 17
X32 = 0x4000_0000


class Probe(NamedTuple):
    """`refused`: what the exit code is in the restricted profile; in the other one it is `open`, or anything
    else than a refusal if that is None: the kernel may have been built without it."""

    call: Call
    refused: int = errno.EPERM
    open: int | None = None


ZERO_PAGE = bytes(4096)
PROBES = {
    "mount": Probe(Call(165, (b"x\0", b"/var\0", b"tmpfs\0", 0, 0)), open=0),
    "umount": Probe(Call(166, (b"/dev/shm\0", 2)), open=0),
    "pivot_root": Probe(Call(155, (b"/\0", b"/\0")), open=errno.EBUSY),
    "open_tree": Probe(Call(428, (-100, b"/\0", 1)), open=0),
    "fsopen": Probe(Call(430, (b"tmpfs\0", 0)), open=0),
    "mount_setattr": Probe(Call(442, (-100, b"/\0", 0, ZERO_PAGE, 32)), open=0),
    "swapon": Probe(Call(167, (b"/nothing\0", 0))),
    "unshare_user": Probe(Call(272, (NEW_USER,))),
    "unshare_mounts": Probe(Call(272, (NEW_MOUNTS,)), open=0),
    "unshare_time": Probe(Call(272, (0x80,))),
    "clone_network": Probe(Call(56, (NEW_NETWORK | SIGCHLD, 0, 0, 0, 0)), open=0),
    "clone3": Probe(Call(435, (ZERO_PAGE, 0)), errno.ENOSYS, errno.EINVAL),
    "setns": Probe(Call(308, (-1, 0)), open=errno.EBADF),
    "open_by_handle_at": Probe(Call(304, (-1, ZERO_PAGE, 0))),
    "ptrace_init": Probe(Call(101, (0x4206, 1, 0, 0))),  # PTRACE_SEIZE
    "read_init": Probe(Call(310, (1, ZERO_PAGE, 0, ZERO_PAGE, 0, 0)), open=0),
    "write_init": Probe(Call(311, (1, ZERO_PAGE, 0, ZERO_PAGE, 0, 0)), open=0),
    "pidfd_getfd": Probe(Call(438, (-1, 0, 0)), open=errno.EBADF),
    "kcmp": Probe(Call(312, (1, 1, 0, 0, 0))),
    "io_uring_setup": Probe(Call(425, (1, ZERO_PAGE))),
    "bpf": Probe(Call(321, (0, ZERO_PAGE, 0))),
    "perf_event_open": Probe(Call(298, (0, 0, -1, -1, 0))),
    "userfaultfd": Probe(Call(323, (0,))),
    "add_key": Probe(Call(248, (b"user\0", b"a\0", b"b", 1, -4))),
    "keyctl": Probe(Call(250, (0, -3, 1))),
    "fanotify_init": Probe(Call(300, (0, 0))),
    "packet_socket": Probe(Call(41, (17, 3, 0)), errno.EAFNOSUPPORT, 0),
    "crypto_socket": Probe(Call(41, (38, 5, 0)), errno.EAFNOSUPPORT),
    "vsock_socket": Probe(Call(41, (40, 1, 0)), errno.EAFNOSUPPORT, 0),
    "raw_socket": Probe(Call(41, (2, 3, 1)), open=0),
    "init_module": Probe(Call(175, (0, 0, 0))),
    "delete_module": Probe(Call(176, (b"x\0", 0))),
    "kexec_load": Probe(Call(246, (0, 0, 0, 0))),
    "reboot": Probe(Call(169, (0, 0, 0, 0)), open=errno.EINVAL),
    "syslog": Probe(Call(103, (10, 0, 0)), open=0),
    "iopl": Probe(Call(172, (3,))),
    "ioperm": Probe(Call(173, (0x80, 1, 1))),
    "settimeofday": Probe(Call(164, (0, 0)), open=0),
    "clock_settime": Probe(Call(227, (0, bytes(8) + (2**31).to_bytes(8, "little"))), open=errno.EINVAL),
    "sethostname": Probe(Call(170, (b"other", 5)), open=0),
    "personality": Probe(Call(135, (0x0040_0000,)), open=0),
    "modify_ldt": Probe(Call(154, (0, ZERO_PAGE, 0)), errno.ENOSYS),
    "mknod": Probe(Call(133, (b"/tmp/memory\0", 0o20666, 0x101)), open=0),
    "chroot": Probe(Call(161, (b"/\0",)), 0, 0),
    "a_call_of_later_kernels": Probe(Call(999), errno.ENOSYS, errno.ENOSYS),
    "a_call_of_x32": Probe(Call(X32 | 39), errno.ENOSYS),
}

RUN_ALL = 'for probe in /probes/*; do "$probe" 2>/dev/null; echo "${probe##*/} $?"; done'


def file(name: str, mode: int, *, uid: int = 0) -> tarfile.TarInfo:
    found = tarfile.TarInfo(name)
    found.mode, found.uid = mode, uid
    return found


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Busybox with the probes, a set-user-id one that opens a file of root's, and the device of a disk."""
    disk = tarfile.TarInfo("disk")
    disk.type, disk.devmajor, disk.devminor, disk.mode = tarfile.BLKTYPE, 254, 32, 0o666
    entries = [(file(f"probes/{name}", 0o755), program(probe.call)) for name, probe in PROBES.items()]
    entries += [(file("suid/open", 0o4755), program(Call(2, (b"/secret\0", 0)))), (disk, b"")]
    entries += [(file("secret", 0o600), b"of root")]
    return write_layout(tmp_path_factory.mktemp("image") / "probes", ImageConfig(), [tar_of(entries)])


@pytest.fixture
def reference(msb: Msb, image: Path) -> Iterator[str]:
    """The image, loaded."""
    msb("load", f"oci:{image}", "-t", "probes").succeeded()
    yield "probes"
    msb("rmi", "probes").succeeded()


def restricted(msb: Msb, reference: str, script: str, *options: str) -> str:
    """What a script prints in a restricted sandbox."""
    done = msb("run", "--security", "restricted", *options, reference, "--", "sh", "-c", script)
    return done.succeeded().text


def codes(text: str) -> dict[str, int]:
    return {name: int(code) for name, code in (line.split() for line in text.splitlines())}


def test_every_probe_is_refused(msb: Msb, reference: str) -> None:
    found = codes(restricted(msb, reference, RUN_ALL))
    assert found == {name: probe.refused for name, probe in PROBES.items()}


def test_by_default_root_may_do_all_of_it(msb: Msb, reference: str) -> None:
    found = codes(msb("run", reference, "--", "sh", "-c", RUN_ALL).succeeded().text)
    assert found.keys() == PROBES.keys()
    expected = {name: found[name] if probe.open is None else probe.open for name, probe in PROBES.items()}
    assert found == expected
    assert not [name for name, probe in PROBES.items() if probe.open is None and found[name] == errno.EPERM]


@pytest.mark.parametrize("options", [(), ("--cold",), ("--user", "1000:1000")])
def test_capabilities_privileges_and_filter_hold_for_everyone(
    msb: Msb, reference: str, options: tuple[str, ...]
) -> None:
    script = "grep -E '^(Cap|NoNewPrivs|Seccomp:)' /proc/self/status; (cat /proc/self/status) | grep Seccomp:"
    found = [line.split() for line in restricted(msb, reference, script, *options).splitlines()]
    kept = "00000000a00405fb"
    own = "0000000000000000" if "--user" in options else kept
    assert found == [
        ["CapInh:", "0000000000000000"],
        ["CapPrm:", own],
        ["CapEff:", own],
        ["CapBnd:", kept],
        ["CapAmb:", "0000000000000000"],
        ["NoNewPrivs:", "1"],
        ["Seccomp:", "2"],
        ["Seccomp:", "2"],
    ]


def test_execs_and_restarts_are_restricted_too(msb: Msb, reference: str) -> None:
    msb("create", "--security", "restricted", reference, "--name", "kept").succeeded()
    try:
        for arguments in ((), ("-t",), ("--user", "1000")):
            assert msb("exec", *arguments, "kept", "--", "/probes/mount").code == errno.EPERM
        msb("restart", "kept").succeeded()
        assert msb("exec", "kept", "--", "/probes/mount").code == errno.EPERM
        assert "nosuid,nodev" in msb("exec", "kept", "--", "grep", " / ", "/proc/mounts").succeeded().text
        assert '"security": "restricted"' in msb("inspect", "kept").succeeded().text
    finally:
        msb("rm", "--force", "kept").succeeded()


@pytest.mark.parametrize("options", [(), ("--cold",)])
def test_nothing_of_the_kernels_can_be_written_or_read(
    msb: Msb, reference: str, options: tuple[str, ...]
) -> None:
    # What is left to write are a process's own files, and streams that lead nowhere.
    script = """
    { find /proc /proc/1 /proc/1/task/1 /proc/irq -maxdepth 1; find /proc/sys; find /sys/kernel /sys/fs; } |
    while read -r file; do
        if [ -f "$file" ] && { echo >> "$file"; } 2>/dev/null; then echo "writable: $file"; fi
    done
    for file in kallsyms kcore keys kpageflags timer_list vmallocinfo 1/environ 1/mem 1/maps; do
        head -c 1 "/proc/$file" 2>/dev/null | grep -q . && echo "readable: $file"
    done
    for link in exe cwd root fd/0 fd/5 ns/mnt; do
        readlink "/proc/1/$link" && echo "followed: $link"
    done
    dd if=/disk of=/dev/null count=1 2>/dev/null && echo "the image's device file"
    mkdir /dev/other && mknod /dev/other/vdc b 254 32 2>/dev/null && echo "a device file of its own"
    ls /dev
    """
    found = restricted(msb, reference, script, *options).split()
    directories = ["mqueue", "other", "pts", "shm"]
    links = ["fd", "ptmx", "stderr", "stdin", "stdout"]
    assert found == sorted([*directories, *links, "full", "null", "random", "tty", "urandom", "zero"])


def test_a_set_user_id_program_gives_nothing(msb: Msb, reference: str) -> None:
    read = ("--user", "1000:1000", reference, "--", "/suid/open")
    assert msb("run", *read).code == 0
    assert msb("run", "--security", "restricted", *read).code == errno.EACCES


def test_ordinary_work_goes_on(msb: Msb, reference: str) -> None:
    script = """
    set -e
    echo text > /root/file; chmod 600 /root/file; chown 1000:1000 /root/file; mv /root/file /var
    mkdir -p /var/tree; tar cf - -C / etc | tar xf - -C /var/tree; rm -r /var/tree
    mkfifo /tmp/fifo; (echo through > /tmp/fifo &); cat /tmp/fifo
    sleep 100 & kill $!; wait $! 2> /dev/null || true
    su -s /bin/sh nobody -c 'id -u'
    echo shared > /dev/shm/x; cat /dev/shm/x > /dev/null; head -c 8 /dev/urandom | wc -c
    nc -l -p 80 -e echo served & until nc 127.0.0.1 80 < /dev/null 2> /dev/null; do :; done; wait
    chroot / true; ps | grep -c ' [/]agentd'
    ( ulimit -n 50; ulimit -n ); tty || true
    """
    found = restricted(msb, reference, script).split("\n")
    assert found[:3] == ["through", "65534", "8"]
    assert found[-4:] == ["1", "50", "not a tty", ""]


def test_a_terminal_works(msb: Msb, reference: str) -> None:
    assert restricted(msb, reference, "tty <&1; test -w /dev/tty", "-t") == "/dev/pts/0\r\n"


def test_files_are_copied_in_and_out(msb: Msb, reference: str, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"content")
    msb("create", "--security", "restricted", reference, "--name", "kept").succeeded()
    try:
        msb("cp", str(tmp_path / "file"), "kept:/var/file").succeeded()
        msb("cp", "kept:/var/file", str(tmp_path / "back")).succeeded()
        assert (tmp_path / "back").read_bytes() == b"content"
        # What works for the host on the sandbox's files gives nothing of agentd away either.
        assert msb("cp", "kept:/proc/1/environ", str(tmp_path / "environ")).code != 0
        msb("stop", "kept").succeeded()
        assert msb("exec", "kept", "--", "cat", "/var/file").succeeded().out == b"content"
    finally:
        msb("rm", "--force", "kept").succeeded()

"""A root file system with systemd, put together from Debian packages; no root, nothing is installed."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

from tests.support.images import busybox_program

APPLETS = ("sh", "cat", "echo", "grep", "ls", "ps", "sleep", "touch")

SERVICE = """\
[Service]
Type=oneshot
RemainAfterExit=yes
ExecStart=/bin/sh -c 'echo up >> /told; echo up > /ready'
ExecStop=/bin/sh -c 'echo down >> /told'
[Install]
WantedBy=multi-user.target
"""

# What would only take time here, or wants what is not in the image.
MASKED = ("getty.target", "console-getty.service", "systemd-sysctl.service", "systemd-logind.service")

UNUSED = (
    "usr/share",
    "lib/udev",
    "usr/lib/udev",
    "usr/lib/x86_64-linux-gnu/perl",
    "usr/lib/x86_64-linux-gnu/gconv",
)


def build_root(directory: Path) -> Path | None:
    """A directory with systemd, busybox and a service that writes ``up`` into the FIFO ``/ready``.

    None if there are no packages to be had.
    """
    if shutil.which("apt-get") is None or shutil.which("dpkg-deb") is None:
        return None
    packages = directory / "packages"
    packages.mkdir(parents=True)
    # apt's own sandbox user must be able to write here when this runs as root.
    packages.chmod(0o755)
    names = _needed()
    download = ["apt-get", "download", "-o", "APT::Sandbox::User=root", *names]
    if not names or subprocess.run(download, cwd=packages, capture_output=True).returncode != 0:
        return None
    root = directory / "root"
    root.mkdir()
    for package in sorted(packages.glob("*.deb")):
        subprocess.run(["dpkg-deb", "-x", package, root], check=True, capture_output=True)
    for name in UNUSED:
        shutil.rmtree(root / name, ignore_errors=True)
    _add_rest(root)
    return root


def _needed() -> list[str]:
    """systemd and the libraries it is linked with; their maintainers' scripts are not run."""
    command = [
        "apt-cache", "depends", "--recurse", "--no-recommends", "--no-suggests", "--no-conflicts",
        "--no-breaks", "--no-replaces", "--no-enhances", "systemd", "systemd-sysv",
    ]  # fmt: skip
    listing = subprocess.run(command, capture_output=True, text=True, check=False).stdout
    found = {line.partition(":")[0] for line in listing.splitlines() if line[:1].isalnum()}
    libraries = {
        name
        for name in found
        if name.startswith("lib") and "perl" not in name and "elogind" not in name and "-modules" not in name
    }
    return sorted(libraries | ({"systemd", "systemd-sysv", "mount", "zlib1g"} & found))


def _add_rest(root: Path) -> None:
    for name in ("bin", "sbin", "lib", "lib64"):
        # Releases with a merged /usr ship nothing there.
        if not (root / name).exists():
            (root / name).symlink_to(f"usr/{name}")
    for name in ("dev", "etc", "proc", "root", "run", "sys", "tmp", "var/log"):
        (root / name).mkdir(parents=True, exist_ok=True)
    (root / "bin" / "busybox").write_bytes(busybox_program())
    (root / "bin" / "busybox").chmod(0o755)
    for applet in APPLETS:
        if not (root / "bin" / applet).exists():
            (root / "bin" / applet).symlink_to("busybox")
    (root / "etc" / "passwd").write_text("root:x:0:0:root:/root:/bin/sh\n")
    (root / "etc" / "group").write_text("root:x:0:\ntty:x:5:\n")
    units = root / "etc" / "systemd" / "system"
    (units / "multi-user.target.wants").mkdir(parents=True)
    (units / "told.service").write_text(SERVICE)
    (units / "multi-user.target.wants" / "told.service").symlink_to("../told.service")
    for unit in MASKED:
        (units / unit).symlink_to("/dev/null")
    (units / "default.target").symlink_to("/lib/systemd/system/multi-user.target")

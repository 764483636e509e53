"""Builds a busybox image as an OCI layout, from Debian's busybox-static package; no root, no unpacking."""

from __future__ import annotations

import argparse
import io
import shutil
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

from microsandbox_oci import ImageConfig
from microsandbox_oci.layout import LayoutWriter

NAME = "busybox:latest"
INSTALLED = Path("/bin/busybox")
PACKAGE = "busybox-static"
MEMBER = "bin/busybox"
DEMO_UID = 1000

DIRECTORIES = {
    "bin": 0o755,
    "dev": 0o755,
    "etc": 0o755,
    "home": 0o755,
    "home/demo": 0o755,
    "proc": 0o555,
    "root": 0o700,
    "sbin": 0o755,
    "sys": 0o555,
    "tmp": 0o1777,
    "usr": 0o755,
    "usr/bin": 0o755,
    "usr/local": 0o755,
    "usr/local/bin": 0o755,
    "usr/sbin": 0o755,
    "var": 0o755,
    "var/tmp": 0o1777,
}

PASSWD = f"""\
root:x:0:0:root:/root:/bin/sh
nobody:x:65534:65534:nobody:/nonexistent:/bin/false
demo:x:{DEMO_UID}:{DEMO_UID}:demo:/home/demo:/bin/sh
"""

GROUP = f"""\
root:x:0:
nogroup:x:65534:
demo:x:{DEMO_UID}:
"""

TOUR = """\
#!/bin/sh
# A short look around inside the sandbox.
set -eu

section() { printf '\\n== %s\\n' "$1"; }

section 'who am I'
id
printf 'host name: %s\\n' "$(hostname)"

section 'kernel'
uname -srm

section 'memory and processors'
grep -E '^(MemTotal|MemAvailable)' /proc/meminfo
printf 'processors: %s\\n' "$(grep -c '^processor' /proc/cpuinfo)"

section 'root file system'
df -h / | tail -n 1
awk '$2 == "/" { print $3 " on /" }' /proc/mounts

section 'writing to it stays in here'
echo 'written in the sandbox' > /root-was-here 2>/dev/null || echo 'not root: / is not writable for me'
[ ! -e /root-was-here ] || cat /root-was-here
"""


class Unavailable(Exception):
    """No statically linked busybox is at hand."""


def build(output: Path) -> Path:
    """Write an OCI layout with the image ``busybox:latest`` to the directory ``output`` and return it.

    The same busybox gives the same bytes.

    Raises:
        Unavailable: there is no static busybox and the package cannot be downloaded.
        OSError: the output cannot be written.
    """
    binary = find_busybox()
    config = ImageConfig(
        env=("PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",),
        cmd=("sh",),
        labels={
            "org.opencontainers.image.title": "busybox",
            "org.opencontainers.image.description": "busybox-static with a tour of the sandbox",
            "org.opencontainers.image.licenses": "GPL-2.0-only",
        },
    )
    with LayoutWriter(output) as writer:
        layer = writer.add_layer(layer_tar(binary, applets(binary)))
        writer.add_image([layer], config, name=NAME)
    return output


def find_busybox() -> bytes:
    """Return a static busybox: the installed one, or the one out of the package, uninstalled."""
    if INSTALLED.is_file():
        data = INSTALLED.read_bytes()
        if is_static_elf(data):
            return data
    return from_package()


def is_static_elf(data: bytes) -> bool:
    """Say whether ``data`` is a 64-bit ELF program without an interpreter (PT_INTERP, type 3)."""
    if data[:5] != b"\x7fELF\x02" or len(data) < 64:
        return False
    offset = int.from_bytes(data[32:40], "little")
    entry_size = int.from_bytes(data[54:56], "little")
    count = int.from_bytes(data[56:58], "little")
    kinds = [
        int.from_bytes(data[offset + n * entry_size : offset + n * entry_size + 4], "little")
        for n in range(count)
    ]
    return 3 not in kinds


def from_package() -> bytes:
    """Download the package and read the program out of it."""
    for tool in ("apt-get", "dpkg-deb"):
        if shutil.which(tool) is None:
            raise Unavailable(f"no static busybox at {INSTALLED} and no {tool} to get one: install {PACKAGE}")
    with tempfile.TemporaryDirectory() as directory:
        # apt's own sandbox user must be able to write here when this runs as root.
        Path(directory).chmod(0o755)
        download = subprocess.run(
            ["apt-get", "download", "-o", "APT::Sandbox::User=root", PACKAGE],
            cwd=directory,
            capture_output=True,
            text=True,
            check=False,
        )
        packages = sorted(Path(directory).glob("*.deb"))
        if download.returncode != 0 or not packages:
            raise Unavailable(f"cannot download {PACKAGE}: {download.stderr.strip()}")
        with subprocess.Popen(["dpkg-deb", "--fsys-tarfile", packages[0]], stdout=subprocess.PIPE) as unpack:
            assert unpack.stdout is not None
            with tarfile.open(fileobj=unpack.stdout, mode="r|") as package:
                for member in package:
                    # Merged-/usr releases have the program at ./usr/bin/busybox.
                    if member.isreg() and member.name.removeprefix("./").removeprefix("usr/") == MEMBER:
                        found = package.extractfile(member)
                        assert found is not None
                        return found.read()
    raise Unavailable(f"{PACKAGE} has no {MEMBER}")


def applets(binary: bytes) -> list[str]:
    """Return the sorted names busybox answers to, by asking it."""
    with tempfile.TemporaryDirectory() as directory:
        program = Path(directory) / "busybox"
        program.write_bytes(binary)
        program.chmod(0o700)
        listing = subprocess.run([program, "--list"], capture_output=True, text=True, check=True)
    return sorted(set(listing.stdout.split()) - {"busybox"})


def layer_tar(binary: bytes, names: list[str]) -> bytes:
    """Return the image's one layer as a tar: sorted names, root's, time zero."""
    files = {
        "bin/busybox": (binary, 0o755),
        "etc/group": (GROUP.encode(), 0o644),
        "etc/passwd": (PASSWD.encode(), 0o644),
        "usr/local/bin/tour": (TOUR.encode(), 0o755),
    }
    links = {f"bin/{name}": "busybox" for name in names}
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.PAX_FORMAT) as tar:
        for name in sorted({*DIRECTORIES, *files, *links}):
            entry = tarfile.TarInfo(name)
            if name in DIRECTORIES:
                entry.type, entry.mode = tarfile.DIRTYPE, DIRECTORIES[name]
            elif name in links:
                entry.type, entry.mode, entry.linkname = tarfile.SYMTYPE, 0o777, links[name]
            if name == "home/demo":
                entry.uid = entry.gid = DEMO_UID
            if name in files:
                data, entry.mode = files[name]
                entry.size = len(data)
                tar.addfile(entry, io.BytesIO(data))
            else:
                tar.addfile(entry)
    return buffer.getvalue()


def main() -> int:
    """Build the layout in the directory given on the command line and print its path."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("output", type=Path, help="directory of the OCI layout")
    try:
        print(build(parser.parse_args().output))
    except (Unavailable, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""Trees as a guest or the host sees them, in a form that can be compared: everything but inode numbers."""

from __future__ import annotations

import subprocess
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

_SOURCE = Path(__file__).with_name("listing.c")
_DIRECTORY = 0o040000


class Entry(NamedTuple):
    """What one name leads to. Size and links are 0 for a directory, where each file system counts its own
    way; `names` are all names of the file, if there are several."""

    mode: str
    owner: str
    size: int
    links: int
    mtime: str
    rdev: str
    target: str
    attributes: str
    contents: str
    names: tuple[str, ...]


@cache
def listing_program() -> bytes:
    """`listing.c` as a static executable, by the C compiler that Rust needs too."""
    with TemporaryDirectory() as directory:
        program = Path(directory) / "listing"
        subprocess.run(
            ["cc", "-std=gnu11", "-Wall", "-Wextra", "-Werror", "-O2", "-static", "-o", program, _SOURCE],
            check=True,
        )
        return program.read_bytes()


def list_tree(root: Path) -> dict[str, Entry]:
    """The tree below a directory of the host. Needs root, for chroot."""
    with TemporaryDirectory() as directory:
        program = Path(directory) / "listing"
        program.write_bytes(listing_program())
        program.chmod(0o755)
        done = subprocess.run([program, root], capture_output=True, check=False, timeout=120)
    assert done.returncode == 0, done.stderr
    return parse(done.stdout)


def parse(listing: bytes) -> dict[str, Entry]:
    """What the program printed, by path."""
    rows = [line.split("\t") for line in listing.decode("ascii").splitlines()]
    names: dict[str, list[str]] = {}
    for row in rows:
        names.setdefault(row[6], []).append(row[0])
    found = {}
    for path, mode, uid, gid, size, links, inode, mtime, rdev, target, attributes, contents in rows:
        directory = int(mode, 8) & 0o170000 == _DIRECTORY
        same = () if directory or len(names[inode]) == 1 else tuple(sorted(names[inode]))
        found[path] = Entry(
            mode=mode,
            owner=f"{uid}:{gid}",
            size=0 if directory else int(size),
            links=0 if directory else int(links),
            mtime=mtime,
            rdev=rdev,
            target=target,
            attributes=attributes,
            contents=contents,
            names=same,
        )
    return found


def differences(left: dict[str, Entry], right: dict[str, Entry]) -> list[str]:
    """One line for each path and attribute in which two trees differ."""
    lines = [f"{path}: only in the first" for path in sorted(left.keys() - right.keys())]
    lines += [f"{path}: only in the second" for path in sorted(right.keys() - left.keys())]
    for path in sorted(left.keys() & right.keys()):
        for name, one, other in zip(Entry._fields, left[path], right[path], strict=True):
            if one != other:
                lines.append(f"{path}: {name} is {one!r} and {other!r}")
    return lines

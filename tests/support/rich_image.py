"""An image of forty layers and fifty thousand files in which everything occurs that a layer can say."""

from __future__ import annotations

import io
import random
import struct
import tarfile
from collections.abc import Iterator
from pathlib import Path

from microsandbox_oci import ImageConfig

from tests.support.images import write_layout

LAYERS = 40
FILES = 50_000
NAME = "rich"

TIME = 1_700_000_000
_TIMES = (
    "1700000000.123456789",
    "0",
    "-1.5",
    "-1000000000.000000001",
    "4294967296.25",  # beyond 32 bits
    "1.999999999",
)
_OWNERS = ((0, 0), (1000, 100), (65534, 65534), (2_097_152, 2_097_153), (4_000_000_000, 4_000_000_001))
# cap_net_bind_service+ep (capabilities(7), struct vfs_cap_data, revision 2).
_CAPABILITY = struct.pack("<IIIII", 0x02000001, 1 << 10, 0, 0, 0)
# u::rwx, u:1000:r-x, g::r-x, m::r-x, o::r-- (acl(5) as the kernel has it).
_ACL = struct.pack("<I", 2) + b"".join(
    struct.pack("<HHi", tag, rights, who)
    for tag, rights, who in ((1, 7, -1), (2, 5, 1000), (4, 5, -1), (16, 5, -1), (32, 4, -1))
)
_LONG = "n" * 200 + "-ü-" + "m" * 50  # 254 bytes


class Layer:
    """A layer that is being written: every directory is listed before what is in it, as all tools do."""

    def __init__(self) -> None:
        self._buffer = io.BytesIO()
        self._tar = tarfile.open(  # noqa: SIM115 - closed by finish
            fileobj=self._buffer, mode="w", format=tarfile.PAX_FORMAT, errors="surrogateescape"
        )
        self._count = 0

    def add(
        self,
        name: str,
        kind: bytes = tarfile.REGTYPE,
        content: bytes = b"",
        *,
        mode: int = 0o644,
        link: str = "",
        device: tuple[int, int] = (0, 0),
        owner: tuple[int, int] = (0, 0),
        mtime: str | None = None,
        attributes: dict[str, bytes] | None = None,
        records: dict[str, str] | None = None,
    ) -> None:
        """Add an entry. `mtime` in decimals; `records` of the extended header beside it and `attributes`."""
        entry = tarfile.TarInfo(name)
        entry.type, entry.mode, entry.linkname, entry.size = kind, mode, link, len(content)
        (entry.devmajor, entry.devminor), (entry.uid, entry.gid) = device, owner
        entry.mtime = TIME
        self._count += 1
        entry.pax_headers = {"mtime": mtime or f"{TIME + self._count}.{self._count * 7919 % 10**9:09}"}
        for key, value in (attributes or {}).items():
            entry.pax_headers[f"SCHILY.xattr.{key}"] = value.decode("utf-8", "surrogateescape")
        entry.pax_headers.update(records or {})
        self._tar.addfile(entry, io.BytesIO(content))

    def directory(self, name: str, mode: int = 0o755, **more: object) -> None:
        """Add a directory."""
        self.add(name, tarfile.DIRTYPE, mode=mode, **more)  # type: ignore[arg-type]

    def hard_link(self, name: str, target: str) -> None:
        """Add another name for a file, of this layer or of one below."""
        self.add(name, tarfile.LNKTYPE, link=target)

    def remove(self, path: str) -> None:
        """White out what lower layers have at `path`."""
        parent, slash, name = path.rpartition("/")
        self.add(f"{parent}{slash}.wh.{name}")

    def sparse(self, name: str, size: int, parts: dict[int, bytes]) -> None:
        """Add a file of `size` bytes with `parts` at their offsets and holes between, in GNU's format 1.0."""
        extents = [*((offset, len(data)) for offset, data in parts.items()), (size, 0)]
        numbers = [len(extents), *(number for extent in extents for number in extent)]
        stored = "".join(f"{number}\n" for number in numbers).encode()
        stored = stored.ljust(-(-len(stored) // 512) * 512, b"\0") + b"".join(parts.values())
        self.add(
            f"GNUSparseFile.0/{Path(name).name}",
            content=stored,
            records={
                "GNU.sparse.major": "1",
                "GNU.sparse.minor": "0",
                "GNU.sparse.name": name,
                "GNU.sparse.realsize": str(size),
            },
        )

    def finish(self) -> bytes:
        """The tar."""
        self._tar.close()
        return self._buffer.getvalue()


def write_rich_layout(directory: Path, program: bytes) -> Path:
    """The image as an OCI layout named `NAME`, on top of busybox, with ``/listing``, an executable."""
    return write_layout(directory, ImageConfig(cmd=("sh",)), list(_layers(program)), name=NAME)


def _layers(program: bytes) -> Iterator[bytes]:
    # One more is busybox below them.
    per_layer = FILES // (LAYERS - 1) + 1
    for number in range(1, LAYERS):
        layer = Layer()
        if number == 1:
            _everything(layer, program)
        else:
            _changes(layer, number)
        _many(layer, number, per_layer)
        yield layer.finish()


def _everything(layer: Layer, program: bytes) -> None:
    layer.directory("./", 0o751, owner=(0, 3), attributes={"user.root": b"of the image"})
    layer.add("listing", content=program, mode=0o755)
    layer.directory("kinds", 0o750, owner=(1000, 100))
    for mode in (0, 0o4755, 0o2711, 0o1644, 0o777):
        layer.add(f"kinds/mode-{mode:o}", content=b"x", mode=mode)
        layer.directory(f"kinds/directory-{mode:o}", mode)
    for number, owner in enumerate(_OWNERS):
        layer.add(f"kinds/owner-{number}", owner=owner)
    for number, mtime in enumerate(_TIMES):
        layer.add(f"kinds/time-{number}", mtime=mtime)
        layer.directory(f"kinds/time-directory-{number}", mtime=mtime)
        layer.add(f"kinds/time-link-{number}", tarfile.SYMTYPE, link="x", mode=0o777, mtime=mtime)
    layer.add("kinds/fifo", tarfile.FIFOTYPE, mode=0o620, owner=(5, 6))
    layer.add("kinds/character", tarfile.CHRTYPE, device=(1, 3), mode=0o666)
    layer.add("kinds/block", tarfile.BLKTYPE, device=(7, 300), mode=0o660, owner=(0, 6))
    layer.add("kinds/numbers", tarfile.CHRTYPE, device=(4095, 1_048_575), mode=0o600)
    for number, target in enumerate(("mode-0", "/", "../nowhere", "t/" * 2000, "names and \n lines")):
        layer.add(f"kinds/link-{number}", tarfile.SYMTYPE, link=target, mode=0o777, owner=(7, 8))
    layer.directory("attributes", attributes={"user.directory": b"yes", "trusted.of": b"\0\xff="})
    layer.add(
        "attributes/capability", content=b"#!", mode=0o755, attributes={"security.capability": _CAPABILITY}
    )
    layer.add("attributes/acl", mode=0o754, attributes={"system.posix_acl_access": _ACL})
    layer.directory("attributes/acls", 0o755, attributes={"system.posix_acl_default": _ACL})
    many = {f"user.{number}": bytes([number]) * number for number in range(30)}
    layer.add("attributes/many", attributes={**many, "user.empty": b"", "trusted.x": b"\n"})
    layer.directory("sizes")
    for size in (0, 1, 4095, 4096, 4097, 3_000_000):
        layer.add(f"sizes/{size}", content=random.Random(size).randbytes(size))
    layer.directory("sparse")
    layer.sparse("sparse/one", 16 << 20, {1 << 20: b"first", (9 << 20) + 1: b"second" * 1000})
    layer.sparse("sparse/hole", 3_456_789, {})
    layer.sparse("sparse/" + _LONG, 2_000_000, {0: b"at the start", 1_999_990: b"at the en."})
    layer.directory("names")
    deep = "names"
    for _ in range(12):  # about 3,000 bytes
        deep = f"{deep}/{_LONG}"
        layer.directory(deep)
        layer.add(f"{deep}/file")
    layer.hard_link("names/of-deep", f"{deep}/file")
    for name in ("with\nlines", " spaces ", "\udcff\udcfe", "=%", "ü" * 127, "-", "\\", "a" * 100, "b" * 101):
        layer.add(f"names/{name}", content=name.encode("utf-8", "surrogateescape"))
    layer.directory("links")
    layer.add("links/a", content=b"a", mode=0o600)
    for name in ("b", "c"):
        layer.hard_link(f"links/{name}", "links/a")
    layer.add("links/symbolic", tarfile.SYMTYPE, link="a", mode=0o777)
    layer.hard_link("links/symbolic-too", "links/symbolic")
    layer.hard_link("links/fifo", "kinds/fifo")
    layer.hard_link("kinds/linked", "links/a")
    layer.directory("changing")
    for number in range(LAYERS):
        layer.directory(f"changing/{number}")
        layer.add(f"changing/{number}/file", content=b"below")
        layer.directory(f"changing/{number}/directory", 0o700, owner=(9, 9))
        layer.add(f"changing/{number}/directory/inner", content=b"below")
        layer.add(f"changing/{number}/link", tarfile.SYMTYPE, link="directory", mode=0o777)


def _changes(layer: Layer, number: int) -> None:
    """What a layer may do to those below; each layer does one of these to a directory of its own."""
    place = f"changing/{number}"
    layer.directory("changing")
    layer.directory(place, 0o711, owner=(number, 1), attributes={"user.layer": str(number).encode()})
    match number % 12:
        case 0:
            layer.remove(f"{place}/file")
            layer.remove(f"{place}/directory")
        case 1:
            layer.directory(f"{place}/directory", 0o755)
            layer.add(f"{place}/directory/.wh..wh..opq")
            layer.add(f"{place}/directory/new", content=b"above")
        case 2:  # other kinds in their places
            layer.directory(f"{place}/file")
            layer.add(f"{place}/file/now", content=b"above")
            layer.add(f"{place}/directory", content=b"above")
            layer.add(f"{place}/link", content=b"above")
        case 3:  # removed and made again
            layer.remove(f"{place}/directory")
            layer.directory(f"{place}/directory", 0o755)
            layer.add(f"{place}/directory/other", content=b"above")
        case 4:  # only attributes
            layer.directory(f"{place}/directory", 0o1777, owner=(1, 2), mtime="5.000000005")
        case 5:  # a rename, as a layer says it
            layer.hard_link(f"{place}/renamed", f"{place}/file")
            layer.remove(f"{place}/file")
        case 6:  # one name of several removed
            layer.hard_link(f"{place}/again", "links/a")
            layer.hard_link(f"{place}/more", f"{place}/again")
            layer.remove(f"{place}/link")
        case 7:  # a name of several gets a file of its own
            layer.hard_link(f"{place}/kept", f"{place}/file")
            layer.add(f"{place}/other", content=b"above")
            layer.hard_link(f"{place}/link", f"{place}/other")
        case 8:  # everything of a lower layer hidden by a marker at the end
            layer.add(f"{place}/new", content=b"above")
            layer.directory(f"{place}/directory", 0o750)
            layer.add(f"{place}/directory/new", content=b"above")
            layer.add(f"{place}/directory/.wh..wh..opq")
        case 9:
            layer.sparse(f"{place}/file", 500_000 + number, {4096 * number: b"here"})
        case 10:  # a device in place of a file
            layer.add(f"{place}/file", tarfile.CHRTYPE, device=(10, number))
            layer.add(f"{place}/link", tarfile.FIFOTYPE)
        case 11:  # markers for what no lower layer has
            layer.remove(f"{place}/nothing")
            layer.directory(f"{place}/fresh")
            layer.add(f"{place}/fresh/.wh..wh..opq")
            layer.add(f"{place}/fresh/file", content=b"above")


def _many(layer: Layer, number: int, count: int) -> None:
    layer.directory("many")
    layer.directory(f"many/{number}")
    for index in range(count):
        if index % 100 == 0:
            layer.directory(f"many/{number}/{index // 100}")
        # Reading each of them would be most of what a test does in a guest that is emulated.
        content = b"" if index % 16 else b"%d of %d\n" % (index, number)
        layer.add(f"many/{number}/{index // 100}/{index}", content=content, owner=(index, number))

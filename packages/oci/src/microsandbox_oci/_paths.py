"""Where everything is in a store.

::

    <root>/
      layers/<diff id>.erofs       one EROFS file per layer
      layers/<diff id>.lz4.erofs   the same with compressed contents
      images/<manifest digest>/    image.json manifest.json config.json fsmeta.erofs image.vmdk in-use.lock
      images/<manifest digest>.lz4/  the same, of compressed layers
      refs/<reference>.json        one per normalised reference
      rootfs/<hash of path>.json   one per packed directory
      blobs/<digest>               layers as registries and archives hold them, for saving
      downloads/<digest>           the beginning of such a layer, left by a pull that was cut off
      tmp/                         work in progress
      locks/                       per-layer and per-directory locks

Digests appear as their 64 hex digits.
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from microsandbox_oci._digest import hex_of
from microsandbox_oci._files import make_directory
from microsandbox_oci._reference import Reference

RECORD = "image.json"
MANIFEST = "manifest.json"
CONFIG = "config.json"
METADATA = "fsmeta.erofs"
DISK = "image.vmdk"
IN_USE = "in-use.lock"

NOT_COMPRESSED = "none"
COMPRESSIONS = (NOT_COMPRESSED, "lz4")
"""How file contents can be stored. Each has its own layer files and image directories, side by side."""

# NAME_MAX is 255; a reference can be 456 characters.
_MAX_READABLE = 200


class StorePaths(NamedTuple):
    """The names under one store root; `layer` and `image` are those of one compression."""

    root: Path
    compression: str = NOT_COMPRESSED

    def kinds(self) -> tuple[StorePaths, ...]:
        """These paths, and the same with every other compression."""
        others = (name for name in COMPRESSIONS if name != self.compression)
        return (self, *(self._replace(compression=name) for name in others))

    @property
    def plain(self) -> StorePaths:
        """The same without compression."""
        return self._replace(compression=NOT_COMPRESSED)

    @property
    def suffix(self) -> str:
        """What names of this compression have behind the digest."""
        return "" if self.compression == NOT_COMPRESSED else f".{self.compression}"

    @property
    def layers(self) -> Path:
        return self.root / "layers"

    @property
    def images(self) -> Path:
        return self.root / "images"

    @property
    def refs(self) -> Path:
        return self.root / "refs"

    @property
    def rootfs(self) -> Path:
        return self.root / "rootfs"

    @property
    def blobs(self) -> Path:
        return self.root / "blobs"

    @property
    def downloads(self) -> Path:
        return self.root / "downloads"

    @property
    def tmp(self) -> Path:
        return self.root / "tmp"

    @property
    def locks(self) -> Path:
        return self.root / "locks"

    def prepare(self) -> None:
        """Create the directories that are missing."""
        for directory in (
            self.root,
            self.layers,
            self.images,
            self.refs,
            self.rootfs,
            self.blobs,
            self.downloads,
            self.tmp,
            self.locks,
        ):
            make_directory(directory)

    def layer(self, diff_id: str) -> Path:
        return self.layers / f"{hex_of(diff_id)}{self.suffix}.erofs"

    def blob(self, digest: str) -> Path:
        return self.blobs / hex_of(digest)

    def download(self, digest: str) -> Path:
        return self.downloads / hex_of(digest)

    def image(self, digest: str) -> Path:
        return self.images / f"{hex_of(digest)}{self.suffix}"

    def ref(self, reference: Reference) -> Path:
        """The reference's file, named so that a directory listing shows the references.

        ``/`` becomes ``%2F``; ``%`` is not in the grammar, so no two references share a name. One that
        would be too long for a file name is replaced by its hash, which no readable name looks like
        because those all hold ``%2F``. Hashing only those keeps OpenSSL (5 ms) off the start path.
        """
        name = str(reference).replace("/", "%2F")
        if len(name) > _MAX_READABLE:
            name = _hash(str(reference))
        return self.refs / f"{name}.json"

    def packed(self, directory: str) -> Path:
        return self.rootfs / f"{_hash(directory)}.json"

    def pin_lock(self, diff_id: str) -> Path:
        """Held shared by every load that needs the layer, exclusively by what removes it."""
        return self.locks / f"{hex_of(diff_id)}{self.suffix}.pin"

    def convert_lock(self, diff_id: str) -> Path:
        """Held exclusively by the one process that converts the layer."""
        return self.locks / f"{hex_of(diff_id)}{self.suffix}.convert"

    def download_lock(self, digest: str) -> Path:
        """Held exclusively by the one process that fetches the blob."""
        return self.locks / f"{hex_of(digest)}.download"

    def keep_lock(self, digest: str) -> Path:
        """Held exclusively until what was fetched of the blob has become one: so long no prune takes it."""
        return self.locks / f"{hex_of(digest)}.keep"

    def pack_lock(self, directory: str) -> Path:
        """Held exclusively by the one process that packs the directory."""
        return self.locks / f"{_hash(directory)}.pack"


def _hash(text: str) -> str:
    from hashlib import sha256

    return sha256(text.encode("utf-8", "surrogateescape")).hexdigest()

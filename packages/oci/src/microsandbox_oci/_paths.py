"""Where everything is in a store.

::

    <root>/
      layers/<diff id>.erofs       one EROFS file per layer
      images/<manifest digest>/    image.json manifest.json config.json fsmeta.erofs image.vmdk in-use.lock
      refs/<reference>.json        one per normalised reference
      rootfs/<hash of path>.json   one per packed directory
      tmp/                         work in progress
      locks/                       per-layer and per-directory locks

Digests appear as their 64 hex digits.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from microsandbox_oci._digest import hex_of
from microsandbox_oci._files import make_directory
from microsandbox_oci._reference import Reference

RECORD = "image.json"
MANIFEST = "manifest.json"
CONFIG = "config.json"
METADATA = "fsmeta.erofs"
DISK = "image.vmdk"
IN_USE = "in-use.lock"

# NAME_MAX is 255; a reference can be 456 characters.
_MAX_READABLE = 200


@dataclass(frozen=True, slots=True)
class StorePaths:
    """The names under one store root."""

    root: Path

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
    def tmp(self) -> Path:
        return self.root / "tmp"

    @property
    def locks(self) -> Path:
        return self.root / "locks"

    def prepare(self) -> None:
        """Create the directories that are missing."""
        for directory in (self.root, self.layers, self.images, self.refs, self.rootfs, self.tmp, self.locks):
            make_directory(directory)

    def layer(self, diff_id: str) -> Path:
        return self.layers / f"{hex_of(diff_id)}.erofs"

    def layer_from_image(self, diff_id: str) -> str:
        """The layer's name as the VMDK descriptor writes it: relative to the image's directory."""
        return f"../../layers/{hex_of(diff_id)}.erofs"

    def image(self, digest: str) -> Path:
        return self.images / hex_of(digest)

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
        return self.locks / f"{hex_of(diff_id)}.pin"

    def convert_lock(self, diff_id: str) -> Path:
        """Held exclusively by the one process that converts the layer."""
        return self.locks / f"{hex_of(diff_id)}.convert"

    def pack_lock(self, directory: str) -> Path:
        """Held exclusively by the one process that packs the directory."""
        return self.locks / f"{_hash(directory)}.pack"


def _hash(text: str) -> str:
    from hashlib import sha256

    return sha256(text.encode("utf-8", "surrogateescape")).hexdigest()

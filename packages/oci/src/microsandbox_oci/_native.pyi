"""Types of the Rust half: tar streams and directories in, EROFS images out.

File descriptors are borrowed: they are used during the call and never closed. Every long call
releases the GIL and looks for signals a few times per second, so Ctrl-C raises `KeyboardInterrupt`.
An exception leaves the output file half-written; the caller removes it. Nothing here calls fsync.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import final

__version__: str

class LayerError(ValueError):
    """The input is unusable; the file system and the system call layer are not at fault.

    `str(error)` is one line for a person. Trouble with files (no space, I/O error, bad descriptor) is
    raised as `OSError` with its `errno` instead.
    """

    code: str
    """What is wrong, one of:

    ============== =================================================================================
    bad_path       a name with `..`, a NUL, an empty or over-long component, or a malformed whiteout
    bad_link       a hard link whose target is a directory, missing, or part of a loop
    bad_header     a tar header that contradicts itself: checksum, number, PAX record, sparse map
    truncated      the stream or file ends early
    corrupt        the compressed stream or EROFS image is damaged
    unsupported    a compression, entry type or image feature that is not implemented
    changed        a packed directory was modified while it was read
    too_many_entries, too_large, ratio, window, path_too_long, xattrs, header_too_large, metadata
                   the limit of that kind was exceeded (see `DEFAULT_LIMITS`)
    ============== =================================================================================
    """

    entry: str | None
    """Path of the entry inside the image (undecodable bytes as `\\xNN`), if one is to blame."""

DEFAULT_LIMITS: Mapping[str, int]
"""Keys that `limits=` accepts, with their defaults.

- `max_entries`: inodes plus names, including parents that had to be invented
- `max_size`: bytes of the uncompressed stream
- `max_file_size`: logical bytes of one file (a sparse file can claim more than it stores)
- `max_ratio`: uncompressed bytes per compressed byte; applies past the first `ratio_floor` bytes
- `ratio_floor`: uncompressed bytes that may be produced before `max_ratio` applies
- `max_path`: bytes of one path or link target
- `max_xattrs`: bytes of all extended attributes of one entry
- `max_header`: bytes of all PAX and GNU long-name records of one entry, or of its sparse map
- `max_metadata`: bytes of all names, link targets, attributes and sparse maps together, as they are held
- `max_window_log`: base-2 logarithm of the largest zstd window
"""

@final
class LayerResult:
    """What `convert_layer` or `pack_directory` read and wrote. Immutable."""

    @property
    def diff_id(self) -> str:
        """`sha256:` of the uncompressed tar; for a packed directory, of the image after its first block."""

    @property
    def digest(self) -> str:
        """`sha256:` of all bytes read from `source`; for a packed directory the same as `diff_id`."""

    @property
    def compressed_size(self) -> int:
        """Bytes read from `source`; 0 for a packed directory."""

    @property
    def uncompressed_size(self) -> int:
        """Bytes of the uncompressed tar; for a packed directory, bytes of file data read."""

    @property
    def entries(self) -> int:
        """Entries of the tar (extension headers not counted), or of the directory."""

    @property
    def blocks(self) -> int:
        """Size of the written file in blocks of 4096 bytes; the file is exactly that long."""

    @property
    def compression(self) -> str:
        """`none`, `gzip` or `zstd`, by the stream's first bytes."""

@final
class MergeResult:
    """What `merge` wrote. Immutable."""

    @property
    def blocks(self) -> int:
        """Size of the written metadata image in blocks of 4096 bytes."""

    @property
    def inodes(self) -> int: ...
    @property
    def chunk_indexes(self) -> int:
        """Chunk indexes written: one for each contiguous file, more for a sparse one."""

    @property
    def layer_blocks(self) -> list[int]:
        """Size of every layer in blocks of 4096 bytes, in the order given."""

def convert_layer(
    source: int,
    out: int,
    *,
    compression: str = "none",
    limits: Mapping[str, int] | None = None,
    progress: Callable[[int], None] | None = None,
) -> LayerResult:
    """Turn one OCI layer (tar; plain, gzip or zstd) into one layer file.

    `source` is read to its end (a pipe is fine: conversion proceeds while it fills); `out` must be an
    empty regular file open for writing. The layer file is an EROFS image that holds everything `merge`
    needs: whiteouts are character devices 0:0, opaque directories carry `trusted.overlay.opaque`, and
    `trusted.microsandbox.*` attributes mark directories the tar did not list and hard links to files of
    lower layers. The same tar always gives the same bytes.

    `compression`: ``none``, or ``lz4``: file contents are cut into extents of 64 KiB, each of which is
    compressed if that saves a block of 4096 bytes. Files with holes are stored as they are. Another value
    raises `ValueError`.

    The result's digests must be compared with the expected ones *before* the file is published.
    `limits` overrides keys of `DEFAULT_LIMITS`; an unknown key or a value that is not a whole number
    of at least 1 raises `ValueError`.
    `progress` is called with the total number of bytes read from `source`: at the start, several times per
    second, and at the end; an exception raised by it ends the conversion and propagates.

    Raises `LayerError`, `OSError`.
    """

def pack_directory(
    path: bytes,
    out: int,
    *,
    limits: Mapping[str, int] | None = None,
    progress: Callable[[int], None] | None = None,
) -> LayerResult:
    """Pack a directory into the same layer format, as one complete root file system.

    Symbolic links are never followed (`path` itself may be one). Sockets are skipped; a directory on
    another file system is kept as an empty directory; `trusted.overlay.*` attributes are dropped and names
    that begin with `.wh.` are ordinary names. `progress` gets the number of bytes of file data read.

    Raises `LayerError` (`changed` when a file is modified while it is read), `OSError`.
    """

def fingerprint_directory(path: bytes) -> str:
    """SHA-256 (hex) over relative path, mode, owner, size, mtime, ctime and inode of every entry.

    Reads no file contents. Equal results mean that nothing changed since, as far as the file system's
    own time stamps can tell. Raises `OSError`; `LayerError` when an entry vanishes during the walk.
    """

def merge(layers: Sequence[int], out: int, *, limits: Mapping[str, int] | None = None) -> MergeResult:
    """Merge layer files, lowest first, into one metadata image.

    Whiteouts and opaque directories are applied and hard links to lower layers resolved. The image has a
    device table: followed by the layer files in the same order, as one block device, it is an EROFS file
    system that mounts without options. The same layers always give the same bytes.

    `out` must be an empty regular file open for writing. Of `limits`, `max_entries` and `max_metadata` count,
    for all layers together, with what upper layers hide; without `limits` there are none. Raises `LayerError`
    (`corrupt` when a layer's metadata does not match its own checksum), `OSError`.
    """

def export_tar(
    metadata: int,
    layers: Sequence[int],
    write: Callable[[bytes], object],
    *,
    progress: Callable[[int], None] | None = None,
) -> None:
    """Write the tree of a merged image as one PAX tar: what a guest that mounts the image sees.

    `metadata` is what `merge` made of `layers`, in the same order. `write` is called with one piece of at
    most about 1 MiB after the other; what it raises ends the export and propagates. `progress` as in
    `convert_layer`, with bytes of the archive. The same image always gives the same bytes.

    Raises `LayerError` (`corrupt`, `truncated`: a file is damaged, or cannot be read), `OSError`.
    """

def vmdk_descriptor(extents: Sequence[tuple[str, int]]) -> str:
    """Text of a VMDK descriptor that concatenates flat files, given as (name, size in bytes).

    Names are used as they are: relative ones are looked up beside the descriptor. Extents are marked `RW`
    since QEMU ignores others; open the drive read-only. Raises `ValueError` for a name that is empty, over
    511 bytes or has a quotation mark or control character, and for a size that is not a positive multiple of
    512.
    """

def check_layer(fd: int) -> None:
    """Check that a layer file or merged metadata image is complete and its metadata undamaged.

    Looks at the superblock's checksum, the recorded size against the file's, and the SHA-256 of all
    metadata; file contents are not read. Raises `LayerError` (`truncated`, `corrupt`), `OSError`.
    """

def sha256_fd(fd: int) -> str:
    """SHA-256 (hex) of a regular file from its first byte to its last; the file offset does not move."""

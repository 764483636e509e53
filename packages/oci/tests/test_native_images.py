"""Every image that the Rust half writes, against fsck.erofs, the kernel and GNU tar."""

import io
import os
import random
import shutil
import stat
import subprocess
import tarfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest
from microsandbox_oci import _native as native

BLOCK = 4096

needs_fsck = pytest.mark.skipif(shutil.which("fsck.erofs") is None, reason="fsck.erofs is not installed")
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")


def run(*argv: str | Path) -> str:
    done = subprocess.run([str(arg) for arg in argv], capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{argv}: {done.stdout}{done.stderr}"
    return done.stdout + done.stderr


def convert(tar: Path, out: Path, compression: str = "none") -> native.LayerResult:
    with tar.open("rb") as source, out.open("wb+") as target:
        return native.convert_layer(source.fileno(), target.fileno(), compression=compression)


def pack(directory: Path, out: Path) -> native.LayerResult:
    with out.open("wb+") as target:
        return native.pack_directory(os.fsencode(directory), target.fileno())


def merge(layers: Sequence[Path], out: Path) -> native.MergeResult:
    files = [layer.open("rb") for layer in layers]
    try:
        with out.open("wb+") as target:
            return native.merge([file.fileno() for file in files], target.fileno())
    finally:
        for file in files:
            file.close()


def fsck(image: Path, devices: Sequence[Path] = ()) -> None:
    out = run("fsck.erofs", "--extract", *(f"--device={device}" for device in devices), image)
    assert "rror" not in out, out


def concatenate(parts: Sequence[Path], out: Path) -> Path:
    with out.open("wb") as target:
        for part in parts:
            with part.open("rb") as source:
                shutil.copyfileobj(source, target)
    return out


@contextmanager
def mounted(image: Path, at: Path) -> Iterator[Path]:
    at.mkdir(exist_ok=True)
    done = subprocess.run(
        ["mount", "-t", "erofs", "-o", "loop,ro", image, at], capture_output=True, text=True, check=False
    )
    if done.returncode != 0 and "unknown filesystem" in done.stderr:
        pytest.skip("this kernel has no EROFS")
    assert done.returncode == 0, done.stderr
    try:
        yield at
    finally:
        run("umount", at)


def snapshot(root: Path) -> dict[bytes, tuple[object, ...]]:
    """Everything about a tree that an image must keep. Hard links show as groups of paths."""
    base = os.fsencode(root)
    found: dict[bytes, tuple[object, ...]] = {}
    groups: dict[int, list[bytes]] = {}
    pending = [b""]
    while pending:
        relative = pending.pop()
        path = base + relative
        info = os.lstat(path)
        kind = stat.S_IFMT(info.st_mode)
        content: object = None
        if kind == stat.S_IFREG:
            with open(path, "rb") as file:  # noqa: PTH123 - the path is bytes
                content = file.read()
        elif kind == stat.S_IFLNK:
            content = os.readlink(path)  # noqa: PTH115 - the path is bytes
        elif kind == stat.S_IFDIR:
            pending += [relative + b"/" + name for name in os.listdir(path)]  # noqa: PTH208 - likewise
        if kind != stat.S_IFDIR:
            groups.setdefault(info.st_ino, []).append(relative)
        attributes = {
            name: os.getxattr(path, name, follow_symlinks=False)
            for name in os.listxattr(path, follow_symlinks=False)
        }
        found[relative] = (
            info.st_mode,
            info.st_uid,
            info.st_gid,
            info.st_mtime_ns,
            info.st_nlink if kind != stat.S_IFDIR else None,
            info.st_rdev,
            content,
            attributes,
        )
    for names in groups.values():
        for name in names:
            found[name] += (sorted(names),)
    return found


def assert_same(actual: Path, expected: Path) -> None:
    left, right = snapshot(actual), snapshot(expected)
    assert left.keys() == right.keys()
    different = [path for path in left if left[path] != right[path]]
    assert not different, [(path, left[path][:6], right[path][:6]) for path in different[:5]]


def write(path: Path, data: bytes, mode: int = 0o644) -> Path:
    path.write_bytes(data)
    path.chmod(mode)
    return path


def make_tree(root: Path) -> None:
    """One of everything, with reproducible contents."""
    rng = random.Random(7)
    root.mkdir()
    sizes = root / "sizes"
    sizes.mkdir()
    for size in (0, 1, 4095, 4096, 4097, 5 << 20):
        write(sizes / f"of-{size}", rng.randbytes(size), 0o600)
    many = root / "many"
    many.mkdir()
    for number in range(10_000):
        (many / f"entry-with-a-longer-name-{number:05}").touch()
    for depth in range(1, 40):
        (root / "/".join(["deep"] * depth)).mkdir()
    write(root / ("n" * 255), b"long name")
    (root / "long-link").symlink_to("t/" * 2000)
    (root / "link").symlink_to("sizes/of-1")
    (root / "dangling").symlink_to("/nowhere")
    odd = os.fsencode(root) + b"/odd \xff\xfe\n\\name"
    with open(odd, "wb") as file:  # noqa: PTH123 - the path is bytes
        file.write(b"odd")
    (root / "names").mkdir()
    for name in ("!before-dot", "-", ".hidden", "...", "..data", "~", "a b", "ünïcode"):
        write(root / "names" / name, name.encode())
    hard = write(root / "hard-1", b"shared")
    for number in (2, 3):
        (root / f"hard-{number}").hardlink_to(hard)
    os.link(root / "link", root / "link-2", follow_symlinks=False)
    with (root / "sparse").open("wb") as file:
        file.truncate(64 << 20)
        for offset in (0, 5 << 20, (33 << 20) + 123, (64 << 20) - 1):
            file.seek(offset)
            file.write(rng.randbytes(min(5000, (64 << 20) - offset)))
    with (root / "all-hole").open("wb") as file:
        file.truncate(1 << 20)
    os.mkfifo(root / "fifo", 0o640)
    write(root / "setuid", b"#!", 0o4755)
    write(root / "no-permissions", b"x", 0)
    sticky = root / "sticky"
    sticky.mkdir()
    sticky.chmod(0o1777)
    os.setxattr(root / "setuid", "user.comment", b"some \0 bytes")
    os.setxattr(root / "setuid", "user.empty", b"")
    os.setxattr(root / "sizes", "user.on-directory", b"v" * 1000)
    times = {
        "sizes": 1_234_567_890_123_456_789,
        "link": 1,
        "hard-1": -5_500_000_001,
        "many": 0,
        "fifo": 10**18,
    }
    if os.geteuid() == 0:
        os.mknod(root / "null", 0o666 | stat.S_IFCHR, os.makedev(1, 3))
        os.mknod(root / "disk", 0o660 | stat.S_IFBLK, os.makedev(259, 70_000))
        os.chown(root / "sticky", 65_534, 4_000_000_000)
        os.chown(root / "link", 1000, 1001, follow_symlinks=False)
        capability = bytes.fromhex("0100000200040000000000000000000000000000")
        os.setxattr(root / "sizes/of-1", "security.capability", capability)
        os.setxattr(root / "sizes/of-1", "trusted.note", b"kept")
        os.setxattr(root / "link", "trusted.on-link", b"kept", follow_symlinks=False)
        acl = bytes.fromhex(
            "0200000001000600ffffffff020006000100000004000400ffffffff10000600ffffffff20000400ffffffff"
        )
        os.setxattr(root / "sizes/of-4095", "system.posix_acl_access", acl)
    for name, mtime in times.items():
        os.utime(root / name, ns=(0, mtime), follow_symlinks=False)


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("tree") / "root"
    make_tree(root)
    return root


FORMATS = {
    "pax": ["--format=posix"],
    "pax-sparse-0.0": ["--format=posix", "-S", "--sparse-version=0.0"],
    "pax-sparse-0.1": ["--format=posix", "-S", "--sparse-version=0.1"],
    "pax-sparse-1.0": ["--format=posix", "-S", "--sparse-version=1.0"],
    "gnu": ["--format=gnu"],
    "gnu-sparse": ["--format=gnu", "-S"],
}


def pack_tar(tree: Path, out: Path, options: Sequence[str]) -> Path:
    attributes = ["--xattrs", "--xattrs-include=*"] if "posix" in options[0] else []
    run("tar", *attributes, *options, "-C", tree, "-cf", out, ".")
    return out


@needs_fsck
@pytest.mark.parametrize("form", FORMATS)
def test_fsck_finds_nothing_wrong(form: str, tree: Path, tmp_path: Path) -> None:
    tar = pack_tar(tree, tmp_path / "layer.tar", FORMATS[form])
    layer, meta = tmp_path / "layer.erofs", tmp_path / "fsmeta.erofs"
    result = convert(tar, layer)
    assert result.blocks * BLOCK == layer.stat().st_size
    fsck(layer)
    merged = merge([layer], meta)
    assert merged.blocks * BLOCK == meta.stat().st_size
    assert merged.layer_blocks == [result.blocks]
    fsck(meta, [layer])


@pytest.mark.root
@needs_root
@pytest.mark.parametrize("form", FORMATS)
def test_a_mounted_image_is_what_tar_extracts(form: str, tree: Path, tmp_path: Path) -> None:
    tar = pack_tar(tree, tmp_path / "layer.tar", FORMATS[form])
    extracted = tmp_path / "extracted"
    extracted.mkdir()
    run("tar", "--xattrs", "--xattrs-include=*", "--numeric-owner", "-C", extracted, "-xpf", tar)
    layer, meta = tmp_path / "layer.erofs", tmp_path / "fsmeta.erofs"
    convert(tar, layer)
    merge([layer], meta)
    for image in (layer, concatenate([meta, layer], tmp_path / "disk")):
        with mounted(image, tmp_path / "mnt") as mnt:
            assert_same(mnt, extracted)


def linked_layer(out: Path, *, relative: bool) -> Path:
    """A layer whose entries lie behind links that it has itself, as of a merged ``/usr``."""

    def to(path: str) -> str:
        return path if relative else f"/{path}"

    links = {
        "bin": to("usr/bin"),
        "lib64": to("usr/lib64"),
        "usr/lib64": "lib" if relative else "/usr/./lib//",
        "sbin": to("bin"),
        "usr/local/up": "../../usr/share",
        "usr/local/here": ".",
        "opt": "usr/local/up/../local/here/./here",
    }
    if not relative:
        links |= {"var/root": "/", "var/above": "../../../../usr/lib"}
    directories = ["", "etc", "usr", "usr/bin", "usr/lib", "usr/local", "usr/share", "var", "var/empty"]
    files = ["bin/sh", "sbin/init", "lib64/ld.so", "opt/tool", "opt/up/doc", "usr/local/here/here/deep"]
    if not relative:
        files += ["var/root/etc/conf", "var/above/libc", "var/root/var/root/sbin/again"]
    clock = iter(range(1_000_000_001, 2_000_000_000))
    with tarfile.open(out, "w", format=tarfile.PAX_FORMAT) as archive:

        def add(name: str, kind: bytes, target: str = "", data: bytes = b"", mode: int = 0o777) -> None:
            entry = tarfile.TarInfo(name)
            entry.type, entry.linkname, entry.size, entry.mode = kind, target, len(data), mode
            entry.mtime = next(clock)
            entry.uid, entry.gid = entry.mtime % 1000, entry.mtime % 77
            archive.addfile(entry, io.BytesIO(data))

        for name in directories:
            add(f"./{name}", tarfile.DIRTYPE, mode=0o751)
        for name, target in links.items():
            add(name, tarfile.SYMTYPE, target)
        for name in files:
            add(name, tarfile.REGTYPE, data=name.encode(), mode=0o755)
        # A directory behind a link, and one that is there already.
        add("lib64/modules", tarfile.DIRTYPE, mode=0o700)
        add("lib64/modules/sub", tarfile.DIRTYPE, mode=0o711)
        add("lib64/modules", tarfile.DIRTYPE, mode=0o1777)
        # Hard links: on both sides a parent is followed, and the last component is not.
        add("sbin/bash", tarfile.LNKTYPE, "bin/sh")
        add("opt/same-link", tarfile.LNKTYPE, "usr/local/here/up")
        add("opt/link", tarfile.SYMTYPE, "nowhere")
        if relative:
            # An entry replaces a link of its own name, and only that; Python would write through it.
            add("bin/was-link", tarfile.SYMTYPE, "sh")
            add("bin/was-link", tarfile.REGTYPE, data=b"file")
            add("bin/was-file", tarfile.REGTYPE, data=b"file")
            add("sbin/was-file", tarfile.SYMTYPE, "sh")
    return out


def attributes_of_files_only(entry: tarfile.TarInfo, _: str) -> tarfile.TarInfo:
    """Keep Python from giving a file the attributes of its hard links; GNU tar and Docker do not."""
    if not entry.islnk():
        return entry
    return entry.replace(mode=None, mtime=None, uid=None, gid=None, uname=None, gname=None)  # type: ignore[arg-type]


def extract_in_chroot(tar: Path, root: Path) -> None:
    """Extract where absolute links lead into `root`. A child does it: nothing leaves a chroot."""
    child = os.fork()
    if child == 0:
        status = 1
        try:
            with tarfile.open(tar, "r:") as archive:
                archive.getmembers()
                os.chroot(root)
                os.chdir("/")
                archive.extractall("/", numeric_owner=True, filter=attributes_of_files_only)
                # Python leaves the times of links alone.
                for link in filter(tarfile.TarInfo.issym, archive):
                    os.utime(link.name, (link.mtime, link.mtime), follow_symlinks=False)
            status = 0
        finally:
            os._exit(status)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


@pytest.mark.root
@needs_root
@pytest.mark.parametrize("relative", [True, False], ids=["relative", "absolute"])
def test_entries_behind_links_are_where_tar_extracts_them(tmp_path: Path, relative: bool) -> None:
    tar = linked_layer(tmp_path / "layer.tar", relative=relative)
    extracted = tmp_path / "extracted"
    extracted.mkdir()
    if relative:
        # -P: links with `..` are made at once, not after everything else.
        options = ["-P", "--delay-directory-restore", "--numeric-owner"]
        run("tar", *options, "-C", extracted, "-xpf", tar)
    else:
        extract_in_chroot(tar, extracted)
    layer, meta = tmp_path / "layer.erofs", tmp_path / "fsmeta.erofs"
    convert(tar, layer)
    merge([layer], meta)
    with mounted(concatenate([meta, layer], tmp_path / "disk"), tmp_path / "mnt") as mnt:
        assert_same(mnt, extracted)
        assert (mnt / "bin").is_symlink()
        assert (mnt / "usr/bin/init").read_bytes() == b"sbin/init"


@pytest.mark.root
@needs_root
def test_links_into_lower_layers_keep_what_is_there(tmp_path: Path) -> None:
    # A directory has no content, a link's is text, a file's is bytes.
    contents: list[dict[str, str | bytes | None]] = [
        {"usr/bin": None, "usr/bin/old": b"old", "usr/bin/gone": b""},
        {"bin": "usr/bin", "bin/new": b"new", "bin/.wh.gone": b""},
    ]
    layers = []
    for number, entries in enumerate(contents):
        tar = tmp_path / f"{number}.tar"
        with tarfile.open(tar, "w") as archive:
            for name, content in entries.items():
                entry = tarfile.TarInfo(name)
                entry.mode = 0o750
                if content is None:
                    entry.type = tarfile.DIRTYPE
                elif isinstance(content, str):
                    entry.type, entry.linkname = tarfile.SYMTYPE, content
                else:
                    entry.size = len(content)
                archive.addfile(entry, io.BytesIO(content if isinstance(content, bytes) else b""))
        layers.append(tmp_path / f"{number}.erofs")
        convert(tar, layers[-1])
    meta = tmp_path / "fsmeta.erofs"
    merge(layers, meta)
    with mounted(concatenate([meta, *layers], tmp_path / "disk"), tmp_path / "mnt") as mnt:
        assert (mnt / "bin").readlink() == Path("usr/bin")
        assert stat.S_IMODE((mnt / "usr/bin").stat().st_mode) == 0o750
        found = {path.name: path.read_bytes() for path in (mnt / "usr/bin").iterdir()}
        assert found == {"old": b"old", "new": b"new"}


@pytest.mark.root
@needs_root
def test_attributes_larger_than_a_block(tmp_path: Path) -> None:
    big = {f"trusted.big-{size}": "v" * size for size in (3000, 4096, 50_000)}
    tar, layer, meta = tmp_path / "layer.tar", tmp_path / "layer.erofs", tmp_path / "fsmeta.erofs"
    with tarfile.open(tar, "w", format=tarfile.PAX_FORMAT) as archive:
        for kind, name in ((tarfile.REGTYPE, "file"), (tarfile.DIRTYPE, "dir"), (tarfile.SYMTYPE, "link")):
            info = tarfile.TarInfo(name)
            info.type, info.linkname = kind, "t" * 3000 if kind == tarfile.SYMTYPE else ""
            info.pax_headers = {f"SCHILY.xattr.{key}": value for key, value in big.items()}
            archive.addfile(info)
    convert(tar, layer)
    merge([layer], meta)
    fsck(layer)
    with mounted(concatenate([meta, layer], tmp_path / "disk"), tmp_path / "mnt") as mnt:
        for name in ("file", "dir", "link"):
            for key, value in big.items():
                assert os.getxattr(mnt / name, key, follow_symlinks=False) == value.encode(), (name, key)
        assert (mnt / "link").readlink() == Path("t" * 3000)


@pytest.mark.root
@needs_root
def test_a_packed_directory_is_the_directory(tree: Path, tmp_path: Path) -> None:
    layer, meta = tmp_path / "layer.erofs", tmp_path / "fsmeta.erofs"
    pack(tree, layer)
    merge([layer], meta)
    with mounted(concatenate([meta, layer], tmp_path / "disk"), tmp_path / "mnt") as mnt:
        assert_same(mnt, tree)


@needs_fsck
def test_a_packed_directory_passes_fsck_and_keeps_holes(tree: Path, tmp_path: Path) -> None:
    layer, meta = tmp_path / "layer.erofs", tmp_path / "fsmeta.erofs"
    result = pack(tree, layer)
    assert result.blocks * BLOCK < 16 << 20
    merge([layer], meta)
    fsck(layer)
    fsck(meta, [layer])


def layered(tmp_path: Path) -> list[Path]:
    """Three layers that use whiteouts, opaque directories and links into lower layers."""
    steps: list[Callable[[Path], None]] = []

    def first(root: Path) -> None:
        for name in ("gone", "kept", "opaque", "usr"):
            (root / name).mkdir()
            write(root / name / "file", name.encode())
        write(root / "renamed-from", b"renamed" * 2000)
        (root / "becomes-directory").symlink_to("kept")
        (root / "becomes-file").mkdir()
        write(root / "becomes-file/x", b"x")

    def second(root: Path) -> None:
        write(root / ".wh.gone", b"")
        write(root / ".wh.renamed-from", b"")
        (root / "opaque").mkdir()
        write(root / "opaque/.wh..wh..opq", b"")
        write(root / "opaque/new", b"new")
        (root / "becomes-directory").mkdir()
        write(root / "becomes-directory/y", b"y")
        write(root / "becomes-file", b"now a file")

    def third(root: Path) -> None:
        (root / "gone").mkdir()
        write(root / "gone/back", b"back")

    steps = [first, second, third]
    layers = []
    for number, step in enumerate(steps):
        root = tmp_path / f"step-{number}"
        root.mkdir()
        step(root)
        tar = tmp_path / f"step-{number}.tar"
        run("tar", "--format=posix", "-C", root, "-cf", tar, ".")
        if number == 1:
            # `renamed-to` is a hard link to a file that only the first layer has.
            scratch = tmp_path / "scratch"
            scratch.mkdir()
            write(scratch / "renamed-from", b"")
            (scratch / "renamed-to").hardlink_to(scratch / "renamed-from")
            run(
                "tar",
                "--format=posix",
                "-C",
                scratch,
                "-cf",
                tmp_path / "link.tar",
                "renamed-from",
                "renamed-to",
            )
            run("tar", "--delete", "-f", tmp_path / "link.tar", "renamed-from")
            run("tar", "-A", "-f", tar, tmp_path / "link.tar")
        layer = tmp_path / f"step-{number}.erofs"
        convert(tar, layer)
        layers.append(layer)
    return layers


@needs_fsck
def test_layers_pass_fsck_apart_and_merged(tmp_path: Path) -> None:
    layers = layered(tmp_path)
    for layer in layers:
        fsck(layer)
    meta = tmp_path / "fsmeta.erofs"
    result = merge(layers, meta)
    assert result.layer_blocks == [layer.stat().st_size // BLOCK for layer in layers]
    fsck(meta, layers)


@pytest.mark.root
@needs_root
def test_the_merged_image_is_what_the_layers_say(tmp_path: Path) -> None:
    layers = layered(tmp_path)
    meta = tmp_path / "fsmeta.erofs"
    merge(layers, meta)
    with mounted(concatenate([meta, *layers], tmp_path / "disk"), tmp_path / "mnt") as mnt:
        files = {str(path.relative_to(mnt)): path.read_bytes() for path in mnt.rglob("*") if path.is_file()}
        assert files == {
            "kept/file": b"kept",
            "usr/file": b"usr",
            "opaque/new": b"new",
            "becomes-directory/y": b"y",
            "becomes-file": b"now a file",
            "gone/back": b"back",
            "renamed-to": b"renamed" * 2000,
        }
        assert not (mnt / "becomes-directory").is_symlink()


def test_the_descriptor_is_one_disk_for_qemu(tmp_path: Path) -> None:
    if shutil.which("qemu-img") is None:
        pytest.skip("qemu-img is not installed")
    layers = layered(tmp_path)
    parts = tmp_path / "store" / "layers of an image"
    parts.mkdir(parents=True)
    meta = tmp_path / "store" / "fsmeta.erofs"
    merge(layers, meta)
    for layer in layers:
        shutil.move(layer, parts)
    files = [meta, *(parts / layer.name for layer in layers)]
    extents = [(str(path.relative_to(meta.parent)), path.stat().st_size) for path in files]
    descriptor = meta.parent / "image.vmdk"
    descriptor.write_text(native.vmdk_descriptor(extents))
    # The names are relative: the store may move.
    moved = tmp_path / "moved"
    meta.parent.rename(moved)
    for file in moved.rglob("*"):
        if file.is_file():
            file.chmod(0o444)
    raw = tmp_path / "raw"
    run("qemu-img", "convert", "-f", "vmdk", "-O", "raw", moved / "image.vmdk", raw)
    expected = concatenate(
        [moved / meta.name, *(moved / parts.name / layer.name for layer in layers)], tmp_path / "whole"
    )
    assert raw.read_bytes() == expected.read_bytes()


def test_a_large_file_costs_one_index(tmp_path: Path) -> None:
    def made(size: int) -> tuple[int, native.MergeResult]:
        tar, layer, meta = tmp_path / f"{size}.tar", tmp_path / f"{size}.layer", tmp_path / f"{size}.meta"
        entry = tarfile.TarInfo("f")
        entry.size = size
        with tar.open("wb") as file:
            file.write(entry.tobuf())
            file.truncate(512 + size + -size % 512 + 1024)
        metadata = convert(tar, layer).blocks * BLOCK - (size + -size % BLOCK)
        return metadata, merge([layer], meta)

    small, large = made(1), made(1 << 30)
    assert large[0] == small[0]
    assert (large[1].chunk_indexes, large[1].blocks) == (1, small[1].blocks)


def hard_to_compress(root: Path) -> None:
    """Files whose sizes and contents lie on both sides of every edge that extents have."""
    rng = random.Random(7)
    for name in ("text", "noise", "zero"):
        (root / name).mkdir()
    text = b"".join(b"%d: what a text says\n" % number for number in range(30_000))
    for size in (1, BLOCK, BLOCK + 1, 65535, 65536, 65537, 131072, 200_001):
        write(root / "text" / str(size), text[:size])
        write(root / "noise" / str(size), rng.randbytes(size))
        write(root / "zero" / str(size), bytes(size))
    write(root / "mixed", rng.randbytes(70_000) + text[:150_000] + rng.randbytes(70_000) + text[-150_001:])
    write(root / "ends-in-noise", text[:65536] + rng.randbytes(10))
    write(root / "long-matches", text[:40_000] * 5 + bytes(100_000))


@pytest.fixture
def compressed(tree: Path, tmp_path: Path) -> tuple[Path, Path, Path]:
    """A tree as it is, as a compressed layer, and as merged metadata."""
    root, tar = tmp_path / "root", tmp_path / "layer.tar"
    root.mkdir()
    run("cp", "-a", tree, root / "tree")
    hard_to_compress(root)
    pack_tar(root, tar, FORMATS["pax"])
    layer, meta = tmp_path / "layer.erofs", tmp_path / "fsmeta.erofs"
    convert(tar, layer, "lz4")
    merge([layer], meta)
    return root, layer, meta


@needs_fsck
def test_compressed_images_are_what_erofs_utils_read(
    compressed: tuple[Path, Path, Path], tmp_path: Path
) -> None:
    root, layer, meta = compressed
    fsck(layer)
    # The indexes of compressed files count through the layers behind the metadata, where the guest has them.
    disk = concatenate([meta, layer], tmp_path / "disk")
    fsck(disk, [layer])
    for name, source, devices in (("layer", layer, ()), ("merged", disk, (f"--device={layer}",))):
        out = tmp_path / name
        run("fsck.erofs", f"--extract={out}", "--no-preserve", *devices, source)
        for path in (path for path in root.rglob("*") if path.is_file() and not path.is_symlink()):
            assert (out / path.relative_to(root)).read_bytes() == path.read_bytes(), path
    shown = run("dump.erofs", "--path=/text/65537", layer)
    assert "Compression ratio" in shown
    ratio = float(shown.split("Compression ratio:")[1].split("%")[0])
    assert ratio < 60
    # What would not get smaller is one run, as without compression.
    assert "Layout: 0" in run("dump.erofs", "--path=/noise/65537", layer)


@pytest.mark.root
@needs_root
def test_a_mounted_compressed_image_is_the_tree(compressed: tuple[Path, Path, Path], tmp_path: Path) -> None:
    root, layer, meta = compressed
    with mounted(concatenate([meta, layer], tmp_path / "disk"), tmp_path / "mnt") as found:
        assert_same(found, root)

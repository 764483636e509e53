"""The Python surface of the Rust half: results, errors, limits, signals."""

import errno
import gzip
import hashlib
import io
import os
import resource
import signal
import tarfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from microsandbox_oci import _native as native

Fill = Callable[[tarfile.TarFile], None]


def archive(fill: Fill) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.PAX_FORMAT) as tar:
        fill(tar)
    return buffer.getvalue()


def add(tar: tarfile.TarFile, name: str, data: bytes = b"") -> None:
    info = tarfile.TarInfo(name)
    info.size = len(data)
    tar.addfile(info, io.BytesIO(data))


def one_file(name: str = "f", data: bytes = b"data") -> bytes:
    return archive(lambda tar: add(tar, name, data))


def convert(
    data: bytes,
    out: Path,
    *,
    limits: dict[str, int] | None = None,
    progress: Callable[[int], None] | None = None,
) -> native.LayerResult:
    source = out.with_suffix(".source")
    source.write_bytes(data)
    with source.open("rb") as file, out.open("wb+") as target:
        return native.convert_layer(file.fileno(), target.fileno(), limits=limits, progress=progress)


def test_the_result_tells_what_was_read(tmp_path: Path) -> None:
    tar = one_file()
    packed = gzip.compress(tar)
    out = tmp_path / "out"
    seen: list[int] = []
    result = convert(packed, out, progress=seen.append)
    assert result.diff_id == "sha256:" + hashlib.sha256(tar).hexdigest()
    assert result.digest == "sha256:" + hashlib.sha256(packed).hexdigest()
    assert (result.compressed_size, result.uncompressed_size) == (len(packed), len(tar))
    assert (result.entries, result.compression) == (1, "gzip")
    assert result.blocks * 4096 == out.stat().st_size
    assert seen[-1] == len(packed)
    with pytest.raises(AttributeError):
        result.entries = 2  # type: ignore[misc]


def test_the_same_tar_gives_the_same_bytes(tmp_path: Path) -> None:
    tar = one_file()
    convert(tar, tmp_path / "a")
    convert(gzip.compress(tar), tmp_path / "b")
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


@pytest.mark.parametrize(
    ("name", "code"),
    [("../../etc/cron.d/x", "bad_path"), ("a/../../b", "bad_path"), ("n" * 300, "path_too_long")],
)
def test_o01_errors_name_the_entry(name: str, code: str, tmp_path: Path) -> None:
    with pytest.raises(native.LayerError) as caught:
        convert(one_file(name), tmp_path / "out")
    assert caught.value.code == code
    assert caught.value.entry is not None
    assert caught.value.entry[:10] == name[:10]
    assert "\n" not in str(caught.value)


def test_o08_a_gzip_bomb_is_stopped(tmp_path: Path) -> None:
    bomb = gzip.compress(b"\0" * (8 << 20))
    with pytest.raises(native.LayerError) as caught:
        convert(bomb, tmp_path / "out", limits={"ratio_floor": 1 << 20})
    assert caught.value.code == "ratio"
    with pytest.raises(native.LayerError) as caught:
        convert(bomb, tmp_path / "out2", limits={"max_size": 1 << 20})
    assert caught.value.code == "too_large"


def test_o09_too_many_entries(tmp_path: Path) -> None:
    def fill(tar: tarfile.TarFile) -> None:
        for number in range(200):
            add(tar, str(number))

    with pytest.raises(native.LayerError) as caught:
        convert(archive(fill), tmp_path / "out", limits={"max_entries": 100})
    assert caught.value.code == "too_many_entries"


@pytest.mark.parametrize("limits", [{"no_such": 1}, {"max_entries": 0}, {"max_entries": -1}])
def test_limits_are_checked(limits: dict[str, int], tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="limit"):
        convert(one_file(), tmp_path / "out", limits=limits)


def test_default_limits_are_what_is_accepted(tmp_path: Path) -> None:
    convert(one_file(), tmp_path / "out", limits=dict(native.DEFAULT_LIMITS))
    with pytest.raises(TypeError):
        native.DEFAULT_LIMITS["max_entries"] = 1  # type: ignore[index]


@pytest.mark.parametrize("cut", [1, 10, 100])
def test_o13_a_truncated_stream(cut: int, tmp_path: Path) -> None:
    packed = gzip.compress(os.urandom(100_000))
    with pytest.raises(native.LayerError) as caught:
        convert(packed[:-cut], tmp_path / "out")
    assert caught.value.code in {"truncated", "bad_header"}


def test_output_must_be_empty_and_regular(tmp_path: Path) -> None:
    (tmp_path / "full").write_bytes(b"x")
    reader, writer = os.pipe()
    with (tmp_path / "full").open("rb+") as full, pytest.raises(ValueError, match="empty regular file"):
        native.convert_layer(reader, full.fileno())
    with pytest.raises(ValueError, match="empty regular file"):
        native.merge([], writer)
    os.close(reader)
    os.close(writer)


def test_a_closed_descriptor_is_an_os_error(tmp_path: Path) -> None:
    with (tmp_path / "out").open("wb") as out, pytest.raises(OSError, match="Bad file") as caught:
        native.convert_layer(999, out.fileno())
    assert caught.value.errno == errno.EBADF


def test_o20_a_full_disk_is_an_os_error(tmp_path: Path) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    data = one_file(data=os.urandom(4 << 20))
    source = tmp_path / "source"
    source.write_bytes(data)
    try:
        with source.open("rb") as file, (tmp_path / "out").open("wb") as out:
            resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, hard))
            with pytest.raises(OSError, match="arge") as caught:
                native.convert_layer(file.fileno(), out.fileno())
            assert caught.value.errno == errno.EFBIG
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, before)


def test_a_pipe_is_converted_while_it_fills(tmp_path: Path) -> None:
    data = one_file(data=os.urandom(3 << 20))
    reader, writer = os.pipe()

    def feed() -> None:
        with open(writer, "wb") as pipe:  # noqa: PTH123 - a descriptor
            pipe.write(data)

    thread = threading.Thread(target=feed)
    thread.start()
    with (tmp_path / "out").open("wb+") as out:
        result = native.convert_layer(reader, out.fileno())
    thread.join()
    os.close(reader)
    assert result.digest == "sha256:" + hashlib.sha256(data).hexdigest()


@pytest.fixture
def interruptible() -> Iterator[None]:
    """SIGINT raises, also in a shell's background job, which inherits that it is ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("interruptible")
def test_ctrl_c_ends_a_conversion_that_waits(tmp_path: Path) -> None:
    reader, writer = os.pipe()
    os.write(writer, b"\0" * 512)
    waiting = threading.Thread(target=lambda: os.kill(os.getpid(), signal.SIGINT))
    # The signal may arrive before the conversion has begun; both ways it must end the call.
    with (tmp_path / "out").open("wb+") as out, pytest.raises(KeyboardInterrupt):  # noqa: PT012
        waiting.start()
        native.convert_layer(reader, out.fileno())
    waiting.join()
    os.close(reader)
    os.close(writer)


@pytest.mark.usefixtures("interruptible")
def test_a_signal_that_interrupts_no_read_ends_a_conversion_that_waits(tmp_path: Path) -> None:
    reader, writer = os.pipe()
    os.write(writer, b"\0" * 512)

    def take() -> None:
        # read() and ppoll(), in the main thread's first column (proc_pid_syscall(5)).
        waiting = Path(f"/proc/self/task/{os.getpid()}/syscall")
        while waiting.read_text().split()[0] not in ("0", "271"):
            pass
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
        os.kill(os.getpid(), signal.SIGINT)

    taker = threading.Thread(target=take)
    # Blocked here, it is delivered to the other thread, and this one's system call goes on.
    held = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        with (tmp_path / "out").open("wb+") as out, pytest.raises(KeyboardInterrupt):  # noqa: PT012
            taker.start()
            native.convert_layer(reader, out.fileno())
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, held)
    taker.join()
    os.close(reader)
    os.close(writer)


def test_an_exception_in_progress_ends_the_conversion(tmp_path: Path) -> None:
    def progress(_: int) -> None:
        raise RuntimeError("enough")

    with pytest.raises(RuntimeError, match="enough"):
        convert(one_file(), tmp_path / "out", progress=progress)


def test_o17_a_damaged_file_is_noticed(tmp_path: Path) -> None:
    out, meta = tmp_path / "layer", tmp_path / "meta"
    convert(one_file(data=b"x" * 10_000), out)
    with out.open("rb") as layer, meta.open("wb+") as target:
        native.merge([layer.fileno()], target.fileno())
    for path in (out, meta):
        good = path.read_bytes()
        with path.open("rb") as file:
            native.check_layer(file.fileno())
        for damaged, code in [
            (good[:-4096], "truncated"),
            (good[:100], "truncated"),
            (good + bytes(4096), "corrupt"),
            (good[:-4000] + b"\xff" + good[-3999:], "corrupt"),
            (good[:1030] + b"\xff" + good[1031:], "corrupt"),
            (b"", "truncated"),
        ]:
            copy = tmp_path / "copy"
            copy.write_bytes(damaged)
            with copy.open("rb") as file, pytest.raises(native.LayerError) as caught:
                native.check_layer(file.fileno())
            assert caught.value.code == code


def test_sha256_does_not_move_the_offset(tmp_path: Path) -> None:
    path = tmp_path / "f"
    path.write_bytes(b"abc" * 1000)
    with path.open("rb") as file:
        file.seek(5)
        assert native.sha256_fd(file.fileno()) == hashlib.sha256(path.read_bytes()).hexdigest()
        assert file.tell() == 5


def test_descriptor_refuses_names_that_add_lines() -> None:
    with pytest.raises(ValueError, match="quotation"):
        native.vmdk_descriptor([('a"\nRW 1 FLAT "/etc/shadow', 512)])
    with pytest.raises(ValueError, match="512"):
        native.vmdk_descriptor([("a", 100)])


def fingerprint(path: Path) -> str:
    return native.fingerprint_directory(os.fsencode(path))


def test_a_fingerprint_sees_every_change(tmp_path: Path) -> None:
    root = tmp_path / "root"
    (root / "d").mkdir(parents=True)
    (root / "d/f").write_bytes(b"1")
    seen = {fingerprint(root)}
    assert fingerprint(root) in seen

    def changes() -> None:
        before = len(seen)
        seen.add(fingerprint(root))
        assert len(seen) == before + 1

    (root / "d/f").write_bytes(b"22")
    changes()
    (root / "d/f").chmod(0o600)
    changes()
    os.utime(root / "d/f", ns=(0, 5))
    changes()
    (root / "d/f").rename(root / "d/g")
    changes()
    (root / "link").symlink_to("d")
    changes()
    (root / "link").unlink()
    (root / "link").symlink_to("e")
    changes()


def test_packing_never_follows_links(tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.mkdir()
    (secret / "key").write_bytes(b"do not read")
    root = tmp_path / "root"
    root.mkdir()
    (root / "out").symlink_to(secret)
    (root / "up").symlink_to("..")
    with (tmp_path / "image").open("wb+") as out:
        result = native.pack_directory(os.fsencode(root), out.fileno())
    assert result.entries == 2
    assert b"do not read" not in (tmp_path / "image").read_bytes()
    assert result.diff_id.startswith("sha256:")


def test_packing_skips_sockets_and_keeps_wh_names(tmp_path: Path) -> None:
    import socket

    root = tmp_path / "root"
    root.mkdir()
    (root / ".wh.plain-file").write_bytes(b"kept")
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(root / "s"))
    listener.close()
    with (tmp_path / "image").open("wb+") as out:
        assert native.pack_directory(os.fsencode(root), out.fileno()).entries == 1
    assert b"kept" in (tmp_path / "image").read_bytes()


def test_packing_notices_changes(tmp_path: Path) -> None:
    root = tmp_path / "root"
    (root / "d").mkdir(parents=True)
    (root / "d/f").write_bytes(b"1")

    def progress(_: int) -> None:
        (root / "new").touch()

    with (tmp_path / "image").open("wb+") as out, pytest.raises(native.LayerError) as caught:
        native.pack_directory(os.fsencode(root), out.fileno(), progress=progress)
    assert caught.value.code == "changed"


def test_an_empty_stream_is_an_empty_layer(tmp_path: Path) -> None:
    assert convert(b"", tmp_path / "out").entries == 0
    assert convert(bytes(1024), tmp_path / "out2").entries == 0


def test_packing_what_is_not_there(tmp_path: Path) -> None:
    with (tmp_path / "image").open("wb+") as out, pytest.raises(FileNotFoundError):
        native.pack_directory(os.fsencode(tmp_path / "missing"), out.fileno())


def test_the_interface_file_is_complete() -> None:
    """Whatever the module has, `_native.pyi` describes."""
    stub = Path(native.__file__).with_name("_native.pyi").read_text()
    for name in dir(native):
        if not name.startswith("__") or name == "__version__":
            assert f" {name}" in stub or f"\n{name}" in stub, name

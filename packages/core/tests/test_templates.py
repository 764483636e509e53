"""The cache of templates, with files that no VMM ever sees."""

from __future__ import annotations

import errno
import os
import threading
from pathlib import Path

import pytest
from microsandbox_core import templates as module
from microsandbox_core.errors import StorageError
from microsandbox_core.templates import Templates

KEY = "0" * 64


def publish(cache: Templates, key: str = KEY, *, base: str = "", image: Path | None = None) -> Path:
    """A template of four kilobytes, with an upper if it has an image."""
    made = cache.temporary(key)
    if image is not None:
        (made / "upper").write_bytes(b"u")
    (made / "memory").write_bytes(b"m" * 4096)
    (made / "state").write_bytes(b"s")
    cache.publish(key, made, basis="b", vcpus=2, memory_mib=256, base=base, image=image)
    return cache.directory / key


def test_what_was_published_is_found_with_its_files_open(tmp_path: Path) -> None:
    cache = Templates(tmp_path)
    assert cache.find(KEY) is None
    publish(cache)
    found = cache.find(KEY)
    assert found is not None
    assert os.pread(found.memory, 4, 0) == b"mmmm"
    cache.remove(KEY)
    assert os.pread(found.state, 1, 0) == b"s"
    found.close()
    assert cache.find(KEY) is None


@pytest.mark.parametrize("name", ["memory", "state", "record", "upper"])
@pytest.mark.parametrize("damage", ["written", "gone", "replaced"])
def test_what_was_changed_is_removed(tmp_path: Path, name: str, damage: str) -> None:
    cache = Templates(tmp_path)
    path = publish(cache, image=tmp_path / "image") / name
    before = path.stat()
    if damage == "written":
        path.write_bytes(b"x" * before.st_size)
        os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    elif damage == "gone":
        path.unlink()
    else:
        other = path.with_name("other")
        other.write_bytes(path.read_bytes().replace(b"version 2", b"version 1"))
        other.replace(path)
    assert cache.find(KEY) is None
    assert not path.parent.exists()


def test_an_older_boot_of_the_host_made_it(tmp_path: Path) -> None:
    cache = Templates(tmp_path)
    record = publish(cache) / "record"
    boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    record.write_text(record.read_text().replace(boot, "00000000-0000-0000-0000-000000000000"))
    assert cache.find(KEY) is None


def test_the_least_recently_used_go(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "LIMIT", 2)
    cache = Templates(tmp_path)
    keys = [digit * 64 for digit in "123"]
    for number, key in enumerate(keys[:2]):
        os.utime(publish(cache, key), (1000 - number, 1000 - number))
    found = cache.find(keys[1])
    assert found is not None
    found.close()
    publish(cache, keys[2])
    assert {info.key for info in cache.list()} == {keys[1], keys[2]}


def test_the_list_tells_size_and_shape(tmp_path: Path) -> None:
    cache = Templates(tmp_path)
    publish(cache)
    (info,) = cache.list()
    assert (info.key, info.vcpus, info.memory_mib, info.current) == (KEY, 2, 256, False)
    assert info.size >= 4096


def test_a_template_with_an_image_has_an_upper_and_keeps_its_base_in_use(tmp_path: Path) -> None:
    cache = Templates(tmp_path)
    image = tmp_path / os.fsdecode(b"im\xffage\n")
    base = publish(cache)
    publish(cache, "1" * 64, base=KEY, image=image)
    os.utime(base, (0, 0))
    found = cache.find("1" * 64)
    assert found is not None
    assert found.upper is not None
    assert os.pread(found.upper, 1, 0) == b"u"
    found.close()
    assert base.stat().st_mtime > 0
    assert {info.key: info.image for info in cache.list()} == {KEY: None, "1" * 64: image}
    (base.parent / ("1" * 64) / "upper").unlink()
    assert cache.find("1" * 64) is None


def test_a_failure_is_remembered_for_an_hour(tmp_path: Path) -> None:
    cache = Templates(tmp_path)
    publish(cache)
    assert not cache.given_up(KEY)
    cache.give_up(KEY)
    assert cache.given_up(KEY)
    (mark,) = cache.directory.glob(".*.failed")
    os.utime(mark, (mark.stat().st_mtime - 3601,) * 2)
    assert not cache.given_up(KEY)
    assert not mark.exists()


def test_leftovers_of_a_maker_that_was_killed_are_swept(tmp_path: Path) -> None:
    cache = Templates(tmp_path)
    left = cache.temporary(KEY)
    (left / "memory").write_bytes(b"half")
    dead = left.with_name(f".{KEY}.999999999-00000000.tmp")
    left.rename(dead)
    cache.temporary(KEY)
    assert not dead.exists()


def test_only_one_makes_and_the_others_wait(tmp_path: Path) -> None:
    cache = Templates(tmp_path)
    with cache.making(KEY, wait=1) as ours:
        assert ours
        with cache.making(KEY, wait=0.01) as too:
            assert not too
        with cache.making(KEY, wait=0) as still:
            assert not still
    with cache.making(KEY, wait=0.01) as again:
        assert again
    assert list(cache.directory.iterdir()) == []


def test_who_waited_gets_the_lock_when_it_is_let_go(tmp_path: Path) -> None:
    cache = Templates(tmp_path)
    context = cache.making(KEY, wait=1)
    assert context.__enter__()
    timer = threading.Timer(0.05, lambda: context.__exit__(None, None, None))
    timer.start()
    with cache.making(KEY, wait=30) as ours:
        assert ours
        assert (cache.directory / f".{KEY}.lock").exists()
    timer.join()


def test_a_template_that_cannot_be_opened_just_now_is_not_removed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = Templates(tmp_path)
    path = publish(cache)

    def one_too_many(*_: object) -> int:
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    monkeypatch.setattr(os, "open", one_too_many)
    with pytest.raises(StorageError, match="Too many open files"):
        cache.find(KEY)
    monkeypatch.undo()
    assert path.exists()
    found = cache.find(KEY)
    assert found is not None
    found.close()

"""Registries and archives, as far as neither a registry nor an image is needed."""

import asyncio
import os
import threading
from pathlib import Path
from typing import Any, BinaryIO

import pytest
from microsandbox import Image, Sandbox, images, registries
from microsandbox.errors import ConfigError, ImageError


@pytest.mark.parametrize("registry", ["harbor", "library", "registry", "http://harbor/v2", ""])
def test_a_password_goes_to_no_other_registry_than_the_one_named(tmp_path: Path, registry: str) -> None:
    """`harbor/x` is a repository of Docker Hub."""
    with pytest.raises((ConfigError, ImageError)):
        registries.login(tmp_path, registry, "me", "secret", check=False)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("registry", "domain"),
    [
        ("docker.io", "docker.io"),
        ("https://index.docker.io/v1/", "docker.io"),
        ("localhost", "localhost"),
        ("harbor:5000", "harbor:5000"),
        ("https://registry.example", "registry.example"),
    ],
)
def test_registries_as_people_write_them(tmp_path: Path, registry: str, domain: str) -> None:
    registries.login(tmp_path, registry, "me", "secret", check=False)
    assert registries.logins(tmp_path) == {domain: "me"}
    assert registries.logout(tmp_path, registry)


def test_a_user_name_that_could_not_be_read_back_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="colon"):
        registries.login(tmp_path, "registry.example", "me:too", "secret", check=False)


def _saved(_: Path, __: Any, out: BinaryIO, *, form: str) -> None:
    out.write(b"archive")


def test_an_archive_takes_the_place_of_files_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(images, "save", _saved)
    pipe, link, file = tmp_path / "pipe", tmp_path / "link", tmp_path / "file"
    os.mkfifo(pipe)
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    try:
        images.save_to(tmp_path, ["x"], pipe, form="oci")
        assert pipe.is_fifo()
        assert os.read(reader, 100) == b"archive"
    finally:
        os.close(reader)
    link.symlink_to(file)
    images.save_to(tmp_path, ["x"], link, form="oci")
    assert link.is_symlink()
    assert file.read_bytes() == b"archive"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "link", "pipe"]


@pytest.mark.parametrize("what", ["create", "pull"])
def test_who_is_cancelled_does_not_wait_for_a_registry(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    begun, ended = threading.Event(), threading.Event()

    def pull(_home: Path, _name: str, *, abort: registries.Abort, **_: Any) -> Any:
        with abort.ending(ended.set):
            begun.set()
            assert ended.wait(20)
        raise RuntimeError("it was ended")

    async def main() -> None:
        making: Any = Sandbox.create(image="x") if what == "create" else Image.pull("x")
        task = asyncio.ensure_future(making)
        await asyncio.to_thread(begun.wait, 20)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    monkeypatch.setenv("MSB_HOME", str(tmp_path))
    monkeypatch.setattr(registries, "pull", pull)
    asyncio.run(main())
    assert ended.is_set()

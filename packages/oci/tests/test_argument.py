"""Image arguments: a path looks like one or has a prefix; everything else is a reference."""

from __future__ import annotations

from pathlib import Path

import pytest
from microsandbox_oci import (
    ArchiveError,
    ArchiveForm,
    ArchiveInvalid,
    ArchiveNotFound,
    ArchivePath,
    LayoutPath,
    Reference,
    ReferenceInvalid,
    RootfsDirectory,
    classify_image_argument,
)


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "layout").mkdir()
    (tmp_path / "layout" / "oci-layout").write_text("{}")
    (tmp_path / "rootfs").mkdir()
    (tmp_path / "busybox").mkdir()
    (tmp_path / "app.tar").write_bytes(b"")
    (tmp_path / "with:colon.tar").write_bytes(b"")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    return tmp_path


def test_bare_words_are_references_whatever_the_directory_has(place: Path) -> None:
    assert classify_image_argument("busybox") == Reference.parse("busybox")
    assert classify_image_argument("app.tar") == Reference.parse("app.tar")
    assert classify_image_argument("rootfs/app") == Reference.parse("rootfs/app")


@pytest.mark.parametrize("form", ["./{}", "../{parent}/{}", "~/{}", "{root}/{}"])
def test_what_looks_like_a_path_is_one(place: Path, form: str) -> None:
    def at(name: str) -> str:
        return form.format(name, parent=place.name, root=place)

    def same(found: object, name: str) -> bool:
        return isinstance(found, ArchivePath | LayoutPath | RootfsDirectory) and found.path.samefile(
            place / name
        )

    rootfs, layout, archive = (classify_image_argument(at(name)) for name in ("rootfs", "layout", "app.tar"))
    assert isinstance(rootfs, RootfsDirectory)
    assert isinstance(layout, LayoutPath)
    assert isinstance(archive, ArchivePath)
    assert same(rootfs, "rootfs")
    assert same(layout, "layout")
    assert same(archive, "app.tar")
    assert isinstance(classify_image_argument("."), RootfsDirectory)


def test_prefixes_choose_the_form_and_the_image(place: Path) -> None:
    assert classify_image_argument("docker-archive:app.tar") == ArchivePath(
        Path("app.tar"), ArchiveForm.DOCKER
    )
    assert classify_image_argument("oci-archive:app.tar:app:1.0") == ArchivePath(
        Path("app.tar"), ArchiveForm.OCI, "app:1.0"
    )
    assert classify_image_argument("oci:layout:latest") == LayoutPath(Path("layout"), "latest")
    assert classify_image_argument("oci-archive:with:colon.tar") == ArchivePath(
        Path("with:colon.tar"), ArchiveForm.OCI
    )
    assert classify_image_argument("oci-archive:with:colon.tar:x") == ArchivePath(
        Path("with:colon.tar"), ArchiveForm.OCI, "x"
    )


@pytest.mark.parametrize(
    "text", ["/missing/path", "./missing", "~/missing", "docker-archive:/missing/path:ref"]
)
def test_an_error_for_a_missing_path_names_it(place: Path, text: str) -> None:
    with pytest.raises(ArchiveNotFound, match="missing") as caught:
        classify_image_argument(text)
    assert caught.value.code == "archive_not_found"
    assert caught.value.hint


@pytest.mark.parametrize(
    "text", ["oci:app.tar", "oci:rootfs", "oci-archive:layout", "docker-archive:", "./a\0b"]
)
def test_a_prefix_and_a_path_that_do_not_fit(place: Path, text: str) -> None:
    with pytest.raises(ArchiveError) as caught:
        classify_image_argument(text)
    assert isinstance(caught.value, ArchiveInvalid | ArchiveNotFound)


@pytest.mark.parametrize("text", ["", "--privileged", "-v", "a b", "oci-archive"[:0] + "docker://busybox"])
def test_v07_what_is_neither_is_refused(place: Path, text: str) -> None:
    with pytest.raises(ReferenceInvalid):
        classify_image_argument(text)

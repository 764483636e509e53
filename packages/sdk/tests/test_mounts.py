"""What can be mounted, and how refusals read."""

import os
from pathlib import Path

import pytest
from microsandbox import ConfigError, StartError, Volume
from microsandbox._config import MountConfig, SandboxConfig, Tmpfs
from microsandbox.mounts import check_home, parse_volume, parse_volumes, with_mounts
from microsandbox.supervisor._shares import check_sources


@pytest.fixture
def share(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A directory `src` and a file `file` in the working directory."""
    monkeypatch.chdir(tmp_path)
    Path("src").mkdir()
    Path("file").touch()
    return tmp_path


def test_a_volume_is_understood(share: Path) -> None:
    source = str(share / "src")
    assert parse_volume("./src:/app") == MountConfig("/app", source)
    assert parse_volume("src/:/app/") == MountConfig("/app", source)
    assert parse_volume(f"{share}/./src/../file:/etc/file:rw") == MountConfig("/etc/file", f"{share}/file")
    assert parse_volume(".:/app") == MountConfig("/app", str(share))
    assert parse_volume("./src:/app:ro,noexec,nodev,nosuid,cache=none,owner=squash") == MountConfig(
        "/app", source, read_only=True, flags=("noexec", "nosuid", "nodev"), ownership="squash", cache="none"
    )


def test_the_sdk_says_the_same(share: Path) -> None:
    volumes = {"/app": Volume.bind("src", readonly=True, noexec=True), "/tmp/x": Volume.tmpfs(size_mib=3)}
    config = with_mounts(SandboxConfig(), volumes)
    assert config == parse_volumes(SandboxConfig(tmpfs=(Tmpfs("/tmp/x", 3 << 20),)), ["./src:/app:ro,noexec"])
    with pytest.raises(TypeError, match=r"/app is a str.*Volume\.bind"):
        with_mounts(SandboxConfig(), {"/app": "./src"})  # type: ignore[dict-item]


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("./src", "does not say what is mounted where"),
        (":/app", "does not say"),
        ("./src:", "does not say"),
        ("-src:/app", "cannot name a volume"),
        ("./src:app", "not an absolute path"),
        ("./src:/", "root itself"),
        ("./src:/a/../..", "not an absolute path"),
        ("./src:/proc/x", "the sandbox's own"),
        ("./src:/.msb/scripts", "the sandbox's own"),
        ("./src:/app:fast", "'fast' is not an option"),
        ("./src:/app:cache=some", "cache 'some' is not known"),
        ("./src:/app:owner=me", "ownership 'me' is not known"),
        ("./none:/app", "No such file"),
        ("./link:/app", "symbolic link"),
        ("./fifo:/app", "neither a directory nor a file"),
    ],
)
def test_what_cannot_be_mounted_is_refused_by_name(share: Path, text: str, told: str) -> None:
    (share / "link").symlink_to("src")
    os.mkfifo(share / "fifo")
    with pytest.raises(ConfigError, match=told) as caught:
        parse_volume(text)
    assert caught.value.hint


def test_a_link_is_refused_with_what_it_leads_to(share: Path) -> None:
    (share / "link").symlink_to("src")
    with pytest.raises(ConfigError) as caught:
        parse_volume("./link:/app")
    assert str(share / "src") in str(caught.value.hint)


def test_no_place_is_taken_twice(share: Path) -> None:
    for given in (["./src:/app", ".:/app/"], ["./src:/cache"]):
        with pytest.raises(ConfigError, match="given twice"):
            parse_volumes(SandboxConfig(tmpfs=(Tmpfs("/cache"),)), given)
    with pytest.raises(ConfigError, match="25 are too many"):
        parse_volumes(SandboxConfig(), [f"./src:/app/{number}" for number in range(25)])


def test_the_sandboxes_own_files_are_not_shared(share: Path) -> None:
    home = share / "src" / "home"
    (home / "cache").mkdir(parents=True)
    (share / "other").mkdir()
    for source in (share, share / "src", home, home / "cache"):
        with pytest.raises(ConfigError, match="the sandboxes' own files"):
            check_home([MountConfig("/app", str(source))], home)
    check_home([MountConfig("/app", str(share / "other")), MountConfig("/v", "", "volume", "v")], home)


def test_a_source_that_has_gone_or_changed_keeps_a_sandbox_from_starting(share: Path) -> None:
    mount = MountConfig("/app", str(share / "src"))
    check_sources([mount])
    (share / "src").rename(share / "moved")
    with pytest.raises(StartError, match=r"/app: .*/src: No such file"):
        check_sources([mount])
    (share / "src").symlink_to("moved")
    with pytest.raises(StartError, match="has become a symbolic link"):
        check_sources([mount])


def test_a_directory_is_watched_if_asked_for_and_a_file_never(tmp_path: Path) -> None:
    assert not parse_volume(f"{tmp_path}:/app").watch
    assert parse_volume(f"{tmp_path}:/app:ro,watch").watch
    assert not parse_volume(f"{tmp_path}:/app:nowatch").watch
    assert parse_volume("data:/data:watch").watch
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match="is a file, and watched are directories"):
        parse_volume(f"{tmp_path}/file:/app:watch")

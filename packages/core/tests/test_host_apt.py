"""What apt is asked, and what its answers mean, with programs in its place that answer as apt does."""

from __future__ import annotations

from pathlib import Path

import pytest
from microsandbox_core.host import apt, errors

_SOURCE = """\
Types: deb
URIs: http://mirror.example/debian
Suites: bookworm
Components: main
"""


class Programs:
    """A directory that is all of PATH: what is put there is what the code under test finds."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self.log = directory / "log"
        self.log.touch()

    def put(self, name: str, script: str) -> None:
        file = self._directory / name
        file.write_text(f'#!/bin/sh\necho "{name} $*" >> {self.log}\n{script}\n')
        file.chmod(0o755)

    def calls(self, name: str) -> list[str]:
        return [line for line in self.log.read_text().splitlines() if line.startswith(name + " ")]


@pytest.fixture
def programs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Programs:
    directory = tmp_path / "bin"
    directory.mkdir()
    monkeypatch.setenv("PATH", str(directory))
    return Programs(directory)


@pytest.fixture
def machine_sources(tmp_path: Path, programs: Programs) -> Path:
    """The directory of the machine's source lists, as apt-config tells it."""
    parts = tmp_path / "sources.list.d"
    parts.mkdir()
    (parts / "debian.sources").write_text(_SOURCE)
    programs.put("apt-config", f"echo \"LIST='{tmp_path}/sources.list'\"; echo \"PARTS='{parts}/'\"")
    return parts


def _policy(candidate: str) -> str:
    return f"echo 'libkrunfw5:'; echo '  Installed: (none)'; echo '  Candidate: {candidate}'"


def test_the_candidate_is_what_apt_would_install(programs: Programs) -> None:
    programs.put("apt-cache", _policy("5.5.0+ds-1"))
    assert apt.candidate("libkrunfw5") == "5.5.0+ds-1"
    programs.put("apt-cache", _policy("(none)"))
    assert apt.candidate("libkrunfw5") is None
    programs.put("apt-cache", ":")  # a package apt has never heard of: no output at all
    assert apt.candidate("libkrunfw5") is None


def test_availability_needs_all_four_programs(programs: Programs) -> None:
    for name in ("apt-get", "apt-cache", "apt-config"):
        programs.put(name, ":")
        assert not apt.available()
    programs.put("dpkg-deb", ":")
    assert apt.available()


@pytest.mark.parametrize(
    ("said", "error"),
    [
        ("E: Failed to fetch http://m.example/x  Could not resolve 'm.example'", errors.NetworkDown),
        (
            "Err:1 http://m.example/debian unstable InRelease\n"
            "  Temporary failure resolving 'm.example'\n"
            "E: The repository 'http://m.example/debian unstable InRelease' is not signed.",
            errors.NetworkDown,
        ),
        ("E: Could not connect to m.example:80 (192.0.2.1), connection timed out", errors.NetworkDown),
        ("E: Unable to locate package libkrunfw5", errors.NoSuchPackage),
        ("E: Can't find a source to download version '5' of 'libkrunfw5:amd64'", errors.NoSuchPackage),
        ("E: Package 'qemu-system-x86' has no installation candidate", errors.NoSuchPackage),
        (
            "E: The repository 'http://m.example/debian unstable Release' does not have a Release file.",
            errors.NoSuchPackage,
        ),
        (
            "W: GPG error: http://m.example/debian unstable InRelease: The following signatures couldn't be "
            "verified because the public key is not available: NO_PUBKEY 0123456789ABCDEF\n"
            "E: The repository 'http://m.example/debian unstable InRelease' is not signed.",
            errors.SignatureFailure,
        ),
        ("E: Failed to fetch http://m.example/p.deb  Hash Sum mismatch", errors.SignatureFailure),
        ("E: You don't have enough free space in /var/cache/apt/archives/.", errors.NoSpace),
        ("W: Error writing to file - write (28: No space left on device)", errors.NoSpace),
        (
            "E: Could not get lock /var/lib/dpkg/lock-frontend. It is held by process 7 (apt-get)",
            errors.AptBusy,
        ),
        ("E: Something else", errors.AptFailed),
        ("", errors.AptFailed),
    ],
)
def test_a_failure_is_told_by_what_apt_says(
    programs: Programs, tmp_path: Path, said: str, error: type[errors.SetupError]
) -> None:
    (tmp_path / "said").write_text(said + "\n")
    programs.put("apt-get", f'while IFS= read -r line; do echo "$line" >&2; done < {tmp_path}/said\nexit 100')
    with pytest.raises(error) as caught:
        apt.update()
    assert type(caught.value) is error
    assert caught.value.hint
    assert "\n" not in str(caught.value)
    assert str(caught.value).startswith("`apt-get update` failed: ")


def test_a_machine_without_apt(programs: Programs) -> None:
    with pytest.raises(errors.UnsupportedHost, match="apt-get"):
        apt.update()


def test_installing_reads_no_lists_when_they_have_the_package(programs: Programs) -> None:
    programs.put("apt-cache", _policy("1"))
    programs.put("apt-get", ":")
    apt.install(["e2fsprogs"])
    (call,) = programs.calls("apt-get")
    assert call.split()[1] == "install"
    assert "--no-install-recommends" in call


def test_installing_reads_the_lists_when_they_are_missing(programs: Programs) -> None:
    programs.put("apt-cache", ":")
    programs.put("apt-get", ":")
    apt.install(["e2fsprogs"])
    assert [call.split()[1] for call in programs.calls("apt-get")] == ["update", "install"]


def test_installing_reads_the_lists_again_when_they_are_stale(programs: Programs, tmp_path: Path) -> None:
    programs.put("apt-cache", _policy("1"))
    marker = tmp_path / "updated"
    programs.put(
        "apt-get",
        f"case $1 in update) : > {marker} ;; *) [ -e {marker} ] || "
        "{ echo 'E: Failed to fetch http://m.example/p.deb  404  Not Found' >&2; exit 100; } ;; esac",
    )
    apt.install(["e2fsprogs"])
    assert [call.split()[1] for call in programs.calls("apt-get")] == ["install", "update", "install"]


# The private configuration's downloads: a file appears in the working directory, as with apt.
_DOWNLOADS = 'case "$*" in *download*) : > libkrunfw5_5.5.0_amd64.deb ;; esac'


def test_a_configured_suite_is_used_as_it_is(programs: Programs, tmp_path: Path) -> None:
    programs.put("apt-cache", _policy("5.5.0"))
    programs.put("apt-get", _DOWNLOADS)
    said: list[str] = []
    found = apt.download("libkrunfw5", tmp_path / "w", suite="unstable", codename="forky", say=said.append)
    assert found.name == "libkrunfw5_5.5.0_amd64.deb"
    assert said == ["libkrunfw5 5.5.0 is in the configured suites"]
    assert len(programs.calls("apt-get")) == 1
    conf = next((tmp_path / "w").glob("*/apt.conf")).read_text()
    assert "sourcelist" not in conf
    assert "Dir::Cache" in conf


@pytest.mark.usefixtures("machine_sources")
def test_the_private_configuration_writes_below_its_own_directory_only(
    programs: Programs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    programs.put("apt-cache", ":")
    programs.put("apt-get", _DOWNLOADS)
    monkeypatch.setattr("microsandbox_core.host.sources.default_keyring", lambda: "/keys/debian.gpg")
    work = tmp_path / "w"
    found = apt.download("libkrunfw5", work, suite="unstable", codename="bookworm", say=lambda _: None)
    assert found.is_relative_to(work)
    update, download = programs.calls("apt-get")
    assert update.split()[1:3] == download.split()[1:3] == ["-c", str(work / "0" / "apt.conf")]
    conf = (work / "0" / "apt.conf").read_text()
    for line in conf.splitlines():
        name, _, value = line.partition(" ")
        if name.startswith("Dir::"):
            assert value.startswith(f'"{work}/0/'), line
    for weakness in ("AllowUnauthenticated", "AllowInsecureRepositories", "AllowWeakRepositories"):
        assert f'{weakness} "false";' in conf
    assert "Dir::Etc::parts" not in conf, "the machine's proxy and certificates stay in force"
    source = (work / "0" / "private.sources").read_text()
    assert "URIs: http://mirror.example/debian\nSuites: unstable\n" in source
    assert "Signed-By: /keys/debian.gpg\n" in source


def test_the_next_mirror_is_asked_and_the_first_answer_is_shown(
    programs: Programs, tmp_path: Path, machine_sources: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (machine_sources / "more.list").write_text("deb http://second.example/debian bookworm main\n")
    monkeypatch.setattr("microsandbox_core.host.sources.default_keyring", lambda: "/keys/debian.gpg")
    programs.put("apt-cache", ":")
    fails = (
        'case "$2" in */0/apt.conf) echo "E: Could not connect to mirror.example:80" >&2; exit 100 ;; esac\n'
    )
    programs.put("apt-get", fails + _DOWNLOADS)
    arguments = {"suite": "unstable", "codename": "bookworm"}
    apt.download("libkrunfw5", tmp_path / "w", say=lambda _: None, **arguments)
    programs.put("apt-get", fails + "echo 'E: Unable to locate package libkrunfw5' >&2; exit 100")
    with pytest.raises(errors.NetworkDown, match=r"mirror\.example"):
        apt.download("libkrunfw5", tmp_path / "v", say=lambda _: None, **arguments)


def test_without_a_debian_mirror_there_is_nowhere_to_ask(
    programs: Programs, tmp_path: Path, machine_sources: Path
) -> None:
    programs.put("apt-cache", ":")
    (machine_sources / "debian.sources").write_text(_SOURCE.replace("main", "stable"))
    with pytest.raises(errors.NoMirror):
        apt.download("libkrunfw5", tmp_path / "w", suite="unstable", codename="bookworm", say=lambda _: None)


@pytest.mark.usefixtures("machine_sources")
def test_without_debians_keys_nothing_is_fetched(
    programs: Programs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    programs.put("apt-cache", ":")
    monkeypatch.setattr("microsandbox_core.host.sources.default_keyring", lambda: None)
    with pytest.raises(errors.SignatureFailure) as caught:
        apt.download("libkrunfw5", tmp_path / "w", suite="unstable", codename="bookworm", say=lambda _: None)
    assert "debian-archive-keyring" in str(caught.value.hint)
    assert programs.calls("apt-get") == []


def test_apt_is_not_asked_questions_by_the_locale_or_debconf(programs: Programs, tmp_path: Path) -> None:
    programs.put("apt-get", f'echo "$LC_ALL $DEBIAN_FRONTEND" > {tmp_path}/seen; ! read -r _')
    apt.update()
    assert (tmp_path / "seen").read_text() == "C.UTF-8 noninteractive\n"

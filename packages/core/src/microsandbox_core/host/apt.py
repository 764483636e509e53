"""apt, run for us: packages looked up, installed, or fetched through a private configuration.

Where the machine's own suites have no libkrunfw5 (Debian 12), it comes from Debian's unstable suite.
Adding that suite to the machine would offer every package of it for upgrade, so the machine's
configuration is left alone: a second configuration in a temporary directory has its own source, index,
cache and state, and is read after the machine's, whose proxy and certificate settings stay in force.
It needs no root: everything it writes is in that directory.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from microsandbox_core.host import errors, sources

if TYPE_CHECKING:
    import subprocess
    from collections.abc import Callable, Sequence


class _StaleLists(errors.AptFailed):
    """The lists name a version that the mirror has dropped since."""


# What apt says (in the C locale) and what it means. The first match decides, so the order matters:
# a mirror that cannot be reached also leaves "is not signed" and "Unable to locate" behind.
_MEANINGS: tuple[tuple[tuple[str, ...], type[errors.SetupError], str], ...] = (
    (
        ("No space left on device", "You don't have enough free space", "Disk quota exceeded"),
        errors.NoSpace,
        "make room (about 150 MB are needed for a moment), or point TMPDIR at a larger file system",
    ),
    (
        ("Could not get lock", "Unable to acquire the dpkg frontend lock", "Unable to lock"),
        errors.AptBusy,
        "wait until the other program has finished, then run `msb setup` again",
    ),
    (
        (
            "Could not resolve",
            "Temporary failure resolving",
            "Could not connect",
            "Unable to connect",
            "Connection failed",
            "Connection timed out",
            "Connection refused",
            "Network is unreachable",
        ),
        errors.NetworkDown,
        "check the network and the proxy setting of apt, then run `msb setup` again",
    ),
    (
        ("404  Not Found",),
        _StaleLists,
        "run `apt-get update`, then `msb setup` again; or use another mirror: this one is incomplete",
    ),
    (
        ("does not have a Release file", "no longer has a Release file"),
        errors.NoSuchPackage,
        "the mirror in apt's sources does not carry this suite; use a full Debian mirror",
    ),
    (
        (
            "NO_PUBKEY",
            "BADSIG",
            "EXPKEYSIG",
            "REVKEYSIG",
            "GPG error",
            "is not signed",
            "signature verification",
            "signatures were invalid",
            "cannot be authenticated",
            "Hash Sum mismatch",
        ),
        errors.SignatureFailure,
        "nothing was installed; check the clock, the mirror in apt's sources, "
        "and that debian-archive-keyring is up to date",
    ),
    (
        ("Unable to locate package", "has no installation candidate", "Can't find a source to download"),
        errors.NoSuchPackage,
        "check that apt's sources hold Debian's main component",
    ),
)


def available() -> bool:
    """Whether this machine has apt and dpkg."""
    import shutil

    return all(shutil.which(tool) for tool in ("apt-get", "apt-cache", "apt-config", "dpkg-deb"))


def candidate(package: str) -> str | None:
    """The version apt would install from the machine's own suites, or None."""
    for line in _run(["apt-cache", "policy", package]).splitlines():
        name, _, version = line.strip().partition(": ")
        if name == "Candidate":
            return None if version == "(none)" else version
    return None


def update() -> None:
    """Read the package lists of the machine's own sources again. Needs root."""
    _run(["apt-get", "update", "-q", "-o", "APT::Update::Error-Mode=any"])


def install(packages: Sequence[str]) -> None:
    """Install `packages` without what they merely recommend. Needs root.

    The package lists are renewed only if they do not have a package or name a version the mirror
    has dropped since: that is the slow part, and on most machines not needed.
    """
    fresh = any(candidate(package) is None for package in packages)
    if fresh:
        update()
    try:
        _install(packages)
    except _StaleLists:
        if fresh:
            raise
        update()
        _install(packages)


def _install(packages: Sequence[str]) -> None:
    _run(
        [
            "apt-get",
            "install",
            "-q",
            "-y",
            "--no-install-recommends",
            "-o",
            "DPkg::Lock::Timeout=120",
            *packages,
        ]
    )


def install_command(packages: Sequence[str]) -> str:
    """What a user types to install `packages`."""
    return "sudo apt-get install --no-install-recommends " + " ".join(packages)


def download(package: str, into: Path, *, suite: str, codename: str, say: Callable[[str], None]) -> Path:
    """Fetch `package` as a verified .deb into the empty directory `into`; returns the file.

    From the machine's own suites if they have it, else from `suite` on the machine's own mirror.
    `codename` is the release the machine runs (VERSION_CODENAME of os-release).
    """
    version = candidate(package)
    if version is not None:
        say(f"{package} {version} is in the configured suites")
        return _Private(into / "own", None).download(package)
    mirrors = sources.debian_mirrors(_machine_sources(), codename)
    if not mirrors:
        raise errors.NoMirror(
            f"apt's sources name no Debian mirror to fetch {package} from",
            f"add a source for Debian's main component, or put {package}'s library into place "
            "yourself and name it in MSB_LIBKRUNFW",
        )
    keyring = sources.default_keyring()
    if keyring is None:
        raise errors.SignatureFailure(
            "the keys of Debian's archive are not on this machine",
            install_command(["debian-archive-keyring"]),
        )
    first: errors.SetupError | None = None
    for number, mirror in enumerate(mirrors):
        say(f"{package} is not in the configured suites; reading {suite} at {mirror.uri}")
        private = _Private(into / str(number), sources.private_source(mirror, suite, keyring))
        try:
            private.update()
            return private.download(package)
        except (errors.NetworkDown, errors.NoSuchPackage, errors.SignatureFailure, errors.AptFailed) as error:
            first = first or error  # the likeliest mirror's answer is the one worth showing
    assert first is not None
    raise first


def _machine_sources() -> tuple[sources.Source, ...]:
    # Asked of apt rather than assumed: Dir::Etc can be moved by apt.conf or APT_CONFIG.
    import shlex

    shell = _run(
        ["apt-config", "shell", "LIST", "Dir::Etc::sourcelist/f", "PARTS", "Dir::Etc::sourceparts/d"]
    )
    found = dict(word.partition("=")[::2] for word in shlex.split(shell))
    return sources.read_sources(
        Path(found.get("LIST", "/etc/apt/sources.list")), Path(found.get("PARTS", "/etc/apt/sources.list.d"))
    )


class _Private:
    """A configuration of apt that writes only below `root`.

    `source` is the text of its one source; None keeps the machine's sources and lists, and only
    moves what apt writes.
    """

    def __init__(self, root: Path, source: str | None) -> None:
        self._into = root / "download"
        self._conf = root / "apt.conf"
        for directory in (
            self._into,
            root / "cache/archives/partial",
            root / "state/lists/partial",
            root / "log",
        ):
            directory.mkdir(parents=True)
        settings = {"Dir::Cache": root / "cache", "Dir::Log": root / "log"}
        if source is not None:
            (root / "private.sources").write_text(source, encoding="utf-8", errors="surrogateescape")
            (root / "status").touch()
            (root / "preferences").touch()
            (root / "empty").mkdir()
            settings |= {
                "Dir::State": root / "state",
                "Dir::State::lists": root / "state/lists",
                # No installed packages and no pins of the machine's: neither may decide what we get.
                "Dir::State::status": root / "status",
                "Dir::Etc::preferences": root / "preferences",
                "Dir::Etc::preferencesparts": root / "empty",
                "Dir::Etc::sourcelist": root / "private.sources",
                "Dir::Etc::sourceparts": root / "empty",
            }
        lines = [f'{name} "{path}";' for name, path in settings.items()]
        lines += [
            # Hooks of the machine act on the machine: Docker's images delete /var/cache/apt here.
            "#clear APT::Update::Pre-Invoke;",
            "#clear APT::Update::Post-Invoke;",
            "#clear APT::Update::Post-Invoke-Success;",
            # Whatever the machine allows itself, what we fetch must be signed.
            'APT::Get::AllowUnauthenticated "false";',
            'Acquire::AllowInsecureRepositories "false";',
            'Acquire::AllowWeakRepositories "false";',
            'Acquire::AllowDowngradeToInsecureRepositories "false";',
            'APT::Update::Error-Mode "any";',
            'APT::Architecture "amd64";',
            "#clear APT::Architectures;",
            'APT::Architectures { "amd64"; };',
            'Acquire::Languages "none";',
            'Acquire::IndexTargets::deb::DEP-11::DefaultEnabled "false";',
            'Acquire::IndexTargets::deb::Contents-deb::DefaultEnabled "false";',
            'Acquire::Retries "3";',
            'Acquire::http::Timeout "30";',
            'Acquire::https::Timeout "30";',
        ]
        self._conf.write_text("\n".join(lines) + "\n", encoding="utf-8")
        _let_apt_in(root, self._into)

    def update(self) -> None:
        _run(["apt-get", "-c", os.fspath(self._conf), "update", "-q"])

    def download(self, package: str) -> Path:
        _run(["apt-get", "-c", os.fspath(self._conf), "download", "-q", package], cwd=self._into)
        debs = list(self._into.glob("*.deb"))
        if len(debs) != 1:
            raise errors.AptFailed(
                f"apt-get download {package} left {len(debs)} packages behind", "run `msb setup` again"
            )
        return debs[0]


def _let_apt_in(root: Path, into: Path) -> None:
    """As root, let apt fetch as its own unprivileged user: it does if that user can write there."""
    if os.geteuid() != 0:
        return
    import pwd

    try:
        user = pwd.getpwnam("_apt")
    except KeyError:
        return
    root.parent.chmod(0o755)
    os.chown(into, user.pw_uid, -1)


def _run(argv: list[str], cwd: Path | None = None) -> str:
    """Standard output of `argv`; a failure becomes the SetupError that its output speaks of."""
    import subprocess

    try:
        done = subprocess.run(
            argv,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            cwd=cwd,
            env={**os.environ, "LC_ALL": "C.UTF-8", "DEBIAN_FRONTEND": "noninteractive"},
        )
    except FileNotFoundError as error:
        raise errors.UnsupportedHost(
            f"{argv[0]} is not on this machine", "install what `msb doctor` names in your system's own way"
        ) from error
    if done.returncode != 0:
        raise _failure(argv, done)
    return done.stdout


def _failure(argv: list[str], done: subprocess.CompletedProcess[str]) -> errors.SetupError:
    said = done.stderr + done.stdout
    doing = " ".join(argv[:1] + [word for word in argv[1:] if word[0] not in "-/" and "::" not in word])
    for signs, kind, hint in _MEANINGS:
        line = next((line for line in said.splitlines() if any(sign in line for sign in signs)), None)
        if line is not None:
            return kind(f"`{doing}` failed: {_plain(line)}", hint)
    complaints = [line for line in said.splitlines() if line.startswith(("E:", "Err:"))]
    last = _plain(complaints[-1]) if complaints else f"it ended with {done.returncode}"
    return errors.AptFailed(
        f"`{doing}` failed: {last}", "run `apt-get check` to see whether apt itself is well"
    )


def _plain(line: str) -> str:
    """apt's line without its own `E: ` or `W: `."""
    return line.strip().removeprefix("E: ").removeprefix("W: ")

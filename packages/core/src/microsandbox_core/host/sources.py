"""apt's source lists: both formats read, a Debian mirror found in them, a private source written.

Formats: sources.list(5). Only what is needed to reuse a mirror is kept; nothing here runs apt.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from pathlib import Path

# Options that describe how this mirror is to be verified and read, by their deb822 names. What
# would weaken verification (Trusted, Allow-Insecure, Allow-Weak, Allow-Downgrade-To-Insecure) is
# not carried over: the private source stays signed whatever the machine does with its own.
_CARRIED = ("signed-by", "by-hash", "check-valid-until", "check-date")
_FALSE = frozenset({"no", "false", "without", "off", "disable", "0"})
_DEFAULT_KEYRINGS = (
    "/usr/share/keyrings/debian-archive-keyring.gpg",
    "/usr/share/keyrings/debian-archive-keyring.pgp",
)
_ALIASES = ("stable", "oldstable", "oldoldstable", "testing", "unstable", "sid")


@dataclass(frozen=True)
class Source:
    """One entry of a source list, `deb-src` and disabled ones left out."""

    uris: tuple[str, ...]
    suites: tuple[str, ...]
    components: tuple[str, ...]
    options: Mapping[str, str] = field(default_factory=dict)  # deb822 name in lower case -> value


@dataclass(frozen=True)
class Mirror:
    """A Debian archive this machine already trusts and can reach."""

    uri: str
    options: Mapping[str, str] = field(default_factory=dict)


def read_sources(sourcelist: Path, sourceparts: Path) -> tuple[Source, ...]:
    """Every enabled binary source of the machine, in apt's order; unreadable files are left out."""
    import contextlib

    files = [sourcelist]
    with contextlib.suppress(OSError):  # no such directory: a machine with one sources.list
        files += sorted(f for f in sourceparts.iterdir() if f.suffix in (".list", ".sources"))
    found: list[Source] = []
    for file in files:
        try:
            text = file.read_text(encoding="utf-8", errors="surrogateescape")
        except OSError:
            continue
        found += parse_deb822(text) if file.suffix == ".sources" else parse_one_line(text)
    return tuple(found)


def parse_deb822(text: str) -> list[Source]:
    """The enabled sources of a `.sources` file."""
    found = []
    for stanza in _stanzas(text):
        if stanza.get("enabled", "yes").strip().lower() in _FALSE:
            continue
        if "deb" not in stanza.get("types", "").split():
            continue
        found.append(
            Source(
                uris=tuple(stanza.get("uris", stanza.get("uri", "")).split()),
                suites=tuple(stanza.get("suites", stanza.get("suite", "")).split()),
                components=tuple(stanza.get("components", stanza.get("component", "")).split()),
                options={k: v for k in _CARRIED if (v := stanza.get(k, "").strip("\n\t "))},
            )
        )
    return found


def _stanzas(text: str) -> Iterable[dict[str, str]]:
    stanza: dict[str, str] = {}
    last = ""
    for line in [*text.splitlines(), ""]:
        if line.startswith("#"):
            continue  # a comment may stand between the lines of one value
        if not line.strip():
            if stanza:
                yield stanza
            stanza, last = {}, ""
        elif line[0] in " \t":
            if last:
                stanza[last] += "\n" + line.strip()
        else:
            name, colon, value = line.partition(":")
            last = name.strip().lower() if colon else ""
            if last:
                stanza[last] = value.strip()


def parse_one_line(text: str) -> list[Source]:
    """The binary sources of a `sources.list` or `.list` file."""
    found = []
    for line in text.splitlines():
        words = _words(line)
        if not words or words[0] != "deb":
            continue
        rest = words[1:]
        options: dict[str, str] = {}
        if rest and rest[0].startswith("["):
            for option in rest[0].strip("[]").split():
                name, equals, value = option.partition("=")
                if equals and name.lower() in _CARRIED:
                    options[name.lower()] = value
            rest = rest[1:]
        if len(rest) >= 2:
            found.append(Source((rest[0],), (rest[1],), tuple(rest[2:]), options))
    return found


def _words(line: str) -> list[str]:
    """Split at blanks, except inside [...] (options, and the label in `cdrom:[Debian 12 ...]/`)."""
    words, word, depth = [], "", 0
    for char in line:
        if char == "#" and depth == 0:
            break
        if char in " \t" and depth == 0:
            words += [word] if word else []
            word = ""
            continue
        depth += (char == "[") - (char == "]" and depth > 0)
        word += char
    return [*words, word] if word else words


def debian_mirrors(sources: Sequence[Source], codename: str) -> tuple[Mirror, ...]:
    """The archives among `sources` that carry Debian itself, the likeliest first.

    Many third parties publish a suite named after the Debian release, and asking one of them for
    `unstable` would at best fail. A mirror of Debian is told by three things: a Debian suite that
    is not the security archive's, the component main, and either Debian's own keyring or an
    address that ends in `debian`.
    """
    suites = {*_ALIASES, *([codename] if codename else [])}
    certain: list[Mirror] = []
    likely: list[Mirror] = []
    for source in sources:
        if "main" not in source.components or not suites.intersection(source.suites):
            continue
        keyring = source.options.get("signed-by", "")
        for uri in source.uris:
            if uri.startswith("cdrom:"):
                continue
            if "debian-archive" in keyring:
                certain.append(Mirror(uri, source.options))
            elif uri.rstrip("/").rsplit("/", 1)[-1] in ("debian", "debian.list"):
                likely.append(Mirror(uri, source.options))
    seen: dict[str, Mirror] = {}
    for mirror in certain + likely:
        seen.setdefault(mirror.uri.rstrip("/"), mirror)
    return tuple(seen.values())


def default_keyring() -> str | None:
    """Debian's archive keyring on this machine, or None where debian-archive-keyring is missing."""
    import os

    return next((k for k in _DEFAULT_KEYRINGS if os.access(k, os.R_OK)), None)


def private_source(mirror: Mirror, suite: str, keyring: str) -> str:
    """The text of a `.sources` file for `suite` on `mirror`: main, amd64, package index only.

    `keyring` verifies it unless the mirror's own entry says which keys do.
    """
    options = {"signed-by": keyring, **mirror.options}
    lines = [
        "Types: deb",
        f"URIs: {mirror.uri}",
        f"Suites: {suite}",
        "Components: main",
        "Architectures: amd64",
        "Targets: Packages",  # no DEP-11, Contents or whatever else apt.conf.d asks for
        "Languages: none",
        "PDiffs: no",
    ]
    for name, value in options.items():
        # A key given in full is a multi-line value: every further line is indented, and an empty
        # one written as a dot (deb822(5)).
        *more, last = value.split("\n")
        lines.append(f"{name.title()}:" if more else f"{name.title()}: {last}")
        lines += [f" {line.strip() or '.'}" for line in [*more, last] if more]
    return "\n".join(lines) + "\n"

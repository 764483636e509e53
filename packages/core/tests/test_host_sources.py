"""apt's source lists: what is read from them and what is written for the private one."""

from __future__ import annotations

from pathlib import Path

from microsandbox_core.host.sources import (
    Mirror,
    Source,
    debian_mirrors,
    parse_deb822,
    parse_one_line,
    private_source,
    read_sources,
)

_KEYRING = "/usr/share/keyrings/debian-archive-keyring.gpg"

_DEBIAN = f"""\
Types: deb
# a comment between fields
URIs: http://mirror.example/debian
Suites: bookworm bookworm-updates
Components: main
Signed-By: {_KEYRING}

Types: deb
URIs: http://mirror.example/debian-security
Suites: bookworm-security
Components: main
Signed-By: {_KEYRING}
"""


def test_deb822_as_debian_ships_it() -> None:
    first, second = parse_deb822(_DEBIAN)
    assert first == Source(
        uris=("http://mirror.example/debian",),
        suites=("bookworm", "bookworm-updates"),
        components=("main",),
        options={"signed-by": _KEYRING},
    )
    assert second.suites == ("bookworm-security",)
    assert debian_mirrors([first, second], "bookworm") == (
        Mirror("http://mirror.example/debian", {"signed-by": _KEYRING}),
    )


def test_deb822_names_in_any_case_values_over_lines_and_blank_lines_of_blanks() -> None:
    text = (
        "\n\nTYPES: deb deb-src\nuris: http://a.example/debian\n  http://b.example/debian\nsuites:\n"
        " sid\n# comment inside a value\n\ttrixie\nComponents: main contrib\n \t \nTypes: deb-src\n"
        "URIs: http://c.example/debian\nSuites: sid\nComponents: main\n"
    )
    (source,) = parse_deb822(text)
    assert source.uris == ("http://a.example/debian", "http://b.example/debian")
    assert source.suites == ("sid", "trixie")
    assert source.components == ("main", "contrib")


def test_deb822_disabled_sources_and_nonsense_are_left_out() -> None:
    for no in ("no", "No", "false", "OFF", "0", "disable", "without"):
        assert parse_deb822(f"Enabled: {no}\n" + _DEBIAN.split("\n\n")[0]) == []
    assert parse_deb822(" a continuation of nothing\nneither a field\n") == []
    assert parse_deb822("") == []


def test_deb822_key_given_in_full_survives_the_round_trip() -> None:
    key = "-----BEGIN PGP PUBLIC KEY BLOCK-----\n.\nmQINBGPL\n=abcd\n-----END PGP PUBLIC KEY BLOCK-----"
    field = "Signed-By:\n " + key.replace("\n", "\n ") + "\n"
    stanza = "Types: deb\nURIs: https://mirror.example/debian\nSuites: bookworm\nComponents: main\n" + field
    (source,) = parse_deb822(stanza)
    assert source.options["signed-by"] == key
    (mirror,) = debian_mirrors([source], "bookworm")
    assert field in private_source(mirror, "unstable", "/unused.gpg")


def test_one_line_format() -> None:
    text = (
        "# deb http://commented.example/debian bookworm main\n"
        "deb-src http://mirror.example/debian bookworm main\n"
        "\tdeb  http://mirror.example/debian\tbookworm main contrib # trailing\n"
        "deb [ arch=amd64,arm64 signed-by=/k/a.gpg,/k/b.gpg trusted=yes ] https://m.example/debian sid main\n"
        "deb [by-hash=no] mirror+file:/etc/apt/mirrors/debian.list bookworm main\n"
        "deb http://flat.example/repo ./\n"
        "deb http://incomplete.example\n"
        "rpm http://other.example x y\n"
    )
    plain, options, mirror_list, flat = parse_one_line(text)
    assert plain == Source(("http://mirror.example/debian",), ("bookworm",), ("main", "contrib"))
    assert options.uris == ("https://m.example/debian",)
    assert options.options == {"signed-by": "/k/a.gpg,/k/b.gpg"}
    assert mirror_list.options == {"by-hash": "no"}
    assert flat.components == ()
    found = [mirror.uri for mirror in debian_mirrors([plain, options, mirror_list, flat], "bookworm")]
    assert found == [
        "http://mirror.example/debian",
        "https://m.example/debian",
        "mirror+file:/etc/apt/mirrors/debian.list",
    ]


def test_one_line_installation_medium_is_read_and_not_used() -> None:
    line = "deb cdrom:[Debian GNU/Linux 12.5.0 _Bookworm_ - amd64 NETINST]/ bookworm main non-free-firmware"
    (source,) = parse_one_line(line)
    assert source.suites == ("bookworm",)
    assert debian_mirrors([source], "bookworm") == ()


def test_third_parties_are_not_taken_for_debian() -> None:
    text = (
        "deb [signed-by=/k/docker.asc] https://containers.example/linux/debian bookworm stable\n"
        "deb [signed-by=/k/vendor.gpg] https://vendor.example/apt bookworm main\n"
        "deb https://pg.example/pub/repos/apt bookworm-pgdg main\n"
        "deb https://mirror.example/debian-security bookworm-security main\n"
    )
    assert debian_mirrors(parse_one_line(text), "bookworm") == ()


def test_the_mirror_with_debians_own_keyring_is_asked_first_and_each_only_once() -> None:
    text = (
        "deb http://plain.example/debian/ bookworm main\n"
        f"deb [signed-by={_KEYRING}] http://company.example/mirrors/d12 bookworm main\n"
        "deb http://plain.example/debian bookworm-updates main\n"
        "deb http://plain.example/debian stable main\n"
    )
    found = [mirror.uri for mirror in debian_mirrors(parse_one_line(text), "bookworm")]
    assert found == ["http://company.example/mirrors/d12", "http://plain.example/debian/"]


def test_aliases_are_enough_without_a_codename() -> None:
    (source,) = parse_one_line("deb http://mirror.example/debian testing main")
    assert len(debian_mirrors([source], "")) == 1


def test_nothing_that_weakens_verification_is_carried_over() -> None:
    weak = "trusted=yes allow-insecure=yes allow-weak=yes allow-downgrade-to-insecure=yes"
    (source,) = parse_one_line(f"deb [{weak}] http://mirror.example/debian bookworm main")
    (mirror,) = debian_mirrors([source], "bookworm")
    assert private_source(mirror, "unstable", _KEYRING) == (
        "Types: deb\n"
        "URIs: http://mirror.example/debian\n"
        "Suites: unstable\n"
        "Components: main\n"
        "Architectures: amd64\n"
        "Targets: Packages\n"
        "Languages: none\n"
        "PDiffs: no\n"
        f"Signed-By: {_KEYRING}\n"
    )
    weak_822 = "Trusted: yes\nAllow-Insecure: yes\n" + _DEBIAN
    assert "rusted" not in private_source(
        debian_mirrors(parse_deb822(weak_822), "bookworm")[0], "unstable", "/k"
    )


def test_the_mirrors_own_key_replaces_the_default() -> None:
    text = private_source(
        Mirror("http://m.example/debian", {"signed-by": "/k/company.gpg", "check-valid-until": "no"}),
        "unstable",
        _KEYRING,
    )
    assert "Signed-By: /k/company.gpg\n" in text
    assert "Check-Valid-Until: no\n" in text
    assert _KEYRING not in text


def test_all_files_are_read_in_aptss_order(tmp_path: Path) -> None:
    listed = tmp_path / "sources.list"
    listed.write_text("deb http://one.example/debian bookworm main\n")
    parts = tmp_path / "sources.list.d"
    parts.mkdir()
    (parts / "b.sources").write_text(_DEBIAN)
    (parts / "a.list").write_text("deb http://two.example/debian bookworm main\n")
    (parts / "c.list.disabled").write_text("deb http://three.example/debian bookworm main\n")
    (parts / "d.sources").mkdir()  # what is no file is passed over
    uris = [source.uris[0] for source in read_sources(listed, parts)]
    assert uris == [
        "http://one.example/debian",
        "http://two.example/debian",
        "http://mirror.example/debian",
        "http://mirror.example/debian-security",
    ]


def test_a_machine_without_source_lists(tmp_path: Path) -> None:
    assert read_sources(tmp_path / "none", tmp_path / "nothing") == ()

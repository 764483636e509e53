"""Where credentials come from, and that they are kept for nobody else."""

from __future__ import annotations

import base64
import json
import os
import stat
import sys
import types
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from microsandbox_oci import (
    CredentialError,
    CredentialFile,
    Credentials,
    DockerConfig,
    OptionsInvalid,
    Registries,
)
from microsandbox_oci._challenge import parse_challenges


def encoded(user: str, password: str) -> str:
    return base64.b64encode(f"{user}:{password}".encode()).decode()


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in ("REGISTRY_AUTH_FILE", "XDG_RUNTIME_DIR", "DOCKER_CONFIG"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / ".docker").mkdir()
    return tmp_path


def docker(home: Path, document: Any) -> None:
    (home / ".docker" / "config.json").write_text(json.dumps(document))


def test_the_docker_command_lines_file(home: Path) -> None:
    docker(
        home,
        {
            "auths": {
                "https://index.docker.io/v1/": {"auth": encoded("hub", "a:b")},
                "corp.example:5000": {"identitytoken": "token", "auth": encoded("u", "")},
                "https://old.example": {"auth": encoded("old", "o")},
            }
        },
    )
    source = DockerConfig.usual()
    assert source.get("docker.io") == Credentials("hub", "a:b")
    assert source.get("corp.example:5000") == Credentials(identity_token="token")
    assert source.get("old.example") == Credentials("old", "o")
    assert source.get("corp.example") is None


def test_the_first_file_that_has_an_answer_counts(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    docker(home, {"auths": {"r.example": {"auth": encoded("docker", "d")}}})
    runtime = home / "run" / "containers"
    runtime.mkdir(parents=True)
    (runtime / "auth.json").write_text(json.dumps({"auths": {"r.example": {"auth": encoded("podman", "p")}}}))
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(home / "run"))
    assert DockerConfig.usual().get("r.example") == Credentials("podman", "p")
    monkeypatch.setenv("REGISTRY_AUTH_FILE", str(home / "none.json"))
    assert DockerConfig.usual().get("r.example") == Credentials("podman", "p")


def helper(home: Path, monkeypatch: pytest.MonkeyPatch, body: str) -> None:
    programs = home / "bin"
    programs.mkdir(exist_ok=True)
    program = programs / "docker-credential-test"
    program.write_text(f"#!/bin/sh\n{body}\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(programs), prepend=os.pathsep)


@pytest.mark.parametrize("key", ["credsStore", "credHelpers"])
def test_helpers_are_asked(home: Path, monkeypatch: pytest.MonkeyPatch, key: str) -> None:
    docker(home, {key: "test" if key == "credsStore" else {"r.example": "test"}})
    helper(
        home,
        monkeypatch,
        'read url; [ "$1 $url" = "get r.example" ] && echo \'{"Username":"u","Secret":"s"}\' && exit; '
        'echo "credentials not found in native keychain"; exit 1',
    )
    source = DockerConfig.usual()
    assert source.get("r.example") == Credentials("u", "s")
    assert source.get("other.example") is None
    helper(home, monkeypatch, 'echo \'{"Username":"<token>","Secret":"s"}\'')
    assert source.get("r.example") == Credentials(identity_token="s")


@pytest.mark.parametrize(
    ("document", "body", "message"),
    [
        ({"credsStore": "missing"}, "", "docker-credential-missing is not installed"),
        ({"credsStore": "../bin/sh"}, "", "is not the name of a credential helper"),
        ({"credsStore": "test"}, "echo locked >&2; exit 1", "failed: 'locked'"),
        ({"credsStore": "test"}, "echo nonsense", "answered nonsense"),
        ({"auths": {"r.example": {"auth": "???"}}}, "", "is not base64"),
        ({"auths": []}, "", "is not a file of credentials"),
    ],
)
def test_what_cannot_be_used_is_told(
    home: Path, monkeypatch: pytest.MonkeyPatch, document: Any, body: str, message: str
) -> None:
    docker(home, document)
    helper(home, monkeypatch, body)
    with pytest.raises(CredentialError, match=message):
        DockerConfig.usual().get("r.example")


def test_logins_are_kept_for_this_user_only(tmp_path: Path) -> None:
    path = tmp_path / "new" / "logins.json"
    kept = CredentialFile(path)
    assert kept.domains() == {}
    assert kept.get("r.example") is None
    before = os.umask(0)
    try:
        assert kept.put("r.example", Credentials("u", "p:w")) == str(path)
    finally:
        os.umask(before)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    kept.put("s.example", Credentials(identity_token="t"))
    assert kept.domains() == {"r.example": "u", "s.example": "<token>"}
    assert kept.get("r.example") == Credentials("u", "p:w")
    assert kept.get("s.example") == Credentials(identity_token="t")
    assert kept.remove("r.example")
    assert not kept.remove("r.example")
    assert kept.get("r.example") is None
    assert [entry.name for entry in path.parent.iterdir() if entry.name.startswith("logins.json.")] == [
        "logins.json.lock"
    ]


def test_a_keyring_keeps_the_secret_if_there_is_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    secrets: dict[tuple[str, str], str] = {}

    class Backend:
        def get_password(self, service: str, user: str) -> str | None:
            return secrets.get((service, user))

        def set_password(self, service: str, user: str, secret: str) -> None:
            secrets[service, user] = secret

        def delete_password(self, service: str, user: str) -> None:
            del secrets[service, user]

    modules = {name: types.ModuleType(name) for name in ("keyring", "keyring.backends", "keyring.errors")}
    modules["keyring"].get_keyring = Backend  # type: ignore[attr-defined]
    for name in ("fail", "null"):
        backend = types.ModuleType(name)
        backend.Keyring = type("Keyring", (), {})  # type: ignore[attr-defined]
        setattr(modules["keyring.backends"], name, backend)
    modules["keyring.errors"].KeyringError = type("KeyringError", (Exception,), {})  # type: ignore[attr-defined]
    for name, module in modules.items():
        monkeypatch.setitem(sys.modules, name, module)
    path = tmp_path / "logins.json"
    kept = CredentialFile(path)
    assert kept.put("r.example", Credentials("u", "hidden-word")) == "keyring"
    assert "hidden-word" not in path.read_text()
    assert base64.b64encode(b"u:hidden-word").decode() not in path.read_text()
    assert kept.get("r.example") == Credentials("u", "hidden-word")
    assert kept.remove("r.example")
    assert secrets == {}


def test_secrets_are_not_in_a_repr() -> None:
    assert "word" not in repr(Credentials("u", "word", "word"))


# ------------------------------------------------------------------------------------------------ challenges


def test_challenges_as_registries_write_them() -> None:
    [bearer] = parse_challenges(
        ['Bearer realm="https://a.example/t",service="s",scope="repository:x:pull,push"']
    )
    assert (bearer.scheme, bearer.parameters["scope"]) == ("bearer", "repository:x:pull,push")
    both = parse_challenges(['Basic realm="a \\"b\\"", Bearer realm=plain', "Negotiate"])
    assert [one.scheme for one in both] == ["basic", "bearer", "negotiate"]
    assert both[0].parameters == {"realm": 'a "b"'}
    assert both[1].parameters == {"realm": "plain"}


@given(st.lists(st.text(), max_size=3))
def test_no_header_is_too_strange(headers: list[str]) -> None:
    for challenge in parse_challenges(headers):
        assert challenge.scheme == challenge.scheme.lower()


@given(st.text(alphabet='abc ,="\\', max_size=60))
def test_nor_one_made_of_the_grammars_own_characters(header: str) -> None:
    parse_challenges([header])


# --------------------------------------------------------------------------------------------- configuration


def test_a_configuration_of_registries(tmp_path: Path) -> None:
    path = tmp_path / "registries.toml"
    assert Registries.from_file(path) == Registries()
    path.write_text(
        'redirect_hosts = ["blobs.example"]\n[registry."docker.io"]\nmirrors = ["m.example/hub"]\n'
        '[registry."r.example:5000"]\nca = "/ca.pem"\ninsecure = true\n'
    )
    found = Registries.from_file(path)
    assert found.redirect_hosts == {"blobs.example"}
    assert found.of("docker.io").mirrors == ("m.example/hub",)
    assert found.of("r.example:5000").insecure
    assert found.of("r.example:5000").ca == Path("/ca.pem")
    assert not found.of("other.example").insecure
    for loopback in ("localhost:5000", "127.0.0.1", "127.1.2.3:80", "[::1]:5000"):
        assert found.of(loopback).insecure


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("mirror = 1", "unknown key mirror"),
        ('[registry."a"]\ninsecure = 1', 'registry."a".insecure must be true or false'),
        ('[registry."a"]\nmirrors = "m"', 'registry."a".mirrors must be a list'),
        ('[registry."a"]\nmirrors = ["https://m.example"]', "HOST[:PORT][/PREFIX], without https://"),
        ('[registry."a"]\nmirrors = ["me:secret@m.example"]', "HOST[:PORT][/PREFIX]"),
        ('[registry."https://a"]\ninsecure = true', "must be named by a domain"),
        ('[registry."index.docker.io"]\ninsecure = true', "must be named by a domain"),
        ('[registry."a"]\nmirors = []', 'unknown key registry."a".mirors'),
        ("registry = 3", "registry must be a table"),
        ("x = = 1", "registries.toml: "),
        ("\xff", "registries.toml: "),
    ],
)
def test_a_bad_configuration_names_file_and_key(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "registries.toml"
    path.write_bytes(text.encode("latin-1"))
    with pytest.raises(OptionsInvalid) as error:
        Registries.from_file(path)
    assert message in str(error.value)
    assert "secret" not in str(error.value)
    assert str(path) in str(error.value)


def test_a_disk_that_takes_a_part_at_a_time_gets_all_of_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = CredentialFile(tmp_path / "logins.json")
    write = os.write
    monkeypatch.setattr(os, "write", lambda fd, data: write(fd, bytes(data)[:7]))
    file.put("r.example", Credentials("me", "secret"))
    assert file.get("r.example") == Credentials("me", "secret")

"""Debian's docker-registry on loopback: open, or with TLS and passwords."""

from __future__ import annotations

import socket
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.support.network import free_port
from tests.support.waiting import eventually

USER, PASSWORD = "tester", "a pass:word"


@dataclass(frozen=True)
class DockerRegistry:
    """A registry that runs. `ca` is its own authority's certificate, None without TLS."""

    domain: str
    ca: Path | None

    def push(self, source: str, name: str, *options: str) -> None:
        """Copy an image to ``name`` with skopeo, as somebody else's build would."""
        if self.ca is not None:
            options = (*options, f"--dest-cert-dir={self.ca.parent}", f"--dest-creds={USER}:{PASSWORD}")
        else:
            options = (*options, "--dest-tls-verify=false")
        skopeo("copy", "--quiet", *options, source, f"docker://{self.domain}/{name}")


def skopeo(*arguments: str) -> str:
    """Run skopeo and return what it prints."""
    done = subprocess.run(
        ["skopeo", "--insecure-policy", *arguments], capture_output=True, text=True, check=False, timeout=120
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@contextmanager
def serving(directory: Path, *, private: bool = False) -> Iterator[DockerRegistry]:
    """Run a registry that keeps its data in ``directory`` for the block."""
    port = free_port()
    ca = _certificate(directory) if private else None
    settings = [
        "version: 0.1",
        f"storage: {{filesystem: {{rootdirectory: {directory / 'data'}}}, delete: {{enabled: true}}}}",
        "log: {level: error, accesslog: {disabled: true}}",
    ]
    if private:
        passwords = directory / "passwords"
        subprocess.run(["htpasswd", "-Bbc", passwords, USER, PASSWORD], check=True, capture_output=True)
        settings += [
            f"http: {{addr: '127.0.0.1:{port}', tls: {{certificate: {ca}, key: {directory / 'tls.key'}}}}}",
            f"auth: {{htpasswd: {{realm: here, path: {passwords}}}}}",
        ]
    else:
        settings.append(f"http: {{addr: '127.0.0.1:{port}'}}")
    configuration = directory / "registry.yml"
    configuration.write_text("\n".join(settings) + "\n")
    with (directory / "registry.log").open("wb") as log:
        process = subprocess.Popen(
            ["docker-registry", "serve", configuration], stdout=log, stderr=subprocess.STDOUT
        )
    try:
        eventually(lambda: _answers(port), within=60, what="the registry accepts connections")
        yield DockerRegistry(f"127.0.0.1:{port}", ca)
    finally:
        process.terminate()
        process.wait(60)


def _answers(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def _certificate(directory: Path) -> Path:
    certificates = directory / "certificates"
    certificates.mkdir()
    certificate = certificates / "ca.crt"
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes",
         "-keyout", directory / "tls.key", "-out", certificate, "-days", "2", "-subj", "/CN=registry",
         "-addext", "subjectAltName=IP:127.0.0.1"],
        check=True, capture_output=True,
    )  # fmt: skip
    return certificate

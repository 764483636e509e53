"""Image references, normalised as Docker normalises them.

Grammar and defaults are those of the ``reference`` package of CNCF distribution (``reference.go``,
``normalize.go``): the first component is a domain only if it holds a dot, a colon or an upper-case
letter, or is ``localhost``; otherwise the domain is ``docker.io`` and a single-component path gets
``library/`` in front. The tag defaults to ``latest`` unless a digest is given.

The canonical form is ``domain/path[:tag][@digest]``; two spellings of one image have one canonical form.
"""

from __future__ import annotations

import re
from typing import NamedTuple

from microsandbox_oci._digest import is_digest
from microsandbox_oci._errors import ReferenceInvalid

DEFAULT_DOMAIN = "docker.io"
"""The domain of a reference that names none; a constant of the grammar, not an address."""

LEGACY_DEFAULT_DOMAIN = "index.docker.io"
OFFICIAL_NAMESPACE = "library/"
DEFAULT_TAG = "latest"
MAX_NAME_LENGTH = 255
_MAX_TEXT_LENGTH = 1024

_DIGESTS = ("sha256:", "sha512:")

_LABEL = r"[A-Za-z0-9](?:[A-Za-z0-9-]*[A-Za-z0-9])?"
_DOMAIN = re.compile(rf"(?:{_LABEL}(?:\.{_LABEL})*|\[[0-9A-Fa-f:]+\])(?::([0-9]{{1,5}}))?")
_COMPONENT = re.compile(r"[a-z0-9]+(?:(?:[.]|__?|-+)[a-z0-9]+)*")
_TAG = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}")
_IDENTIFIER = re.compile(r"[0-9a-f]{64}")


class Reference(NamedTuple):
    """A normalised image reference. Build one with `Reference.parse`.

    Attributes:
        domain: registry domain with its port, for example ``docker.io`` or ``localhost:5000``.
        path: repository path, for example ``library/busybox``.
        tag: the tag, or None if only a digest was given.
        digest: ``sha256:<64 hex>``, or None.
    """

    domain: str
    path: str
    tag: str | None = DEFAULT_TAG
    digest: str | None = None

    @classmethod
    def parse(cls, text: str) -> Reference:
        """Parse and normalise ``text``.

        Raises:
            ReferenceInvalid: the grammar does not allow it; the error says which part is at fault.
        """
        if not text:
            raise ReferenceInvalid(text, "it is empty")
        if len(text) > _MAX_TEXT_LENGTH:
            raise ReferenceInvalid(text, f"it is longer than {_MAX_TEXT_LENGTH} characters")
        if _IDENTIFIER.fullmatch(text):
            raise ReferenceInvalid(
                text,
                "64 hex digits are an identifier, not a name",
                hint=f"to name a digest write sha256:{text}",
            )
        if text.startswith(_DIGESTS):
            # The grammar would take it as the repository `sha256`; nobody means that, and a digest with a
            # missing character must not name something else.
            raise ReferenceInvalid(text, "it is no name, and as a digest it is not sha256: and 64 hex digits")
        rest, at, digest = text.partition("@")
        if at and not is_digest(digest):
            raise ReferenceInvalid(text, "the digest is not sha256: and 64 lower-case hex digits")
        tag: str | None = None
        slash, colon = rest.rfind("/"), rest.rfind(":")
        # A colon before the last slash belongs to the domain's port.
        if colon > slash:
            rest, tag = rest[:colon], rest[colon + 1 :]
            if not _TAG.fullmatch(tag):
                raise ReferenceInvalid(text, f"the tag {tag[:130]!r} is not allowed")
        domain, path = _split_domain(rest)
        _check_name(text, domain, path)
        return cls(domain, path, tag or (None if at else DEFAULT_TAG), digest or None)

    @property
    def name(self) -> str:
        """Domain and path, without tag and digest."""
        return f"{self.domain}/{self.path}"

    @property
    def familiar(self) -> str:
        """The short form people type: ``busybox:latest`` for ``docker.io/library/busybox:latest``."""
        name = self.name
        if self.domain == DEFAULT_DOMAIN:
            name = self.path
            short = name.removeprefix(OFFICIAL_NAMESPACE)
            if "/" not in short:
                # `sha256:latest` would be a damaged digest.
                name = self.name if f"{short}:" in _DIGESTS else short
            elif _looks_like_domain(name.partition("/")[0]):
                # `docker.io/localhost/x` shortened to `localhost/x` would name another registry.
                name = self.name
        return name + self._suffix()

    def __str__(self) -> str:
        return self.name + self._suffix()

    def _suffix(self) -> str:
        return (f":{self.tag}" if self.tag else "") + (f"@{self.digest}" if self.digest else "")


def is_domain(text: str) -> bool:
    """Say whether ``text`` is ``host[:port]`` as the domain of a reference is."""
    matched = _DOMAIN.fullmatch(text)
    return matched is not None and int(matched[1] or 0) <= 65535


def _looks_like_domain(first: str) -> bool:
    return "." in first or ":" in first or first == "localhost" or first.lower() != first


def _split_domain(rest: str) -> tuple[str, str]:
    first, slash, remainder = rest.partition("/")
    if slash and _looks_like_domain(first):
        domain, path = first, remainder
    else:
        domain, path = DEFAULT_DOMAIN, rest
    if domain == LEGACY_DEFAULT_DOMAIN:
        domain = DEFAULT_DOMAIN
    if domain == DEFAULT_DOMAIN and "/" not in path:
        path = OFFICIAL_NAMESPACE + path
    return domain, path


def _check_name(text: str, domain: str, path: str) -> None:
    if not is_domain(domain):
        raise ReferenceInvalid(text, f"{domain[:80]!r} is not a registry domain")
    if len(domain) + 1 + len(path) > MAX_NAME_LENGTH:
        raise ReferenceInvalid(text, f"the name is longer than {MAX_NAME_LENGTH} characters")
    for component in path.split("/"):
        if not _COMPONENT.fullmatch(component):
            lowered = component.lower()
            hint = "repository names are lower case" if lowered != component else None
            raise ReferenceInvalid(text, f"the path component {component[:80]!r} is not allowed", hint=hint)

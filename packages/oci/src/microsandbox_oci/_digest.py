"""Content digests: the one spelling this package accepts, ``sha256:`` and 64 lower-case hex digits.

The OCI image specification ("Digests") allows other algorithms; no registry or builder in use writes
them, and one spelling per content means one file per content in the store.
"""

from __future__ import annotations

PREFIX = "sha256:"
_HEX = frozenset("0123456789abcdef")


def is_digest(text: object) -> bool:
    """Say whether ``text`` is a digest in the accepted spelling."""
    return (
        isinstance(text, str)
        and len(text) == 71
        and text.startswith(PREFIX)
        and _HEX.issuperset(text[len(PREFIX) :])
    )


def hex_of(digest: str) -> str:
    """Return the 64 hex digits of a digest: safe as a file name because nothing else is accepted.

    Raises:
        ValueError: ``digest`` is not in the accepted spelling. Digests come from hostile documents
            (``sha256:../../x``), so the check sits where the file name is made.
    """
    if not is_digest(digest):
        raise ValueError(f"not a sha256 digest: {digest!r}")
    return digest[len(PREFIX) :]


def digest_of(data: bytes) -> str:
    """Return the digest of ``data``."""
    from hashlib import sha256

    return PREFIX + sha256(data).hexdigest()

"""Text from elsewhere, made safe for a terminal."""

from __future__ import annotations


def printable(text: str, *, keep: str = "") -> str:
    """`text` with everything that could steer a terminal shown as an escape sequence.

    Names, messages and consoles may come from an image or a guest: control characters, bidirectional
    overrides and undecodable bytes among them. `keep` lists characters that pass all the same.
    """
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() or c in keep else c.encode("unicode_escape").decode() for c in text)

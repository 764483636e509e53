"""What of the host's resolv.conf a guest is told; light, since it is read while a sandbox starts."""

from pathlib import Path

_LETTERS = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_")
_MOST = 6


def search_domains(path: str | Path = "/etc/resolv.conf") -> tuple[str, ...]:
    """The domains with which the host completes short names, at most 6, for the guest's own resolv.conf: the
    guest tries them one by one, and each whole name is decided on.

    The last line of `search` or `domain` counts (resolv.conf(5)). What is no domain is left out; without the
    file there are none.
    """
    try:
        lines = Path(path).read_text(errors="replace").splitlines()
    except OSError:
        return ()
    domains: list[str] = []
    for line in lines:
        match line.split():
            case ["search", *words]:
                domains = words
            case ["domain", word, *_]:
                domains = [word]
    return tuple(filter(_is_domain, (domain.removesuffix(".") for domain in domains)))[:_MOST]


def _is_domain(text: str) -> bool:
    return len(text) <= 253 and all(
        0 < len(label) < 64 and _LETTERS.issuperset(label) and label[0] != "-" and label[-1] != "-"
        for label in text.split(".")
    )

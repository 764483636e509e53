"""File broker that shares host directories with microVMs: the package is here, its parts are not built yet.

See `features()` for what this version can do.
"""

from microsandbox_fs._native import __version__

__all__ = ["__version__", "features"]


def features() -> frozenset[str]:
    """Names of the parts that work in this version. None does yet, so the set is empty.

    A name is added together with the part it stands for and never taken away.
    """
    return frozenset()

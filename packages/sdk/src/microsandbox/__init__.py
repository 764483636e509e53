"""Sandboxes as microVMs: create, exec, stop."""

__version__ = "0.1.0"

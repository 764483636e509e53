"""File broker that shares host directories with microVMs."""

__version__ = "0.1.0"

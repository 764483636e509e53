"""User-space network stack and policy for microVMs."""

__version__ = "0.1.0"

"""Boots microVMs under QEMU or libkrun and talks to the agent inside."""

__version__ = "0.1.0"

"""The process that owns one sandbox: `python -I -m microsandbox.supervisor CONFIG_DESCRIPTOR`."""

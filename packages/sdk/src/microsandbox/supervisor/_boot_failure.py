"""What to tell of a start that failed: how the console's end bears on it. Imported only then."""

from __future__ import annotations

# What the console says, and what can be done about it; the first that is found counts.
_SIGNS = (
    (
        ("No working init found", "Requested init /agentd failed"),
        "the agent on the boot disk does not run: reinstall microsandbox-core (in a checkout `make setup`)",
    ),
    (
        ("Out of memory", "System is deadlocked on memory", "out of memory"),
        "the guest ran out of memory while it started: give it more, -m 512M",
    ),
    (
        ("Unable to mount root fs", "Cannot open root device"),
        "the boot disk cannot be read: remove `cache/boot` in MSB_HOME, it is made again",
    ),
    (
        ("Kernel panic",),
        "the guest's kernel panicked: start it with --cold; `msb doctor` checks this machine",
    ),
)
_STAGES = {
    "spawn": "the VMM did not run: `msb doctor` checks this machine",
    "boot": "`msb doctor` checks this machine; if it is in order, reinstall microsandbox-core",
    "configure": "if the image or the sandbox's disk is damaged, remove it (msb rmi, msb rm), make it anew",
}


def hint_for(stage: str, console: str) -> str:
    """What to do about it, in one line."""
    for signs, hint in _SIGNS:
        if any(sign in console for sign in signs):
            return hint
    return _STAGES.get(stage, "`msb doctor` checks this machine")

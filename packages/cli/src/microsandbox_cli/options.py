"""Options and arguments that commands share, and their values. What a command alone has is with it."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from microsandbox_cli.paths import given, path


class Format(StrEnum):
    """How a listing is printed."""

    TABLE = "table"
    JSON = "json"


class MetricsFormat(StrEnum):
    """How metrics are printed."""

    TABLE = "table"
    JSON = "json"
    OPENMETRICS = "openmetrics"


class JsonFormat(StrEnum):
    """How everything about one thing is printed."""

    JSON = "json"


class LogFormat(StrEnum):
    """How lines of a log are printed."""

    TEXT = "text"
    JSON = "json"


class Vmm(StrEnum):
    """Which virtual machine monitor runs the sandbox."""

    AUTO = "auto"
    QEMU = "qemu"


class Security(StrEnum):
    """What programs may do in the guest."""

    DEFAULT = "default"
    RESTRICTED = "restricted"


class Pull(StrEnum):
    """When an image is asked for at its registry."""

    ALWAYS = "always"
    IF_MISSING = "if-missing"
    NEVER = "never"


class Compression(StrEnum):
    """How the files of images are kept."""

    NONE = "none"
    LZ4 = "lz4"


class Shell(StrEnum):
    """A shell that can complete commands."""

    BASH = "bash"
    ZSH = "zsh"
    FISH = "fish"


class LogLevel(StrEnum):
    """How much is said on stderr."""

    ERROR = "error"
    INFO = "info"
    DEBUG = "debug"


def _set_log_level(level: LogLevel | None) -> None:
    if level is not None:
        from microsandbox_cli.report import set_log_level

        set_log_level(level)


# Taken before and after the command's name.
LogLevelOption = Annotated[
    LogLevel | None,
    typer.Option(
        "--log-level",
        callback=_set_log_level,
        help="error: no remarks; debug: errors show the console and a traceback.",
        show_default=False,
    ),
]


# What a shell offers for a parameter: see `reference`.


def complete_sandboxes(incomplete: str) -> list[str]:
    return ["@sandboxes"]


def complete_running(incomplete: str) -> list[str]:
    return ["@running"]


def complete_stopped(incomplete: str) -> list[str]:
    return ["@stopped"]


def complete_images(incomplete: str) -> list[str]:
    return ["@images"]


def complete_places(incomplete: str) -> list[str]:
    return ["@places"]


ImageArgument = Annotated[
    str,
    typer.Argument(
        metavar="IMAGE",
        help="An image by name, a root file system directory (./dir), or docker-archive:FILE, "
        "oci-archive:FILE, oci:DIR.",
        show_default=False,
        autocompletion=complete_images,
    ),
]
NameArgument = Annotated[
    str,
    typer.Argument(
        metavar="NAME", help="The sandbox.", show_default=False, autocompletion=complete_sandboxes
    ),
]
RunningArgument = Annotated[
    str,
    typer.Argument(metavar="NAME", help="The sandbox.", show_default=False, autocompletion=complete_running),
]
EnteredArgument = Annotated[
    str,
    typer.Argument(
        metavar="NAME", help="The sandbox.", show_default=False, autocompletion=complete_sandboxes
    ),
]
ChangedArgument = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="PATH...",
        help="In the sandbox, or below its only workspace; everything if there is none.",
        show_default=False,
        parser=given,
    ),
]
NamesArgument = Annotated[
    list[str],
    typer.Argument(
        metavar="NAME...", help="The sandboxes.", show_default=False, autocompletion=complete_sandboxes
    ),
]
ChosenArgument = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="NAME...", help="The sandboxes.", show_default=False, autocompletion=complete_sandboxes
    ),
]
ChosenRunningArgument = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="NAME...", help="The sandboxes.", show_default=False, autocompletion=complete_running
    ),
]
ChosenStoppedArgument = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="NAME...", help="The sandboxes.", show_default=False, autocompletion=complete_stopped
    ),
]
LabelOption = Annotated[
    list[str] | None,
    typer.Option("--label", metavar="KEY[=VALUE]", help="Those with this label too; with all, if repeated."),
]
LabelFilter = Annotated[
    list[str] | None,
    typer.Option("--label", metavar="KEY[=VALUE]", help="Those with this label; with all, if repeated."),
]
ImagesArgument = Annotated[
    list[str],
    typer.Argument(
        metavar="IMAGE...", help="The images.", show_default=False, autocompletion=complete_images
    ),
]
Command = Annotated[
    list[str] | None, typer.Argument(metavar="COMMAND", help="What to run.", show_default=False)
]
Env = Annotated[
    list[str] | None,
    typer.Option("--env", "-e", metavar="KEY[=VALUE]", help="Set a variable; KEY alone takes the host's."),
]
Workdir = Annotated[str | None, typer.Option("--workdir", "-w", metavar="DIR", help="Working directory.")]
User = Annotated[
    str | None, typer.Option("--user", "-u", metavar="USER[:GROUP]", help="User, by name or number.")
]
Memory = Annotated[
    str | None, typer.Option("--memory", "-m", metavar="SIZE", help="Memory: 512M, 1G. Default: 512M.")
]
Cpus = Annotated[int | None, typer.Option("--cpus", "-c", metavar="N", help="vCPUs. Default: 1.")]
Hostname = Annotated[
    str | None, typer.Option("--hostname", "-H", metavar="NAME", help="Host name in the guest.")
]
Entrypoint = Annotated[
    str | None, typer.Option("--entrypoint", metavar="PROGRAM", help="Replace the image's entrypoint.")
]
Timeout = Annotated[
    str | None,
    typer.Option("--timeout", metavar="TIME", help="Kill the command after 500ms, 30s, 5m; exit code 124."),
]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="No progress and no remarks.")]
NamesOnly = Annotated[bool, typer.Option("--quiet", "-q", help="Print names only.")]
VmmOption = Annotated[Vmm, typer.Option("--vmm", help="Virtual machine monitor.")]
RequireKvm = Annotated[
    bool, typer.Option("--require-kvm", help="Fail rather than emulate the processor in software.")
]
PullOption = Annotated[
    Pull,
    typer.Option("--pull", help="When to ask the image's registry: if-missing is if the image is not here."),
]
Cold = Annotated[bool, typer.Option("--cold", help="Boot the kernel rather than start from a template.")]
MaxDuration = Annotated[
    str | None,
    typer.Option("--max-duration", metavar="TIME", help="Stop the sandbox after 30s, 5m, 1h."),
]
IdleTimeout = Annotated[
    str | None,
    typer.Option(
        "--idle-timeout", metavar="TIME", help="Stop the sandbox when for 30s, 5m nothing went in or out."
    ),
]
Detach = Annotated[
    bool,
    typer.Option("--detach", "-d", help="Leave it running, print its name; it stops with the command."),
]
DetachKeysOption = Annotated[
    str | None,
    typer.Option(
        "--detach-keys", metavar="KEYS", help="Keys that leave the command running. Default: ctrl-p,ctrl-q."
    ),
]
RunDetachKeysOption = Annotated[
    str | None,
    typer.Option(
        "--detach-keys", metavar="KEYS", help="Keys that leave the command running, such as ctrl-p,ctrl-q."
    ),
]
ShellOption = Annotated[
    str | None,
    typer.Option("--shell", metavar="PATH", help="Shell of scripts and people. Default: /bin/sh."),
]
Script = Annotated[
    list[str] | None,
    typer.Option(
        "--script",
        metavar="NAME=BODY",
        help="Put a shell script on PATH; \\n \\t \\r \\\\ \\\" \\' are decoded.",
    ),
]
ScriptRaw = Annotated[
    list[str] | None,
    typer.Option("--script-raw", metavar="NAME=BYTES", help="The same, with exactly these bytes."),
]
ScriptPath = Annotated[
    list[str] | None,
    typer.Option("--script-path", metavar="NAME:FILE", help="The same, from a file of the host."),
]
TmpfsOption = Annotated[
    list[str] | None,
    typer.Option(
        "--tmpfs",
        metavar="DIR[:SIZE[,OPTION]]",
        help="Mount memory: /cache:100M; options mode=OCTAL, ro, noexec.",
    ),
]
VolumeOption = Annotated[
    list[str] | None,
    typer.Option(
        "--volume", "-v",
        metavar="SOURCE:TARGET[:OPTION]",
        help="Mount files of the host: ./src:/app; options ro, watch, noexec, nosuid, nodev, owner=, cache=.",
    ),
]  # fmt: skip
StopSignal = Annotated[
    str | None,
    typer.Option("--stop-signal", metavar="SIGNAL", help="What asks processes to end. Default: the image's."),
]
InitOption = Annotated[
    str | None,
    typer.Option("--init", metavar="PATH", help="Run the image's init as PID 1; auto looks for one."),
]
InitArg = Annotated[
    list[str] | None, typer.Option("--init-arg", metavar="ARG", help="An argument for the init.")
]
InitEnv = Annotated[
    list[str] | None, typer.Option("--init-env", metavar="KEY[=VALUE]", help="A variable for the init.")
]
RootDisk = Annotated[
    str | None, typer.Option("--root-disk", metavar="SIZE", help="Room to write in: 512M, 16G. Default: 8G.")
]
MountDisk = Annotated[
    list[str] | None,
    typer.Option(
        "--mount-disk",
        metavar="FILE:DIR[:OPTION,...]",
        help="A disk image (raw or qcow2) as a file system. Options: ro, fstype=TYPE, format=raw|qcow2.",
    ),
]
SecurityOption = Annotated[
    Security,
    typer.Option("--security", help="Privileges in the guest; restricted: none that concern its kernel."),
]
Rlimit = Annotated[
    list[str] | None,
    typer.Option(
        "--rlimit", metavar="NAME=SOFT[:HARD]", help="Limit a resource: nofile=1024, core=unlimited."
    ),
]
NoStdin = Annotated[bool, typer.Option("--no-stdin", help="Do not forward standard input.")]
Tty = Annotated[
    bool, typer.Option("--tty", "-t", help="Run at a terminal, even if ours is none. Default: if it is one.")
]
NoTty = Annotated[bool, typer.Option("--no-tty", help="Run with pipes, even if we are at a terminal.")]
LabelsOption = Annotated[
    list[str] | None,
    typer.Option("--label", metavar="KEY=VALUE", help="Label the sandbox, to select it by later."),
]
Replace = Annotated[bool, typer.Option("--replace", help="End and remove a sandbox that has the name.")]
ReplaceWithGrace = Annotated[
    str | None,
    typer.Option("--replace-with-grace", metavar="TIME", help="The same, with 30s, 5m to end by itself."),
]
FormatOption = Annotated[Format, typer.Option("--format", help="How to print it.")]
JsonOption = Annotated[JsonFormat, typer.Option("--format", help="How to print it.")]
ConfOption = Annotated[
    Path | None,
    typer.Option(
        "--conf", metavar="FILE", help="Take settings from a YAML file; options given here win.", parser=path
    ),
]


Grace = Annotated[
    str, typer.Option("--timeout", "-t", metavar="TIME", help="Time to end by itself, then it is killed.")
]


CompressionOption = Annotated[
    Compression | None,
    typer.Option(
        "--compression",
        metavar="FORM",
        help="Keep files as they are (none) or compressed (lz4). Default: MSB_IMAGE_COMPRESSION, or none.",
        show_default=False,
    ),
]


RegistryArgument = Annotated[
    str,
    typer.Argument(metavar="REGISTRY", help="A domain, such as registry.example:5000.", show_default=False),
]
InsecureOption = Annotated[
    bool,
    typer.Option("--insecure", help="Accept any certificate of this registry, and plain HTTP if need be."),
]


class ArchiveFormat(StrEnum):
    """What kind of archive is written."""

    OCI = "oci"
    DOCKER = "docker"


def complete_commands(incomplete: str) -> list[str]:
    return ["@commands"]

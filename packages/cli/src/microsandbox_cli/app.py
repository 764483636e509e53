"""The commands of `msb` and their options. What they do is in the modules they import when called."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(
    name="msb",
    help="Run commands in microVM sandboxes: each with its own kernel, memory and root file system.",
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog="Example: msb run busybox -- echo hello",
)
image_app = typer.Typer(
    help="Work with the images in the store.", no_args_is_help=True, rich_markup_mode=None
)
app.add_typer(image_app, name="image")


class Format(StrEnum):
    """How a listing is printed."""

    TABLE = "table"
    JSON = "json"


class LogFormat(StrEnum):
    """How lines of a log are printed."""

    TEXT = "text"
    JSON = "json"


class Vmm(StrEnum):
    """Which virtual machine monitor runs the sandbox."""

    AUTO = "auto"
    QEMU = "qemu"


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


def _version(wanted: bool) -> None:
    if wanted:
        from microsandbox_cli import __version__

        typer.echo(f"msb {__version__}")
        raise typer.Exit


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


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", "-V", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
    log_level: LogLevelOption = None,
) -> None:
    pass


def _sandboxes(incomplete: str) -> list[str]:
    from microsandbox_cli.completion import sandbox_names

    return [name for name in sandbox_names() if name.startswith(incomplete)]


def _images(incomplete: str) -> list[str]:
    from microsandbox_cli.completion import image_names

    return [name for name in image_names() if name.startswith(incomplete)]


ImageArgument = Annotated[
    str,
    typer.Argument(
        metavar="IMAGE",
        help="A loaded image, a root file system directory (./dir), or docker-archive:FILE, "
        "oci-archive:FILE, oci:DIR.",
        show_default=False,
        autocompletion=_images,
    ),
]
NameArgument = Annotated[
    str,
    typer.Argument(metavar="NAME", help="The sandbox.", show_default=False, autocompletion=_sandboxes),
]
NamesArgument = Annotated[
    list[str],
    typer.Argument(metavar="NAME...", help="The sandboxes.", show_default=False, autocompletion=_sandboxes),
]
ChosenArgument = Annotated[
    list[str] | None,
    typer.Argument(metavar="NAME...", help="The sandboxes.", show_default=False, autocompletion=_sandboxes),
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
    typer.Argument(metavar="IMAGE...", help="The images.", show_default=False, autocompletion=_images),
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


@app.command()
def run(
    image: ImageArgument,
    command: Command = None,
    name: Annotated[
        str | None,
        typer.Option("--name", "-n", metavar="NAME", help="Name the sandbox, and keep it afterwards."),
    ] = None,
    env: Env = None,
    workdir: Workdir = None,
    user: User = None,
    memory: Memory = None,
    cpus: Cpus = None,
    hostname: Hostname = None,
    entrypoint: Entrypoint = None,
    timeout: Timeout = None,
    vmm: VmmOption = Vmm.AUTO,
    require_kvm: RequireKvm = False,
    cold: Cold = False,
    max_duration: MaxDuration = None,
    idle_timeout: IdleTimeout = None,
    no_stdin: NoStdin = False,
    tty: Tty = False,
    no_tty: NoTty = False,
    label: LabelsOption = None,
    replace: Replace = False,
    replace_with_grace: ReplaceWithGrace = None,
    quiet: Quiet = False,
    log_level: LogLevelOption = None,
) -> None:
    """Run a command in a new sandbox; without one, and with none in the image, a shell if at a terminal.

    Without --name the sandbox is gone when the command has ended. The exit code is the command's own;
    128+N if signal N killed it, 127 if it was not found, 126 if it cannot be executed, 124 at the
    --timeout, the --max-duration or the --idle-timeout, 125 if the sandbox itself failed.

    Example: msb run -m 1G -e GREETING=hello busybox -- sh -c 'echo $GREETING'
    """
    from microsandbox_cli.run import run_new

    run_new(
        image, command or [], name=name, env=env or [], workdir=workdir, user=user, memory=memory, cpus=cpus,
        hostname=hostname, entrypoint=entrypoint, timeout=timeout, vmm=vmm, require_kvm=require_kvm,
        cold=cold, max_duration=max_duration, idle_timeout=idle_timeout, no_stdin=no_stdin, tty=tty,
        no_tty=no_tty, label=label or [], replace=replace, replace_with_grace=replace_with_grace, quiet=quiet,
    )  # fmt: skip


@app.command()
def create(
    image: ImageArgument,
    name: Annotated[str, typer.Option("--name", "-n", metavar="NAME", help="Name the sandbox.")],
    env: Env = None,
    workdir: Workdir = None,
    user: User = None,
    memory: Memory = None,
    cpus: Cpus = None,
    hostname: Hostname = None,
    entrypoint: Entrypoint = None,
    vmm: VmmOption = Vmm.AUTO,
    require_kvm: RequireKvm = False,
    cold: Cold = False,
    max_duration: MaxDuration = None,
    idle_timeout: IdleTimeout = None,
    label: LabelsOption = None,
    replace: Replace = False,
    replace_with_grace: ReplaceWithGrace = None,
    quiet: Quiet = False,
    log_level: LogLevelOption = None,
) -> None:
    """Create a named sandbox and leave it running.

    Example: msb create busybox --name dev && msb exec dev -- uname -a
    """
    from microsandbox_cli.run import create_detached

    create_detached(
        image, name=name, env=env or [], workdir=workdir, user=user, memory=memory, cpus=cpus,
        hostname=hostname, entrypoint=entrypoint, vmm=vmm, require_kvm=require_kvm, cold=cold,
        max_duration=max_duration, idle_timeout=idle_timeout, label=label or [], replace=replace,
        replace_with_grace=replace_with_grace, quiet=quiet,
    )  # fmt: skip


@app.command("exec")
def exec_(
    name: NameArgument,
    command: Command = None,
    env: Env = None,
    workdir: Workdir = None,
    user: User = None,
    timeout: Timeout = None,
    no_stdin: NoStdin = False,
    tty: Tty = False,
    no_tty: NoTty = False,
    detach_keys: Annotated[
        str | None,
        typer.Option(
            "--detach-keys",
            metavar="KEYS",
            help="Keys that leave the command running. Default: ctrl-p,ctrl-q.",
        ),
    ] = None,
) -> None:
    """Run a command in a sandbox that is running; without one a shell, if at a terminal.

    Example: msb exec dev -- ps
    """
    from microsandbox_cli.run import exec_in

    exec_in(
        name, command or [], env=env or [], workdir=workdir, user=user, timeout=timeout, no_stdin=no_stdin,
        tty=tty, no_tty=no_tty, detach_keys=detach_keys,
    )  # fmt: skip


@app.command()
def start(names: ChosenArgument = None, label: LabelOption = None, cold: Cold = False) -> None:
    """Start stopped sandboxes and leave them running."""
    from microsandbox_cli.lifecycle import start

    start(names or [], label=label or [], cold=cold)


Grace = Annotated[
    str, typer.Option("--timeout", "-t", metavar="TIME", help="Time to end by itself, then it is killed.")
]


@app.command()
def stop(
    names: ChosenArgument = None,
    label: LabelOption = None,
    force: Annotated[bool, typer.Option("--force", "-f", help="Kill it at once.")] = False,
    timeout: Grace = "10s",
) -> None:
    """Stop running sandboxes: end the processes, write the disk out, switch off."""
    from microsandbox_cli.lifecycle import stop

    stop(names or [], label=label or [], force=force, timeout=timeout)


@app.command()
def restart(
    names: ChosenArgument = None, label: LabelOption = None, timeout: Grace = "10s", cold: Cold = False
) -> None:
    """Stop sandboxes, if they run, and start them again."""
    from microsandbox_cli.lifecycle import restart

    restart(names or [], label=label or [], timeout=timeout, cold=cold)


@app.command()
def rm(
    names: ChosenArgument = None,
    label: LabelOption = None,
    force: Annotated[bool, typer.Option("--force", "-f", help="Stop it first if it is running.")] = False,
) -> None:
    """Remove stopped sandboxes and everything they have written."""
    from microsandbox_cli.lifecycle import remove

    remove(names or [], label=label or [], force=force)


@app.command()
def wait(names: ChosenArgument = None, label: LabelOption = None) -> None:
    """Wait until sandboxes have stopped, and print why each of them did."""
    from microsandbox_cli.lifecycle import wait

    wait(names or [], label=label or [])


@app.command()
def ping(names: ChosenArgument = None, label: LabelOption = None) -> None:
    """Print how long the agents in running sandboxes take to answer."""
    from microsandbox_cli.lifecycle import ping

    ping(names or [], label=label or [])


@app.command("ls")
def ls(
    running: Annotated[bool, typer.Option("--running", help="Running ones only.")] = False,
    label: LabelFilter = None,
    quiet: NamesOnly = False,
    format: FormatOption = Format.TABLE,
) -> None:
    """List sandboxes."""
    from microsandbox_cli.sandboxes import list_all

    list_all(running=running, label=label or [], quiet=quiet, format=format)


@app.command()
def ps(
    all: Annotated[bool, typer.Option("--all", "-a", help="Those that do not run, too.")] = False,
    label: LabelFilter = None,
    quiet: NamesOnly = False,
    format: FormatOption = Format.TABLE,
) -> None:
    """List the sandboxes that run, what they are doing and since when."""
    from microsandbox_cli.sandboxes import list_active

    list_active(all=all, label=label or [], quiet=quiet, format=format)


@app.command()
def inspect(names: NamesArgument) -> None:
    """Show everything that is known about sandboxes as JSON."""
    from microsandbox_cli.sandboxes import inspect_all

    inspect_all(names)


@app.command()
def cp(
    source: Annotated[
        str, typer.Argument(metavar="SRC", help="PATH, or NAME:/PATH in a sandbox.", show_default=False)
    ],
    destination: Annotated[
        str, typer.Argument(metavar="DST", help="PATH, or NAME:/PATH in a sandbox.", show_default=False)
    ],
    special_bits: Annotated[
        bool, typer.Option("--special-bits", help="Keep set-user-ID, set-group-ID and sticky bits.")
    ] = False,
    quiet: Quiet = False,
) -> None:
    """Copy files and directories into a running sandbox, out of one, or between two.

    As `cp -r`: a destination that is a directory gets the source in it; a source that ends in /. has its
    content copied. Permissions, times and holes are kept, links are copied as links. A path of the host with
    a colon in it is written with a slash before: ./a:b

    Example: msb cp ./src dev:/srv && msb cp dev:/srv/out.txt .
    """
    from microsandbox_cli.copy import copy

    copy(source, destination, special_bits=special_bits, quiet=quiet)


@app.command()
def logs(
    name: NameArgument,
    follow: Annotated[
        bool, typer.Option("--follow", "-f", help="Go on as more comes, until the sandbox stops.")
    ] = False,
    tail: Annotated[
        int | None, typer.Option("--tail", metavar="N", min=0, help="The last N lines only.")
    ] = None,
    since: Annotated[
        str | None,
        typer.Option("--since", metavar="TIME", help="From 2026-05-04T10:20:30Z on, or from 5m ago."),
    ] = None,
    until: Annotated[str | None, typer.Option("--until", metavar="TIME", help="Up to then.")] = None,
    source: Annotated[
        str,
        typer.Option(
            "--source", metavar="LIST", help="stdout, stderr, system, console, supervisor; with commas."
        ),
    ] = "stdout,stderr",
    grep: Annotated[
        str | None, typer.Option("--grep", metavar="REGEX", help="Lines that match only.")
    ] = None,
    timestamps: Annotated[bool, typer.Option("--timestamps", "-t", help="Time and source first.")] = False,
    raw: Annotated[
        bool, typer.Option("--raw", help="Control sequences as they are, also on a terminal.")
    ] = False,
    format: Annotated[LogFormat, typer.Option("--format", help="How to print it.")] = LogFormat.TEXT,
) -> None:
    """Show what the commands in a sandbox have printed, also after it has stopped.

    Example: msb logs dev -f --since 10m --grep error
    """
    from microsandbox_cli.logs import show_logs

    show_logs(
        name, follow=follow, tail=tail, since=since, until=until, source=source, grep=grep,
        timestamps=timestamps, raw=raw, as_json=format is LogFormat.JSON,
    )  # fmt: skip


@app.command()
def load(
    source: Annotated[
        str | None,
        typer.Argument(
            metavar="[SOURCE]",
            help="An archive, or docker-archive:, oci-archive:, oci:PATH.",
            show_default=False,
        ),
    ] = None,
    input: Annotated[
        Path | None, typer.Option("--input", "-i", metavar="FILE", help="The same, as docker load has it.")
    ] = None,
    tag: Annotated[
        str | None, typer.Option("--tag", "-t", metavar="REF", help="Name for the image that is loaded.")
    ] = None,
    quiet: Quiet = False,
) -> None:
    """Load images from an archive, an OCI layout, or standard input.

    Example: docker save alpine | msb load
    """
    from microsandbox_cli.images import load

    load(source if source is not None else (str(input) if input is not None else None), tag=tag, quiet=quiet)


@app.command()
def images(quiet: NamesOnly = False, format: FormatOption = Format.TABLE) -> None:
    """List the images in the store (the same as `msb image ls`)."""
    from microsandbox_cli.images import list_images

    list_images(quiet=quiet, as_json=format is Format.JSON)


@image_app.command("ls")
def image_ls(quiet: NamesOnly = False, format: FormatOption = Format.TABLE) -> None:
    """List the images in the store."""
    images(quiet=quiet, format=format)


@image_app.command("inspect")
def image_inspect(
    image: Annotated[str, typer.Argument(metavar="IMAGE", show_default=False, autocompletion=_images)],
) -> None:
    """Show an image's configuration and layers as JSON."""
    from microsandbox_cli.images import inspect_image

    inspect_image(image)


@app.command()
def rmi(
    names: ImagesArgument,
) -> None:
    """Remove images that no sandbox uses (the same as `msb image rm`)."""
    from microsandbox_cli.images import remove_images

    remove_images(names)


@image_app.command("rm")
def image_rm(
    names: ImagesArgument,
) -> None:
    """Remove images that no sandbox uses."""
    rmi(names)


@app.command()
def df(format: FormatOption = Format.TABLE) -> None:
    """Show what takes up disk space, and how much of it can be had back.

    Reclaimable is what can go without a sandbox losing anything: leftovers of crashes and of earlier
    installations by `msb prune`, templates by `msb prune --all`, images that no sandbox is made from by
    `msb rmi`.
    """
    from microsandbox_cli.storage import disk_usage

    disk_usage(as_json=format is Format.JSON)


@app.command()
def prune(
    all: Annotated[
        bool, typer.Option("--all", "-a", help="Every template too; they are made again when needed.")
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Say what would be removed, change nothing.")
    ] = False,
    quiet: NamesOnly = False,
    format: FormatOption = Format.TABLE,
) -> None:
    """Remove what crashes have left, and what earlier installations have derived and no start can use.

    Of the latter, templates go at once, kernels, boot disks and uppers only while no sandbox runs. Running
    sandboxes and stopped ones with a name are not touched (`msb rm` removes those), nor are images
    (`msb rmi`).
    """
    from microsandbox_cli.storage import prune

    prune(everything=all, dry_run=dry_run, quiet=quiet, as_json=format is Format.JSON)


@app.command()
def setup(
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Say what would be done, change nothing.")
    ] = False,
) -> None:
    """Find or install what microsandbox needs: QEMU, e2fsprogs, the guest kernel."""
    from microsandbox_cli.machine import setup

    setup(dry_run=dry_run)


@app.command()
def doctor(
    json: Annotated[bool, typer.Option("--json", help="Print the report as JSON.")] = False,
) -> None:
    """Say what is missing on this machine, what fixes it, and how sandboxes will be isolated."""
    from microsandbox_cli.machine import doctor

    doctor(as_json=json)


@app.command()
def completion(
    shell: Annotated[Shell, typer.Argument(metavar="SHELL", help="bash, zsh or fish.", show_default=False)],
) -> None:
    """Print a script that makes a shell complete the commands and options of `msb`.

    Example: msb completion bash > ~/.local/share/bash-completion/completions/msb
    """
    from microsandbox_cli.completion import print_script

    print_script(shell)

"""The commands of `msb` and their options. What they do is in the modules they import when called."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from microsandbox_cli import network_options as net
from microsandbox_cli import options as opt
from microsandbox_cli.conf_command import Configurable
from microsandbox_cli.image_app import image_app
from microsandbox_cli.net_app import net_app
from microsandbox_cli.paths import given, path
from microsandbox_cli.registry_app import registry_app
from microsandbox_cli.self_app import self_app
from microsandbox_cli.volume_app import volume_app

EXIT_CODES = (
    "Exit codes: 0 done; 1 some of it failed; 2 an option, or the value of one, that cannot be; 125 the "
    "sandbox, the image or the state failed; 130 Ctrl-C."
)
EXIT_CODES_OF_COMMANDS = (
    "Exit codes: the command's own; 128+N if signal N killed it; 126 it cannot be executed; 127 it was not "
    "found; 124 it was stopped at a time limit; 2 an option, or the value of one, that cannot be; 125 the "
    "sandbox, the image or the state failed; 130 Ctrl-C."
)

app = typer.Typer(
    name="msb",
    help="Run commands in microVM sandboxes: each with its own kernel, memory and root file system.",
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    add_completion=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog=f"Example: msb run busybox -- echo hello. {EXIT_CODES}",
)
app.add_typer(image_app, name="image")
app.add_typer(registry_app, name="registry")
app.add_typer(net_app, name="net")
app.add_typer(volume_app, name="volume")
conf_app = typer.Typer(
    help="Files of settings for `msb run` and `create`.", no_args_is_help=True, rich_markup_mode=None
)
app.add_typer(conf_app, name="conf")
app.add_typer(self_app, name="self")


def _version(wanted: bool) -> None:
    if wanted:
        from microsandbox_cli import __version__

        typer.echo(f"msb {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", "-V", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
    log_level: opt.LogLevelOption = None,
) -> None:
    pass


@app.command(cls=Configurable)
def run(
    image: opt.ImageArgument,
    command: opt.Command = None,
    name: Annotated[
        str | None,
        typer.Option("--name", "-n", metavar="NAME", help="Name the sandbox, and keep it afterwards."),
    ] = None,
    env: opt.Env = None,
    workdir: opt.Workdir = None,
    user: opt.User = None,
    memory: opt.Memory = None,
    cpus: opt.Cpus = None,
    hostname: opt.Hostname = None,
    entrypoint: opt.Entrypoint = None,
    timeout: opt.Timeout = None,
    vmm: opt.VmmOption = opt.Vmm.AUTO,
    require_kvm: opt.RequireKvm = False,
    cold: opt.Cold = False,
    max_duration: opt.MaxDuration = None,
    idle_timeout: opt.IdleTimeout = None,
    security: opt.SecurityOption = opt.Security.DEFAULT,
    rlimit: opt.Rlimit = None,
    no_stdin: opt.NoStdin = False,
    tty: opt.Tty = False,
    no_tty: opt.NoTty = False,
    detach: opt.Detach = False,
    detach_keys: opt.RunDetachKeysOption = None,
    shell: opt.ShellOption = None,
    script: opt.Script = None,
    script_raw: opt.ScriptRaw = None,
    script_path: opt.ScriptPath = None,
    tmpfs: opt.TmpfsOption = None,
    volume: opt.VolumeOption = None,
    stop_signal: opt.StopSignal = None,
    init: opt.InitOption = None,
    init_arg: opt.InitArg = None,
    init_env: opt.InitEnv = None,
    root_disk: opt.RootDisk = None,
    mount_disk: opt.MountDisk = None,
    label: opt.LabelsOption = None,
    replace: opt.Replace = False,
    replace_with_grace: opt.ReplaceWithGrace = None,
    pull: opt.PullOption = opt.Pull.IF_MISSING,
    port: net.Port = None,
    network_policy: net.NetworkPolicyOption = None,
    net_rule: net.NetRule = None,
    net_names: net.NetNamesOption = None,
    allow_domain: net.AllowDomain = None,
    deny_domain: net.DenyDomain = None,
    deny_domain_suffix: net.DenyDomainSuffix = None,
    allow_cidr: net.AllowCidr = None,
    dns_nameserver: net.DnsNameserver = None,
    dns_mode: net.DnsModeOption = None,
    max_connections: net.MaxConnections = None,
    net_rate: net.NetRate = None,
    upstream_proxy: net.UpstreamProxy = None,
    no_proxy: net.NoProxy = None,
    quiet: opt.Quiet = False,
    conf: opt.ConfOption = None,
    log_level: opt.LogLevelOption = None,
) -> None:
    """Run a command in a new sandbox; without one, and with none in the image, a shell if at a terminal.

    Without --name the sandbox is gone when the command has ended. The command is the image's ENTRYPOINT with
    the words given here, or with the image's CMD.

    Example: msb run -m 1G -e GREETING=hello busybox -- sh -c 'echo $GREETING'

    Example: msb run -v ./src:/app -w /app busybox -- ls

    Example: msb run --network-policy none --allow-domain example.com busybox -- wget -O- http://example.com
    """
    from microsandbox_cli.run import run_new

    run_new(
        image, command or [], name=name, env=env or [], workdir=workdir, user=user, memory=memory, cpus=cpus,
        hostname=hostname, entrypoint=entrypoint, timeout=timeout, vmm=vmm, require_kvm=require_kvm,
        cold=cold, max_duration=max_duration, idle_timeout=idle_timeout, security=security,
        rlimit=rlimit or [], no_stdin=no_stdin, tty=tty, no_tty=no_tty, label=label or [], replace=replace,
        replace_with_grace=replace_with_grace, pull=pull, quiet=quiet,
        shell=shell, script=script or [], script_raw=script_raw or [], script_path=script_path or [],
        tmpfs=tmpfs or [], volume=volume or [], stop_signal=stop_signal, init=init, init_arg=init_arg or [],
        init_env=init_env or [], root_disk=root_disk, mount_disk=mount_disk or [], detach=detach,
        detach_keys=detach_keys,
        **net.given(
            port=port, network_policy=network_policy, net_rule=net_rule, net_names=net_names,
            allow_domain=allow_domain, deny_domain=deny_domain, deny_domain_suffix=deny_domain_suffix,
            allow_cidr=allow_cidr, dns_nameserver=dns_nameserver, dns_mode=dns_mode,
            max_connections=max_connections, net_rate=net_rate, upstream_proxy=upstream_proxy,
            no_proxy=no_proxy,
        ),
    )  # fmt: skip


@app.command(cls=Configurable)
def create(
    image: opt.ImageArgument,
    name: Annotated[str, typer.Option("--name", "-n", metavar="NAME", help="Name the sandbox.")],
    env: opt.Env = None,
    workdir: opt.Workdir = None,
    user: opt.User = None,
    memory: opt.Memory = None,
    cpus: opt.Cpus = None,
    hostname: opt.Hostname = None,
    entrypoint: opt.Entrypoint = None,
    vmm: opt.VmmOption = opt.Vmm.AUTO,
    require_kvm: opt.RequireKvm = False,
    cold: opt.Cold = False,
    max_duration: opt.MaxDuration = None,
    idle_timeout: opt.IdleTimeout = None,
    shell: opt.ShellOption = None,
    script: opt.Script = None,
    script_raw: opt.ScriptRaw = None,
    script_path: opt.ScriptPath = None,
    tmpfs: opt.TmpfsOption = None,
    volume: opt.VolumeOption = None,
    stop_signal: opt.StopSignal = None,
    init: opt.InitOption = None,
    init_arg: opt.InitArg = None,
    init_env: opt.InitEnv = None,
    root_disk: opt.RootDisk = None,
    mount_disk: opt.MountDisk = None,
    security: opt.SecurityOption = opt.Security.DEFAULT,
    rlimit: opt.Rlimit = None,
    label: opt.LabelsOption = None,
    replace: opt.Replace = False,
    replace_with_grace: opt.ReplaceWithGrace = None,
    pull: opt.PullOption = opt.Pull.IF_MISSING,
    port: net.Port = None,
    network_policy: net.NetworkPolicyOption = None,
    net_rule: net.NetRule = None,
    net_names: net.NetNamesOption = None,
    allow_domain: net.AllowDomain = None,
    deny_domain: net.DenyDomain = None,
    deny_domain_suffix: net.DenyDomainSuffix = None,
    allow_cidr: net.AllowCidr = None,
    dns_nameserver: net.DnsNameserver = None,
    dns_mode: net.DnsModeOption = None,
    max_connections: net.MaxConnections = None,
    net_rate: net.NetRate = None,
    upstream_proxy: net.UpstreamProxy = None,
    no_proxy: net.NoProxy = None,
    quiet: opt.Quiet = False,
    conf: opt.ConfOption = None,
    log_level: opt.LogLevelOption = None,
) -> None:
    """Create a named sandbox and leave it running.

    Example: msb create busybox --name dev && msb exec dev -- uname -a

    Example: msb create busybox --name web -p 8080:80 --net-rate egress:10M
    """
    from microsandbox_cli.run import create_detached

    create_detached(
        image, name=name, env=env or [], workdir=workdir, user=user, memory=memory, cpus=cpus,
        hostname=hostname, entrypoint=entrypoint, vmm=vmm, require_kvm=require_kvm, cold=cold,
        max_duration=max_duration, idle_timeout=idle_timeout, security=security, rlimit=rlimit or [],
        label=label or [], replace=replace,
        replace_with_grace=replace_with_grace, pull=pull, quiet=quiet,
        shell=shell, script=script or [], script_raw=script_raw or [], script_path=script_path or [],
        tmpfs=tmpfs or [], volume=volume or [], stop_signal=stop_signal, init=init, init_arg=init_arg or [],
        init_env=init_env or [], root_disk=root_disk, mount_disk=mount_disk or [],
        **net.given(
            port=port, network_policy=network_policy, net_rule=net_rule, net_names=net_names,
            allow_domain=allow_domain, deny_domain=deny_domain, deny_domain_suffix=deny_domain_suffix,
            allow_cidr=allow_cidr, dns_nameserver=dns_nameserver, dns_mode=dns_mode,
            max_connections=max_connections, net_rate=net_rate, upstream_proxy=upstream_proxy,
            no_proxy=no_proxy,
        ),
    )  # fmt: skip


@app.command("exec")
def exec_(
    name: opt.RunningArgument,
    command: opt.Command = None,
    env: opt.Env = None,
    workdir: opt.Workdir = None,
    user: opt.User = None,
    timeout: opt.Timeout = None,
    rlimit: opt.Rlimit = None,
    no_stdin: opt.NoStdin = False,
    tty: opt.Tty = False,
    no_tty: opt.NoTty = False,
    detach: Annotated[
        bool, typer.Option("--detach", "-d", help="Leave the command running, print the sandbox's name.")
    ] = False,
    detach_keys: opt.DetachKeysOption = None,
) -> None:
    """Run a command in a sandbox; without one a shell, if at a terminal.

    A sandbox that is stopped is started for it, and stopped again. What a command prints that was left
    running is in `msb logs`; `msb attach` goes back to it.

    Example: msb exec dev -- ps

    Example: msb exec -d dev -- httpd -f
    """
    from microsandbox_cli.run import exec_in

    exec_in(
        name, command or [], env=env or [], workdir=workdir, user=user, timeout=timeout,
        rlimit=rlimit or [], no_stdin=no_stdin, tty=tty, no_tty=no_tty, detach=detach,
        detach_keys=detach_keys,
    )  # fmt: skip


@app.command()
def attach(
    name: opt.RunningArgument,
    session: Annotated[
        int | None,
        typer.Argument(
            metavar="SESSION", help="Which command, by its number in --list.", show_default=False, min=1
        ),
    ] = None,
    list_: Annotated[
        bool, typer.Option("--list", "-l", help="Print the commands that were left running.")
    ] = False,
    all: Annotated[
        bool, typer.Option("--all", "-a", help="With --list: those that have ended, too, with exit codes.")
    ] = False,
    no_stdin: opt.NoStdin = False,
    detach_keys: opt.DetachKeysOption = None,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="With --list: print numbers only.")] = False,
    format: Annotated[
        opt.Format, typer.Option("--format", help="With --list: how to print it.")
    ] = opt.Format.TABLE,
) -> None:
    """Go back to a command that was left running: with the detach keys, or started with -d.

    Without SESSION it is the command that the sandbox was run for, or the only one. Its exit code is that of
    msb. It goes on when msb ends before it: one program at a time may be attached to it.

    Example: msb attach dev

    Example: msb attach --list --all dev
    """
    from microsandbox_cli import attach as way

    if list_:
        way.show(name, all=all, quiet=quiet, format=format)
    else:
        way.attach(name, session, no_stdin=no_stdin, detach_keys=detach_keys)


@app.command()
def start(
    names: opt.ChosenStoppedArgument = None, label: opt.LabelOption = None, cold: opt.Cold = False
) -> None:
    """Start stopped sandboxes and leave them running.

    Example: msb start dev db
    """
    from microsandbox_cli.lifecycle import start

    start(names or [], label=label or [], cold=cold)


@app.command()
def stop(
    names: opt.ChosenRunningArgument = None,
    label: opt.LabelOption = None,
    force: Annotated[bool, typer.Option("--force", "-f", help="Kill it at once.")] = False,
    timeout: opt.Grace = "10s",
) -> None:
    """Stop running sandboxes: end the processes, write the disk out, switch off.

    Example: msb stop --label team=a -t 30s
    """
    from microsandbox_cli.lifecycle import stop

    stop(names or [], label=label or [], force=force, timeout=timeout)


@app.command()
def restart(
    names: opt.ChosenArgument = None,
    label: opt.LabelOption = None,
    timeout: opt.Grace = "10s",
    cold: opt.Cold = False,
) -> None:
    """Stop sandboxes, if they run, and start them again.

    Example: msb restart dev
    """
    from microsandbox_cli.lifecycle import restart

    restart(names or [], label=label or [], timeout=timeout, cold=cold)


@app.command()
def rm(
    names: opt.ChosenArgument = None,
    label: opt.LabelOption = None,
    force: Annotated[bool, typer.Option("--force", "-f", help="Stop it first if it is running.")] = False,
) -> None:
    """Remove stopped sandboxes and everything they have written.

    Example: msb rm --force dev
    """
    from microsandbox_cli.lifecycle import remove

    remove(names or [], label=label or [], force=force)


@app.command()
def wait(
    names: opt.ChosenRunningArgument = None,
    label: opt.LabelOption = None,
    session: Annotated[
        int | None,
        typer.Option(
            "--session",
            metavar="SESSION",
            help="Wait for a command that was left running in it, by its number in msb attach --list --all.",
        ),
    ] = None,
) -> None:
    """Wait until sandboxes have stopped, and print why each of them did.

    Of one sandbox it exits with the exit code of the command that the sandbox was run for, if there was one.
    With --session it waits for a command instead, and exits with its exit code.

    Example: msb wait job-1 job-2

    Example: msb wait dev --session 5
    """
    from microsandbox_cli.lifecycle import wait

    wait(names or [], label=label or [], session=session)


@app.command()
def ping(names: opt.ChosenRunningArgument = None, label: opt.LabelOption = None) -> None:
    """Print how long the agents in running sandboxes take to answer.

    Example: msb ping dev
    """
    from microsandbox_cli.ping import ping

    ping(names or [], label=label or [])


@app.command()
def touch(names: opt.ChosenRunningArgument = None, label: opt.LabelOption = None) -> None:
    """Let the idle timeouts of running sandboxes begin anew.

    Example: msb touch dev
    """
    from microsandbox_cli.ping import touch

    touch(names or [], label=label or [])


@app.command()
def metrics(
    names: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="NAME...",
            help="The sandboxes. Default: all that run.",
            show_default=False,
            autocompletion=opt.complete_sandboxes,
        ),
    ] = None,
    watch: Annotated[bool, typer.Option("--watch", "-w", help="Go on, until Ctrl-C.")] = False,
    interval: Annotated[
        str | None,
        typer.Option(
            "--interval", metavar="TIME", help="Measure CPU over 500ms, 10s. Default: 200ms; 1s with --watch."
        ),
    ] = None,
    format: Annotated[
        opt.MetricsFormat, typer.Option("--format", help="How to print it.")
    ] = opt.MetricsFormat.TABLE,
) -> None:
    """Show what running sandboxes use of processor, memory and disk.

    Asking does not count as activity, so `--idle-timeout` is not put off. See `msb top` for a live view.

    Example: msb metrics --format openmetrics > /var/lib/node_exporter/microsandbox.prom
    """
    from microsandbox_cli.metrics import show_metrics

    show_metrics(names or [], watch=watch, interval=interval, format=format)


@app.command()
def top(
    interval: Annotated[
        str, typer.Option("--interval", metavar="TIME", help="Measure anew every 500ms, 10s.")
    ] = "1s",
) -> None:
    """Watch the running sandboxes on the whole terminal.

    q leaves, c, m and n sort by CPU, memory on the host and name.

    Example: msb top --interval 5s
    """
    from microsandbox_cli.top import watch

    watch(interval)


@app.command()
def pause(names: opt.ChosenArgument = None, label: opt.LabelOption = None) -> None:
    """Halt running sandboxes; what they have in memory stays there.

    Example: msb pause dev
    """
    from microsandbox_cli.lifecycle import pause

    pause(names or [], label=label or [])


@app.command()
def resume(names: opt.ChosenArgument = None, label: opt.LabelOption = None) -> None:
    """Let paused sandboxes go on.

    Example: msb resume dev
    """
    from microsandbox_cli.lifecycle import resume

    resume(names or [], label=label or [])


@app.command()
def fork(
    source: Annotated[
        str, typer.Argument(metavar="NAME", autocompletion=opt.complete_sandboxes, help="Name or id.")
    ],
    name: Annotated[str, typer.Option("--name", "-n", metavar="NEW", help="Name of the new sandbox.")],
    count: Annotated[
        int | None,
        typer.Option("--count", metavar="N", help="Make N, named NEW-1 to NEW-N.", show_default=False),
    ] = None,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Print names only.")] = False,
    format: Annotated[
        opt.Format, typer.Option("--format", help="How the result is printed.")
    ] = opt.Format.TABLE,
) -> None:
    """Make a new sandbox that goes on where another one is, with its processes and files.

    Example: msb fork dev --name try --count 3
    """
    from microsandbox_cli.fork import fork

    fork(source, name, count, quiet=quiet, format=format)


@app.command("ls")
def ls(
    running: Annotated[bool, typer.Option("--running", help="Running ones only.")] = False,
    label: opt.LabelFilter = None,
    quiet: opt.NamesOnly = False,
    format: opt.FormatOption = opt.Format.TABLE,
) -> None:
    """List sandboxes.

    Example: msb ls --running --format json
    """
    from microsandbox_cli.sandboxes import list_all

    list_all(running=running, label=label or [], quiet=quiet, format=format)


@app.command()
def ps(
    all: Annotated[bool, typer.Option("--all", "-a", help="Those that do not run, too.")] = False,
    label: opt.LabelFilter = None,
    quiet: opt.NamesOnly = False,
    format: opt.FormatOption = opt.Format.TABLE,
) -> None:
    """List the sandboxes that run, what they are doing and since when.

    Example: msb ps -a --label team=a
    """
    from microsandbox_cli.sandboxes import list_active

    list_active(all=all, label=label or [], quiet=quiet, format=format)


@app.command()
def inspect(
    names: opt.ChosenArgument = None,
    label: opt.LabelOption = None,
    format: opt.JsonOption = opt.JsonFormat.JSON,
) -> None:
    """Show everything that is known about sandboxes as JSON.

    Example: msb inspect dev
    """
    from microsandbox_cli.sandboxes import inspect_all

    inspect_all(names or [], label or [], format=format)


@app.command()
def cp(
    source: Annotated[
        str,
        typer.Argument(
            metavar="SRC",
            help="PATH, or NAME:/PATH in a sandbox.",
            show_default=False,
            autocompletion=opt.complete_places,
        ),
    ],
    destination: Annotated[
        str,
        typer.Argument(
            metavar="DST",
            help="PATH, or NAME:/PATH in a sandbox.",
            show_default=False,
            autocompletion=opt.complete_places,
        ),
    ],
    special_bits: Annotated[
        bool, typer.Option("--special-bits", help="Keep set-user-ID, set-group-ID and sticky bits.")
    ] = False,
    quiet: opt.Quiet = False,
) -> None:
    """Copy files and directories into a sandbox, out of one, or between two.

    A sandbox that is stopped is started for it, and stopped again.

    As `cp -r`: a destination that is a directory gets the source in it; a source that ends in /. has its
    content copied. Permissions, times and holes are kept, links are copied as links. A path of the host with
    a colon in it is written with a slash before: ./a:b

    Example: msb cp ./src dev:/srv && msb cp dev:/srv/out.txt .
    """
    from microsandbox_cli.copy import copy

    copy(source, destination, special_bits=special_bits, quiet=quiet)


@app.command()
def diff(
    name: opt.EnteredArgument,
    mount: Annotated[
        str | None,
        typer.Option(
            "--mount",
            metavar="PATH",
            help="Only this workspace; / is the root.",
            show_default=False,
            parser=given,
        ),
    ] = None,
    format: opt.FormatOption = opt.Format.TABLE,
) -> None:
    """List what a sandbox has changed: in its workspaces, and in the writable layer of its root.

    A is added, M is modified, D is deleted. A sandbox that is stopped is started for it, and stopped again.

    Example: msb diff dev --mount /app
    """
    from microsandbox_cli.workspace import diff

    diff(name, mount, as_json=format is opt.Format.JSON)


@app.command("apply")
def apply_(
    name: opt.EnteredArgument,
    paths: opt.ChangedArgument = None,
    force: Annotated[
        bool, typer.Option("--force", help="Also what the host has changed: the sandbox's version wins.")
    ] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would be done.")] = False,
) -> None:
    """Bring what a sandbox has changed in its workspaces to the host's directories.

    Deletions first; every file is complete or as it was. Nothing is done if the host has changed any of it
    meanwhile, and the list of that is printed. Devices, FIFOs, sockets and set-id files stay where they are.

    Example: msb apply dev /app/src
    """
    from microsandbox_cli.workspace import apply

    apply(name, paths or [], force=force, dry_run=dry_run)


@app.command()
def discard(name: opt.EnteredArgument, paths: opt.ChangedArgument = None) -> None:
    """Drop what a sandbox has changed in its workspaces: its version is as it was.

    Example: msb discard dev /app/build
    """
    from microsandbox_cli.workspace import discard

    discard(name, paths or [])


@app.command()
def logs(
    name: opt.NameArgument,
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
    format: Annotated[opt.LogFormat, typer.Option("--format", help="How to print it.")] = opt.LogFormat.TEXT,
) -> None:
    """Show what the commands in a sandbox have printed, also after it has stopped.

    Example: msb logs dev -f --since 10m --grep error
    """
    from microsandbox_cli.logs import show_logs

    show_logs(
        name, follow=follow, tail=tail, since=since, until=until, source=source, grep=grep,
        timestamps=timestamps, raw=raw, as_json=format is opt.LogFormat.JSON,
    )  # fmt: skip


@app.command()
def load(
    source: Annotated[
        str | None,
        typer.Argument(
            metavar="[SOURCE]",
            help="An archive, or docker-archive:, oci-archive:, oci:PATH.",
            show_default=False,
            parser=given,
        ),
    ] = None,
    input: Annotated[
        Path | None,
        typer.Option("--input", "-i", metavar="FILE", help="The same, as docker load has it.", parser=path),
    ] = None,
    tag: Annotated[
        str | None, typer.Option("--tag", "-t", metavar="REF", help="Name for the image that is loaded.")
    ] = None,
    compression: opt.CompressionOption = None,
    quiet: opt.Quiet = False,
) -> None:
    """Load images from an archive, an OCI layout, or standard input.

    Example: docker save alpine | msb load
    """
    from microsandbox_cli.images import load

    load(
        source,
        input=None if input is None else str(input),
        tag=tag,
        compression=compression,
        quiet=quiet,
    )


@app.command()
def pull(
    names: Annotated[
        list[str], typer.Argument(metavar="IMAGE...", help="Names of images.", show_default=False)
    ],
    policy: Annotated[
        opt.Pull, typer.Option("--pull", metavar="WHEN", help="always, or if-missing: not what is here.")
    ] = opt.Pull.ALWAYS,
    platform: Annotated[
        str | None,
        typer.Option("--platform", metavar="OS/ARCH", help="Of an image for several.", show_default=False),
    ] = None,
    insecure: opt.InsecureOption = False,
    complete: Annotated[
        bool,
        typer.Option("--complete", help="Also the original bytes of layers that are here from elsewhere."),
    ] = False,
    compression: opt.CompressionOption = None,
    quiet: opt.Quiet = False,
) -> None:
    """Fetch images from their registries; what has been fetched before is not fetched again.

    Example: msb pull python:3.12
    """
    from microsandbox_cli.registry import pull

    pull(
        names, policy=policy, platform=platform, insecure=insecure, complete=complete,
        compression=compression, quiet=quiet,
    )  # fmt: skip


@app.command()
def save(
    names: opt.ImagesArgument,
    output: Annotated[
        Path | None,
        typer.Option(
            "--output",
            "-o",
            metavar="FILE",
            help="Instead of standard output.",
            show_default=False,
            parser=path,
        ),
    ] = None,
    format: Annotated[
        opt.ArchiveFormat, typer.Option("--format", help="docker: docker load reads it too.")
    ] = opt.ArchiveFormat.DOCKER,
) -> None:
    """Write images to an archive, with the digests they came with.

    Example: msb save -o app.tar app:1
    """
    from microsandbox_cli.images import save

    save(names, output, form=format.value)


@app.command()
def images(quiet: opt.NamesOnly = False, format: opt.FormatOption = opt.Format.TABLE) -> None:
    """List the images in the store (the same as `msb image ls`).

    Example: msb images -q
    """
    from microsandbox_cli.images import list_images

    list_images(quiet=quiet, as_json=format is opt.Format.JSON)


@app.command()
def rmi(
    names: opt.ImagesArgument,
) -> None:
    """Remove images that no sandbox uses (the same as `msb image rm`).

    Example: msb rmi busybox tools/box:1.2
    """
    from microsandbox_cli.images import remove_images

    remove_images(names)


@app.command()
def df(format: opt.FormatOption = opt.Format.TABLE) -> None:
    """Show what takes up disk space, and how much of it can be had back.

    Reclaimable is what can go without a sandbox losing anything: leftovers of crashes and of earlier
    installations by `msb prune`, templates by `msb prune --all`, images that no sandbox is made from by
    `msb rmi`, volumes that none has by `msb volume rm`.

    Example: msb df --format json
    """
    from microsandbox_cli.storage import disk_usage

    disk_usage(as_json=format is opt.Format.JSON)


@app.command()
def prune(
    all: Annotated[
        bool, typer.Option("--all", "-a", help="Every template too; they are made again when needed.")
    ] = False,
    volumes: Annotated[
        bool, typer.Option("--volumes", help="Every volume too that no sandbox has, with all that is in it.")
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Say what would be removed, change nothing.")
    ] = False,
    quiet: opt.NamesOnly = False,
    format: opt.FormatOption = opt.Format.TABLE,
) -> None:
    """Remove what crashes have left, and what earlier installations have derived and no start can use.

    Of the latter, templates go at once, kernels, boot disks and uppers only while no sandbox runs. Running
    sandboxes and stopped ones with a name are not touched (`msb rm` removes those), nor are images
    (`msb rmi`), nor volumes unless that is asked for.

    Example: msb prune --all --dry-run
    """
    from microsandbox_cli.storage import prune

    prune(everything=all, volumes=volumes, dry_run=dry_run, quiet=quiet, as_json=format is opt.Format.JSON)


@app.command()
def setup(
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Say what would be done, change nothing.")
    ] = False,
) -> None:
    """Find or install what microsandbox needs: QEMU, e2fsprogs, the guest kernel.

    Example: msb setup --dry-run
    """
    from microsandbox_cli.machine import setup

    setup(dry_run=dry_run)


@app.command()
def doctor(
    json: Annotated[bool, typer.Option("--json", help="The same as --format json.")] = False,
    format: opt.FormatOption = opt.Format.TABLE,
) -> None:
    """Say what is missing on this machine, what fixes it, and how sandboxes will be isolated.

    Example: msb doctor --format json
    """
    from microsandbox_cli.machine import doctor

    doctor(as_json=json or format is opt.Format.JSON)


@app.command()
def completion(
    shell: Annotated[
        opt.Shell, typer.Argument(metavar="SHELL", help="bash, zsh or fish.", show_default=False)
    ],
) -> None:
    """Print a script that makes a shell complete the commands and options of `msb`.

    Example: msb completion bash > ~/.local/share/bash-completion/completions/msb
    """
    from microsandbox_cli.completion import print_script

    print_script(shell)


@app.command()
def install(
    image: Annotated[
        str | None,
        typer.Argument(
            metavar="IMAGE", help="The image.", show_default=False, autocompletion=opt.complete_images
        ),
    ] = None,
    name: Annotated[
        str | None,
        typer.Option("--name", metavar="CMD", help="Name of the command. Default: that of the image."),
    ] = None,
    tmp: Annotated[
        bool, typer.Option("--tmp", help="A new sandbox at every call, which is gone afterwards.")
    ] = False,
    list_: Annotated[bool, typer.Option("--list", help="List the commands instead.")] = False,
    quiet: opt.NamesOnly = False,
    format: opt.FormatOption = opt.Format.TABLE,
) -> None:
    """Make an image a command: a script in $MSB_HOME/bin that passes on arguments, input and exit code.

    Its sandbox has the command's name and stays: what one call writes the next one finds. It stops when
    nothing was called for 15 minutes, and starts again by itself; `msb rm CMD` throws it away.

    Arguments go to the image's ENTRYPOINT, or else to the program of its CMD: `python -V` runs python3 -V.
    Where that is a shell they are the command: `alpine ls -l` runs ls -l.

    Example: msb install --name py python && py -c 'print(1)'
    """
    from microsandbox_cli import installed

    if list_:
        installed.list_installed(quiet=quiet, as_json=format is opt.Format.JSON)
    elif image is None:
        raise typer.BadParameter("name an image, or use --list", param_hint="IMAGE")
    else:
        installed.install(image, name=name, temporary=tmp)


@app.command()
def uninstall(
    names: Annotated[
        list[str],
        typer.Argument(
            metavar="CMD...", help="The commands.", show_default=False, autocompletion=opt.complete_commands
        ),
    ],
) -> None:
    """Remove commands that `msb install` made; their sandboxes stay.

    Example: msb uninstall py
    """
    from microsandbox_cli.installed import uninstall

    uninstall(names)


@conf_app.command("schema")
def conf_schema() -> None:
    """Print the JSON schema of the files that --conf takes, for editors and checks.

    Example: msb conf schema > ~/.config/msb-settings.json
    """
    from microsandbox_cli.conf_schema import print_schema

    print_schema()


def _close_help(app: typer.Typer) -> None:
    """End the help of every command with its exit codes."""
    for command in app.registered_commands:
        runs = command.callback in (run, exec_)
        command.epilog = command.epilog or (EXIT_CODES_OF_COMMANDS if runs else EXIT_CODES)
    for group in app.registered_groups:
        if group.typer_instance is not None:
            _close_help(group.typer_instance)


_close_help(app)

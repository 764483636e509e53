"""Command lines that mean a command in a sandbox, understood without the parser.

Importing Typer and building its commands takes longer than everything else `msb run` does before the VM is
started. So what is plain is read here, by a table that the tests hold against the commands in `app`. All the
rest, mistakes and `--help` among it, goes to the parser, which has the words for it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

FLAG, TEXT, LIST, NUMBER, VMM, FORMAT, SECURITY, PULL, POLICY, NAMES, DNS, JSON, COMPRESSION = range(13)
"""What an option takes: nothing, a text, a text each time it is given, a number, the name of a VMM, how a
listing is printed, a profile of privileges, when an image is pulled, a preset of network policies, what rules
for names ask, how names are resolved, that it is
JSON, how the files of images are kept."""

Options = Mapping[str, tuple[str, int]]

_COMMAND: Options = {
    "--env": ("env", LIST), "-e": ("env", LIST),
    "--workdir": ("workdir", TEXT), "-w": ("workdir", TEXT),
    "--user": ("user", TEXT), "-u": ("user", TEXT),
    "--rlimit": ("rlimit", LIST),
}  # fmt: skip
_SANDBOX: Options = {
    **_COMMAND,
    "--name": ("name", TEXT), "-n": ("name", TEXT),
    "--memory": ("memory", TEXT), "-m": ("memory", TEXT),
    "--cpus": ("cpus", NUMBER), "-c": ("cpus", NUMBER),
    "--hostname": ("hostname", TEXT), "-H": ("hostname", TEXT),
    "--entrypoint": ("entrypoint", TEXT),
    "--vmm": ("vmm", VMM),
    "--require-kvm": ("require_kvm", FLAG),
    "--cold": ("cold", FLAG),
    "--max-duration": ("max_duration", TEXT),
    "--idle-timeout": ("idle_timeout", TEXT),
    "--shell": ("shell", TEXT),
    "--script": ("script", LIST),
    "--script-raw": ("script_raw", LIST),
    "--script-path": ("script_path", LIST),
    "--tmpfs": ("tmpfs", LIST),
    "--volume": ("volume", LIST), "-v": ("volume", LIST),
    "--stop-signal": ("stop_signal", TEXT),
    "--init": ("init", TEXT),
    "--init-arg": ("init_arg", LIST),
    "--init-env": ("init_env", LIST),
    "--root-disk": ("root_disk", TEXT),
    "--mount-disk": ("mount_disk", LIST),
    "--security": ("security", SECURITY),
    "--label": ("label", LIST),
    "--replace": ("replace", FLAG),
    "--replace-with-grace": ("replace_with_grace", TEXT),
    "--pull": ("pull", PULL),
    "--quiet": ("quiet", FLAG), "-q": ("quiet", FLAG),
    "--port": ("port", LIST), "-p": ("port", LIST),
    "--network-policy": ("network_policy", POLICY),
    "--net-rule": ("net_rule", LIST),
    "--net-names": ("net_names", NAMES),
    "--allow-domain": ("allow_domain", LIST),
    "--deny-domain": ("deny_domain", LIST),
    "--deny-domain-suffix": ("deny_domain_suffix", LIST),
    "--allow-cidr": ("allow_cidr", LIST),
    "--dns-nameserver": ("dns_nameserver", LIST),
    "--dns-mode": ("dns_mode", DNS),
    "--max-connections": ("max_connections", NUMBER),
    "--net-rate": ("net_rate", LIST),
    "--upstream-proxy": ("upstream_proxy", TEXT),
    "--no-proxy": ("no_proxy", TEXT),
}  # fmt: skip
_JOINED: Options = {
    "--timeout": ("timeout", TEXT),
    "--no-stdin": ("no_stdin", FLAG),
    "--tty": ("tty", FLAG), "-t": ("tty", FLAG),
    "--no-tty": ("no_tty", FLAG),
    "--detach": ("detach", FLAG), "-d": ("detach", FLAG),
    "--detach-keys": ("detach_keys", TEXT),
}  # fmt: skip

COMMANDS: Mapping[str, Options] = {
    "run": {**_SANDBOX, **_JOINED},
    "create": _SANDBOX,
    "exec": {**_COMMAND, **_JOINED},
}
"""The options understood here, by command: the parameter and what it takes."""

_LISTED: Options = {
    "--label": ("label", LIST),
    "--quiet": ("quiet", FLAG), "-q": ("quiet", FLAG),
    "--format": ("format", FORMAT),
}  # fmt: skip

_CHOICES: Mapping[int, tuple[str, ...]] = {
    VMM: ("auto", "qemu"),
    FORMAT: ("table", "json"),
    SECURITY: ("default", "restricted"),
    PULL: ("always", "if-missing", "never"),
    POLICY: ("none", "public-only", "nonlocal", "allow-all"),
    NAMES: ("strict", "pin-only"),
    DNS: ("resolve", "synthetic"),
    JSON: ("json",),
    COMPRESSION: ("none", "lz4"),
}

LISTINGS: Mapping[str, Options] = {
    "ls": {"--running": ("running", FLAG), **_LISTED},
    "ps": {"--all": ("all", FLAG), "-a": ("all", FLAG), **_LISTED},
}
"""The same for listings, which take no words."""

_CHOSEN: Options = {"--label": ("label", LIST)}
_ENDED: Options = {**_CHOSEN, "--timeout": ("timeout", TEXT), "-t": ("timeout", TEXT)}

VERBS: Mapping[str, Options] = {
    "start": {**_CHOSEN, "--cold": ("cold", FLAG)},
    "stop": {**_ENDED, "--force": ("force", FLAG), "-f": ("force", FLAG)},
    "restart": {**_ENDED, "--cold": ("cold", FLAG)},
    "rm": {**_CHOSEN, "--force": ("force", FLAG), "-f": ("force", FLAG)},
    "pause": _CHOSEN,
    "resume": _CHOSEN,
    "wait": {**_CHOSEN, "--session": ("session", NUMBER)},
    "ping": _CHOSEN,
    "touch": _CHOSEN,
    "inspect": {**_CHOSEN, "--format": ("format", JSON)},
}
"""The same for what is done to sandboxes by their names."""

IMAGES: Mapping[str, Options] = {
    "pull": {
        "--pull": ("policy", PULL),
        "--platform": ("platform", TEXT),
        "--insecure": ("insecure", FLAG),
        "--complete": ("complete", FLAG),
        "--compression": ("compression", COMPRESSION),
        "--quiet": ("quiet", FLAG), "-q": ("quiet", FLAG),
    },
    "load": {
        "--input": ("input", TEXT), "-i": ("input", TEXT),
        "--tag": ("tag", TEXT), "-t": ("tag", TEXT),
        "--compression": ("compression", COMPRESSION),
        "--quiet": ("quiet", FLAG), "-q": ("quiet", FLAG),
    },
}  # fmt: skip
"""The same for what brings images: when they are here already, it is quick."""

Value = bool | int | str | list[str]


def understand(arguments: Sequence[str]) -> Callable[[], None] | None:
    """What a command line asks for, to be called; None if the parser has to look at it."""
    if not arguments:
        return None
    if arguments[0] == "__names" and len(arguments) == 2:
        # A completion script asks: see `completion`.
        from microsandbox_cli.completion import print_names

        return lambda: print_names(arguments[1])
    if arguments[0] == "__installed" and len(arguments) > 2:
        # A script of `msb install` calls: what follows the sandbox and the image is all the command's.
        from microsandbox_cli.installed_run import run_installed

        return lambda: run_installed(arguments[1], arguments[2], arguments[3:])
    if arguments[0] in LISTINGS:
        return _listing(arguments[0], _read(arguments[1:], LISTINGS[arguments[0]]))
    if arguments[0] in VERBS:
        return _verb(arguments[0], _read(arguments[1:], VERBS[arguments[0]]))
    if arguments[0] in IMAGES:
        return _image(arguments[0], _read(arguments[1:], IMAGES[arguments[0]]))
    options = COMMANDS.get(arguments[0])
    if options is None:
        return None
    read = _read(arguments[1:], options)
    if read is None or not read[0] or not read[0][0]:
        return None
    (subject, *command), values = read
    return _meant(arguments[0], subject, command, values)


def _read(arguments: Sequence[str], options: Options) -> tuple[list[str], dict[str, Value]] | None:
    """What is not an option, and the options' values; None for anything but the plain forms `-o VALUE`,
    `--option VALUE` and `--option=VALUE` of known options."""
    words: list[str] = []
    values: dict[str, Value] = {}
    rest = iter(arguments)
    for argument in rest:
        if argument == "--":
            words += rest
        elif not argument.startswith("-"):
            words.append(argument)
        else:
            option, equals, text = argument.partition("=")
            parameter, kind = options.get(option, ("", None))
            if kind is None or (equals and (kind == FLAG or not option.startswith("--"))):
                return None
            if kind == FLAG:
                values[parameter] = True
                continue
            given = text if equals else next(rest, None)
            if given is None or (given.startswith("-") and not equals):
                return None
            if kind == LIST:
                before = values.setdefault(parameter, [])
                assert isinstance(before, list)
                before.append(given)
            elif kind == NUMBER:
                if not (given.isascii() and given.isdigit()):
                    return None
                values[parameter] = int(given)
            elif given not in _CHOICES.get(kind, (given,)):
                return None
            else:
                values[parameter] = given
    return words, values


def _listing(name: str, read: tuple[list[str], dict[str, Value]] | None) -> Callable[[], None] | None:
    if read is None or read[0]:
        return None
    from microsandbox_cli import sandboxes

    ways: dict[str, Callable[..., None]] = {"ls": sandboxes.list_all, "ps": sandboxes.list_active}
    return lambda: ways[name](**read[1])


def _verb(name: str, read: tuple[list[str], dict[str, Value]] | None) -> Callable[[], None] | None:
    if read is None:
        return None
    words, values = read
    if name in ("ping", "touch"):
        from microsandbox_cli import ping

        asked: dict[str, Callable[..., None]] = {"ping": ping.ping, "touch": ping.touch}
        return lambda: asked[name](words, **values)
    if name == "inspect":
        from microsandbox_cli import sandboxes

        look: Callable[..., None] = sandboxes.inspect_all
        return lambda: look(words, **values)
    from microsandbox_cli import lifecycle

    ways: dict[str, Callable[..., None]] = {
        "start": lifecycle.start,
        "stop": lifecycle.stop,
        "restart": lifecycle.restart,
        "rm": lifecycle.remove,
        "pause": lifecycle.pause,
        "resume": lifecycle.resume,
        "wait": lifecycle.wait,
    }
    return lambda: ways[name](words, **values)


def _image(name: str, read: tuple[list[str], dict[str, Value]] | None) -> Callable[[], None] | None:
    if read is None:
        return None
    words, values = read
    if name == "load":
        if len(words) > 1 or "" in words or values.get("input") == "":
            return None
        from pathlib import Path

        from microsandbox_cli import images

        load: Callable[..., None] = images.load
        if "input" in values:
            values["input"] = str(Path(str(values["input"])))  # as the parser reads a path
        return lambda: load(words[0] if words else None, **values)
    if not words:
        return None
    from microsandbox_cli import registry

    pull: Callable[..., None] = registry.pull
    return lambda: pull(words, **values)


def _meant(
    name: str, subject: str, command: list[str], values: dict[str, Value]
) -> Callable[[], None] | None:
    from microsandbox_cli import run

    ways: dict[str, Callable[..., None]] = {
        "run": run.run_new,
        "create": run.create_detached,
        "exec": run.exec_in,
    }
    if name == "create" and (command or "name" not in values):
        return None
    words = (subject,) if name == "create" else (subject, command)
    return lambda: ways[name](*words, **values)

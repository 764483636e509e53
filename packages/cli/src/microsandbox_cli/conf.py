"""Files of settings for `msb run` and `create`: their keys, their form, what is wrong with one.

Imported when a file is named: pydantic and yaml take longer to import than everything else `msb run` does.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterator
from difflib import get_close_matches
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple, NoReturn

import yaml
from microsandbox import _config
from microsandbox.errors import ConfigError
from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    ValidationInfo,
    WithJsonSchema,
)
from pydantic_core import PydanticCustomError

SIZE_LIMIT = 64 << 10
"""Bytes of a file."""
NODE_LIMIT = 4096
"""Values in a file, each counted as often as aliases repeat it."""
DEPTH_LIMIT = 8

Line = int
Places = dict[tuple[str | int, ...], Line]


def _as_text(value: object) -> object:
    """A number is taken as it is written; what YAML makes of `no` or `~` is not what was meant."""
    if isinstance(value, bool) or value is None:
        shown = "nothing" if value is None else f"the boolean {str(value).lower()}"
        raise PydanticCustomError("text", "expected text, not {shown}: write it in quotes", {"shown": shown})
    return str(value) if isinstance(value, int) else value


def _checked(check: Callable[[Any, str], object]) -> AfterValidator:
    """What the option of the same name accepts. `check` gets the value and the name of the key."""

    def validate(value: object, info: ValidationInfo) -> object:
        try:
            check(value, str(info.field_name))
        except ConfigError as error:
            raise PydanticCustomError("config", "{said}", {"said": str(error), "hint": error.hint}) from error
        return value

    return AfterValidator(validate)


def _rlimits(limits: dict[str, str]) -> None:
    from microsandbox._rlimits import parse_rlimits

    parse_rlimits(f"{name}={limit}" for name, limit in limits.items())


def _ports(texts: list[str]) -> None:
    from microsandbox.ports import parse_ports

    parse_ports(texts)


def _net_rules(texts: list[str]) -> None:
    from microsandbox.network import Rule

    for text in texts:
        Rule(text)


Text = Annotated[str, BeforeValidator(_as_text), WithJsonSchema({"type": ["string", "integer"]})]
Name = Annotated[Text, _checked(lambda value, _: _config.check_name(value))]
Hostname = Annotated[Text, _checked(lambda value, _: _config.check_hostname(value))]
Memory = Annotated[Text, _checked(lambda value, _: _config.parse_memory(value))]
Cpus = Annotated[int, _checked(lambda value, _: _config.parse_cpus(value))]
Duration = Annotated[Text, _checked(_config.parse_duration)]
Env = Annotated[dict[Text, Text], _checked(lambda value, _: _config.check_env(value))]
Labels = Annotated[dict[Text, Text], _checked(lambda value, _: _config.check_labels(value))]
Rlimits = Annotated[dict[Text, Text], _checked(lambda value, _: _rlimits(value))]
Ports = Annotated[list[Text], _checked(lambda value, _: _ports(value))]
NetRules = Annotated[list[Text], _checked(lambda value, _: _net_rules(value))]
Vmm = Literal["auto", "qemu"]
Pull = Literal["always", "if-missing", "never"]
Security = Literal["default", "restricted"]
NetworkPreset = Literal["none", "public-only", "nonlocal", "allow-all"]
NetNames = Literal["strict", "pin-only"]
DnsMode = Literal["resolve", "synthetic"]


class Settings(BaseModel):
    """Settings of a sandbox for `msb run --conf FILE` and `msb create --conf FILE`."""

    # A key is the long name of an option, with _ for -; `_OPTIONS` has those that are not.
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, title="msb settings")

    image: Text | None = Field(
        default=None, description="The image, as on the command line; ./DIR from the file's place."
    )
    command: list[Text] | None = Field(default=None, description="What to run, and its arguments (run only).")
    name: Name | None = Field(default=None, description="Name of the sandbox, which is kept then.")
    memory: Memory | None = Field(default=None, description="Memory: 512M, 1G.")
    cpus: Cpus | None = Field(default=None, description="Number of vCPUs, 1 to 64.")
    env: Env | None = Field(default=None, description="Environment variables.")
    workdir: Text | None = Field(default=None, description="Working directory in the guest.")
    user: Text | None = Field(default=None, description="USER[:GROUP], by name or number.")
    hostname: Hostname | None = Field(default=None, description="Host name in the guest.")
    entrypoint: Text | None = Field(default=None, description="Program in place of the image's entrypoint.")
    timeout: Duration | None = Field(default=None, description="Kill the command after 30s, 5m (run only).")
    max_duration: Duration | None = Field(default=None, description="Stop the sandbox after 30s, 5m, 1h.")
    idle_timeout: Duration | None = Field(
        default=None, description="Stop the sandbox when nothing happens for 5m."
    )
    security: Security | None = Field(default=None, description="Privileges in the guest.")
    rlimits: Rlimits | None = Field(default=None, description="Resource limits: SOFT or SOFT:HARD by name.")
    vmm: Vmm | None = Field(default=None, description="Virtual machine monitor: auto or qemu.")
    require_kvm: bool | None = Field(default=None, description="Fail rather than emulate the processor.")
    cold: bool | None = Field(default=None, description="Boot the kernel rather than start from a template.")
    shell: Text | None = Field(default=None, description="Path of the shell of scripts and people.")
    script: list[Text] | None = Field(default=None, description="Shell scripts on PATH: NAME=BODY.")
    script_raw: list[Text] | None = Field(default=None, description="Programs on PATH: NAME=BYTES.")
    script_path: list[Text] | None = Field(default=None, description="The same from files: NAME:FILE.")
    tmpfs: list[Text] | None = Field(default=None, description="Mounts of memory: DIR[:SIZE[,OPTION]].")
    volume: list[Text] | None = Field(
        default=None, description="Files of the host: SOURCE:TARGET[:OPTION[,OPTION]]."
    )
    stop_signal: Text | None = Field(default=None, description="What asks processes to end.")
    init: Text | None = Field(default=None, description="The image's init as PID 1: a path, or auto.")
    init_arg: list[Text] | None = Field(default=None, description="Arguments of the init.")
    init_env: list[Text] | None = Field(default=None, description="Variables of the init: KEY=VALUE.")
    root_disk: Text | None = Field(default=None, description="Room to write in: 512M, 16G.")
    mount_disk: list[Text] | None = Field(default=None, description="Disk images: FILE:DIR[:OPTION,...].")
    detach: bool | None = Field(default=None, description="Run in the background (run only).")
    detach_keys: Text | None = Field(default=None, description="Keys that leave the command (run only).")
    stdin: bool | None = Field(default=None, description="Whether standard input is forwarded (run only).")
    tty: bool | None = Field(default=None, description="Whether the command runs at a terminal (run only).")
    labels: Labels | None = Field(default=None, description="Labels, to select the sandbox by.")
    replace: bool | None = Field(default=None, description="End and remove a sandbox that has the name.")
    replace_with_grace: Duration | None = Field(
        default=None, description="The same, with time to end by itself."
    )
    pull: Pull | None = Field(default=None, description="When to ask the image's registry.")
    ports: Ports | None = Field(default=None, description="Published ports: [HOST:]PORT:PORT[/udp].")
    network_policy: NetworkPreset | None = Field(default=None, description="Whom it may reach.")
    net_rule: NetRules | None = Field(default=None, description="Rules before the policy.")
    net_names: NetNames | None = Field(default=None, description="What rules for names ask of clients.")
    allow_domain: list[Text] | None = Field(default=None, description="Names that are allowed.")
    deny_domain: list[Text] | None = Field(default=None, description="Names that are denied.")
    deny_domain_suffix: list[Text] | None = Field(
        default=None, description="Names that are denied, with all below them."
    )
    allow_cidr: list[Text] | None = Field(default=None, description="Networks that are allowed.")
    dns_nameserver: list[Text] | None = Field(default=None, description="Servers to ask for names.")
    dns_mode: DnsMode | None = Field(default=None, description="How names are resolved.")
    max_connections: int | None = Field(default=None, description="TCP connections at a time.")
    net_rate: list[Text] | None = Field(default=None, description="Limits: DIRECTION:RATE[,LIMIT].")
    upstream_proxy: Text | None = Field(default=None, description="URL of a proxy to go out through.")
    no_proxy: Text | None = Field(default=None, description="Hosts that are reached without it.")
    quiet: bool | None = Field(default=None, description="No progress and no remarks.")


_WORDS = ("image", "command")
_OPTIONS: dict[tuple[str, object], str] = {
    ("labels", None): "--label",
    ("ports", None): "--port",
    ("rlimits", None): "--rlimit",
    ("stdin", True): "",
    ("stdin", False): "--no-stdin",
    ("tty", False): "--no-tty",
}
"""Options of keys, or of one value of a key, that have other names."""
_EXCLUSIVE = {"tty": ("tty", "no_tty")}
"""Keys that any of these options on the command line sets aside."""


class Conf(NamedTuple):
    """A file that was read. `lines`: where each key is."""

    path: str
    settings: Settings
    lines: Places

    @property
    def image(self) -> str | None:
        """The image. Paths are from where the file is."""
        image = self.settings.image
        if image is None or (found := re.fullmatch(r"((?:[a-z-]+:)?)(\.\.?(?:/.*)?)", image)) is None:
            return image
        return f"{found[1]}{Path(self.path).absolute().parent / found[2]}"

    @property
    def command(self) -> list[str]:
        """The command with its arguments; empty if there is none."""
        return self.settings.command or []

    def options(self, parameters: Collection[str], command: str, given: Collection[str]) -> list[str]:
        """The settings as options of a command. `parameters`: those that it has; `given`: those that the
        command line has."""
        found: list[str] = []
        for key, value in self.settings.model_dump(exclude_none=True).items():
            option = _OPTIONS.get((key, value if isinstance(value, bool) else None))
            option = f"--{key.replace('_', '-')}" if option is None else option
            parameter = key if key in _WORDS else option[2:].replace("-", "_")
            if option and parameter not in parameters:
                self._refuse((key,), f"{key}: {command} has no such option", "remove it, or use msb run")
            if key not in _WORDS and option and not set(_EXCLUSIVE.get(key, ())) & set(given):
                found += _words(option, value)
        return found

    def _refuse(self, place: tuple[str | int, ...], message: str, hint: str) -> NoReturn:
        raise _refusal(self.path, _line(self.lines, place), message, hint)


def _words(option: str, value: object) -> list[str]:
    if isinstance(value, bool):
        return [option] if value or option.startswith("--no-") else []
    if isinstance(value, dict):
        return [f"{option}={key}={one}" for key, one in value.items()]
    return [f"{option}={one}" for one in (value if isinstance(value, list) else [value])]


def schema() -> dict[str, Any]:
    """The JSON schema of a file."""
    # Every key may be left out, none may be null.
    found = Settings.model_json_schema()
    for name, entry in found["properties"].items():
        (kind,) = (part for part in entry.pop("anyOf") if part != {"type": "null"})
        del entry["default"], entry["title"]
        found["properties"][name] = entry | kind
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **found}


def read_conf(path: str) -> Conf:
    """The settings in a file. Raises `ConfigError`, which names the file and the line."""
    try:
        with Path(path).open("rb") as file:
            data = file.read(SIZE_LIMIT + 1)
    except OSError as error:
        raise ConfigError(f"--conf: cannot read {path}: {error.strerror}", hint="name a YAML file") from error
    if len(data) > SIZE_LIMIT:
        raise ConfigError(f"{path}: has more than {SIZE_LIMIT >> 10} KiB", hint="settings are shorter")
    lines: Places = {}
    value = _parse(path, data, lines)
    try:
        return Conf(path, Settings.model_validate({} if value is None else value), lines)
    except ValidationError as failure:
        first = failure.errors(include_url=False)[0]
        place, context = tuple(first["loc"]), first.get("ctx") or {}
        name = ".".join(str(part) for part in place if part != "[key]")
        message, hint = f"{name}: {first['msg'][:1].lower()}{first['msg'][1:]}", "see: msb conf schema"
        if first["type"] == "config":
            message, hint = str(context["said"]), str(context["hint"])
        elif first["type"] == "extra_forbidden":
            near = get_close_matches(str(place[-1]), Settings.model_fields, n=1)
            message = f"there is no setting {str(place[-1])!r}"
            hint = f"did you mean {near[0]}? {hint}" if near else hint
        elif first["type"] == "model_type":
            message = "expected settings, as in `memory: 1G`"
        elif isinstance(first["input"], str | int) and first["type"] != "text":
            message += f" (given: {first['input']!r})"
        raise _refusal(path, _line(lines, place), message, hint) from failure


def _line(lines: Places, place: tuple[str | int, ...]) -> Line:
    while place not in lines and place:
        place = place[:-1]
    return lines.get(place, 1)


def _refusal(path: str, line: Line, message: str, hint: str) -> ConfigError:
    return ConfigError(f"{path}:{line}: {message}", hint=hint)


# -------------------------------------------------------------------------------------------------- YAML


def _parse(path: str, data: bytes, lines: Places) -> object:
    """The values in a file, of which only whole numbers, booleans and null are more than text."""
    try:
        root = yaml.compose(data, Loader=yaml.SafeLoader)
        return None if root is None else _Reader(path, lines).value(root, ())
    except ConfigError:
        raise  # it is a ValueError, and has been told
    except RecursionError:
        raise _refusal(path, 1, "is nested too deeply", f"use at most {DEPTH_LIMIT} levels") from None
    except (yaml.YAMLError, ValueError) as error:
        mark = getattr(error, "problem_mark", None) or getattr(error, "context_mark", None)
        problem = getattr(error, "problem", None) or str(error).splitlines()[0]
        raise _refusal(
            path, mark.line + 1 if mark else 1, f"is not YAML: {problem}", "as in `memory: 1G`"
        ) from error


class _Reader:
    """Makes values of nodes, and writes down where they were."""

    def __init__(self, path: str, lines: Places) -> None:
        self._path = path
        self._lines = lines
        self._count = 0

    def value(self, node: yaml.Node, place: tuple[str | int, ...]) -> object:
        line = node.start_mark.line + 1
        self._lines.setdefault(place, line)
        self._count += 1
        if self._count > NODE_LIMIT or len(place) > DEPTH_LIMIT:
            raise _refusal(self._path, line, "holds too much: an alias repeats itself?", "write it out")
        if isinstance(node, yaml.MappingNode):
            return dict(self._entries(node, place))
        if isinstance(node, yaml.SequenceNode):
            return [self.value(entry, (*place, index)) for index, entry in enumerate(node.value)]
        return self._scalar(node)

    def _entries(self, node: yaml.MappingNode, place: tuple[str | int, ...]) -> Iterator[tuple[str, object]]:
        seen: set[str] = set()
        for key, entry in node.value:
            line = key.start_mark.line + 1
            if not isinstance(key, yaml.ScalarNode) or key.tag == "tag:yaml.org,2002:merge":
                raise _refusal(self._path, line, "a key has to be plain text", "write its settings out")
            name = str(key.value)
            if name in seen:
                raise _refusal(self._path, line, f"{name}: is there twice", "remove one of them")
            seen.add(name)
            self._lines[(*place, name)] = line
            yield name, self.value(entry, (*place, name))

    def _scalar(self, node: yaml.Node) -> object:
        kind, text = node.tag.removeprefix("tag:yaml.org,2002:"), str(node.value)
        if kind == "null":
            return None
        if kind == "bool":
            return text.lower() in ("yes", "true", "on")
        # 0755, 1_000 and 20:30 are numbers to YAML, and other ones than they look like.
        if kind == "int" and re.fullmatch(r"0|-?[1-9][0-9]{0,17}", text):
            return int(text)
        if kind not in ("str", "int", "float", "timestamp"):
            raise _refusal(
                self._path, node.start_mark.line + 1, f"no tag {node.tag} is known", "leave it out"
            )
        return text

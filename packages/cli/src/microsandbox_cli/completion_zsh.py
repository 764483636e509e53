"""The completion script of zsh."""

from __future__ import annotations

import shlex

from microsandbox_cli.reference import Argument, Command, Option

_FRAME = r"""#compdef msb
# Completion of msb in zsh; printed by `msb completion zsh`.

_msb_names() {
  local -a names
  names=(${(f)"$(_call_program names msb __names $1 2>/dev/null)"})
  (( $#names )) && compadd -a names
}
_msb_sandboxes() { _msb_names sandboxes }
_msb_running() { _msb_names running }
_msb_stopped() { _msb_names stopped }
_msb_commands() { _msb_names commands }
_msb_images() {
  if [[ $PREFIX == [./~]* ]]; then _files; else _msb_names images; fi
}
_msb_places() {
  local -a names
  names=(${(f)"$(_call_program names msb __names running 2>/dev/null)"})
  (( $#names )) && compadd -S : -a names
  _files
}
"""


def script(root: Command) -> str:
    """The script, for a file `_msb` in a directory of `$fpath`."""
    parts = [_FRAME]
    _add(root, parts)
    # Read by compinit it is the function itself, and sourced it is its definition.
    return "".join([*parts, '\nif [[ $funcstack[1] == _msb ]]; then _msb "$@"; else compdef _msb msb; fi\n'])


def _add(command: Command, parts: list[str]) -> None:
    for below in command.commands:
        _add(below, parts)
    specs = [spec for option in command.options for spec in _option(option)]
    lines = [f"\n{_function(command)}() {{\n"]
    if command.commands:
        lines.append(
            "  local curcontext=$curcontext state line\n  local -a commands\n  typeset -A opt_args\n"
        )
        specs += ["1: :->command", "*:: :->arguments"]
    else:
        specs += [_argument(command, place, argument) for place, argument in enumerate(command.arguments, 1)]
    lines.append("  _arguments -s -S -C \\\n")
    lines.append(" \\\n".join(f"    {shlex.quote(spec)}" for spec in specs) + "\n")
    if command.commands:
        lines.append("  case $state in\n    command)\n      commands=(\n")
        for below in command.commands:
            described = f"{_last(below)}:{below.summary.replace(':', chr(92) + ':')}"
            lines.append(f"        {shlex.quote(described)}\n")
        lines.append("      )\n      _describe -t commands command commands ;;\n    arguments)\n")
        lines.append("      case $words[1] in\n")
        lines += [f"        {_last(below)}) {_function(below)} ;;\n" for below in command.commands]
        lines.append("      esac ;;\n  esac\n")
    parts.append("".join([*lines, "}\n"]))


def _function(command: Command) -> str:
    return "_msb" + "".join(f"_command_{word.replace('-', '_')}" for word in command.path.split())


def _last(command: Command) -> str:
    return command.path.split()[-1]


def _option(option: Option) -> list[str]:
    together = "*" if option.repeated else f"({' '.join(option.names)})"
    described = f"[{_escaped(option.help)}]"
    if option.flag:
        return [f"{together}{name}{described}" for name in option.names]
    value = f":{_escaped(option.metavar)}:{_action(option.offers)}"
    # `--name VALUE` and `--name=VALUE`, `-n VALUE` and `-nVALUE`.
    return [
        f"{together}{name}{'=' if name.startswith('--') else '+'}{described}{value}" for name in option.names
    ]


def _argument(command: Command, place: int, argument: Argument) -> str:
    name = _escaped(argument.metavar.removesuffix("..."))
    if argument.metavar.startswith("COMMAND"):
        return "*:::command: "  # the guest's; all that follows is no option of ours
    where = "*" if argument.repeated else str(place)
    return f"{where}:{name}:{_action(argument.offers)}"


def _action(offers: tuple[str, ...]) -> str:
    if not offers:
        return " "
    if offers[0].startswith("@"):
        return f"_msb_{offers[0][1:]}" if offers[0] != "@files" else "_files"
    return f"({' '.join(offers)})"


def _escaped(text: str) -> str:
    for sign in "\\[]:":
        text = text.replace(sign, "\\" + sign)
    return text

"""The completion script of fish."""

from __future__ import annotations

from collections.abc import Iterator

from microsandbox_cli.reference import Command, Option, leaves

_FRAME = r"""# Completion of msb in fish; printed by `msb completion fish`.

# What has been typed, in three lines: the command, how many words follow it, whether they are the guest's.
function __msb_look
    set -l path ''
    set -l position 0
    set -l skip no
    set -l rest no
    for word in (commandline -opc)[2..-1]
        if test $skip = yes
            set skip no
        else if test $rest = yes
            set position (math $position + 1)
        else if test "$word" = --
            set rest yes
        else if string match -q -- '-*' $word
            contains -- "$path $word" $__msb_valued; and set skip yes
        else if contains -- "$path" $__msb_groups
            set path (string trim -- "$path $word")
        else
            set position (math $position + 1)
            contains -- "$path" $__msb_followed; and set rest yes
        end
    end
    printf '%s\n' "$path" $position $rest
end

# Whether it is this command, and options are its own; or whether its argument at this position comes next.
function __msb_at
    set -l found (__msb_look)
    test "$found[1]" = "$argv[1]"; or return 1
    if test (count $argv) = 1
        test $found[3] = no
    else
        test "$argv[2]" = any; or test $found[2] = $argv[2]
    end
end

function __msb_names
    command msb __names $argv[1] 2>/dev/null
end

function __msb_images
    if string match -qr '^[./~]' -- (commandline -ct)
        __fish_complete_path (commandline -ct)
    else
        __msb_names images
    end
end

function __msb_places
    __msb_names running | string replace -r '$' ':'
    __fish_complete_path (commandline -ct)
end

complete -c msb -f
"""


def script(root: Command) -> str:
    """The script, for a file that fish reads."""
    groups = [root, *(command for command in root.commands if command.commands)]
    valued = [
        f"{command.path} {name}"
        for command in (*groups, *leaves(root))
        for option in command.options
        if not option.flag
        for name in option.names
    ]
    followed = [c.path for c in leaves(root) if any(a.metavar.startswith("COMMAND") for a in c.arguments)]
    lists = (("groups", [group.path for group in groups]), ("valued", valued), ("followed", followed))
    return "".join(
        [
            _FRAME,
            *(f"set -g __msb_{name} {' '.join(map(_quoted, words))}\n" for name, words in lists),
            *(f"complete -c msb {line}\n" for line in _lines(groups, root)),
        ]
    )


def _lines(groups: list[Command], root: Command) -> Iterator[str]:
    for group in groups:
        at = _at(group)
        for command in group.commands:
            yield f"-n {at} -a {command.path.split()[-1]} -d {_quoted(command.summary)}"
    for command in (*groups, *leaves(root)):
        for option in command.options:
            yield f"-n {_at(command)}{_option(option)}"
        for position, argument in enumerate(command.arguments):
            if argument.offers:
                at = _at(command, "any" if argument.repeated else str(position))
                yield f"-n {at} -a {_offered(argument.offers)} -d {_quoted(argument.metavar)}"


def _at(command: Command, *position: str) -> str:
    return _quoted(" ".join(("__msb_at", f'"{command.path}"', *position)))


def _option(option: Option) -> str:
    words = ["", *(f"-l {name[2:]}" if name.startswith("--") else f"-s {name[1:]}" for name in option.names)]
    if not option.flag:
        words.append("-r -F" if option.offers == ("@files",) else "-x")
        if option.offers and option.offers != ("@files",):
            words.append(f"-a {_offered(option.offers)}")
    return " ".join([*words, f"-d {_quoted(option.help)}"])


def _offered(offers: tuple[str, ...]) -> str:
    kind = offers[0]
    if not kind.startswith("@"):
        return _quoted(" ".join(offers))
    special = {"@files": "(__fish_complete_path (commandline -ct))", "@images": "(__msb_images)"}
    return _quoted(special.get(kind, "(__msb_places)" if kind == "@places" else f"(__msb_names {kind[1:]})"))


def _quoted(text: str) -> str:
    escaped = text.replace("\\", "\\\\").replace("'", "\\'")
    return f"'{escaped}'"

"""The completion script of bash."""

from __future__ import annotations

import shlex
from collections.abc import Iterable

from microsandbox_cli.reference import Command, Option, leaves

_FRAME = r"""# Completion of msb in bash; printed by `msb completion bash`.

# Sets COMPREPLY to what of these offers begins with $cur: words, and kinds that are looked up.
_msb_offer() {
  local offer words=()
  for offer in "$@"; do
    case $offer in
      @files) ;;
      @places) words+=($(command "$msb" __names running 2>/dev/null | sed 's/$/:/')) ;;
      @*) words+=($(command "$msb" __names "${offer#@}" 2>/dev/null)) ;;
      *) words+=("$offer") ;;
    esac
  done
  COMPREPLY=($(IFS=$'\n'; compgen -W "${words[*]}" -- "$cur"))
  case " $* " in
    *" @files "* | *" @places "*) _msb_files ;;
    *" @images "*) case $cur in [./~]*) _msb_files ;; esac ;;
  esac
}

_msb_files() {
  compopt -o filenames 2>/dev/null
  local IFS=$'\n'
  COMPREPLY+=($(compgen -f -- "$cur"))
}

_msb() {
  local IFS=$' \t\n' msb=$1 line=${COMP_LINE:0:COMP_POINT} words cur command='' word value position=0 index
  COMPREPLY=()
  # COMP_WORDS is split at : and = too, which are within words here.
  read -r -a words <<<"$line"
  [[ $line == *[[:space:]] ]] && words+=('')
  cur=${words[-1]}
  local option='' rest=''
  for ((index = 1; index < ${#words[@]} - 1; index++)); do
    word=${words[index]}
    if [[ -n $option ]]; then
      option=''
    elif [[ -n $rest ]]; then
      ((position++))
    elif [[ $word == -- ]]; then
      rest=1
    elif [[ $word == -* ]]; then
      _msb_value "$command" "$word" && option=$word
    elif _msb_is_group "$command"; then
      command=${command:+$command }$word
    else
      ((position++))
      _msb_is_followed_by_a_command "$command" && rest=1
    fi
  done
  if [[ -n $option ]]; then
    _msb_value "$command" "$option"
    _msb_offer "${value[@]}"
  elif [[ -z $rest && $cur == --*=* ]]; then
    if _msb_value "$command" "${cur%%=*}"; then
      local begin=${cur%%=*}=
      cur=${cur#*=}
      _msb_offer "${value[@]}"
      cur=$begin$cur
      # Without what bash takes for words of their own.
      [[ $COMP_WORDBREAKS == *=* ]] || COMPREPLY=("${COMPREPLY[@]/#/$begin}")
      return
    fi
  elif [[ -z $rest && $cur == -* ]]; then
    _msb_options "$command"
    _msb_offer "${value[@]}"
  elif _msb_is_group "$command"; then
    _msb_commands "$command"
    _msb_offer "${value[@]}"
  else
    _msb_argument "$command" "$position" && _msb_offer "${value[@]}"
  fi
  if [[ $cur == *:* && $COMP_WORDBREAKS == *:* ]]; then
    COMPREPLY=("${COMPREPLY[@]#"${cur%"${cur##*:}"}"}")
  fi
  [[ ${#COMPREPLY[@]} == 1 && ${COMPREPLY[0]} == *: ]] && compopt -o nospace 2>/dev/null
}
"""


def script(root: Command) -> str:
    """The script, for a file that bash reads."""
    groups = [root, *(command for command in root.commands if command.commands)]
    every = [*groups, *leaves(root)]
    followed = [c for c in leaves(root) if any(a.metavar.startswith("COMMAND") for a in c.arguments)]
    return "".join(
        [
            _FRAME,
            _test("_msb_is_group", [group.path for group in groups]),
            _test("_msb_is_followed_by_a_command", [command.path for command in followed]),
            _choice(
                "_msb_commands", "$1", [(g.path, [c.path.split()[-1] for c in g.commands]) for g in groups]
            ),
            _choice(
                "_msb_options",
                "$1",
                [(c.path, [name for option in c.options for name in option.names]) for c in every],
            ),
            _choice("_msb_value", "$1 $2", [entry for c in every for entry in _values(c.path, c.options)]),
            _choice(
                "_msb_argument", "$1 $2", [entry for c in every for entry in _arguments(c)], pattern=True
            ),
            "\ncomplete -F _msb msb\n",
        ]
    )


def _values(path: str, options: Iterable[Option]) -> list[tuple[str, tuple[str, ...]]]:
    return [(f"{path} {name}", o.offers) for o in options if not o.flag for name in o.names]


def _arguments(command: Command) -> list[tuple[str, tuple[str, ...]]]:
    found = []
    for position, argument in enumerate(command.arguments):
        if argument.offers:
            where = "*" if argument.repeated else str(position)
            found.append((f"{shlex.quote(command.path + ' ')}{where}", argument.offers))
    return found


def _test(function: str, paths: Iterable[str]) -> str:
    patterns = " | ".join(shlex.quote(path) for path in paths)
    return f"\n{function}() {{\n  case $1 in {patterns}) ;; *) return 1 ;; esac\n}}\n"


def _choice(
    function: str, subject: str, entries: Iterable[tuple[str, Iterable[str]]], *, pattern: bool = False
) -> str:
    """A function that sets `value`, and fails if nothing is known."""
    lines = [f"\n{function}() {{\n  value=()\n  case {subject.join(chr(34) * 2)} in\n"]
    for key, words in entries:
        shown = key if pattern else shlex.quote(key)
        lines.append(f"    {shown}) value=({' '.join(map(shlex.quote, words))}) ;;\n")
    return "".join([*lines, "    *) return 1 ;;\n  esac\n}\n"])

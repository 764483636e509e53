"""What a terminal is shown of a pull, as a terminal would keep it."""

import io
import sys

import pytest
from microsandbox_cli import progress
from microsandbox_cli.progress import CopyProgress, LoadProgress
from microsandbox_oci import Phase, Progress

MIB = 1 << 20


class Terminal(io.StringIO):
    """Lines of a screen that is high enough, from the few control sequences that we use."""

    def isatty(self) -> bool:
        return True

    def fileno(self) -> int:
        raise OSError("no descriptor")

    def screen(self) -> list[str]:
        lines, row, column = [""], 0, 0
        text = self.getvalue()
        while text:
            if text.startswith("\x1b["):
                number = text[2:].partition(text[2:].lstrip("0123456789"))[0]
                command, text = text[2 + len(number)], text[3 + len(number) :]
                if command == "A":
                    row -= int(number)
                    assert row >= 0
                else:
                    assert command in "JK"
                    lines[row] = lines[row][:column]
                    if command == "J":
                        del lines[row + 1 :]
                continue
            character, text = text[0], text[1:]
            if character == "\r":
                column = 0
            elif character == "\n":
                row, column = row + 1, 0
                lines += [""] * (row + 1 - len(lines))
            else:
                lines[row] = lines[row][:column] + character + lines[row][column + 1 :]
                column += 1
        return lines


def at_terminal(monkeypatch: pytest.MonkeyPatch) -> Terminal:
    found = Terminal()  # in no fixture: pytest has its own standard error while they are made
    monkeypatch.setattr(sys, "stderr", found)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr(progress, "_QUIET_TIME", 0)
    monkeypatch.setattr(progress, "_INTERVAL", 0)
    return found


def layer(name: str, done: int, total: int = 4 * MIB) -> Progress:
    return Progress(Phase.DOWNLOADING, f"sha256:{name * 64}", done, total)


def test_a_line_for_each_layer_that_is_fetched_and_one_for_all(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = at_terminal(monkeypatch)
    with LoadProgress(quiet=False) as shown:
        shown(Progress(Phase.RESOLVING, "docker.io/library/x:1"))
        assert terminal.screen() == ["resolving: docker.io/library/x:1"]
        for name in "abc":
            shown(layer(name, 0))
        shown(layer("a", MIB))
        shown(Progress(Phase.CONVERTING, "sha256:" + "d" * 64, MIB, 4 * MIB))
        shown(layer("b", 2 * MIB))
        first, second, total = terminal.screen()
        assert first == f"{'a' * 12} [{'=' * 6}{' ' * 18}] 1.0 MiB of 4.0 MiB"
        assert second.startswith(f"{'b' * 12} [{'=' * 12} ")
        assert total.startswith("docker.io/library/x:1: 0 of 3 layers, 3.0 MiB of 12.0 MiB")
        shown(layer("a", 4 * MIB))
        second, total = terminal.screen()
        assert second.startswith("b" * 12)
        assert ": 1 of 3 layers, 6.0 MiB of " in total
        shown(Progress(Phase.MERGING, "sha256:" + "e" * 64))
        assert terminal.screen() == ["merging: " + "e" * 20]
    assert terminal.screen() == [""]


def test_no_more_lines_than_the_terminal_has(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = at_terminal(monkeypatch)
    monkeypatch.setattr(progress, "_size", lambda: (30, 5))
    with LoadProgress(quiet=False) as shown:
        for name in "0123456789":
            shown(layer(name, MIB))
        assert len(terminal.screen()) == 4
        assert all(len(line) < 30 for line in terminal.screen())
        assert "10 layers" in terminal.screen()[-1]


@pytest.mark.parametrize("how", ["quiet", "dumb", "file"])
def test_nothing_where_it_is_not_wanted(monkeypatch: pytest.MonkeyPatch, how: str) -> None:
    terminal = at_terminal(monkeypatch)
    if how == "dumb":
        monkeypatch.setenv("TERM", "dumb")
    if how == "file":
        monkeypatch.setattr(terminal, "isatty", lambda: False)
    with LoadProgress(quiet=how == "quiet") as shown:
        shown(layer("a", MIB))
    with CopyProgress(quiet=how == "quiet") as copied:
        copied(MIB)
    assert terminal.getvalue() == ""


def test_warnings_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = at_terminal(monkeypatch)
    with LoadProgress(quiet=True) as shown:
        shown(Progress(Phase.WARNING, "mirror x: \x1b[2J"))
    assert terminal.getvalue().startswith("warning: mirror x: ")
    assert "\x1b" not in terminal.getvalue()

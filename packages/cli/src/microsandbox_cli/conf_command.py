"""`--conf FILE`: a command whose options can come from a file.

The file's settings become options before the user's own, so that the command line wins where one value
counts, and adds where several do.
"""

from __future__ import annotations

from typing import Any

from typer.core import TyperCommand


class Configurable(TyperCommand):
    """A command with an IMAGE, a COMMAND perhaps, and `--conf`."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """As any command, with the file's settings in front."""
        if any(word == "--conf" or word.startswith("--conf=") for word in args):
            args = self._expanded(ctx, args)
        return super().parse_args(ctx, args)

    def _expanded(self, ctx: Any, args: list[str]) -> list[str]:
        end = args.index("--") if "--" in args else len(args)
        head, tail = args[:end], args[end + 1 :]
        given = self.make_parser(ctx).parse_args(list(head))[0]
        if not given.get("conf"):
            return args  # the word is the guest's
        from microsandbox_cli.conf import read_conf

        conf = read_conf(given["conf"])
        parameters = {parameter.name for parameter in self.get_params(ctx)}
        options = conf.options(parameters, ctx.command_path, {name for name, value in given.items() if value})
        missing = f"no image is named, neither in {conf.path} nor on the command line."
        image = [] if given.get("image") else [conf.image or ctx.fail(missing)]
        command = tail or ([] if given.get("command") else conf.command)
        return [*options, *head, "--", *image, *command]

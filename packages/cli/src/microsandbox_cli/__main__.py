"""Entry point of `msb`."""


def main() -> None:
    """Run the command line."""

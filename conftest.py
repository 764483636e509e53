"""What every run of tests has, whichever tests they are."""

pytest_plugins = ["tests.support.beside"]

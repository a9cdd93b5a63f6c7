"""The program `ptdeploy`, and `python -m ptdeploy`."""

import sys

from ptdeploy.cli.ending import to_the_end


def main() -> int:
    """Run one command and return its exit code; a signal may come before its code is imported."""
    return to_the_end(_main, sys.argv[1:])


def _main() -> int:
    from ptdeploy.cli.main import main

    return main()


if __name__ == "__main__":
    sys.exit(main())

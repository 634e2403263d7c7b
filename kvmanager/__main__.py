"""`kvmanager` and `python -m kvmanager`: the command line's exit code is the process's."""

import sys

from kvmanager.cli import run


def main() -> None:
    sys.exit(run(sys.argv[1:]))


if __name__ == "__main__":
    main()

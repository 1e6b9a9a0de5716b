"""`python -m graphnas_lib`: the command line of `graphnas_lib.cli`."""

import sys

from graphnas_lib.cli import main

if __name__ == "__main__":
    sys.exit(main())

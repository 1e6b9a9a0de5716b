"""The command line: `python -m graphnas_lib reproduce|run|design|score|doctor`.

A verb imports what it needs when it runs, so that `--help` and a fresh `reproduce` take a second. `foreign` reads a
user's own network from a file; `doctor` checks the machine, the artifacts and the data.
"""

from graphnas_lib.cli.commands import main

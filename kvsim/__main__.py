"""``python -m kvsim``: the command line."""

from kvsim.cli import main

main()

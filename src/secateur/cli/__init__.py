"""The command line: one thin function per command that parses, calls the library and prints.

Nothing here imports PyTorch before a command needs it, so that `secateur --help` is quick.
"""

from secateur.cli.app import app, main

__all__ = ["app", "main"]

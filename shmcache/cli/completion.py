"""``shmcache completion``: what makes a shell complete commands, options, arenas and keys.

The work is argcomplete's: it knows the shells, and asks the same parser that reads the command
line, so that nothing is described twice.

May import: nothing of shmcache.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import sys
from collections.abc import Callable

__all__ = ["add_arguments", "complete", "run"]

_SHELLS = ("bash", "zsh", "fish")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of the command."""
    parser.epilog = """\
Commands and options complete, and arenas and keys as they are at that moment.

  bash   in ~/.bashrc:                   eval "$(shmcache completion bash)"
  zsh    in ~/.zshrc, after compinit:    eval "$(shmcache completion zsh)"
  fish   shmcache completion fish > ~/.config/fish/completions/shmcache.fish
"""
    parser.add_argument("shell", choices=_SHELLS, help="for which shell")


def run(options: argparse.Namespace) -> int:
    """Print the script."""
    if importlib.util.find_spec("argcomplete") is None:
        print("shmcache completion needs argcomplete: pip install 'shmcache[cli]'", file=sys.stderr)
        return 2
    from argcomplete.shell_integration import shellcode

    print(shellcode(["shmcache"], shell=options.shell))
    return 0


def complete(make_parser: Callable[[str], argparse.ArgumentParser]) -> None:
    """Answer a shell that asks by argcomplete's protocol, and exit."""
    if importlib.util.find_spec("argcomplete") is None:
        sys.exit(1)
    import argcomplete

    # The options of a command are known once its name has been typed.
    words = os.environ.get("COMP_LINE", "").split()[1:]
    argcomplete.autocomplete(make_parser(words[0] if words else ""), always_complete_options=False)

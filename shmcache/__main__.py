"""``python -m shmcache`` is the ``shmcache`` command.

May import: ``cli``.
"""

import sys

from shmcache.cli import main

__all__: list[str] = []

if __name__ == "__main__":
    sys.exit(main())

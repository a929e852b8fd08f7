"""``python -m shmcache.cli`` is the ``shmcache`` command."""

import sys

from shmcache.cli import main

if __name__ == "__main__":
    sys.exit(main())

"""`python -m workers` is the command line."""

import sys

from workers.cli import main

if __name__ == "__main__":
    sys.exit(main())

"""`python -m zstor_local` is the command `zstor`."""

import sys

from zstor_local.cli import main

if __name__ == "__main__":
    sys.exit(main())

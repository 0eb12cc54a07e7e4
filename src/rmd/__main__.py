"""`python -m rmd` is the `rmd` command."""

import sys

from rmd.cli.app import main

if __name__ == "__main__":
    sys.exit(main())

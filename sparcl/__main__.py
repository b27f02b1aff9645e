"""``python -m sparcl``: the command line."""

import sys

from sparcl.cli import main

sys.exit(main())

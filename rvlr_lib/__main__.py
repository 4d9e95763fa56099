"""Run the ``rvlr`` command as ``python -m rvlr_lib``."""

import sys

from rvlr_lib.cli import main

sys.exit(main())

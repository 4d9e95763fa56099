"""``python -m rvlr_lib`` is ``rvlr``."""

import sys

from rvlr_lib.cli import main

sys.exit(main())

"""``python -m celosia``: the command line."""

import sys

from celosia.tools.cli import main

sys.exit(main())

"""``python -m glscl`` is the ``glscl`` command."""

import sys

from glscl.cli import main

sys.exit(main())

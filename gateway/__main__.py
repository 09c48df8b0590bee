"""``python -m gateway`` is ``weir``."""

import sys

from gateway.cli import main

sys.exit(main())

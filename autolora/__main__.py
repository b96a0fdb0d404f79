"""`python -m autolora`, which a launcher of several processes starts."""

import sys

from autolora.cli import main

sys.exit(main())

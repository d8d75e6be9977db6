"""python -m potluck.cli: the same as `potluck`."""

import sys

from .main import main

sys.exit(main())

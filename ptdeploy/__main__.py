"""`python -m ptdeploy`."""

import sys

from ptdeploy.cli import main

sys.exit(main())

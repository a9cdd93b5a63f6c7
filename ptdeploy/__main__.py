"""`python -m ptdeploy`."""

import sys

from ptdeploy.cli.main import main

sys.exit(main())

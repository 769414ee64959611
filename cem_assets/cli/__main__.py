"""`python -m cem_assets.cli`: the same as the command `cem-assets`."""

import sys

from cem_assets.cli.main import main

sys.exit(main())

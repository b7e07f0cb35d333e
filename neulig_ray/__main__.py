"""`python -m neulig_ray`: the command line."""

import sys

from neulig_ray.cli import main

sys.exit(main())

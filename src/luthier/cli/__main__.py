"""`python -m luthier.cli`."""

import sys

from luthier.cli import main

sys.exit(main())

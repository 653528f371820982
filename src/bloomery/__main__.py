"""`python -m bloomery`, which is also what `torchrun -m bloomery train …` starts."""

import sys

from bloomery.cli.main import main

sys.exit(main())

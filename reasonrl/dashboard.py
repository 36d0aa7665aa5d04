"""``python -m reasonrl.dashboard``: see ``reasonrl.cli.dashboard``."""

import sys

from reasonrl.cli.dashboard import main

if __name__ == "__main__":
    sys.exit(main())

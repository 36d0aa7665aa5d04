"""``python -m reasonrl.sweep``: see ``reasonrl.cli.sweep``."""

import sys

from reasonrl.cli.sweep import main

if __name__ == "__main__":
    sys.exit(main())

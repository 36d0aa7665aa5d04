"""What ``python -m reasonrl.sweep`` does; see ``reasonrl.cli.sweep``."""

import sys

from reasonrl.cli.sweep import main

if __name__ == "__main__":
    sys.exit(main())

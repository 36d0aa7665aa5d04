"""``python -m reasonrl.dashboard``: see ``reasonrl.cli.dashboard``."""

from reasonrl.cli.dashboard import main

if __name__ == "__main__":
    main()

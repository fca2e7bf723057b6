"""``python -m rsk`` is the same as the command ``rsk``."""

from rsk.cli import main

main()

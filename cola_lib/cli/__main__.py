"""``python -m cola_lib.cli`` is ``cola``."""

from cola_lib.cli.app import main

main()

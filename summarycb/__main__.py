"""``python -m summarycb``: the command line."""

from summarycb.cli import main

raise SystemExit(main())

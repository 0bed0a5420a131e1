"""python -m segops: the `segops` command."""

from segops.cli import main

main()

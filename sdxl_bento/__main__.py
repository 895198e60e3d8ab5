"""`python -m sdxl_bento`: the command line, for where its script is not on the path."""

from sdxl_bento.cli import main

main()

"""`python -m edge_sfda`: the command line without its entry point."""

from edge_sfda.cli import main

main()

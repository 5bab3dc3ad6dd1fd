"""`python -m gradlens`: the command line, where the folder of scripts is not on the path."""

from gradlens.cli.app import main

main()

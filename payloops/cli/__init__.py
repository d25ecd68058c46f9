"""The command line, `payloops`: a module for each group of commands.

Each command imports what it runs, so that `--help` is quick.
"""

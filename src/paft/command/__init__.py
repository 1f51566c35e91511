"""The command line: composing, checking, running and searching cells."""

"""The version of the program, for `--version` and for the package."""

VERSION = "0.1.0"

"""The command line: each command parses its options, calls one importable function and prints what it returns."""

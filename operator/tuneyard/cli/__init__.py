"""The command line: `tuneyard` and `kubectl tuneyard`."""

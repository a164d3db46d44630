"""One file per figure; each measures, prints a table and writes build/bench/<name>.json."""

import os

# Before anything imports gRPC: its handlers around fork() are for programs that use it on both sides, and with threads
# in it a child of ours may end before it has become the program that it was to be.
os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "0")

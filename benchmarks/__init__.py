"""One file per figure; each measures, prints a table and writes build/bench/<name>.json."""

"""The process beside the engine: checks and loads adapters, tells what the pod serves, and drains it."""

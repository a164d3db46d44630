"""The operator process: kopf registers and wakes, and main puts the runtime together."""

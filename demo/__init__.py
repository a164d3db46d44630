"""The demo: from nothing to a canary on a real cluster. `system` is also what the stories and benchmarks stand on."""

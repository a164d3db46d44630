"""The process in a gate's pod: it asks the gateway, measures or checks the answers, and leaves a report."""

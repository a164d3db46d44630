"""The process beside Envoy: watches the API, computes routes, feeds Envoy, and says what Envoy has applied."""

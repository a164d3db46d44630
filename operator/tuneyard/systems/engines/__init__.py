"""The engines beside an agent: vLLM over its HTTP interface on the pod's loopback."""

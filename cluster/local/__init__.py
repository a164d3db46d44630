"""The provider that runs a real Kubernetes on this machine as root, in namespaces of its own, without Docker."""

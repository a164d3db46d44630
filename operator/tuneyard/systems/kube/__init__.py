"""The Kubernetes API server: requests, informers, server-side apply, events and the lease."""

"""What GitOps tools need to know of Tuneyard's kinds. Nothing here runs in a cluster."""

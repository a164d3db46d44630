"""A Kubernetes to run Tuneyard on: built and run on this machine without Docker, or kind where Docker is.

`python -m cluster --help` lists the commands. Code elsewhere talks to `cluster.provider` alone.
"""

"""The one error that the cluster's commands report: what is wrong and what to do about it, in words for a person."""

from __future__ import annotations


class ClusterError(Exception):
    """Something the cluster needs is missing or failed; the message names it and the remedy."""

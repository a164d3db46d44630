"""Tuneyard: a Kubernetes operator for serving fine-tuned language models.

Layers, enforced by import-linter: handlers | gateway | agent | cli -> runtime -> systems -> planning -> api.
"""

__version__ = "0.1.0"

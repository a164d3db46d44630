"""What users and the processes of Tuneyard see of each other: specs, statuses, reasons, shared documents.

Pydantic only. Nothing here decides anything and nothing here talks to anything.
"""

"""Servers that keep metrics."""

"""Envoy: its configuration as data, the xDS server that feeds it, and the translation between routes and xDS."""

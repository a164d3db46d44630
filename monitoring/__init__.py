"""Dashboards, alerts and their runbooks as code; what people apply is made of them. Nothing here runs in a cluster."""

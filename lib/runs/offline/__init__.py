"""Carry all packages to a machine without network."""

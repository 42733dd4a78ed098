"""Numbered SQL scripts, each of which takes a registry one version further."""

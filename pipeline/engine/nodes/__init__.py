"""Nodes of a cluster: checked before they work, and watched while they do."""

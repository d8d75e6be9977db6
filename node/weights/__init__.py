"""Weights from neighbours: pieces of the hub's files, fetched from whoever has them, and given."""

"""Bytes by their digest: kept on disk, given to peers, fetched from several of them at once."""

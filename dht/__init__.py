"""The directory: signed, expiring records under well-known keys."""

"""Keys, signatures and the one encoding. Nothing here waits."""

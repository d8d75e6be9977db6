"""Streams between peers: the only folder, with dht/kad.py, that knows libp2p."""

"""Takes part in runs in which many peers train one adapter."""

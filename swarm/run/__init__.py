"""Rules of runs in which many peers train one adapter: pure, without tensors."""

"""Potluck: everyone brings a dish.

A peer-to-peer volunteer compute network for large language models. Peers each hold a few
transformer blocks; a client routes a session through them and keeps what it needs to go on
when any of them dies.
"""

__version__ = "0.1.0"

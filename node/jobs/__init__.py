"""Durable jobs: a batch of prompts, or a fine-tuning run, that goes on whatever is killed."""

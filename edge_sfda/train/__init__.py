"""Supervised training of a source network: the one place where labels train."""

"""Exported artefacts: made from a checkpoint, held against it, and run without torch."""

"""The loop on a robot: capture, inference, adaptation beside it, and the faces over them."""

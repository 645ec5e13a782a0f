"""Operators the project is named for: one file an operator, plain torch as reference and CPU implementation."""

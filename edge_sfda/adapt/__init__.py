"""Adaptation: teacher -> reliability -> mixing -> view -> losses -> the teacher's average; and the peers.

`Adapter` is the method after STvM, `baselines` hold the others behind the same interface, `run` drives any of them over
a set of frames (offline) or a stream (online).
"""

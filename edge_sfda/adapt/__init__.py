"""Adaptation: teacher -> reliability -> mixing -> view -> losses -> the teacher's average; and the peers.

`Adapter` is the method after STvM, `baselines` hold the others behind the same interface, `run` drives any of them over
a set of frames (offline) or a stream (online).

Around them, for days unattended: `trigger` says when to learn, `probes` are the frames to judge on, `gate` decides by
`vetoes` and `votes` what is deployed, `generations` keep what was accepted, `state` what is needed to go on.
"""

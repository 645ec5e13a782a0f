"""Where frames come from and how they are read: preprocessing, sources, the built-in scene, labelled folders.

Numpy and OpenCV only; nothing here imports torch, so inference needs none of it.
"""

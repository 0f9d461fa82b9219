"""Files as they lie on the disk: which ones a path names, their bytes unpacked,
their rows one at a time.
"""

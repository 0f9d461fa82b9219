"""Our models as models of `transformers`, and back: which architecture computes the same, by what
names.

facts          what a model of ours computes in evaluation, as plain values architectures  which of
them an architecture has fixed, and what it calls the others weights        every tensor of theirs
as a view of one of ours: read for the way out, written for the way in write, check   a folder that
`transformers` loads, and the proof in a fresh process read           a folder of theirs as a config
of ours
"""

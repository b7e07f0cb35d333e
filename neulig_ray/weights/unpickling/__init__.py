"""Where the tensors of a file lie that torch.save or pickle wrote; nothing of the file is run.

Runs in a process of its own that has the standard library and this package alone, neither torch nor any other
module of ours: inside, imports are relative. Of all names in a pickle only those in `rebuilding.REBUILT` mean
something, and what they mean is written there; every other class or function is an inert placeholder: calling
it gives another placeholder, and no code is imported for it.
"""

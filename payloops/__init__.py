"""PayLoops backend: the composition root. The layers are folders beside this one (see README.md)."""

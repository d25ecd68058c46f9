"""`payloops privacy`: what is held of merchants' customers, and its erasure. For operators."""

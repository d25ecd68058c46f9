"""Merkle trees by RFC 6962: one root hash for a list of leaves, and proofs that a leaf is included.

https://www.rfc-editor.org/rfc/rfc6962#section-2.1
"""

import hashlib
from collections.abc import Sequence

HASH_BYTES = 32
LEAF, NODE = b"\x00", b"\x01"
"""Prefixes of hashed data, so that a leaf cannot be passed off as a node."""


def leaf_hash(data: bytes) -> bytes:
    return hashlib.sha256(LEAF + data).digest()


def node_hash(left: bytes, right: bytes) -> bytes:
    return hashlib.sha256(NODE + left + right).digest()


def merkle_root(leaves: Sequence[bytes]) -> bytes:
    """The root over leaf hashes, in order; without leaves, the hash of an empty string."""
    if not leaves:
        return hashlib.sha256(b"").digest()
    level = list(leaves)
    while len(level) > 1:
        level = _level_above(level)
    return level[0]


def merkle_tree(leaves: Sequence[bytes]) -> list[list[bytes]]:
    """The tree over leaf hashes, in order: its levels, from the leaves to the root."""
    levels = [list(leaves)]
    while len(levels[-1]) > 1:
        levels.append(_level_above(levels[-1]))
    return levels


def merkle_proof(tree: Sequence[Sequence[bytes]], index: int) -> list[bytes]:
    """The inclusion proof (audit path) of a leaf: the sibling hashes on its path to the root, from the leaf upwards."""
    proof = []
    for level in tree:
        if index ^ 1 < len(level):
            proof.append(level[index ^ 1])
        index //= 2
    return proof


def proven_root(leaf: bytes, *, index: int, size: int, proof: Sequence[bytes]) -> bytes | None:
    """The root of the tree of `size` leaves that has this leaf at `index`; None if the proof has a wrong length."""
    if not 0 <= index < size:
        return None
    found, last, rest = leaf, size - 1, list(proof)
    while last > 0:
        if index % 2 or index < last:
            if not rest:
                return None
            sibling = rest.pop(0)
            found = node_hash(sibling, found) if index % 2 else node_hash(found, sibling)
        index, last = index // 2, last // 2
    return None if rest else found


def _level_above(level: list[bytes]) -> list[bytes]:
    """Pairs become nodes; a last one without a partner moves up unchanged."""
    above = [node_hash(level[n], level[n + 1]) for n in range(0, len(level) - 1, 2)]
    return above + level[len(level) & ~1 :]

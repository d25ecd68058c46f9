"""Trees and proofs are those of RFC 6962."""

import hashlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from payloops.events.merkle import leaf_hash, merkle_proof, merkle_root, merkle_tree, proven_root

# The inputs and roots of Certificate Transparency's own tests:
# https://github.com/google/certificate-transparency/blob/master/cpp/merkletree/merkle_tree_test.cc
INPUTS = ["", "00", "10", "2021", "3031", "40414243", "5051525354555657", "606162636465666768696a6b6c6d6e6f"]
ROOTS = [
    "6e340b9cffb37a989ca544e6bb780a2c78901d3fb33738768511a30617afa01d",
    "fac54203e7cc696cf0dfcb42c92a1d9dbaf70ad9e621f4bd8d98662f00e3c125",
    "aeb6bcfe274b70a14fb067a5e5578264db0fa9b51af5e0ba159158f329e06e77",
    "d37ee418976dd95753c1c73862b9398fa2a2cf9b4ff0fdfe8b30cd95209614b7",
    "4e3bbb1f7b478dcfe71fb631631519a3bca12c9aefca1612bfce4c13a86264d4",
    "76e67dadbcdf1e10e1b74ddc608abd2f98dfb16fbce75277b5232a127f2087ef",
    "ddb89be403809e325750d3d263cd78929c2942b7942a34b77e122c9594a74c8c",
    "5dc9da79a70659a9ad559cb701ded9a2ab9d823aad2f4960cfe370eff4604328",
]
LEAVES = [leaf_hash(bytes.fromhex(text)) for text in INPUTS]


def test_roots_are_those_of_the_reference() -> None:
    assert [merkle_root(LEAVES[: n + 1]).hex() for n in range(len(LEAVES))] == ROOTS
    assert merkle_root([]) == hashlib.sha256(b"").digest()


@given(size=st.integers(1, 70), data=st.data())
def test_a_proof_leads_from_its_leaf_to_the_root_and_from_no_other(size: int, data: st.DataObject) -> None:
    leaves = [leaf_hash(bytes([n])) for n in range(size)]
    index = data.draw(st.integers(0, size - 1))
    proof = merkle_proof(merkle_tree(leaves), index)
    root = merkle_root(leaves)
    assert proven_root(leaves[index], index=index, size=size, proof=proof) == root
    assert proven_root(leaf_hash(b"other"), index=index, size=size, proof=proof) != root
    other = data.draw(st.integers(0, size - 1))
    if other != index:
        assert proven_root(leaves[index], index=other, size=size, proof=proof) != root
    for broken in (proof[:-1], [*proof, root], [root, *proof[1:]]):
        if broken != proof:
            assert proven_root(leaves[index], index=index, size=size, proof=broken) != root


@pytest.mark.parametrize(("index", "size"), [(-1, 1), (1, 1), (0, 0)])
def test_a_place_outside_of_the_tree_proves_nothing(index: int, size: int) -> None:
    assert proven_root(LEAVES[0], index=index, size=size, proof=[]) is None

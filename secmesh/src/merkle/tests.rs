//! The tree against the published vectors, and against its definition.

use proptest::prelude::*;

use super::*;

/// Leaves, roots and proofs of the test suite of certificate-transparency
/// (`merkletree/merkle_tree_test.cc`, later transparency-dev/merkle).
const LEAVES: [&str; 8] = [
    "",
    "00",
    "10",
    "2021",
    "3031",
    "40414243",
    "5051525354555657",
    "606162636465666768696a6b6c6d6e6f",
];
const ROOTS: [&str; 9] = [
    "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855",
    "6e340b9cffb37a989ca544e6bb780a2c78901d3fb33738768511a30617afa01d",
    "fac54203e7cc696cf0dfcb42c92a1d9dbaf70ad9e621f4bd8d98662f00e3c125",
    "aeb6bcfe274b70a14fb067a5e5578264db0fa9b51af5e0ba159158f329e06e77",
    "d37ee418976dd95753c1c73862b9398fa2a2cf9b4ff0fdfe8b30cd95209614b7",
    "4e3bbb1f7b478dcfe71fb631631519a3bca12c9aefca1612bfce4c13a86264d4",
    "76e67dadbcdf1e10e1b74ddc608abd2f98dfb16fbce75277b5232a127f2087ef",
    "ddb89be403809e325750d3d263cd78929c2942b7942a34b77e122c9594a74c8c",
    "5dc9da79a70659a9ad559cb701ded9a2ab9d823aad2f4960cfe370eff4604328",
];
/// Leaf (from 0), size, path.
const INCLUSION: [(u64, u64, &[&str]); 5] = [
    (0, 1, &[]),
    (
        0,
        8,
        &[
            "96a296d224f285c67bee93c30f8a309157f0daa35dc5b87e410b78630a09cfc7",
            "5f083f0a1a33ca076a95279832580db3e0ef4584bdff1f54c8a360f50de3031e",
            "6b47aaf29ee3c2af9af889bc1fb9254dabd31177f16232dd6aab035ca39bf6e4",
        ],
    ),
    (
        5,
        8,
        &[
            "bc1a0643b12e4d2d7c77918f44e0f4f79a838b6cf9ec5b5c283e1f4d88599e6b",
            "ca854ea128ed050b41b35ffc1b87b8eb2bde461e9e3b5596ece6b9d5975a0ae0",
            "d37ee418976dd95753c1c73862b9398fa2a2cf9b4ff0fdfe8b30cd95209614b7",
        ],
    ),
    (
        2,
        3,
        &["fac54203e7cc696cf0dfcb42c92a1d9dbaf70ad9e621f4bd8d98662f00e3c125"],
    ),
    (
        1,
        5,
        &[
            "6e340b9cffb37a989ca544e6bb780a2c78901d3fb33738768511a30617afa01d",
            "5f083f0a1a33ca076a95279832580db3e0ef4584bdff1f54c8a360f50de3031e",
            "bc1a0643b12e4d2d7c77918f44e0f4f79a838b6cf9ec5b5c283e1f4d88599e6b",
        ],
    ),
];
/// Old size, new size, proof.
const CONSISTENCY: [(u64, u64, &[&str]); 4] = [
    (1, 1, &[]),
    (
        1,
        8,
        &[
            "96a296d224f285c67bee93c30f8a309157f0daa35dc5b87e410b78630a09cfc7",
            "5f083f0a1a33ca076a95279832580db3e0ef4584bdff1f54c8a360f50de3031e",
            "6b47aaf29ee3c2af9af889bc1fb9254dabd31177f16232dd6aab035ca39bf6e4",
        ],
    ),
    (
        6,
        8,
        &[
            "0ebc5d3437fbe2db158b9f126a1d118e308181031d0a949f8dededebc558ef6a",
            "ca854ea128ed050b41b35ffc1b87b8eb2bde461e9e3b5596ece6b9d5975a0ae0",
            "d37ee418976dd95753c1c73862b9398fa2a2cf9b4ff0fdfe8b30cd95209614b7",
        ],
    ),
    (
        2,
        5,
        &[
            "5f083f0a1a33ca076a95279832580db3e0ef4584bdff1f54c8a360f50de3031e",
            "bc1a0643b12e4d2d7c77918f44e0f4f79a838b6cf9ec5b5c283e1f4d88599e6b",
        ],
    ),
];

fn bytes(hex: &str) -> Vec<u8> {
    hex.as_bytes()
        .chunks(2)
        .map(|pair| u8::from_str_radix(std::str::from_utf8(pair).unwrap(), 16).unwrap())
        .collect()
}

fn hashes(hex: &[&str]) -> Vec<Hash> {
    hex.iter().map(|h| bytes(h).try_into().unwrap()).collect()
}

fn tree(leaves: impl IntoIterator<Item = Vec<u8>>) -> Tree {
    let mut tree = Tree::default();
    for leaf in leaves {
        tree.push(&leaf);
    }
    tree
}

/// MTH of RFC 6962, section 2.1, word for word.
fn defined(leaves: &[Hash]) -> Hash {
    match leaves {
        [] => empty_root(),
        [leaf] => *leaf,
        _ => {
            let (left, right) = leaves.split_at(leaves.len().next_power_of_two() / 2);
            node_hash(&defined(left), &defined(right))
        }
    }
}

#[test]
fn the_published_roots_and_proofs() {
    let roots = hashes(&ROOTS);
    let tree = tree(LEAVES.iter().map(|l| bytes(l)));
    let mut frontier = Frontier::default();
    assert_eq!(frontier.root(), roots[0]);
    for (leaf, (size, root)) in LEAVES.iter().zip((1u64..).zip(&roots[1..])) {
        frontier.push(&bytes(leaf));
        assert_eq!((frontier.size(), frontier.root()), (size, *root));
        assert_eq!(tree.root_at(size).unwrap(), *root);
    }
    for (index, size, path) in INCLUSION {
        let path = hashes(path);
        assert_eq!(tree.inclusion(index, size).unwrap(), path, "{index} {size}");
        let leaf = tree.leaf(index).unwrap();
        let root = roots[usize::try_from(size).unwrap()];
        verify_inclusion(&leaf, index, size, &path, &root).unwrap();
    }
    for (old, new, proof) in CONSISTENCY {
        let proof = hashes(proof);
        assert_eq!(tree.consistency(old, new).unwrap(), proof, "{old} {new}");
        let root = |n| roots[usize::try_from(n).unwrap()];
        verify_consistency(old, new, &proof, &root(old), &root(new)).unwrap();
    }
}

#[test]
fn what_is_beyond_the_end_has_no_proof() {
    let tree = tree((0..5).map(|n| vec![n]));
    let beyond = |index, size| MerkleError::OutOfRange { index, size };
    assert_eq!(tree.root_at(6), Err(beyond(6, 5)));
    assert_eq!(tree.inclusion(5, 5), Err(beyond(5, 5)));
    assert_eq!(tree.inclusion(0, 6), Err(beyond(6, 5)));
    assert_eq!(tree.consistency(4, 3), Err(beyond(4, 3)));
    let (leaf, root) = (tree.leaf(0).unwrap(), tree.root());
    assert_eq!(verify_inclusion(&leaf, 5, 5, &[], &root), Err(beyond(5, 5)));
    assert_eq!(
        verify_consistency(5, 4, &[], &root, &root),
        Err(beyond(5, 4))
    );
    // A tree follows from nothing, and from itself, but not from another of the same size.
    let empty = empty_root();
    assert_eq!(verify_consistency(0, 5, &[], &empty, &root), Ok(()));
    assert_eq!(
        verify_consistency(0, 5, &[], &root, &root),
        Err(MerkleError::Mismatch)
    );
    assert_eq!(
        verify_consistency(5, 5, &[], &leaf, &root),
        Err(MerkleError::Mismatch)
    );
    assert_eq!(
        verify_consistency(5, 5, &[leaf], &root, &root),
        Err(MerkleError::ProofLength)
    );
}

#[test]
fn every_proof_of_every_small_tree_holds_and_for_nothing_else() {
    let tree = tree((0..20).map(|n| vec![n]));
    for size in 1..=20 {
        let root = tree.root_at(size).unwrap();
        for index in 0..size {
            let proof = tree.inclusion(index, size).unwrap();
            let leaf = tree.leaf(index).unwrap();
            verify_inclusion(&leaf, index, size, &proof, &root).unwrap();
            for other in (0..size).filter(|other| *other != index) {
                assert!(verify_inclusion(&leaf, other, size, &proof, &root).is_err());
            }
        }
        for old in 1..=size {
            let proof = tree.consistency(old, size).unwrap();
            let old_root = tree.root_at(old).unwrap();
            verify_consistency(old, size, &proof, &old_root, &root).unwrap();
            for other in (1..=size).filter(|other| *other != old) {
                assert!(
                    verify_consistency(other, size, &proof, &old_root, &root).is_err(),
                    "{other} is not {old} of {size}"
                );
            }
        }
    }
}

#[test]
fn a_frontier_resumes_only_with_as_many_hashes_as_its_size_says() {
    let mut frontier = Frontier::default();
    (0..11u8).for_each(|n| frontier.push(&[n]));
    let peaks = frontier.peaks().to_vec();
    assert_eq!(Frontier::resume(11, peaks.clone()), Some(frontier.clone()));
    assert_eq!(Frontier::resume(12, peaks.clone()), None);
    // 11 leaves: subtrees of 8, 2 and 1.
    assert_eq!(frontier.peak(3, 0), Some(peaks[0]));
    assert_eq!(frontier.peak(1, 4), Some(peaks[1]));
    assert_eq!(frontier.peak(0, 10), Some(peaks[2]));
    assert_eq!((frontier.peak(3, 1), frontier.peak(2, 0)), (None, None));
    assert_eq!(frontier.peak(64, 0), None);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(100))]

    #[test]
    fn the_root_is_the_defined_one(leaves in proptest::collection::vec(any::<[u8; 32]>(), 0..300), cut: prop::sample::Index) {
        let (mut frontier, mut tree) = (Frontier::default(), Tree::default());
        for leaf in &leaves {
            frontier.push_hash(*leaf);
            tree.push_hash(*leaf);
            frontier = Frontier::resume(frontier.size(), frontier.peaks().to_vec()).unwrap();
        }
        prop_assert_eq!(frontier.root(), defined(&leaves));
        prop_assert_eq!(tree.root(), defined(&leaves));
        let cut = cut.index(leaves.len() + 1);
        prop_assert_eq!(tree.root_at(cut as u64).unwrap(), defined(&leaves[..cut]));
    }

    #[test]
    fn proofs_hold_and_a_changed_one_does_not(
        size in 1u64..400, index: prop::sample::Index, old: prop::sample::Index,
        at: prop::sample::Index, bit in 0u8..8,
    ) {
        let mut tree = Tree::default();
        (0..size).for_each(|n| tree.push(&n.to_be_bytes()));
        let index = index.index(usize::try_from(size).unwrap()) as u64;
        let old = 1 + old.index(usize::try_from(size).unwrap()) as u64;
        let (leaf, root, old_root) = (tree.leaf(index).unwrap(), tree.root(), tree.root_at(old).unwrap());
        let (inc, con) = (tree.inclusion(index, size).unwrap(), tree.consistency(old, size).unwrap());
        prop_assert!(inc.len() <= MAX_PROOF && con.len() <= MAX_PROOF);
        prop_assert_eq!(verify_inclusion(&leaf, index, size, &inc, &root), Ok(()));
        prop_assert_eq!(verify_consistency(old, size, &con, &old_root, &root), Ok(()));
        for (mut proof, inclusion) in [(inc, true), (con, false)] {
            let check = |proof: &[Hash]| if inclusion {
                verify_inclusion(&leaf, index, size, proof, &root)
            } else {
                verify_consistency(old, size, proof, &old_root, &root)
            };
            proof.push([0; 32]);
            prop_assert!(check(&proof).is_err(), "one hash too many");
            proof.pop();
            if proof.is_empty() {
                continue;
            }
            let place = at.index(proof.len() * 32);
            proof[place / 32][place % 32] ^= 1 << bit;
            prop_assert_eq!(check(&proof), Err(MerkleError::Mismatch));
            proof.pop();
            prop_assert!(check(&proof).is_err(), "one hash too few");
        }
    }

    #[test]
    fn arbitrary_proofs_never_panic(
        old: u64, new: u64, proof in proptest::collection::vec(any::<[u8; 32]>(), 0..70), a: [u8; 32], b: [u8; 32],
    ) {
        let _ = verify_consistency(old, new, &proof, &a, &b);
        prop_assert!(verify_inclusion(&a, old, new, &proof, &b).is_err());
    }
}

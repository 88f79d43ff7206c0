//! Tests of proofs that are carried away.

use super::bundle::{Members, ProofError, ProofFile, witnesses};
use super::*;
use crate::mesh::testing::{admitted, genesis, node_id, operator, pq as mesh_pq};

/// The ledger of node 1 of the test mesh, with a checkpoint that nodes 2 and 3 cosigned.
fn ledger(root: &Path) -> PathBuf {
    let dir = root.join("ledger");
    let keys = LedgerKeys {
        node: node_id(1).0,
        key: SigningKey::from_bytes(&[1; 32]),
        pq: Arc::new(mesh_pq(1)),
    };
    let (mut ledger, _) = Ledger::open(&dir, keys, Retention::default(), 0).unwrap();
    for n in 1..=9 {
        ledger.append(n, &note(n)).unwrap();
        ledger.sync().unwrap();
    }
    let mut signed = ledger.publish(1_700_000_000_000_000).unwrap();
    for n in [2, 3] {
        let key = SigningKey::from_bytes(&[n; 32]);
        let cosignature = signed.cosign(&node_id(n).0, &key, 1_700_000_001);
        signed.add(&cosignature, &key.verifying_key().to_bytes());
    }
    ledger.cosigned(&signed).unwrap();
    ledger.append(10, &note(10)).unwrap();
    ledger.sync().unwrap();
    dir
}

#[test]
fn a_proof_holds_without_the_ledger_and_says_who_witnessed_it() {
    let temp = tempfile::tempdir().unwrap();
    let dir = ledger(temp.path());
    let genesis = genesis().sign(&operator());
    let records: Vec<_> = (1..=4).map(|n| admitted(n, "z")).collect();
    let members = Members {
        genesis: &genesis,
        records: &records,
    };
    let report = verify(&dir).unwrap();
    let cosigned = witnesses(report.checkpoint.as_ref().unwrap(), &records).unwrap();
    assert_eq!(cosigned.len(), 2);
    for number in 1..=9 {
        let file = ProofFile::make(&dir, number, Some(members)).unwrap();
        let bytes = serde_json::to_vec(&file).unwrap();
        let proved = ProofFile::parse(&bytes).unwrap().verify().unwrap();
        assert_eq!(proved.entry.record().unwrap(), note(number));
        assert_eq!(proved.checkpoint.checkpoint.size, 9);
        assert_eq!(
            proved.mesh,
            Some((genesis.genesis.mesh_id(), operator().public()))
        );
        assert_eq!(proved.witnesses, cosigned);
    }
    for beyond in [10, 11] {
        assert!(matches!(
            ProofFile::make(&dir, beyond, Some(members)),
            Err(LedgerError::NotProvable(..))
        ));
    }
    // Nothing of it can be changed.
    let file = ProofFile::make(&dir, 5, Some(members)).unwrap();
    let good = serde_json::to_value(&file).unwrap();
    for (key, value) in good.as_object().unwrap() {
        let flips: Vec<serde_json::Value> = match value {
            serde_json::Value::String(text) => (0..text.len())
                .step_by(text.len() / 7 + 1)
                .map(|at| {
                    let mut bytes = text.clone().into_bytes();
                    bytes[at] = if bytes[at] == b'A' { b'B' } else { b'A' };
                    String::from_utf8_lossy(&bytes).into_owned().into()
                })
                .collect(),
            serde_json::Value::Array(list) => vec![list[1..].to_vec().into()],
            _ => vec![6.into()],
        };
        for flip in flips {
            let mut bad = good.clone();
            bad[key] = flip;
            let bytes = serde_json::to_vec(&bad).unwrap();
            let result = ProofFile::parse(&bytes).and_then(|file| file.verify());
            // Without a member, the proof says less; it does not say anything wrong.
            let less = key == "members"
                && result
                    .as_ref()
                    .is_ok_and(|proved| proved.witnesses.len() < 2);
            assert!(result.is_err() || less, "{key}: {bad}");
        }
    }
    // Another mesh's operator has admitted nobody here.
    let mut other = genesis.genesis.clone();
    other.operator_key = crate::mesh::testing::signer(9).public();
    let other = other.sign(&crate::mesh::testing::signer(9));
    let members = Members {
        genesis: &other,
        records: &records,
    };
    let file = ProofFile::make(&dir, 5, Some(members)).unwrap();
    assert!(matches!(file.verify(), Err(ProofError::Admission(_))));
}

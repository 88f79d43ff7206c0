use proptest::prelude::*;

use super::*;
use crate::mesh::admission::{Grant, NodeRecord};
use crate::mesh::crypto::Signer;
use crate::mesh::genesis::{Genesis, Params};
use crate::mesh::ids::{Name, TicketId, Zone};

pub(in crate::mesh) fn operator() -> Signer {
    Signer::from_secret(&[1; 32])
}

pub(in crate::mesh) fn genesis() -> SignedGenesis {
    let operator = operator();
    Genesis {
        mesh_name: Name::new("lab").unwrap(),
        operator_key: operator.public(),
        created_unix_us: 1_700_000_000_000_000,
        params: Params::default(),
    }
    .sign(&operator)
}

fn record(seed: u8, name: &str, zone: &str) -> (NodeRecord, Signer) {
    let voter = Signer::from_secret(&[seed; 32]);
    let record = NodeRecord {
        mesh: genesis().genesis.mesh_id(),
        node: NodeRecord::derive_id(&voter.public(), 1),
        name: Name::new(name).unwrap(),
        zone: Zone::new(zone).unwrap(),
        incarnation: 1,
        vote_key: voter.public(),
        ledger_key: Signer::from_secret(&[seed.wrapping_add(100); 32]).public(),
        pq_key_hash: [seed.wrapping_add(50); 32],
        tls_spki_sha256: [seed; 32],
        address: Some("[2001:db8::1]:4747".parse().unwrap()),
        joined_unix_us: 1_700_000_000_000_001,
    };
    (record, voter)
}

fn grant(seed: u8, hint: &str) -> (SignedGrant, Signer) {
    let ticket = Signer::from_secret(&[seed; 32]);
    let grant = Grant {
        mesh: genesis().genesis.mesh_id(),
        ticket: TicketId([seed; 16]),
        ticket_key: ticket.public(),
        name_hint: Some(Name::new(hint).unwrap()),
        issued_unix_us: 1_700_000_000_000_000,
        expires_unix_us: 1_700_003_600_000_000,
        epoch: None,
    };
    (grant.sign(&operator()), ticket)
}

pub(in crate::mesh) fn by_operator(seed: u8) -> AdmittedRecord {
    let (record, voter) = record(seed, "n1", "z1");
    record.admit_by_operator(&voter, &operator())
}

pub(in crate::mesh) fn by_ticket(seed: u8) -> AdmittedRecord {
    let (record, voter) = record(seed, "n2", "z2");
    let (grant, ticket) = grant(seed.wrapping_add(50), "n2");
    record.admit_by_ticket(&voter, grant, &ticket)
}

fn store() -> MeshStore {
    MeshStore {
        genesis: genesis(),
        members: vec![by_operator(2), by_ticket(3)],
        grants: vec![grant(9, "n3").0],
    }
}

fn dir() -> (tempfile::TempDir, StateDir) {
    let temp = tempfile::tempdir().unwrap();
    let dir = StateDir::create(&temp.path().join("state")).unwrap();
    (temp, dir)
}

#[test]
fn what_was_saved_is_loaded_and_saving_again_replaces_it() {
    let (_temp, dir) = dir();
    assert!(matches!(MeshStore::load(&dir), Err(StoreError::None(_))));
    let mut store = store();
    store.save(&dir).unwrap();
    assert_eq!(MeshStore::load(&dir).unwrap(), store);
    store.members.push(by_ticket(4));
    store.grants.clear();
    store.save(&dir).unwrap();
    assert_eq!(MeshStore::load(&dir).unwrap(), store);
    MeshStore::remove(&dir).unwrap();
    assert!(!MeshStore::exists(&dir) && !dir.has("genesis.bin"));
    MeshStore::remove(&dir).unwrap();
}

#[test]
fn the_largest_record_and_grant_fit() {
    let (record, voter) = record(2, &"x".repeat(64), &"z".repeat(32));
    let (grant, ticket) = grant(3, &"h".repeat(64));
    let grant_len = grant.to_bytes().len();
    let len = record
        .admit_by_ticket(&voter, grant, &ticket)
        .to_bytes()
        .len();
    assert!(
        len <= MAX_RECORD && grant_len <= MAX_RECORD,
        "{len} {grant_len}"
    );
}

#[test]
fn a_full_mesh_is_kept_and_one_more_is_refused() {
    let (_temp, dir) = dir();
    let mut store = store();
    store.members = vec![by_operator(2); MAX_RECORDS];
    store.grants = vec![grant(9, "n").0; MAX_GRANTS];
    store.save(&dir).unwrap();
    assert_eq!(MeshStore::load(&dir).unwrap(), store);
    store.members.push(by_operator(2));
    let refused = store.save(&dir);
    assert!(
        matches!(
            refused,
            Err(StoreError::TooMany {
                what: "members",
                ..
            })
        ),
        "{refused:?}"
    );
    assert_eq!(
        MeshStore::load(&dir).unwrap().members.len(),
        MAX_RECORDS,
        "the old file stays"
    );
}

#[test]
fn another_meshs_members_and_another_version_are_told_apart_from_damage() {
    let (_temp, dir) = dir();
    store().save(&dir).unwrap();
    let other = Genesis {
        mesh_name: Name::new("other").unwrap(),
        ..genesis().genesis
    };
    dir.write("genesis.bin", &other.sign(&operator()).to_bytes())
        .unwrap();
    let error = MeshStore::load(&dir).unwrap_err().to_string();
    assert!(error.contains("another mesh"), "{error}");
    store().save(&dir).unwrap();
    dir.write(
        "members.bin",
        &Encoder::tagged("secmesh/members/7").finish(),
    )
    .unwrap();
    let error = MeshStore::load(&dir).unwrap_err();
    assert!(
        matches!(
            error,
            StoreError::State(StateError::Version { found: 7, .. })
        ),
        "{error}"
    );
}

#[test]
fn counts_above_the_limit_are_refused_even_with_a_good_checksum() {
    let mut e = Encoder::tagged(TAG);
    e.u16(3_073);
    let mut bytes = e.finish();
    bytes.extend(crypto::sha256(&bytes.clone()));
    assert_eq!(
        decode_members(&bytes),
        Err(WireError::TooLong {
            field: "members",
            len: 3_073,
            max: MAX_RECORDS
        })
    );
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn any_change_of_either_file_is_noticed(
        in_genesis: bool,
        at: prop::sample::Index,
        xor in 1_u8..,
        cut: bool,
    ) {
        let (_temp, dir) = dir();
        store().save(&dir).unwrap();
        let name = if in_genesis { "genesis.bin" } else { "members.bin" };
        let mut bytes = read_capped(&dir.file(name), 1 << 20).unwrap();
        let at = at.index(bytes.len());
        if cut { bytes.truncate(at) } else { bytes[at] ^= xor }
        dir.write(name, &bytes).unwrap();
        let noticed = matches!(
            MeshStore::load(&dir),
            Err(StoreError::State(StateError::Damaged { .. } | StateError::Version { .. }))
        );
        prop_assert!(noticed, "{name} at {at}");
    }
}

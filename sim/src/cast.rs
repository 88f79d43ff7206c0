//! Who plays: an operator, nodes with known keys, and the addresses that are attacked or framed.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::rc::Rc;

use secmesh::addr::Prefix;
use secmesh::mesh::admission::{AdmittedRecord, Grant, NodeRecord, SignedGrant};
use secmesh::mesh::crypto::{Signer, sha256};
use secmesh::mesh::genesis::{Genesis, Params};
use secmesh::mesh::ids::{Name, NodeId, TicketId, Zone};
use secmesh::mesh::pq::PqSigner;

/// Where virtual time begins: the start of a bucket, microseconds since 1970.
pub const START_US: u64 = 1_700_000_040_000_000;
/// Microseconds in a second.
pub const S: u64 = 1_000_000;

/// The operator's key.
pub fn operator() -> Signer {
    Signer::from_secret(&[0xee; 32])
}

/// A mesh with these numbers.
#[expect(
    clippy::expect_used,
    clippy::missing_panics_doc,
    reason = "a fixed name that is one"
)]
pub fn genesis(params: Params) -> Genesis {
    Genesis {
        mesh_name: Name::new("simulated").expect("a name"),
        operator_key: operator().public(),
        created_unix_us: START_US - 10_000 * S,
        params,
    }
}

fn secret(i: usize) -> [u8; 32] {
    sha256(format!("secmesh-sim node {i}").as_bytes())
}

/// Vote key of node `i`.
pub fn signer(i: usize) -> Signer {
    Signer::from_secret(&secret(i))
}

/// The same key, for checkpoints of its ledger.
pub fn ledger_key(i: usize) -> ed25519_dalek::SigningKey {
    ed25519_dalek::SigningKey::from_bytes(&secret(i))
}

thread_local! {
    static PQ: RefCell<BTreeMap<usize, Rc<PqSigner>>> = const { RefCell::new(BTreeMap::new()) };
}

/// The ML-DSA-44 key of node `i`.
#[expect(
    clippy::expect_used,
    clippy::missing_panics_doc,
    reason = "every 32 bytes are a seed"
)]
pub fn pq(i: usize) -> Rc<PqSigner> {
    PQ.with_borrow_mut(|keys| {
        let key = keys.entry(i);
        Rc::clone(key.or_insert_with(|| {
            Rc::new(PqSigner::from_seed(&secret(i)).expect("a key follows from a seed"))
        }))
    })
}

fn ticket_signer(i: usize) -> Signer {
    Signer::from_secret(&sha256(format!("secmesh-sim ticket {i}").as_bytes()))
}

/// Id of node `i`.
pub fn node_id(i: usize) -> NodeId {
    NodeRecord::derive_id(&signer(i).public(), 1)
}

/// Address of node `i`: each in a /24 of its own, so that a network has one member in it.
pub fn address(i: usize) -> IpAddr {
    let [_, _, high, low] = u32::try_from(i).unwrap_or(0).to_be_bytes();
    IpAddr::V4(Ipv4Addr::new(10, high, low, 1))
}

/// The record of node `i`.
#[expect(
    clippy::expect_used,
    clippy::missing_panics_doc,
    reason = "names made here are names"
)]
pub fn record(genesis: &Genesis, i: usize, zone: usize) -> NodeRecord {
    let key = signer(i).public();
    NodeRecord {
        mesh: genesis.mesh_id(),
        node: node_id(i),
        name: Name::new(&format!("n{i}")).expect("a name"),
        zone: Zone::new(&format!("z{zone}")).expect("a zone"),
        incarnation: 1,
        vote_key: key,
        ledger_key: key,
        pq_key_hash: pq(i).public().hash(),
        tls_spki_sha256: sha256(&key),
        address: Some(SocketAddr::new(address(i), 4747)),
        joined_unix_us: START_US - 5_000 * S + i as u64,
    }
}

/// Node `i`, admitted by the operator.
pub fn admitted(genesis: &Genesis, i: usize, zone: usize) -> AdmittedRecord {
    record(genesis, i, zone).admit_by_operator(&signer(i), &operator())
}

/// The ticket of node `i`.
#[expect(
    clippy::expect_used,
    clippy::missing_panics_doc,
    reason = "16 of 32 bytes"
)]
pub fn grant(genesis: &Genesis, i: usize) -> SignedGrant {
    let id = sha256(format!("secmesh-sim ticket id {i}").as_bytes());
    Grant {
        mesh: genesis.mesh_id(),
        ticket: TicketId(id[..16].try_into().expect("16 bytes")),
        ticket_key: ticket_signer(i).public(),
        name_hint: None,
        issued_unix_us: START_US - 6_000 * S,
        expires_unix_us: START_US + 6_000 * S,
        epoch: None,
    }
    .sign(&operator())
}

/// Node `i`, admitted with its ticket. Another `variant` is another record under the same ticket.
pub fn by_ticket(genesis: &Genesis, i: usize, zone: usize, variant: u64) -> AdmittedRecord {
    let mut record = record(genesis, i, zone);
    record.joined_unix_us += variant;
    record.admit_by_ticket(&signer(i), grant(genesis, i), &ticket_signer(i))
}

fn v4(a: u8, b: u8, c: u8, d: u8) -> Prefix {
    Prefix::host(IpAddr::V4(Ipv4Addr::new(a, b, c, d)))
}

fn low_byte(n: usize) -> u8 {
    u8::try_from(n % 250).unwrap_or(0)
}

/// An address that really attacks.
pub fn attacker(n: usize) -> Prefix {
    v4(203, 0, 113, low_byte(n))
}

/// The /24 around an address.
#[expect(
    clippy::expect_used,
    clippy::missing_panics_doc,
    reason = "24 is a length of IPv4"
)]
pub fn network(address: IpAddr) -> Prefix {
    Prefix::truncating(address, 24).expect("a length of IPv4")
}

/// A network that really attacks.
pub fn attacking_network(n: usize) -> Prefix {
    network(IpAddr::V4(Ipv4Addr::new(198, 51, low_byte(n), 1)))
}

/// An address that never did anything, which the liars of one group try to have blocked.
pub fn victim(group: usize, n: usize) -> Prefix {
    v4(192, 0, low_byte(group), low_byte(n))
}

/// A network that never did anything.
pub fn victim_network(group: usize) -> Prefix {
    network(IpAddr::V4(Ipv4Addr::new(192, 1, low_byte(group), 1)))
}

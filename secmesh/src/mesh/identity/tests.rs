//! Tests of identities, key files and tickets.

use std::os::unix::fs::PermissionsExt as _;

use proptest::prelude::*;

use super::*;

fn create(
    dir: &StateDir,
    name: &str,
    zone: &str,
    advertise: Option<String>,
) -> Result<Identity, IdentityError> {
    Identity::create(
        dir,
        Name::new(name).unwrap(),
        Zone::new(zone).unwrap(),
        advertise,
    )
}

fn dir() -> (tempfile::TempDir, StateDir) {
    let temp = tempfile::tempdir().unwrap();
    let dir = StateDir::create(&temp.path().join("s")).unwrap();
    (temp, dir)
}

#[test]
fn an_identity_survives_a_restart() {
    let (_temp, dir) = dir();
    assert!(matches!(Identity::load(&dir), Err(IdentityError::None(_))));
    let mut made = create(&dir, "n1", "z1", Some("192.0.2.1:4747".to_owned())).unwrap();
    assert_eq!(made.next_incarnation(&dir).unwrap(), 2);
    let loaded = Identity::load(&dir).unwrap();
    assert!(Identity::exists(&dir));
    assert_eq!(
        (loaded.node_id(), loaded.incarnation()),
        (made.node_id(), 2)
    );
    assert_eq!(
        (
            loaded.name().as_str(),
            loaded.zone().as_str(),
            loaded.advertise()
        ),
        ("n1", "z1", Some("192.0.2.1:4747"))
    );
    assert_eq!(loaded.vote_key(), made.vote_key());
    assert_eq!(loaded.ledger_key(), made.ledger_key());
    assert_eq!(
        loaded.tls().spki_sha256(),
        made.tls().spki_sha256(),
        "a new certificate, the same pin"
    );
    assert!(matches!(
        create(&dir, "n1", "z1", None),
        Err(IdentityError::Exists(_))
    ));
}

#[test]
fn keys_and_ids_are_all_different() {
    let ((_t1, a), (_t2, b)) = (dir(), dir());
    let (a, b) = (
        create(&a, "n", "z", None).unwrap(),
        create(&b, "n", "z", None).unwrap(),
    );
    assert_ne!(a.node_id(), b.node_id());
    assert_ne!(a.vote_key().to_bytes(), a.ledger_key().to_bytes());
    assert!(!format!("{a:?}").contains("SigningKey"));
}

#[test]
fn swapped_and_exposed_keys_are_refused() {
    let (_temp, d) = dir();
    create(&d, "n1", "z", None).unwrap();
    std::fs::set_permissions(d.file("vote.key"), std::fs::Permissions::from_mode(0o644)).unwrap();
    assert!(matches!(
        Identity::load(&d),
        Err(IdentityError::State(StateError::SecretExposed { .. }))
    ));
    let (_other, e) = dir();
    create(&e, "n2", "z", None).unwrap();
    let copy = |from: &StateDir, name: &str, to: &str| {
        d.write(
            to,
            &crate::state::read_capped(&from.file(name), 999).unwrap(),
        )
        .unwrap();
    };
    copy(&e, "vote.key", "vote.key");
    assert!(matches!(
        Identity::load(&d),
        Err(IdentityError::Inconsistent { .. })
    ));
    copy(&e, "ledger.key", "vote.key");
    assert!(matches!(
        Identity::load(&d),
        Err(IdentityError::BadKey {
            purpose: "vote",
            ..
        })
    ));
    for bad in [
        "",
        "x",
        "secmesh-key 2 vote AAAA",
        "secmesh-key 1 vote AAAA",
        "secmesh-key 1 vote",
    ] {
        d.write("vote.key", bad.as_bytes()).unwrap();
        assert!(
            matches!(Identity::load(&d), Err(IdentityError::BadKey { .. })),
            "{bad}"
        );
    }
}

#[test]
fn the_operator_key_is_not_overwritten() {
    let (_temp, dir) = dir();
    let path = dir.file("operator.key");
    let made = create_operator_key(&path).unwrap();
    assert_eq!(load_operator_key(&path).unwrap(), made);
    assert!(matches!(
        create_operator_key(&path),
        Err(IdentityError::State(StateError::Exists(_)))
    ));
}

#[test]
fn the_pin_of_a_key_is_the_pin_of_its_certificate() {
    let key = SigningKey::from_bytes(&[3; 32]);
    let tls = TlsIdentity::new(&key).unwrap();
    assert_eq!(
        tls.spki_sha256(),
        ed25519_spki_sha256(key.verifying_key().as_bytes())
    );
    let certified = tls.certified();
    assert_eq!(spki_sha256(&certified.cert[0]), Some(tls.spki_sha256()));
    assert_eq!(spki_sha256(b"no certificate"), None);
}

fn ticket() -> Ticket {
    Ticket {
        genesis: vec![1; 200],
        grant: vec![2; 150],
        seed: [3; 32],
        addresses: vec!["192.0.2.1:4747".to_owned(), "[2001:db8::1]:4747".to_owned()],
        pins: vec![[4; 32], [5; 32]],
    }
}

#[test]
fn a_ticket_is_read_back() {
    let text = ticket().encode().unwrap();
    assert!(text.starts_with("secmesh2-"));
    assert_eq!(Ticket::decode(&text).unwrap(), ticket());
    let wrapped: String = text
        .chars()
        .enumerate()
        .flat_map(|(i, c)| [Some(c), (i % 80 == 79).then_some('\n')])
        .flatten()
        .collect();
    assert_eq!(Ticket::decode(&format!("  {wrapped}\n")).unwrap(), ticket());
    let address = "a".repeat(64);
    let full = Ticket {
        genesis: vec![9; 1024],
        grant: vec![9; 1024],
        addresses: vec![address; 8],
        pins: vec![[1; 32]; 8],
        ..ticket()
    };
    assert_eq!(Ticket::decode(&full.encode().unwrap()).unwrap(), full);
    assert!(!format!("{:?}", ticket()).contains("seed"));
}

/// Found by the fuzzer: where base64 ends on a whole group, a character behind it went unnoticed.
#[test]
fn a_character_behind_a_whole_ticket_is_noticed_whatever_its_length() {
    for length in 0..3 {
        let short = Ticket {
            genesis: vec![1; length],
            ..ticket()
        };
        for more in ["A", "AA", "AAA", "AAAA"] {
            let text = short.encode().unwrap() + more;
            assert_eq!(
                Ticket::decode(&text),
                Err(TicketError::TooLong),
                "{length} {more}"
            );
        }
    }
}

#[test]
fn a_bad_ticket_says_what_is_wrong() {
    let text = ticket().encode().unwrap();
    assert_eq!(Ticket::decode(""), Err(TicketError::NotATicket));
    assert_eq!(
        Ticket::decode("secret-handshake"),
        Err(TicketError::NotATicket)
    );
    assert_eq!(
        Ticket::decode(&text.replace("secmesh2", "secmesh1")),
        Err(TicketError::Version("1".to_owned()))
    );
    for cut in "secmesh2-".len()..text.len() {
        assert_eq!(
            Ticket::decode(&text[..cut]),
            Err(TicketError::Truncated),
            "cut at {cut} of {}",
            text.len()
        );
    }
    assert_eq!(
        Ticket::decode(&format!("{text}AAAA")),
        Err(TicketError::TooLong)
    );
    assert_eq!(
        Ticket::decode(&format!("{text}{}", "A".repeat(1 << 20))),
        Err(TicketError::TooLong)
    );
    let strange = text.replacen('-', "-*", 1);
    assert_eq!(
        Ticket::decode(&strange),
        Err(TicketError::Character {
            character: '*',
            position: 10
        })
    );
    let mut typo: Vec<char> = text.chars().collect();
    for at in 20..typo.len() {
        let was = typo[at];
        typo[at] = if was == 'A' { 'B' } else { 'A' };
        assert_eq!(
            Ticket::decode(&typo.iter().collect::<String>()),
            Err(TicketError::Checksum),
            "at {at}"
        );
        typo[at] = was;
    }
}

#[test]
fn limits_hold_when_writing() {
    for bad in [
        Ticket {
            genesis: vec![0; 1025],
            ..ticket()
        },
        Ticket {
            grant: vec![0; 1025],
            ..ticket()
        },
        Ticket {
            addresses: vec![],
            ..ticket()
        },
        Ticket {
            addresses: vec!["a:1".to_owned(); 9],
            ..ticket()
        },
        Ticket {
            addresses: vec!["a".repeat(65)],
            ..ticket()
        },
        Ticket {
            addresses: vec!["a b".to_owned()],
            ..ticket()
        },
        Ticket {
            pins: vec![],
            ..ticket()
        },
        Ticket {
            pins: vec![[0; 32]; 9],
            ..ticket()
        },
    ] {
        assert!(matches!(bad.encode(), Err(TicketError::Limits(_))));
    }
}

proptest! {
    #[test]
    fn arbitrary_text_never_panics(text in "\\PC*", tail in "[A-Za-z0-9_-]{0,400}") {
        let _ = Ticket::decode(&text);
        let with_prefix = Ticket::decode(&format!("secmesh2-{tail}"));
        prop_assert!(with_prefix.is_err());
    }

    #[test]
    fn every_ticket_is_read_back(genesis in proptest::collection::vec(any::<u8>(), 0..1024), seed: [u8; 32], pins in proptest::collection::vec(any::<[u8; 32]>(), 1..8)) {
        let ticket = Ticket { genesis, seed, pins, ..ticket() };
        prop_assert_eq!(Ticket::decode(&ticket.encode().unwrap()).unwrap(), ticket);
    }
}

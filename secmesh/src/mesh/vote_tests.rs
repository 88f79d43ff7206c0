use super::super::testing::*;
use super::*;
use proptest::prelude::*;

fn block() -> Action {
    Action::block(subject(), AttackClass::SynFlood, &Params::default())
}

#[test]
fn codes_and_names_are_stable() {
    let classes = [
        "syn_flood",
        "udp_flood",
        "icmp_flood",
        "port_scan",
        "network",
        "misconduct",
        "hostile_node",
        "mesh_abuse",
        "manual",
    ];
    for (class, name) in AttackClass::ALL.iter().zip(classes) {
        assert_eq!(class.name(), name);
        assert_eq!(serde_json::to_string(class).unwrap(), format!("\"{name}\""));
        assert_eq!(name.parse(), Ok(*class));
        assert_eq!(AttackClass::from_code(class.code()), Ok(*class));
    }
    assert!(AttackClass::from_code(0).is_err());
}

#[test]
fn the_incident_depends_on_every_part_and_the_decision_on_round_and_action() {
    let (mesh, epoch) = (genesis().mesh_id(), Hash([1; 32]));
    let id = block().incident(mesh, epoch, 7);
    let other_class = Action {
        class: AttackClass::UdpFlood,
        ..block()
    };
    let other_subject = Action {
        subject: "203.0.113.8".parse().unwrap(),
        ..block()
    };
    let release = Action {
        kind: ActionKind::Release,
        ..block()
    };
    for other in [
        block().incident(mesh, epoch, 8),
        block().incident(mesh, Hash([2; 32]), 7),
        block().incident(MeshId([0; 32]), epoch, 7),
        other_class.incident(mesh, epoch, 7),
        other_subject.incident(mesh, epoch, 7),
        release.incident(mesh, epoch, 7),
    ] {
        assert_ne!(id, other);
    }
    assert_ne!(
        block().decision(mesh, epoch, id, 0),
        block().decision(mesh, epoch, id, 1)
    );
}

#[test]
fn only_addresses_and_their_networks_are_voted_on_for_the_agreed_time() {
    let params = Params::default();
    assert_eq!(block().check(&params), Ok(()));
    assert_eq!(Action::release(subject()).check(&params), Ok(()));
    let network = Action {
        subject: "203.0.113.0/24".parse().unwrap(),
        ..block()
    };
    assert_eq!(network.check(&params), Err(ActionError::NotSingle));
    let class_2 = Action {
        class: AttackClass::Network,
        ..network
    };
    assert_eq!(class_2.check(&params), Ok(()));
    for (subject, class) in [
        ("203.0.112.0/23", AttackClass::Network),
        ("203.0.113.7", AttackClass::Network),
        ("2001:db8::/63", AttackClass::Network),
    ] {
        let other = Action {
            subject: subject.parse().unwrap(),
            class,
            ..block()
        };
        assert_eq!(
            other.check(&params),
            Err(ActionError::NotSingle),
            "{subject}"
        );
    }
    assert_eq!(
        Action::release(class_2.subject.prefix().unwrap()).check(&params),
        Ok(())
    );
    let longer = Action {
        ttl_s: 3_601,
        ..block()
    };
    assert_eq!(longer.check(&params), Err(ActionError::WrongTtl));
}

#[test]
fn a_ballot_whose_parts_do_not_belong_together_is_refused() {
    let roster = roster(&["a"]);
    let good = ballot(&roster, 1, block(), Verdict::Confirm, 1, T0);
    assert_eq!(Ballot::from_bytes(&good.to_bytes()), Ok(good));
    let mut other_action = good;
    other_action.action.class = AttackClass::UdpFlood;
    let mut other_incident = good;
    other_incident.signed.vote.incident = IncidentId([0; 32]);
    let mut far = good;
    far.signed.vote.issued_at_us += 2 * BUCKET_US;
    for bad in [other_action, other_incident, far] {
        assert!(Ballot::from_bytes(&bad.to_bytes()).is_err());
    }
}

#[test]
fn a_block_ends_at_the_same_time_wherever_it_is_decided() {
    assert_eq!(
        block().expires_unix_us(bucket_of(T0 + 59 * S)),
        T0 + 60 * S + 3_600 * S
    );
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]
    #[test]
    fn no_changed_byte_of_a_ballot_passes(at: prop::sample::Index, change in 1_u8..) {
        let roster = roster(&["a"]);
        let mut bytes = ballot(&roster, 1, block(), Verdict::Confirm, 1, T0).to_bytes();
        let at = at.index(bytes.len());
        bytes[at] ^= change;
        if let Ok(read) = Ballot::from_bytes(&bytes) {
            prop_assert!(read.signed.verify(&signer(1).public()).is_err());
        }
    }
}

//! `invite`: a ticket for one new node.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::json;

use super::args::InviteArgs;
use super::output::Out;
use super::time::{rfc3339, span};
use super::{CliError, Context, node, note};
use crate::api::types::{Done, InviteTerms, Request};
use crate::entropy;
use crate::mesh::admission::{EpochMark, Grant};
use crate::mesh::crypto::Signer;
use crate::mesh::genesis::SignedGenesis;
use crate::mesh::identity::{Purpose, Ticket};
use crate::mesh::ids::{Hash, TicketId, from_hex};

/// Longest validity of a ticket, seconds.
const MAX_EXPIRES_S: u64 = 30 * 86_400;
/// Most members that a ticket names.
const MAX_MEMBERS: usize = 8;

/// What is drawn at random for a ticket.
struct Drawn {
    ticket: TicketId,
    seed: [u8; 32],
}

/// `secmesh invite`
pub fn invite(context: &Context, args: InviteArgs, out: &mut Out<'_>) -> Result<(), CliError> {
    let valid_s = args.expires.as_secs();
    if valid_s > MAX_EXPIRES_S {
        return Err(CliError::Usage(
            "--expires is at most 30 days; make the ticket when it is needed".to_owned(),
        ));
    }
    let key = match &args.operator_key {
        Some(path) => path.clone(),
        None => context.state_dir()?.join(Purpose::Operator.file()),
    };
    let operator = node::operator_key(&key)?;
    let terms: InviteTerms = context.ask(&Request::InviteTerms {})?;
    let drawn = Drawn {
        ticket: TicketId(entropy::bytes()?),
        seed: entropy::bytes()?,
    };
    let issued = out.now_us;
    let expires = issued.saturating_add(valid_s.saturating_mul(1_000_000));
    let made = make(&terms, &operator, &drawn, args.name, (issued, expires))?;
    let _: Done = context.ask(&Request::OpenGrant {
        grant: STANDARD.encode(&made.ticket.grant),
    })?;
    let ticket = made.ticket.encode()?;
    if out.json {
        let genesis = &made.genesis.genesis;
        return out.json(&json!({
            "ticket": ticket,
            "expires_unix_us": expires,
            "mesh": genesis.mesh_name,
            "mesh_id": genesis.mesh_id(),
        }));
    }
    note(&format!(
        "One node can join with this ticket until {} (for {}); it is a secret until then:",
        rfc3339(expires),
        span(expires.saturating_sub(issued))
    ));
    out.text(&format!("{ticket}\n"))
}

struct Made {
    ticket: Ticket,
    genesis: SignedGenesis,
}

fn make(
    terms: &InviteTerms,
    operator: &Signer,
    drawn: &Drawn,
    name_hint: Option<crate::mesh::ids::Name>,
    (issued_unix_us, expires_unix_us): (u64, u64),
) -> Result<Made, CliError> {
    let not_understood = |what: &str| {
        CliError::Failed(format!(
            "the agent's {what} is not understood; are agent and command of one version?"
        ))
    };
    let bytes = STANDARD
        .decode(&terms.genesis)
        .map_err(|_| not_understood("genesis"))?;
    let genesis = SignedGenesis::from_bytes(&bytes).map_err(|_| not_understood("genesis"))?;
    genesis.verify().map_err(|_| not_understood("genesis"))?;
    if genesis.genesis.operator_key != operator.public() {
        return Err(CliError::Failed(format!(
            "this is not the operator key of mesh {}; name the right one with --operator-key",
            genesis.genesis.mesh_name
        )));
    }
    if terms.addresses.is_empty() || terms.pins.is_empty() {
        return Err(CliError::Failed(
            "no connected member advertises an address that a new node could ask; set [mesh] advertise on this node and restart its agent".to_owned(),
        ));
    }
    if terms.epoch == 0 {
        return Err(CliError::Failed(
            "this node does not know yet which epoch is in force; wait until it is connected (secmesh status), or make the ticket on another node".to_owned(),
        ));
    }
    let hash = from_hex::<32>(&terms.epoch_hash).ok_or_else(|| not_understood("epoch"))?;
    let pins = terms
        .pins
        .iter()
        .take(MAX_MEMBERS)
        .map(|pin| from_hex::<32>(pin));
    let pins = pins
        .collect::<Option<Vec<_>>>()
        .ok_or_else(|| not_understood("list of TLS keys"))?;
    let grant = Grant {
        mesh: genesis.genesis.mesh_id(),
        ticket: drawn.ticket,
        ticket_key: Signer::from_secret(&drawn.seed).public(),
        name_hint,
        issued_unix_us,
        expires_unix_us,
        epoch: Some(EpochMark {
            number: terms.epoch,
            hash: Hash(hash),
        }),
    };
    let ticket = Ticket {
        genesis: bytes,
        grant: grant.sign(operator).to_bytes(),
        seed: drawn.seed,
        addresses: terms.addresses.iter().take(MAX_MEMBERS).cloned().collect(),
        pins,
    };
    // Before the mesh hears of it: a ticket that cannot be written down is of no use.
    ticket.encode()?;
    Ok(Made { ticket, genesis })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mesh::admission::SignedGrant;
    use crate::mesh::genesis::{Genesis, Params};
    use crate::mesh::ids::{Name, to_hex};

    fn terms(operator: &Signer) -> InviteTerms {
        let genesis = Genesis {
            mesh_name: Name::new("lab").unwrap(),
            operator_key: operator.public(),
            created_unix_us: 1,
            params: Params::default(),
        };
        InviteTerms {
            genesis: STANDARD.encode(genesis.sign(operator).to_bytes()),
            addresses: (1..12).map(|n| format!("192.0.2.{n}:4747")).collect(),
            pins: (1..12).map(|n| to_hex(&[n; 32])).collect(),
            epoch: 7,
            epoch_hash: to_hex(&[9; 32]),
        }
    }

    fn drawn() -> Drawn {
        Drawn {
            ticket: TicketId([3; 16]),
            seed: [4; 32],
        }
    }

    #[test]
    fn the_ticket_opens_what_the_operator_granted() {
        let operator = Signer::from_secret(&[1; 32]);
        let hint = Name::new("n2").ok();
        let made = make(
            &terms(&operator),
            &operator,
            &drawn(),
            hint.clone(),
            (10, 20),
        )
        .unwrap();
        let ticket = Ticket::decode(&made.ticket.encode().unwrap()).unwrap();
        assert_eq!((ticket.addresses.len(), ticket.pins.len()), (8, 8));
        let grant = SignedGrant::from_bytes(&ticket.grant).unwrap();
        grant.verify(&made.genesis.genesis).unwrap();
        assert_eq!(
            grant.grant.ticket_key,
            Signer::from_secret(&ticket.seed).public()
        );
        assert_eq!(grant.grant.name_hint, hint);
        assert_eq!(
            (grant.grant.issued_unix_us, grant.grant.expires_unix_us),
            (10, 20)
        );
        let begins = EpochMark {
            number: 7,
            hash: Hash([9; 32]),
        };
        assert_eq!(grant.grant.epoch, Some(begins));
    }

    #[test]
    fn another_meshs_operator_and_a_mesh_that_cannot_be_reached_are_refused() {
        let operator = Signer::from_secret(&[1; 32]);
        let other = Signer::from_secret(&[2; 32]);
        let refused = |terms: &InviteTerms, key| {
            make(terms, key, &drawn(), None, (1, 2))
                .err()
                .map(|e| e.to_string())
        };
        assert!(
            refused(&terms(&operator), &other)
                .unwrap()
                .contains("not the operator key of mesh lab")
        );
        let mut terms = terms(&operator);
        terms.epoch = 0;
        assert!(
            refused(&terms, &operator)
                .unwrap()
                .contains("which epoch is in force")
        );
        terms.epoch = 7;
        terms.addresses.clear();
        assert!(refused(&terms, &operator).unwrap().contains("advertise"));
        terms.addresses = vec!["192.0.2.1:1".to_owned()];
        terms.pins = vec!["xyz".to_owned()];
        assert!(
            refused(&terms, &operator)
                .unwrap()
                .contains("not understood")
        );
    }
}

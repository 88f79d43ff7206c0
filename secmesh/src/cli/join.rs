//! `join`: into a mesh with a ticket.

use std::io::{self, Read as _};

use serde_json::json;
use tokio::runtime::Builder;

use super::args::JoinArgs;
use super::node::{self, NewState};
use super::output::{Out, Style, clean};
use super::time::{rfc3339, span};
use super::{CliError, Context, standby};
use crate::mesh::admission::{AdmittedRecord, SignedGrant};
use crate::mesh::crypto::Signer;
use crate::mesh::genesis::{Genesis, SignedGenesis};
use crate::mesh::identity::Ticket;
use crate::mesh::join::{JoinReply, JoinRequest};
use crate::mesh::store::MeshStore;
use crate::mesh::transport;

/// Most bytes read from standard input for a ticket.
const MAX_INPUT: u64 = 64 << 10;

/// `secmesh join`
pub fn join(context: &Context, args: JoinArgs, out: &mut Out<'_>) -> Result<(), CliError> {
    let text = if args.ticket == "-" {
        read_ticket()?
    } else {
        args.ticket
    };
    let invitation = Invitation::read(&Ticket::decode(&text)?)?;
    let joined_unix_us = invitation.time_of_joining(out.now_us)?;
    let new = NewState::begin(&context.state_dir()?)?;
    let (identity, address) = node::identity(&new, context, &args.node)?;
    let Invitation {
        genesis,
        grant,
        key,
        ticket,
    } = invitation;
    let mesh = genesis.genesis.mesh_id();
    let own = node::record(&identity, mesh, address, joined_unix_us).admit_by_ticket(
        &node::voter(&identity),
        grant,
        &key,
    );
    let runtime = Builder::new_current_thread().enable_all().build();
    let runtime =
        runtime.map_err(|e| CliError::Failed(format!("cannot start the runtime: {e}")))?;
    let expires_unix_us = own.grant().map_or(0, |grant| grant.grant.expires_unix_us);
    let request = JoinRequest {
        record: own.clone(),
        standby: args.standby,
    }
    .to_bytes();
    let reply = runtime.block_on(async {
        if args.standby {
            return standby::wait(&ticket, expires_unix_us, &request).await;
        }
        let (addresses, pins) = (&ticket.addresses, &ticket.pins);
        Ok(transport::join(addresses, pins, &ticket.seed, &request).await?)
    })?;
    let members = admitted(&reply, &own, &genesis.genesis)?;
    let count = members.len();
    let mesh_name = genesis.genesis.mesh_name.clone();
    MeshStore {
        genesis,
        members,
        grants: Vec::new(),
    }
    .save(&new.dir)?;
    let state = new.dir.path().display().to_string();
    new.finish();

    if out.json {
        return out.json(&json!({
            "mesh": mesh_name,
            "mesh_id": mesh,
            "node": identity.node_id(),
            "name": identity.name(),
            "zone": identity.zone(),
            "address": address,
            "members": count,
            "state": state,
        }));
    }
    let name = out.paint.apply(Style::Bold, identity.name().as_str());
    out.text(&format!(
        "Node {name} ({}) is in mesh {mesh_name} ({mesh}), which now has {count} nodes.\n\
         Keys and records are in {state}.\nNext: `secmesh run`.\n",
        identity.node_id()
    ))
}

fn read_ticket() -> Result<String, CliError> {
    let mut text = String::new();
    let read = io::stdin().lock().take(MAX_INPUT).read_to_string(&mut text);
    read.map_err(|e| CliError::Usage(format!("cannot read a ticket from standard input: {e}")))?;
    Ok(text)
}

/// A ticket whose parts fit together.
struct Invitation {
    genesis: SignedGenesis,
    grant: SignedGrant,
    key: Signer,
    ticket: Ticket,
}

impl Invitation {
    fn read(ticket: &Ticket) -> Result<Self, CliError> {
        let bad = |why: &dyn std::fmt::Display| {
            CliError::Usage(format!("this ticket cannot be used: {why}"))
        };
        let genesis = SignedGenesis::from_bytes(&ticket.genesis).map_err(|e| bad(&e))?;
        genesis.verify().map_err(|e| bad(&e))?;
        let grant = SignedGrant::from_bytes(&ticket.grant).map_err(|e| bad(&e))?;
        grant.verify(&genesis.genesis).map_err(|e| bad(&e))?;
        if grant.grant.epoch.is_none() {
            return Err(bad(
                &"it names no epoch to begin with; make a new one (secmesh invite)",
            ));
        }
        let key = Signer::from_secret(&ticket.seed);
        if key.public() != grant.grant.ticket_key {
            return Err(bad(&"its key is not the one that was granted"));
        }
        Ok(Self {
            genesis,
            grant,
            key,
            ticket: ticket.clone(),
        })
    }

    /// The time the record says: now, if the ticket is valid now.
    fn time_of_joining(&self, now_us: u64) -> Result<u64, CliError> {
        let grant = &self.grant.grant;
        if now_us > grant.expires_unix_us {
            return Err(CliError::Failed(format!(
                "the ticket ended at {}, {} ago; ask for a new one (secmesh invite)",
                rfc3339(grant.expires_unix_us),
                span(now_us - grant.expires_unix_us)
            )));
        }
        // The clocks of two machines differ a little; within what the mesh allows, the earliest
        // valid time is as good as ours.
        let behind = grant.issued_unix_us.saturating_sub(now_us);
        let skew = u64::from(self.genesis.genesis.params.max_skew_s).saturating_mul(1_000_000);
        if behind > skew {
            return Err(CliError::Failed(format!(
                "the ticket was made {} in the future: this machine's clock says {}; set it (timedatectl set-ntp true) and try again",
                span(behind),
                rfc3339(now_us)
            )));
        }
        Ok(now_us.max(grant.issued_unix_us))
    }
}

/// The members that an answer names, each of them checked, this node among them.
fn admitted(
    reply: &[u8],
    own: &AdmittedRecord,
    genesis: &Genesis,
) -> Result<Vec<AdmittedRecord>, CliError> {
    let failed =
        |why: String| CliError::Failed(format!("the member's answer cannot be used: {why}"));
    let mut members = match JoinReply::from_bytes(reply).map_err(|e| failed(e.to_string()))? {
        JoinReply::Accepted { members } => members,
        JoinReply::Refused { reason } => {
            return Err(CliError::Failed(format!(
                "the mesh refused this node: {}",
                clean(&reason)
            )));
        }
        JoinReply::Waiting { .. } => {
            return Err(failed(
                "it lets no spare in now, and was not asked for that".to_owned(),
            ));
        }
    };
    for member in &members {
        member
            .verify(genesis)
            .map_err(|e| failed(format!("node {}: {e}", member.record.name)))?;
    }
    if !members.contains(own) {
        members.push(own.clone());
    }
    if members.len() < 2 {
        return Err(failed("it names no other member".to_owned()));
    }
    Ok(members)
}

#[cfg(test)]
mod tests {
    use super::super::node::tests::{new_node, with_temp};
    use super::*;
    use crate::mesh::admission::Grant;
    use crate::mesh::genesis::Params;
    use crate::mesh::ids::{Name, TicketId};

    const S: u64 = 1_000_000;
    const ISSUED: u64 = 1_700_000_000 * S;

    fn operator() -> Signer {
        Signer::from_secret(&[1; 32])
    }

    fn genesis() -> Genesis {
        Genesis {
            mesh_name: Name::new("lab").unwrap(),
            operator_key: operator().public(),
            created_unix_us: 1,
            params: Params::default(),
        }
    }

    fn ticket() -> Ticket {
        let key = Signer::from_secret(&[5; 32]);
        let grant = Grant {
            mesh: genesis().mesh_id(),
            ticket: TicketId([3; 16]),
            ticket_key: key.public(),
            name_hint: None,
            issued_unix_us: ISSUED,
            expires_unix_us: ISSUED + 3_600 * S,
            epoch: Some(crate::mesh::admission::EpochMark {
                number: 1,
                hash: crate::mesh::ids::Hash([1; 32]),
            }),
        };
        Ticket {
            genesis: genesis().sign(&operator()).to_bytes(),
            grant: grant.sign(&operator()).to_bytes(),
            seed: [5; 32],
            addresses: vec!["127.0.0.1:1".to_owned()],
            pins: vec![[0; 32]],
        }
    }

    #[test]
    fn a_ticket_that_does_not_fit_together_is_refused() {
        assert!(Invitation::read(&ticket()).is_ok());
        let other_key = Ticket {
            seed: [6; 32],
            ..ticket()
        };
        let mut forged = ticket();
        if let Some(last) = forged.grant.last_mut() {
            *last ^= 1;
        }
        let mut other_genesis = ticket();
        other_genesis.genesis = Genesis {
            created_unix_us: 2,
            ..genesis()
        }
        .sign(&operator())
        .to_bytes();
        let mut unsigned = ticket();
        unsigned.genesis = genesis().sign(&Signer::from_secret(&[9; 32])).to_bytes();
        for (ticket, why) in [
            (other_key, "not the one that was granted"),
            (forged, "signature"),
            (other_genesis, "mesh"),
            (unsigned, "signature"),
        ] {
            let Err(error) = Invitation::read(&ticket) else {
                panic!("accepted: {why}")
            };
            assert_eq!(error.exit_code(), 2);
            assert!(error.to_string().contains(why), "{error}");
        }
    }

    #[test]
    fn the_time_of_joining_is_one_at_which_the_ticket_is_valid() {
        let invitation = Invitation::read(&ticket()).unwrap();
        assert_eq!(invitation.time_of_joining(ISSUED + 5).unwrap(), ISSUED + 5);
        assert_eq!(invitation.time_of_joining(ISSUED - 30 * S).unwrap(), ISSUED);
        let early = invitation
            .time_of_joining(ISSUED - 31 * S)
            .unwrap_err()
            .to_string();
        assert!(early.contains("31 s in the future"), "{early}");
        let late = invitation
            .time_of_joining(ISSUED + 3_660 * S)
            .unwrap_err()
            .to_string();
        assert!(late.contains("1 min ago"), "{late}");
    }

    #[test]
    fn an_answer_counts_only_if_every_member_in_it_verifies() {
        with_temp(|path| {
            let first = new_node(&path.join("a"), &genesis(), &operator());
            let own = new_node(&path.join("b"), &genesis(), &operator());
            let accepted = |members| JoinReply::Accepted { members }.to_bytes();
            let members = admitted(&accepted(vec![first.clone()]), &own, &genesis()).unwrap();
            assert_eq!(members, [first.clone(), own.clone()]);
            let both = accepted(vec![first.clone(), own.clone()]);
            assert_eq!(admitted(&both, &own, &genesis()).unwrap().len(), 2);
            let mut forged = first;
            forged.record.zone = "elsewhere".parse().unwrap();
            let refused = JoinReply::Refused {
                reason: "used\u{1b}".to_owned(),
            }
            .to_bytes();
            for (reply, why) in [
                (accepted(vec![forged]), "signature"),
                (accepted(vec![own.clone()]), "no other member"),
                (refused, "refused this node: used\u{fffd}"),
                (vec![7], "cannot be used"),
            ] {
                let error = admitted(&reply, &own, &genesis()).unwrap_err().to_string();
                assert!(error.contains(why), "{error}");
            }
        });
    }
}

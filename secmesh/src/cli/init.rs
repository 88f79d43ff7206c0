//! `init`: the first node of a new mesh.

use serde_json::json;

use super::args::InitArgs;
use super::node::{self, NewState};
use super::output::{Out, Style};
use super::{CliError, Context, note};
use crate::mesh::committee::liars_withstood;
use crate::mesh::crypto::Signer;
use crate::mesh::genesis::{Genesis, Params};
use crate::mesh::identity::{Purpose, create_operator_key};
use crate::mesh::roster::NODE_WEIGHT;
use crate::mesh::store::MeshStore;

/// `secmesh init`
pub fn init(context: &Context, args: InitArgs, out: &mut Out<'_>) -> Result<(), CliError> {
    let params = Params {
        block_ttl_s: u32::try_from(args.block_ttl.as_secs()).unwrap_or(u32::MAX),
        epoch_s: u32::try_from(args.epoch_length.as_secs()).unwrap_or(u32::MAX),
        probation_epochs: args.probation,
        committee: args.committee,
        ..Params::default()
    };
    params.check().map_err(|_| {
        CliError::Usage(
            "--block-ttl is 1s to 24h, --epoch-length 1s to 7d, --probation 0 to 1000, \
             --committee 4 to 512 or 0"
                .to_owned(),
        )
    })?;
    let now = out.now_us;
    let mut new = NewState::begin(&context.state_dir()?)?;
    let operator_file = new.dir.file(Purpose::Operator.file());
    // A key that was put there is used: one operator may run several meshes.
    let operator = if new.dir.has(Purpose::Operator.file()) {
        node::operator_key(&operator_file)?
    } else {
        new.made(Purpose::Operator.file());
        Signer::from_secret(&create_operator_key(&operator_file)?.to_bytes())
    };
    let (identity, address) = node::identity(&new, context, &args.node)?;
    let genesis = Genesis {
        mesh_name: args.mesh,
        operator_key: operator.public(),
        created_unix_us: now,
        params,
    };
    let (mesh, mesh_name) = (genesis.mesh_id(), genesis.mesh_name.clone());
    let first = node::record(&identity, mesh, address, now)
        .admit_by_operator(&node::voter(&identity), &operator);
    first
        .verify(&genesis)
        .map_err(|e| CliError::Failed(format!("the new node does not pass its own check: {e}")))?;
    MeshStore {
        genesis: genesis.sign(&operator),
        members: vec![first],
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
            "state": state,
            "operator_key": operator_file,
        }));
    }
    if address.is_none() {
        note(
            "note: this node advertises no address, so others cannot join through it; set [mesh] advertise or use --advertise",
        );
    }
    if params.committee > 0 {
        let seats = usize::try_from(params.committee).unwrap_or(usize::MAX);
        note(&format!(
            "note: beyond {seats} nodes {seats} seats decide; {} nodes may lie then, where it is less than a third without \
             a committee",
            liars_withstood(vec![NODE_WEIGHT; seats + 1], seats)
        ));
    }
    let name = out.paint.apply(Style::Bold, identity.name().as_str());
    let key = operator_file.display();
    out.text(&format!(
        "Node {name} ({}) is the first of mesh {mesh_name} ({mesh}).\n\
         Keys and records are in {state}.\n\
         The operator key is {key}: keep a copy off this machine.\n\
         Next: `secmesh run`, then `secmesh invite`.\n",
        identity.node_id()
    ))
}

//! `ledger prove`, and what `ledger verify` does with the proof.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use super::super::output::{Out, Style, clean};
use super::super::time::{at, grouped, rfc3339_us};
use super::super::{CliError, Context};
use crate::ledger::bundle::{MAX_PROOF_FILE, Members, ProofError, ProofFile, Proved};
use crate::ledger::checkpoint::SignedCheckpoint;
use crate::mesh::ids::{NodeId, to_hex};
use crate::mesh::store::MeshStore;
use crate::state::{StateDir, read_capped};

/// The mesh that this machine's node is in, if it is in one.
pub(super) fn members(context: &Context) -> Option<MeshStore> {
    let dir = StateDir::open(&context.state_dir().ok()?).ok()?;
    MeshStore::load(&dir).ok()
}

/// Whether the file looks like a proof rather than a ledger.
pub(super) fn is_proof(path: &Path) -> bool {
    path.is_file()
        && read_capped(path, MAX_PROOF_FILE)
            .is_ok_and(|bytes| bytes.trim_ascii_start().starts_with(b"{"))
}

/// `secmesh ledger prove`
pub fn prove(
    context: &Context,
    entry: u64,
    path: Option<PathBuf>,
    out: &mut Out<'_>,
) -> Result<(), CliError> {
    let dir = match path {
        Some(path) => path,
        None => StateDir::open(&context.state_dir()?)?.ledger(),
    };
    let store = members(context);
    let members = store.as_ref().map(|store| Members {
        genesis: &store.genesis,
        records: &store.members,
    });
    let file = made(&dir, entry, members)?;
    let value = serde_json::to_value(&file).map_err(|e| CliError::Failed(e.to_string()))?;
    out.json(&value)
}

/// A proof that holds. With the mesh, unless the ledger is of a node that this mesh does not know: a copy
/// from elsewhere, of which what is known here says nothing.
pub(super) fn made(
    dir: &Path,
    entry: u64,
    members: Option<Members<'_>>,
) -> Result<ProofFile, CliError> {
    let make = |members| {
        let file = ProofFile::make(dir, entry, members)
            .map_err(|error| CliError::Failed(error.to_string()))?;
        let verified = file.verify();
        Ok::<_, CliError>((file, verified))
    };
    let (file, verified) = match make(members)? {
        (_, Err(ProofError::NotAMember)) => make(None)?,
        made => made,
    };
    match verified {
        Ok(_) => Ok(file),
        Err(error) => Err(CliError::Failed(format!(
            "the proof of entry {entry} would not hold: {error}"
        ))),
    }
}

/// `secmesh ledger verify PROOF`
pub(super) fn verify(context: &Context, path: &Path, out: &mut Out<'_>) -> Result<(), CliError> {
    let bytes = read_capped(path, MAX_PROOF_FILE)?;
    match ProofFile::parse(&bytes).and_then(|file| file.verify()) {
        Ok(proved) => {
            let own = members(context).map(|store| store.genesis.genesis.mesh_id());
            let ours = own.is_some() && own == proved.mesh.map(|(mesh, _)| mesh);
            if out.json {
                out.json(&json(path, &proved))
            } else {
                out.text(&text(path, &proved, ours, out))
            }
        }
        Err(error) => {
            if out.json {
                out.json(&json!({"path": path, "ok": false, "error": error.to_string()}))?;
            }
            Err(CliError::Failed(format!(
                "the proof {} does not hold: {error}",
                path.display()
            )))
        }
    }
}

fn json(path: &Path, proved: &Proved) -> Value {
    let record: Value = serde_json::from_slice(&proved.entry.payload).unwrap_or(Value::Null);
    json!({
        "path": path,
        "ok": true,
        "entry": proved.entry.seq,
        "time_unix_us": proved.entry.time_unix_us,
        "record": record,
        "node": to_hex(&proved.author.node),
        "key": to_hex(&proved.author.key),
        "pq_key_sha256": to_hex(&proved.author.pq.hash()),
        "mesh": proved.mesh.map(|(mesh, _)| mesh.to_string()),
        "operator_key": proved.mesh.map(|(_, key)| to_hex(&key)),
        "checkpoint": {
            "size": proved.checkpoint.checkpoint.size,
            "root": to_hex(&proved.checkpoint.checkpoint.root),
            "time_unix_s": proved.checkpoint.time_s,
            "witnesses": proved
                .witnesses
                .iter()
                .map(|(id, name)| json!({"node": id.to_string(), "name": name}))
                .collect::<Vec<_>>(),
        },
    })
}

fn text(path: &Path, proved: &Proved, ours: bool, out: &Out<'_>) -> String {
    let mut text = format!(
        "{}: {}\n",
        clean(&path.display().to_string()),
        out.paint
            .apply(Style::Good, "the entry is in the node's ledger")
    );
    let record: Value = serde_json::from_slice(&proved.entry.payload).unwrap_or(Value::Null);
    let mut line = |name: &str, value: String| {
        // Writing to a string does not fail.
        let _ = writeln!(text, "  {name:<11} {value}");
    };
    line("entry", grouped(proved.entry.seq));
    line("written", rfc3339_us(proved.entry.time_unix_us));
    line("record", clean(&record.to_string()));
    line("node", to_hex(&proved.author.node));
    line("key", to_hex(&proved.author.key));
    match proved.mesh {
        Some((mesh, operator)) => {
            let whose = if ours {
                "this node's"
            } else {
                "compare it with the mesh's"
            };
            line("mesh", format!("{mesh} ({whose})"));
            line("operator", to_hex(&operator));
        }
        None => line(
            "mesh",
            "not in the proof: compare the key with the node's".to_owned(),
        ),
    }
    line(
        "checkpoint",
        covered(Some(&proved.checkpoint), &proved.witnesses),
    );
    line(
        "signed",
        at(
            proved.checkpoint.time_s.saturating_mul(1_000_000),
            out.now_us,
        ),
    );
    text
}

/// What a checkpoint covers, in words.
pub(super) fn covered(signed: Option<&SignedCheckpoint>, witnesses: &[(NodeId, String)]) -> String {
    let Some(signed) = signed else {
        return "none here, so an end that was cut off would not be noticed".to_owned();
    };
    let names: Vec<String> = witnesses.iter().map(|(_, name)| clean(name)).collect();
    let own = signed.bare().signatures().len();
    let others = signed.note.signatures().len().saturating_sub(own);
    let seen = match (names.is_empty(), others) {
        (false, _) => format!("cosigned by {}", names.join(", ")),
        (true, 0) => "no witness has cosigned it".to_owned(),
        (true, n) => format!("{n} more signature lines, which cannot be checked here"),
    };
    format!("{} entries; {seen}", grouped(signed.checkpoint.size))
}

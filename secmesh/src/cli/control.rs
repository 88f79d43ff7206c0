//! Commands that make the agent do something.

use std::path::Path;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

use super::args::{BlockArgs, ModeWord, UnblockArgs};
use super::output::{Out, clean};
use super::{CliError, Context, node};
use crate::addr::Prefix;
use crate::api::trust::VerdictTerms;
use crate::api::types::{Done, ReleaseTerms, Request};
use crate::config::Mode;
use crate::mesh::crypto::Signer;
use crate::mesh::decision::OperatorRelease;
use crate::mesh::evidence::{OperatorVerdict, Ruling};
use crate::mesh::vote::Action;
use crate::sense::netinfo::{self, LiveSystem};

/// Asks for something to be done and prints what was.
pub fn done(context: &Context, request: &Request, out: &mut Out<'_>) -> Result<(), CliError> {
    let done: Done = context.ask(request)?;
    if out.json {
        return out.json(&done);
    }
    out.text(&format!("{}\n", clean(&done.message)))
}

/// `secmesh block`
pub fn block(context: &Context, args: BlockArgs, out: &mut Out<'_>) -> Result<(), CliError> {
    let BlockArgs {
        subject,
        ttl,
        mesh,
        reason,
        override_risky,
    } = args;
    if mesh && !subject.is_single() {
        return Err(CliError::Usage(format!(
            "{subject} is a network, and the mesh decides on single addresses; leave out --mesh, and say it on each node"
        )));
    }
    done(
        context,
        &Request::Block {
            subject,
            ttl_s: ttl.as_secs(),
            mesh,
            reason,
            override_risky,
        },
        out,
    )
}

/// `secmesh mode`, with a word
pub fn mode(
    context: &Context,
    word: ModeWord,
    confirm: Option<Duration>,
    out: &mut Out<'_>,
) -> Result<(), CliError> {
    let mode = match word {
        ModeWord::Monitor => Mode::Monitor,
        ModeWord::Enforce => Mode::Enforce,
        ModeWord::Confirm if confirm.is_some() => {
            return Err(CliError::Usage(
                "--confirm begins a trial (`secmesh mode enforce --confirm 60s`), `secmesh mode confirm` ends it"
                    .to_owned(),
            ));
        }
        ModeWord::Confirm => return done(context, &Request::ConfirmMode {}, out),
    };
    if mode == Mode::Monitor && confirm.is_some() {
        return Err(CliError::Usage(
            "monitor mode drops nothing, so there is nothing to confirm; leave out --confirm"
                .to_owned(),
        ));
    }
    let request = Request::SetMode {
        mode,
        confirm_s: confirm.map(|d| d.as_secs()),
        ssh_peer: netinfo::own_ssh_peer(&LiveSystem),
    };
    done(context, &request, out)
}

/// `secmesh unblock`
pub fn unblock(context: &Context, args: &UnblockArgs, out: &mut Out<'_>) -> Result<(), CliError> {
    let subject = args.subject;
    let signed = match &args.operator_key {
        Some(key) => Some(signed_release(context, subject, key, out.now_us)?),
        None => None,
    };
    let verdict = match &args.operator_key {
        Some(key) if args.false_positive => {
            Some(signed_verdict(context, subject, key, out.now_us)?)
        }
        _ => None,
    };
    let request = Request::Unblock {
        subject,
        signed,
        false_positive: args.false_positive,
        verdict,
    };
    done(context, &request, out)
}

fn signed_verdict(
    context: &Context,
    subject: Prefix,
    key: &Path,
    now_us: u64,
) -> Result<String, CliError> {
    let operator = node::operator_key(key)?;
    let terms: VerdictTerms = context.ask(&Request::VerdictTerms { subject })?;
    sign_verdict(&terms, subject, &operator, now_us)
}

/// Signs the verdict that the agent drafts, if it is what the operator asked for.
fn sign_verdict(
    terms: &VerdictTerms,
    subject: Prefix,
    operator: &Signer,
    now_us: u64,
) -> Result<String, CliError> {
    let refuse = |why: &str| {
        CliError::Failed(format!(
            "the agent asked for a signature that was not given: {why}"
        ))
    };
    let bytes = STANDARD
        .decode(&terms.verdict)
        .map_err(|_| refuse("it is not base64"))?;
    let verdict = OperatorVerdict::from_bytes(&bytes).map_err(|e| refuse(&e.to_string()))?;
    if verdict.subject != subject {
        return Err(refuse(&format!(
            "it is about {}, not {subject}",
            verdict.subject
        )));
    }
    if verdict.ruling != Ruling::FalsePositive {
        return Err(refuse("it says something else than false positive"));
    }
    if verdict.issued_at_us.abs_diff(now_us) > MAX_DIFFERENCE_US {
        return Err(refuse(
            "it is from another time; is the agent's clock right?",
        ));
    }
    Ok(STANDARD.encode(verdict.sign(operator).to_bytes()))
}

fn signed_release(
    context: &Context,
    subject: Prefix,
    key: &Path,
    now_us: u64,
) -> Result<String, CliError> {
    // The key first: who cannot read it need not ask.
    let operator = node::operator_key(key)?;
    let terms: ReleaseTerms = context.ask(&Request::ReleaseTerms { subject })?;
    sign(&terms, Action::release(subject), &operator, now_us)
}

/// Longest difference between the agent's time and ours when it asks for a signature, µs.
const MAX_DIFFERENCE_US: u64 = 300 * 1_000_000;

/// Signs what the agent asks for, if it is what the operator asked for.
pub(super) fn sign(
    terms: &ReleaseTerms,
    action: Action,
    operator: &Signer,
    now_us: u64,
) -> Result<String, CliError> {
    let refuse = |why: &str| {
        CliError::Failed(format!(
            "the agent asked for a signature that was not given: {why}"
        ))
    };
    let bytes = STANDARD
        .decode(&terms.release)
        .map_err(|_| refuse("it is not base64"))?;
    let release = OperatorRelease::from_bytes(&bytes).map_err(|e| refuse(&e.to_string()))?;
    if release.action != action {
        return Err(refuse(&format!(
            "it is to {} {}, not to {} {}",
            release.action.kind,
            release.subject(),
            action.kind,
            action.subject
        )));
    }
    if release.issued_at_us.abs_diff(now_us) > MAX_DIFFERENCE_US {
        return Err(refuse(
            "it is from another time; is the agent's clock right?",
        ));
    }
    let OperatorRelease {
        mesh,
        epoch_hash,
        issued_at_us,
        valid_for_s,
        ..
    } = release;
    if release != OperatorRelease::new(mesh, epoch_hash, action, issued_at_us, valid_for_s) {
        return Err(refuse("it contradicts itself"));
    }
    Ok(STANDARD.encode(release.sign(operator).to_bytes()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mesh::decision::SignedRelease;
    use crate::mesh::genesis::{Genesis, Params};
    use crate::mesh::ids::{Hash, IncidentId, Name};

    const NOW: u64 = 1_700_000_000_000_000;

    fn release(subject: &str) -> (OperatorRelease, Genesis) {
        let genesis = Genesis {
            mesh_name: Name::new("lab").unwrap(),
            operator_key: Signer::from_secret(&[1; 32]).public(),
            created_unix_us: NOW,
            params: Params::default(),
        };
        let subject = subject.parse().unwrap();
        (
            OperatorRelease::new(
                genesis.mesh_id(),
                Hash([2; 32]),
                Action::release(subject),
                NOW,
                600,
            ),
            genesis,
        )
    }

    fn signed(release: &OperatorRelease, now_us: u64) -> Result<String, CliError> {
        let terms = ReleaseTerms {
            release: STANDARD.encode(release.to_bytes()),
        };
        sign(
            &terms,
            Action::release("192.0.2.1".parse().unwrap()),
            &Signer::from_secret(&[1; 32]),
            now_us,
        )
    }

    #[test]
    fn the_release_that_was_asked_for_is_signed_so_that_the_mesh_takes_it() {
        let (release, genesis) = release("192.0.2.1");
        let bytes = STANDARD.decode(signed(&release, NOW).unwrap()).unwrap();
        let signed = SignedRelease::from_bytes(&bytes).unwrap();
        assert_eq!(signed.release, release);
        assert_eq!(signed.verify(&genesis), Ok(()));
    }

    #[test]
    fn an_agent_does_not_get_another_signature_out_of_the_operator() {
        let (other, _) = release("192.0.2.2");
        let (mut forged, _) = release("192.0.2.1");
        forged.incident = IncidentId([9; 32]);
        let (good, _) = release("192.0.2.1");
        for (result, why) in [
            (signed(&other, NOW), "not to release 192.0.2.1"),
            (signed(&forged, NOW), "contradicts itself"),
            (signed(&good, NOW + 301_000_000), "another time"),
        ] {
            let error = result.unwrap_err().to_string();
            assert!(error.contains(why), "{error}");
        }
        let nonsense = ReleaseTerms {
            release: "AAAA".to_owned(),
        };
        assert!(
            sign(
                &nonsense,
                Action::release("192.0.2.1".parse().unwrap()),
                &Signer::from_secret(&[1; 32]),
                NOW
            )
            .is_err()
        );
    }
}

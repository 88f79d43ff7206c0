//! Commands that make the agent do something.

use std::time::Duration;

use super::args::{BlockArgs, ModeWord, UnblockArgs};
use super::asked::{self, Asked};
use super::output::{Out, clean};
use super::{CliError, Context, node, note};
use crate::api::trust::VerdictTerms;
use crate::api::types::{Done, ReleaseTerms, Request};
use crate::config::Mode;
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
    let (mut signed, mut verdict) = (None, None);
    if let Some(key) = &args.operator_key {
        // The key first: who cannot read it need not ask.
        let operator = node::operator_key(key)?;
        let asked = Asked {
            mesh: asked::mesh(context)?,
            subject: subject.into(),
            operator: &operator,
            now_us: out.now_us,
        };
        let terms: ReleaseTerms = context.ask(&Request::ReleaseTerms { subject })?;
        signed = Some(asked.order(&terms, Action::release(subject))?);
        if args.false_positive {
            let terms: VerdictTerms = context.ask(&Request::VerdictTerms { subject })?;
            let (text, incidents) = asked.false_positive(&terms)?;
            note(&format!(
                "signed as a false positive of {subject}: incident {}",
                incidents.join(", ")
            ));
            verdict = Some(text);
        }
    }
    let request = Request::Unblock {
        subject,
        signed,
        false_positive: args.false_positive,
        verdict,
    };
    done(context, &request, out)
}

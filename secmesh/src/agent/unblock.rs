//! `secmesh unblock`: what the operator signed is checked first, then what is said of the block is stated, and
//! then it ends.

use base64::{Engine as _, prelude::BASE64_STANDARD};
use tracing::info;

use super::{
    core::Agent,
    requests::{Answer, done},
};
use crate::{
    addr::Prefix,
    api::types::DecisionScope,
    mesh::{
        decision::SignedRelease,
        engine::Input,
        evidence::{OutcomeKind, SignedVerdict},
        genesis::Genesis,
        ids::DecisionId,
        vote::{ActionKind, is_network},
    },
};

fn decoded(what: &str, text: &str) -> Result<Vec<u8>, String> {
    BASE64_STANDARD
        .decode(text)
        .map_err(|e| format!("the signed {what} is not base64: {e}"))
}

/// The release in a request, if the operator signed it and it is about `subject`.
fn release(genesis: &Genesis, subject: Prefix, text: &str) -> Result<SignedRelease, String> {
    let signed = SignedRelease::from_bytes(&decoded("release", text)?)
        .map_err(|e| format!("the signed release is not understood: {e}"))?;
    signed
        .verify(genesis)
        .map_err(|e| format!("the signed release is refused: {e}"))?;
    if signed.release.subject() != subject {
        return Err(format!(
            "the signed release is about {}, not {subject}",
            signed.release.subject()
        ));
    }
    Ok(signed)
}

/// The verdict in a request, if the operator signed it and it is about `subject`.
fn verdict(genesis: &Genesis, subject: Prefix, text: &str) -> Result<SignedVerdict, String> {
    let signed = SignedVerdict::from_bytes(&decoded("verdict", text)?)
        .map_err(|e| format!("the signed verdict is not understood: {e}"))?;
    signed
        .verify(&genesis.operator_key)
        .map_err(|e| format!("the signed verdict is refused: {e}"))?;
    if signed.verdict.subject != subject {
        return Err(format!(
            "the signed verdict is about {}, not {subject}",
            signed.verdict.subject
        ));
    }
    if signed.verdict.mesh != genesis.mesh_id() {
        return Err("the signed verdict is for another mesh".to_owned());
    }
    Ok(signed)
}

/// What the operator signed, all of it checked: what is stated cannot be taken back.
#[derive(Debug, Default)]
struct Signed {
    release: Option<SignedRelease>,
    verdict: Option<SignedVerdict>,
}

impl Signed {
    fn read(
        genesis: &Genesis,
        subject: Prefix,
        release_text: Option<&str>,
        verdict_text: Option<&str>,
    ) -> Result<Self, String> {
        Ok(Self {
            release: release_text
                .map(|text| release(genesis, subject, text))
                .transpose()?,
            verdict: verdict_text
                .map(|text| verdict(genesis, subject, text))
                .transpose()?,
        })
    }
}

impl Agent {
    pub(super) async fn unblock(
        &mut self,
        subject: Prefix,
        signed_release: Option<String>,
        false_positive: bool,
        signed_verdict: Option<String>,
    ) -> Answer {
        let signed = Signed::read(
            self.engine.genesis(),
            subject,
            signed_release.as_deref(),
            signed_verdict.as_deref(),
        )?;
        let judged = self.judge(subject, false_positive, signed.verdict).await;
        let by_key = signed.release.is_some();
        let in_mesh = self
            .book
            .active_on(&subject)
            .any(|e| e.scope == DecisionScope::Mesh);
        let here = self.release_here(&subject, "operator of this node", true);
        if subject.is_single() || is_network(&subject) {
            let signed = signed.release.map(Box::new);
            self.drive(Input::OperatorRelease { subject, signed }).await;
        }
        if here == 0 && !in_mesh && !by_key {
            return Err(format!(
                "{subject} is not blocked on this node; peers were asked to release it all the same{judged}"
            ));
        }
        let rest = match (by_key, in_mesh) {
            (true, _) => "; released on every node by the operator's signature",
            (false, true) => "; the other nodes vote on releasing it too",
            (false, false) => "",
        };
        done(
            format!(
                "{subject} is free on this node ({here} block{} ended){rest}{judged}",
                if here == 1 { "" } else { "s" }
            ),
            None,
        )
    }

    /// States what the operator says of blocks of the mesh, before they are ended. Gives what is to be added
    /// to the answer.
    async fn judge(
        &mut self,
        subject: Prefix,
        false_positive: bool,
        verdict: Option<SignedVerdict>,
    ) -> &'static str {
        if let Some(signed) = verdict {
            info!(%subject, ruling = %signed.verdict.ruling, "the operator's verdict");
            self.drive(Input::Verdict(Box::new(signed))).await;
            return "";
        }
        if !false_positive {
            return "";
        }
        let blocks: Vec<DecisionId> = self
            .engine
            .decisions_about(&subject)
            .filter(|decision| decision.action.kind == ActionKind::Block)
            .map(|decision| decision.id)
            .collect();
        if blocks.is_empty() {
            return "; --false-positive changes nobody's trust: no block of the mesh on exactly this subject is known here";
        }
        let packets = self.table.get(&subject).map_or(0, |entry| entry.hits);
        for decision in blocks {
            self.drive(Input::Outcome {
                decision,
                kind: OutcomeKind::Miss,
                packets,
            })
            .await;
        }
        ""
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mesh::crypto::Signer;
    use crate::mesh::decision::OperatorRelease;
    use crate::mesh::evidence::{OperatorVerdict, Ruling};
    use crate::mesh::ids::{Hash, IncidentId, MeshId};
    use crate::mesh::testing::{T0, genesis, operator, subject};
    use crate::mesh::vote::Action;

    fn released(of: Prefix, by: &Signer) -> String {
        let release = OperatorRelease::new(
            genesis().mesh_id(),
            Hash([2; 32]),
            Action::release(of),
            T0,
            600,
        );
        BASE64_STANDARD.encode(release.sign(by).to_bytes())
    }

    fn judged(mesh: MeshId, of: Prefix, by: &Signer) -> String {
        let verdict = OperatorVerdict {
            mesh,
            subject: of,
            ruling: Ruling::FalsePositive,
            incidents: vec![IncidentId([3; 32])],
            issued_at_us: T0,
        };
        BASE64_STANDARD.encode(verdict.sign(by).to_bytes())
    }

    #[test]
    fn all_that_was_signed_is_checked_before_anything_is_stated() {
        let (mesh, key, stranger) = (
            genesis().mesh_id(),
            operator(),
            Signer::from_secret(&[5; 32]),
        );
        let other: Prefix = "192.0.2.9".parse().unwrap();
        let read = |release: &str, verdict: &str| {
            Signed::read(&genesis(), subject(), Some(release), Some(verdict)).map(|_| ())
        };
        let good = (released(subject(), &key), judged(mesh, subject(), &key));
        assert_eq!(read(&good.0, &good.1), Ok(()));
        for bad in [
            released(other, &key),
            released(subject(), &stranger),
            "?".to_owned(),
            "AAAA".to_owned(),
        ] {
            let error = read(&bad, &good.1).unwrap_err();
            assert!(error.contains("signed release"), "{error}");
        }
        for bad in [
            judged(mesh, other, &key),
            judged(MeshId([1; 32]), subject(), &key),
            judged(mesh, subject(), &stranger),
            "?".to_owned(),
        ] {
            let error = read(&good.0, &bad).unwrap_err();
            assert!(error.contains("signed verdict"), "{error}");
        }
    }
}

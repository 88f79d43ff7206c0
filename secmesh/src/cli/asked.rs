//! What the agent asks the operator's key to sign: an agent that is not honest must not get anything signed
//! that the operator did not ask for.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

use super::{CliError, Context};
use crate::api::trust::VerdictTerms;
use crate::api::types::ReleaseTerms;
use crate::mesh::crypto::Signer;
use crate::mesh::decision::OperatorRelease;
use crate::mesh::evidence::{OperatorVerdict, Ruling};
use crate::mesh::ids::MeshId;
use crate::mesh::store::MeshStore;
use crate::mesh::subject::Subject;
use crate::mesh::vote::Action;
use crate::mesh::wire::WireError;
use crate::state::StateDir;

/// Longest difference between the agent's time and ours when it asks for a signature, µs.
const MAX_DIFFERENCE_US: u64 = 300 * 1_000_000;

/// What the operator asked for, and the key to sign it with.
pub(super) struct Asked<'a> {
    /// The mesh, as the state directory knows it; the agent's word does not count.
    pub mesh: MeshId,
    /// Whom it is about.
    pub subject: Subject,
    /// The key.
    pub operator: &'a Signer,
    /// Now, µs since 1970.
    pub now_us: u64,
}

/// The mesh of the node whose state directory this is.
pub(super) fn mesh(context: &Context) -> Result<MeshId, CliError> {
    let store = MeshStore::load(&StateDir::open(&context.state_dir()?)?)?;
    Ok(store.genesis.genesis.mesh_id())
}

/// What everything that is signed says of itself.
struct Claims {
    mesh: MeshId,
    subject: Subject,
    issued_at_us: u64,
}

fn refuse(why: &str) -> CliError {
    CliError::Failed(format!(
        "the agent asked for a signature that was not given: {why}"
    ))
}

impl Asked<'_> {
    /// Reads what is to be signed and checks that it is of this mesh, about this subject and of this time.
    fn read<T>(
        &self,
        text: &str,
        decode: impl Fn(&[u8]) -> Result<T, WireError>,
        claims: impl Fn(&T) -> Claims,
    ) -> Result<T, CliError> {
        let bytes = STANDARD
            .decode(text)
            .map_err(|_| refuse("it is not base64"))?;
        let read = decode(&bytes).map_err(|e| refuse(&e.to_string()))?;
        let Claims {
            mesh,
            subject,
            issued_at_us,
        } = claims(&read);
        if mesh != self.mesh {
            return Err(refuse(&format!("it is for mesh {mesh}, not {}", self.mesh)));
        }
        if subject != self.subject {
            return Err(refuse(&format!(
                "it is about {subject}, not about {}",
                self.subject
            )));
        }
        if issued_at_us.abs_diff(self.now_us) > MAX_DIFFERENCE_US {
            return Err(refuse(
                "it is from another time; is the agent's clock right?",
            ));
        }
        Ok(read)
    }

    /// Signs a release, or an order about a node.
    pub fn order(&self, terms: &ReleaseTerms, action: Action) -> Result<String, CliError> {
        let claims = |r: &OperatorRelease| Claims {
            mesh: r.mesh,
            subject: r.action.subject,
            issued_at_us: r.issued_at_us,
        };
        let release = self.read(&terms.release, OperatorRelease::from_bytes, claims)?;
        if release.action.kind != action.kind {
            return Err(refuse(&format!(
                "it is to {}, not to {}",
                release.action.kind, action.kind
            )));
        }
        let again = OperatorRelease::new(
            self.mesh,
            release.epoch_hash,
            action,
            release.issued_at_us,
            release.valid_for_s,
        );
        if release != again {
            return Err(refuse("it contradicts itself"));
        }
        Ok(STANDARD.encode(release.sign(self.operator).to_bytes()))
    }

    /// Signs the verdict that blocks of the subject were wrong. Gives the incidents that it names too, for
    /// the operator to see.
    pub fn false_positive(&self, terms: &VerdictTerms) -> Result<(String, Vec<String>), CliError> {
        let claims = |v: &OperatorVerdict| Claims {
            mesh: v.mesh,
            subject: v.subject.into(),
            issued_at_us: v.issued_at_us,
        };
        let verdict = self.read(&terms.verdict, OperatorVerdict::from_bytes, claims)?;
        if verdict.ruling != Ruling::FalsePositive {
            return Err(refuse("it says something else than false positive"));
        }
        let incidents = verdict.incidents.iter().map(ToString::to_string).collect();
        let signed = verdict.sign(self.operator).to_bytes();
        Ok((STANDARD.encode(signed), incidents))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::addr::Prefix;
    use crate::mesh::decision::SignedRelease;
    use crate::mesh::evidence::SignedVerdict;
    use crate::mesh::genesis::{Genesis, Params};
    use crate::mesh::ids::{Hash, IncidentId, Name};

    const NOW: u64 = 1_700_000_000_000_000;

    fn operator() -> Signer {
        Signer::from_secret(&[1; 32])
    }

    fn genesis(name: &str) -> Genesis {
        Genesis {
            mesh_name: Name::new(name).unwrap(),
            operator_key: operator().public(),
            created_unix_us: NOW,
            params: Params::default(),
        }
    }

    fn release(mesh: &str, subject: &str) -> OperatorRelease {
        let mesh = genesis(mesh).mesh_id();
        let action = Action::release(subject.parse().unwrap());
        OperatorRelease::new(mesh, Hash([2; 32]), action, NOW, 600)
    }

    fn verdict(mesh: &str, subject: &str) -> OperatorVerdict {
        OperatorVerdict {
            mesh: genesis(mesh).mesh_id(),
            subject: subject.parse().unwrap(),
            ruling: Ruling::FalsePositive,
            incidents: vec![IncidentId([3; 32]), IncidentId([4; 32])],
            issued_at_us: NOW,
        }
    }

    fn asked_for() -> Prefix {
        "192.0.2.1".parse().unwrap()
    }

    fn asked<T>(now_us: u64, what: impl Fn(&Asked<'_>) -> T) -> T {
        what(&Asked {
            mesh: genesis("lab").mesh_id(),
            subject: asked_for().into(),
            operator: &operator(),
            now_us,
        })
    }

    fn sign(release: &OperatorRelease, now_us: u64) -> Result<String, CliError> {
        let release = STANDARD.encode(release.to_bytes());
        asked(now_us, |asked| {
            let terms = ReleaseTerms {
                release: release.clone(),
            };
            asked.order(&terms, Action::release(asked_for()))
        })
    }

    fn judge(verdict: &OperatorVerdict, now_us: u64) -> Result<(String, Vec<String>), CliError> {
        let verdict = STANDARD.encode(verdict.to_bytes());
        asked(now_us, |asked| {
            asked.false_positive(&VerdictTerms {
                verdict: verdict.clone(),
            })
        })
    }

    #[test]
    fn what_was_asked_for_is_signed_so_that_the_mesh_takes_it() {
        let asked_for = release("lab", "192.0.2.1");
        let bytes = STANDARD.decode(sign(&asked_for, NOW).unwrap()).unwrap();
        let signed = SignedRelease::from_bytes(&bytes).unwrap();
        assert_eq!(signed.release, asked_for);
        assert_eq!(signed.verify(&genesis("lab")), Ok(()));

        let asked_for = verdict("lab", "192.0.2.1");
        let (text, incidents) = judge(&asked_for, NOW).unwrap();
        let signed = SignedVerdict::from_bytes(&STANDARD.decode(text).unwrap()).unwrap();
        assert_eq!(signed.verdict, asked_for);
        assert_eq!(signed.verify(&operator().public()), Ok(()));
        let named: Vec<String> = asked_for
            .incidents
            .iter()
            .map(ToString::to_string)
            .collect();
        assert_eq!(incidents, named);
    }

    #[test]
    fn an_agent_does_not_get_another_signature_out_of_the_operator() {
        let mut forged = release("lab", "192.0.2.1");
        forged.incident = IncidentId([9; 32]);
        let mut right = verdict("lab", "192.0.2.1");
        right.ruling = Ruling::TruePositive;
        let verdict_of = |mesh, subject| judge(&verdict(mesh, subject), NOW).map(|_| String::new());
        let later = NOW + 301_000_000;
        for (result, why) in [
            (
                sign(&release("lab", "192.0.2.2"), NOW),
                "not about 192.0.2.1",
            ),
            (sign(&release("other", "192.0.2.1"), NOW), "it is for mesh"),
            (sign(&forged, NOW), "contradicts itself"),
            (sign(&release("lab", "192.0.2.1"), later), "another time"),
            (verdict_of("lab", "192.0.2.2"), "not about 192.0.2.1"),
            (verdict_of("other", "192.0.2.1"), "it is for mesh"),
            (judge(&right, NOW).map(|_| String::new()), "something else"),
            (
                judge(&verdict("lab", "192.0.2.1"), later).map(|_| String::new()),
                "another time",
            ),
        ] {
            let error = result.unwrap_err().to_string();
            assert!(error.contains(why), "{error}");
        }
        for nonsense in ["AAAA", "?"] {
            let release = nonsense.to_owned();
            let terms = ReleaseTerms { release };
            assert!(
                asked(NOW, |asked| asked
                    .order(&terms, Action::release(asked_for())))
                .is_err()
            );
            let verdict = nonsense.to_owned();
            let terms = VerdictTerms { verdict };
            assert!(asked(NOW, |asked| asked.false_positive(&terms)).is_err());
        }
    }
}

//! What the simulation (`sim/`) needs inside the decision core, and nobody else may have.
//!
//! - *Planted bugs*: the suite has to show that it would notice. Each [`Bug`] removes one rule, on the thread
//!   that asked for it. Without the feature `simulation` the question is a constant `false`, and the
//!   branch is not compiled.
//! - *Remembered signature checks*: a thousand engines in one process check each vote a thousand times, and the
//!   answer is a function of the bytes.
//!
//! A build with the feature carries [`MARKER`], which a test looks for in the agent's binary; one without debug
//! assertions does not compile.

use super::crypto::{CryptoError, PublicKey, SignatureBytes};
use super::roster::Roster;
use super::vote::Action;

#[cfg(all(feature = "simulation", not(debug_assertions)))]
compile_error!("the feature `simulation` plants bugs on request: it is not for release builds");

/// In every binary that can plant bugs, and in no other.
#[cfg(feature = "simulation")]
pub const MARKER: &str = "secmesh: bugs can be planted in this binary, do not ship it";

macro_rules! bugs {
    ($($(#[$doc:meta])* $variant:ident = $name:literal,)+) => {
        /// A rule that can be taken out of the decision core. The name is what `cargo xtask sim --planted`
        /// takes.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
        pub enum Bug {
            $($(#[$doc])* $variant,)+
        }

        #[cfg(feature = "simulation")]
        impl Bug {
            /// Every one.
            pub const ALL: &[Self] = &[$(Self::$variant,)+];

            /// Its name on the command line.
            pub const fn name(self) -> &'static str {
                match self {
                    $(Self::$variant => $name,)+
                }
            }
        }
    };
}

bugs!(
    /// One node that saw it itself suffices.
    OneWitness = "one-witness",
    /// Witnesses of one zone suffice.
    ZonesIgnored = "zones-ignored",
    /// The subject's weight is taken out of W.
    SubjectLeavesTotal = "subject-leaves-total",
    /// The subject's own vote counts.
    SubjectVotes = "subject-votes",
    /// W is the weight of who is reachable.
    ReachableOnly = "reachable-only",
    /// `T_lo` is enough for class 2.
    TLoForClass2 = "t-lo-for-class-2",
    /// A rejection counts as agreement.
    RejectAgrees = "reject-agrees",
    /// A proved liar keeps its weight.
    LiarKeepsWeight = "liar-keeps-weight",
    /// A contradiction is not taken as a proof.
    EquivocationIgnored = "equivocation-ignored",
    /// Votes count after their time.
    ExpiredVotes = "expired-votes",
    /// Votes of the future count.
    FutureVotes = "future-votes",
    /// A sequence number may come twice.
    ReplayWindowOff = "replay-window-off",
    /// Votes of another epoch count.
    EpochUnbound = "epoch-unbound",
    /// Signatures are not looked at.
    SignatureUnchecked = "signature-unchecked",
    /// A vote leaves before it is on the disk.
    SendBeforePersist = "send-before-persist",
    /// After a restart, what was signed before is not known.
    VotesForgotten = "votes-forgotten",
    /// After a restart, sequence numbers begin anew.
    SequenceRestarts = "sequence-restarts",
    /// After its clock has jumped and come back, a node votes where it has forgotten its vote.
    ForgottenSlots = "forgotten-slots",
    /// A node votes again where it has voted.
    VotesTwice = "votes-twice",
    /// The allowlist is not asked when a decision takes effect.
    VetoIgnored = "veto-ignored",
    /// Decisions are not forgotten when they end.
    BlockNeverEnds = "block-never-ends",
    /// A release does not keep earlier blocks from coming back.
    ReleaseForgotten = "release-forgotten",
    /// A vote on an epoch leaves before it is on the disk.
    EpochSendBeforePersist = "epoch-send-before-persist",
    /// After a restart, what was signed about an epoch is not known.
    LockForgotten = "lock-forgotten",
    /// A precommit needs more than a third of prevotes, not more than two.
    PrecommitTLo = "precommit-t-lo",
    /// A lock gives way to any proposal.
    LockIgnored = "lock-ignored",
    /// A certified epoch needs more than a third of the weight, not more than two.
    EpochTLo = "epoch-t-lo",
    /// Weights of epochs move as far as they like, and nobody is on probation.
    WeightsJump = "weights-jump",
    /// Epochs leave out whom nobody has removed: whoever is not connected.
    RosterByReach = "roster-by-reach",
    /// The fold of the evidence is made when it first was, and not again when there is more: it depends on the order
    /// in which statements arrive.
    StaleFold = "stale-fold",
    /// A node's own opinion of its peers is in the fold.
    OwnOpinion = "own-opinion",
    /// Proofs in statements are not looked at.
    ProofsUnchecked = "proofs-unchecked",
    /// One node's word is enough for a strike.
    OneReporter = "one-reporter",
    /// A statement leaves before it is on the disk.
    StatementBeforePersist = "statement-before-persist",
    /// A node states things before it knows how long its own log is: after a restart the log begins anew.
    LogForgotten = "log-forgotten",
    /// Contradicting statements are not taken as a proof.
    LogForkIgnored = "log-fork-ignored",
    /// A witness does not look at what it cosigned before.
    WitnessForgets = "witness-forgets",
    /// Who crashes between proposing an epoch and voting on it waits for ever.
    ProposerStuck = "proposer-stuck",
    /// After a restart, decisions are counted anew without the liars that were exposed since.
    RestoredAnew = "restored-anew",
    /// A log with two histories is wanted again and again, and nothing else is asked for until it comes: a node that
    /// shows others another log keeps them from asking for everybody else's.
    ForkStalls = "fork-stalls",
    /// What follows a statement that does not fit is taken for the end of a gap: a log with two histories is asked for as
    /// fast as answers come.
    ForkAskedAgain = "fork-asked-again",
    /// Who was shown another log than the mesh has certified, and a shorter one, keeps it.
    ForkKept = "fork-kept",
    /// Who comes in with an epoch is not asked anew for what it was refused before.
    NewcomerWaits = "newcomer-waits",
    /// A clock that was set back keeps a node from repeating what it said about an epoch.
    ResendStuck = "resend-stuck",
    /// Witnesses against a node may weigh as little as they like.
    AccusersLight = "accusers-light",
    /// `T_lo` is enough to cut a node off.
    QuarantineTLo = "quarantine-t-lo",
    /// Nodes are cut off also where too few would be left to decide.
    BreakerOff = "breaker-off",
    /// As many nodes are cut off within an hour as there are reasons for.
    BudgetOff = "budget-off",
    /// What a node has said yes to counts on its limits only once it is decided.
    UnderWayFree = "under-way-free",
    /// What a node that is cut off sends is taken.
    CutOffHeard = "cut-off-heard",
    /// After a restart, nobody is cut off.
    QuarantineForgotten = "quarantine-forgotten",
    /// A proof has no node cut off.
    ProofWithoutConsequence = "proof-without-consequence",
    /// A readmission does not end what cut the node off.
    ReadmitIgnored = "readmit-ignored",
    /// A wrong answer to a test question counts as a right one.
    WrongIsRight = "wrong-is-right",
    /// Who has no seat on the committee counts as if it had one.
    UnseatedCounts = "unseated-counts",
    /// Seats are drawn by something else than the hash of the epoch, and so could be known before.
    SeatsForeseen = "seats-foreseen",
    /// Seats are drawn by heads and not by weight.
    SeatsByHead = "seats-by-head",
    /// Decisions of earlier epochs are counted by today's seats.
    SeatsOfToday = "seats-of-today",
    /// Who has no seat is no witness.
    UnseatedUnheard = "unseated-unheard",
    /// Desks do not pass on what witnesses hand in.
    DesksKeep = "desks-keep",
    /// Who gets no answer from the first desks does not go on to the next ones.
    DesksOnce = "desks-once",
);

#[cfg(feature = "simulation")]
mod state {
    use std::cell::{Cell, RefCell};
    use std::collections::HashMap;

    use super::Bug;
    use crate::mesh::crypto::CryptoError;

    /// Signature checks that are remembered per thread; when there are more, all are forgotten.
    pub const MAX_REMEMBERED: usize = 1 << 20;

    /// Answers by the hash of key, signature and message.
    type Checks = HashMap<[u8; 32], Result<(), CryptoError>>;

    thread_local! {
        pub static PLANTED: Cell<Option<Bug>> = const { Cell::new(None) };
        pub static REACHABLE: Cell<u64> = const { Cell::new(0) };
        pub static CHECKS: RefCell<Option<Checks>> = const { RefCell::new(None) };
    }
}

/// Plants a bug in all engines of this thread, or removes it.
#[cfg(feature = "simulation")]
pub fn plant(bug: Option<Bug>) {
    state::PLANTED.set(bug);
}

/// From now on, this thread checks each signature once and remembers the answer.
#[cfg(feature = "simulation")]
pub fn remember_signature_checks() {
    state::CHECKS.with_borrow_mut(|checks| {
        checks.get_or_insert_default();
    });
}

/// Whether this rule is taken out.
#[cfg(feature = "simulation")]
pub(super) fn planted(bug: Bug) -> bool {
    state::PLANTED.get() == Some(bug)
}

/// Whether this rule is taken out: never.
#[cfg(not(feature = "simulation"))]
pub(super) const fn planted(_: Bug) -> bool {
    false
}

/// The weight that the reachable nodes have, for the bug that counts only those.
#[cfg(feature = "simulation")]
pub(super) fn note_reachable(weight: u64) {
    state::REACHABLE.set(weight);
}

#[cfg(not(feature = "simulation"))]
pub(super) const fn note_reachable(_: u64) {}

/// The threshold of this class out of a wrong total, if a bug asks for one.
#[cfg(feature = "simulation")]
pub(super) fn planted_total(roster: &Roster, action: &Action, class: u64) -> Option<u64> {
    let total = match state::PLANTED.get()? {
        _ if roster.len() < 4 => return None,
        Bug::ReachableOnly => state::REACHABLE.get(),
        Bug::SubjectLeavesTotal => roster
            .members()
            .filter(|(node, _)| !roster.is_subject(node, &action.subject))
            .map(|(_, member)| u64::from(member.weight))
            .sum(),
        _ => return None,
    };
    Some(total * class / 3 + 1)
}

/// The threshold out of a wrong total: never.
#[cfg(not(feature = "simulation"))]
pub(super) const fn planted_total(_: &Roster, _: &Action, _: u64) -> Option<u64> {
    None
}

/// What `check` says of this signature, or what it said before, where that is remembered.
#[cfg(feature = "simulation")]
pub(super) fn remembered(
    key: &PublicKey,
    message: &[u8],
    signature: &SignatureBytes,
    check: impl FnOnce() -> Result<(), CryptoError>,
) -> Result<(), CryptoError> {
    use sha2::{Digest as _, Sha256};
    state::CHECKS.with_borrow_mut(|checks| {
        let Some(checks) = checks else {
            return check();
        };
        let mut digest = Sha256::new();
        digest.update(key);
        digest.update(signature);
        digest.update(message);
        if checks.len() >= state::MAX_REMEMBERED {
            checks.clear();
        }
        *checks.entry(digest.finalize().into()).or_insert_with(check)
    })
}

/// What `check` says.
#[cfg(not(feature = "simulation"))]
pub(super) fn remembered(
    _: &PublicKey,
    _: &[u8],
    _: &SignatureBytes,
    check: impl FnOnce() -> Result<(), CryptoError>,
) -> Result<(), CryptoError> {
    check()
}

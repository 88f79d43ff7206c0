//! Many seeds, and the planted bugs that they have to find.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};

use secmesh::mesh::simulation::{self, Bug};

use crate::plan::Wish;
use crate::run::{Outcome, run};
use crate::scenario::{SCENARIOS, Scenario};

/// How many seeds are tried for a planted bug before the suite is said to have missed it.
pub const PLANTED_SEEDS: u64 = 3_000;

/// Runs seeds `first` to `first + count - 1` on all processors and gives each outcome to `each`, in no
/// particular order; stops early when that says so.
pub fn seeds(
    first: u64,
    count: u64,
    wish: Wish,
    bug: Option<Bug>,
    each: &(dyn Fn(Outcome) -> bool + Sync),
) {
    let next = AtomicU64::new(0);
    let stop = AtomicBool::new(false);
    let work = || {
        simulation::plant(bug);
        while !stop.load(Ordering::Relaxed) {
            let at = next.fetch_add(1, Ordering::Relaxed);
            if at >= count {
                break;
            }
            if !each(run(first + at, wish, false)) {
                stop.store(true, Ordering::Relaxed);
            }
        }
        simulation::plant(None);
    };
    let processors = std::thread::available_parallelism().map_or(1, usize::from);
    std::thread::scope(|scope| {
        for _ in 0..processors {
            scope.spawn(work);
        }
    });
}

/// Who caught a planted bug.
#[derive(Debug, Clone, serde::Serialize)]
pub struct Caught {
    /// The bug.
    pub bug: &'static str,
    /// The directed run in which a check failed.
    pub scenario: Option<&'static str>,
    /// The lowest seed at which a check failed.
    pub seed: Option<u64>,
    /// Whether that is a seed of a mesh with a committee.
    pub committee: bool,
    /// The check.
    pub check: Option<&'static str>,
    /// What it said.
    pub detail: Option<String>,
}

/// The checks that have to notice a bug; that a run with it fails in some other way is not enough.
pub const fn noticed_by(bug: Bug) -> &'static [&'static str] {
    match bug {
        Bug::OneWitness | Bug::ZonesIgnored => &["witnesses"],
        Bug::SubjectLeavesTotal
        | Bug::SubjectVotes
        | Bug::ReachableOnly
        | Bug::TLoForClass2
        | Bug::RejectAgrees
        | Bug::LiarKeepsWeight => &["warrant"],
        Bug::EquivocationIgnored => &["equivocation-kept"],
        Bug::ExpiredVotes | Bug::FutureVotes => &["vote-times"],
        Bug::ReplayWindowOff => &["vote-numbers"],
        Bug::EpochUnbound => &["vote-epoch"],
        Bug::SignatureUnchecked => &["attribution", "warrant", "epoch-certificate", "framed"],
        Bug::SendBeforePersist | Bug::EpochSendBeforePersist | Bug::StatementBeforePersist => {
            &["persist-before-send"]
        }
        Bug::VotesForgotten | Bug::ForgottenSlots | Bug::VotesTwice => &["own-word"],
        Bug::SequenceRestarts => &["own-numbers"],
        Bug::VetoIgnored => &["allowlist"],
        Bug::BlockNeverEnds => &["block-ends"],
        Bug::ReleaseForgotten => &["release-stays"],
        Bug::LockForgotten => &["own-word", "persist-before-send"],
        Bug::PrecommitTLo => &["epoch-quorum"],
        Bug::LockIgnored => &["lock", "one-epoch"],
        Bug::EpochTLo => &["epoch-certificate", "epoch-quorum"],
        Bug::WeightsJump => &["epoch-weights"],
        Bug::RosterByReach => &["strangers"],
        Bug::StaleFold | Bug::OwnOpinion => &["equal-weights"],
        Bug::ProofsUnchecked | Bug::OneReporter => &["strikes"],
        Bug::LogForgotten => &["only-grows"],
        Bug::LogForkIgnored => &["log-forks"],
        Bug::WitnessForgets => &["one-ledger"],
        Bug::ProposerStuck | Bug::ResendStuck => &["epoch-liveness", "convergence"],
        Bug::RestoredAnew => &["restore", "convergence"],
        Bug::NewcomerWaits | Bug::ForkStalls | Bug::ForkKept => &["convergence"],
        Bug::ForkAskedAgain => &["asked-again"],
        Bug::AccusersLight => &["witnesses", "framed-node"],
        Bug::QuarantineTLo => &["warrant"],
        Bug::BreakerOff => &["breaker"],
        Bug::BudgetOff => &["budget"],
        Bug::UnderWayFree => &["budget", "breaker"],
        Bug::CutOffHeard => &["cut-off"],
        Bug::QuarantineForgotten => &["restore"],
        Bug::ProofWithoutConsequence => &["cut-off-liveness"],
        Bug::ReadmitIgnored => &["readmit"],
        Bug::WrongIsRight => &["answers"],
        Bug::UnseatedCounts => &["warrant"],
        Bug::SeatsOfToday => &["warrant", "convergence"],
        Bug::SeatsForeseen | Bug::SeatsByHead => &["seats"],
        Bug::UnseatedUnheard | Bug::DesksKeep | Bug::DesksOnce => &["liveness"],
    }
}

/// Whether a bug is in a rule for meshes in which some decide for all.
const fn is_of_committees(bug: Bug) -> bool {
    matches!(
        bug,
        Bug::UnseatedCounts
            | Bug::SeatsForeseen
            | Bug::SeatsByHead
            | Bug::SeatsOfToday
            | Bug::UnseatedUnheard
            | Bug::DesksKeep
            | Bug::DesksOnce
    )
}

/// Plants a bug and looks for a directed run that is for it, then for the first seed, from `first` on, that shows it to the
/// check that has to notice. Bugs in the rules of committees are looked for where there is one.
pub fn hunt(bug: Bug, first: u64, wish: Wish) -> Caught {
    let committee = wish.committee || is_of_committees(bug);
    let wish = Wish { committee, ..wish };
    simulation::plant(Some(bug));
    let shows = |scenario: &&Scenario| scenario.shows.contains(&bug);
    let directed = SCENARIOS.iter().filter(shows).find_map(|scenario| {
        let violation = scenario.run(false).err()?;
        let noticed = noticed_by(bug).contains(&violation.check);
        noticed.then_some((scenario.name, violation))
    });
    simulation::plant(None);
    if let Some((scenario, violation)) = directed {
        return Caught {
            bug: bug.name(),
            scenario: Some(scenario),
            seed: None,
            committee: false,
            check: Some(violation.check),
            detail: Some(violation.detail),
        };
    }
    let failed: Mutex<Vec<Outcome>> = Mutex::new(Vec::new());
    // Seeds are begun in order and each that was begun is ended, so the lowest does not depend on which processor was
    // faster.
    seeds(first, PLANTED_SEEDS, wish, Some(bug), &|outcome| {
        let violation = outcome.violation.as_ref();
        let noticed = violation.is_some_and(|(_, v)| noticed_by(bug).contains(&v.check));
        if noticed {
            let mut failed = failed.lock().unwrap_or_else(PoisonError::into_inner);
            failed.push(outcome);
        }
        !noticed
    });
    let failed = failed.into_inner().unwrap_or_else(PoisonError::into_inner);
    if let Some(outcome) = failed.into_iter().min_by_key(|outcome| outcome.seed) {
        let (_, violation) = outcome.violation.unzip();
        return Caught {
            bug: bug.name(),
            scenario: None,
            seed: Some(outcome.seed),
            committee,
            check: violation.as_ref().map(|v| v.check),
            detail: violation.map(|v| v.detail),
        };
    }
    Caught {
        bug: bug.name(),
        scenario: None,
        seed: None,
        committee,
        check: None,
        detail: None,
    }
}

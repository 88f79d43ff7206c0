//! What has to hold of the simulation itself.

use secmesh::mesh::simulation::{self, Bug};
use secmesh_sim::plan::{Plan, Wish};
use secmesh_sim::run::run;
use secmesh_sim::scenario::SCENARIOS;
use secmesh_sim::suite::noticed_by;

#[test]
fn one_seed_gives_one_run_and_another_seed_another() {
    let first = run(11, Wish::default(), false);
    let again = run(11, Wish::default(), false);
    assert_eq!(first.trace, again.trace);
    assert_eq!(
        (first.counts.steps, first.counts.sent_bytes),
        (again.counts.steps, again.counts.sent_bytes)
    );
    assert_ne!(first.trace, run(12, Wish::default(), false).trace);
}

#[test]
fn what_one_thread_ran_before_does_not_change_a_run() {
    let alone = std::thread::spawn(|| run(21, Wish::default(), false).trace);
    let after = std::thread::spawn(|| {
        run(5, Wish::default(), false);
        run(21, Wish::default(), false).trace
    });
    assert_eq!(alone.join().unwrap(), after.join().unwrap());
}

#[test]
fn liars_are_below_a_third_and_there_are_some() {
    let mut liars = 0;
    for seed in 0..300 {
        let plan = Plan::new(seed, Wish::default());
        assert!(
            plan.liars.is_empty() || plan.liars.len() * 3 < plan.nodes,
            "{seed}"
        );
        assert!(plan.script.is_sorted_by_key(|(at, _)| *at));
        liars += plan.liars.len();
    }
    assert!(liars > 200);
}

#[test]
fn a_planted_bug_is_seen_and_only_on_the_thread_that_planted_it() {
    simulation::plant(Some(Bug::SendBeforePersist));
    let with = run(0, Wish::default(), false);
    simulation::plant(None);
    let (_, violation) = with.violation.expect("seen");
    assert_eq!(violation.check, "persist-before-send");
    assert!(run(0, Wish::default(), false).violation.is_none());
}

#[test]
fn more_nodes_than_the_seed_says_can_be_asked_for() {
    let outcome = run(
        3,
        Wish {
            nodes: Some(20),
            ..Wish::default()
        },
        false,
    );
    assert_eq!(outcome.nodes, 20);
    assert_eq!(outcome.violation, None);
}

/// Seeds that once showed something that was wrong, in the engine or in a check.
const MENDED: [u64; 12] = [
    2,    // a node that joins was refused statements, and did not ask again in time
    9, // a proposer that crashed before it voted waited for ever; a clock set back silenced its node
    14, // the same
    51, // a release that cannot be proved any more keeps a block out on some nodes
    54, // an epoch that begins in the middle of a call
    55, // a node that waits for its epoch
    31, // a witness cosigned at the second try what its disk had refused
    125, // a liar's forked log kept nodes from asking for other logs
    304, // the breaker counted nodes of which others said that they answer
    611, // statements that a node was not given yet were asked for again after ten seconds only
    816, // after a restart, a release with a liar's vote was gone and the block back
    3160, // what two operators wished used up the budget by which a proved liar is cut off
];

#[test]
fn what_was_mended_stays_so() {
    for seed in MENDED {
        // As it was when it was found, and as it is drawn today.
        for plain in [true, false] {
            let wish = Wish {
                plain,
                ..Wish::default()
            };
            assert_eq!(run(seed, wish, false).violation, None, "{seed}");
        }
    }
}

#[test]
fn epochs_statements_and_ledgers_are_in_it() {
    let mut all = [0; 5];
    for seed in 0..12 {
        let counts = run(seed, Wish::default(), false).counts;
        let seen = [
            counts.epochs,
            counts.statements,
            counts.seals,
            counts.caught,
            counts.cosigned,
        ];
        all.iter_mut().zip(seen).for_each(|(sum, n)| *sum += n);
    }
    assert!(all.iter().all(|n| *n > 0), "{all:?}");
}

#[test]
fn in_every_directed_run_every_rule_holds_and_each_bug_that_it_is_for_is_seen() {
    for scenario in SCENARIOS {
        assert_eq!(scenario.run(false), Ok(()), "{}", scenario.name);
        assert!(!scenario.shows.is_empty());
        for bug in scenario.shows {
            simulation::plant(Some(*bug));
            let with = scenario.run(false);
            simulation::plant(None);
            let (name, bug_name) = (scenario.name, bug.name());
            let check = with.expect_err(bug_name).check;
            assert!(
                noticed_by(*bug).contains(&check),
                "{name}, {bug_name}: {check}"
            );
        }
    }
}

#[test]
fn nodes_are_cut_off_and_taken_back_and_wrong_answers_cost_weight() {
    let mut all = [0; 4];
    for seed in 0..40 {
        let counts = run(seed, Wish::default(), false).counts;
        let seen = [
            counts.cut_off,
            counts.taken_back,
            counts.answers,
            counts.fallen,
        ];
        all.iter_mut().zip(seen).for_each(|(sum, n)| *sum += n);
    }
    assert!(all.iter().all(|n| *n > 0), "{all:?}");
}

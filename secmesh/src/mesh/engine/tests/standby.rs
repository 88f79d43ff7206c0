//! When a spare server is wanted.

use super::epochs::{removal, wait};
use super::*;
use crate::mesh::decision::OperatorRelease;

impl Net {
    fn missing(&mut self, i: u8) -> usize {
        let now = self.now;
        self.engines.get_mut(&i).unwrap().missing(now)
    }

    fn missing_by_all(&mut self, nodes: &[u8]) -> Vec<usize> {
        nodes.iter().map(|i| self.missing(*i)).collect()
    }

    fn why_not(&mut self, i: u8) -> Option<String> {
        // A no holds for a second.
        self.now += S;
        let now = self.now;
        self.engines.get_mut(&i).unwrap().no_spare_wanted(now)
    }

    /// The operator has node `node` cut off, or takes it back.
    fn ordered(&mut self, action: Action) {
        let draft = self.engines[&1].draft_order(action, self.now, 60);
        self.input(1, Input::Order(Box::new(draft.sign(&operator()))));
        self.run();
    }

    /// Node `i` comes with a ticket, at node `at`.
    fn comes(&mut self, i: u8, at: u8) {
        let joiner = by_ticket(i, &format!("z{i}"), 0x70 + i);
        self.input(at, Input::Admit(Box::new(joiner)));
        self.run();
    }

    /// And is started.
    fn starts(&mut self, i: u8, at: u8) {
        let known: Vec<AdmittedRecord> = self.engines[&at].admissions().cloned().collect();
        self.add(i, known);
        self.connect_all();
        self.run();
    }
}

#[test]
fn one_spare_for_one_node_that_is_cut_off_and_every_member_counts_the_same() {
    let mut net = Net::new(&["a", "b", "c", "d", "e"]);
    assert_eq!(net.missing_by_all(&[1, 2, 3, 4, 5]), [0; 5]);
    assert!(net.why_not(2).unwrap().contains("nobody is missing"));
    net.ordered(OperatorRelease::quarantine(node_id(5)));
    assert_eq!(net.missing_by_all(&[1, 2, 3, 4]), [1; 4]);
    assert_eq!(net.why_not(2), None);
    let own = net.why_not(5).unwrap();
    assert!(own.contains("cut off itself"), "{own}");
    // Let in by one member; the next one asked knows of it before the spare has started.
    net.comes(6, 3);
    assert_eq!(net.missing_by_all(&[1, 2, 3, 4]), [0; 4]);
    net.starts(6, 3);
    wait(&mut net, 5);
    assert_eq!(net.roster().len(), 6, "the one cut off is still in it");
    assert_eq!(net.missing_by_all(&[1, 2, 3, 4, 6]), [0; 5]);
    // The operator removes it for good: that is the same loss.
    net.input(2, Input::Remove(Box::new(removal(5, net.now))));
    wait(&mut net, 5);
    assert_eq!(net.roster().len(), 5);
    assert_eq!(net.missing_by_all(&[1, 2, 3, 4, 6]), [0; 5]);
    // The replacement is lost as well.
    net.ordered(OperatorRelease::quarantine(node_id(6)));
    assert_eq!(net.missing_by_all(&[1, 2, 3, 4]), [1; 4]);
    // Taken back in the next minute: nobody is missing any more.
    net.tick(60 * S);
    net.ordered(Action::readmit(node_id(6)));
    assert_eq!(net.missing_by_all(&[1, 2, 3, 4]), [0; 4]);
}

#[test]
fn who_is_removed_is_missed_and_growth_is_no_stock_of_spares() {
    let mut net = Net::new(&["a", "b", "c", "d", "e"]);
    net.comes(6, 1);
    net.starts(6, 1);
    wait(&mut net, 5);
    assert_eq!(net.roster().len(), 6);
    net.input(1, Input::Remove(Box::new(removal(5, net.now))));
    assert_eq!(net.missing(1), 1, "at once");
    net.run();
    wait(&mut net, 5);
    assert_eq!(net.roster().len(), 5);
    assert_eq!(net.missing_by_all(&[1, 2, 3, 4, 6]), [1; 5]);
    // Whoever comes by an ordinary ticket fills the place, too.
    net.comes(7, 2);
    net.starts(7, 2);
    wait(&mut net, 5);
    assert_eq!(net.missing_by_all(&[1, 2, 3, 4, 6, 7]), [0; 6]);
}

#[test]
fn a_restart_changes_nothing_of_who_is_missing() {
    let mut net = Net::new(&["a", "b", "c", "d", "e"]);
    net.ordered(OperatorRelease::quarantine(node_id(5)));
    let restart = |net: &mut Net| {
        for i in 1..=3 {
            let kept: Vec<(Vec<u8>, u64)> = net.engines[&i]
                .decisions()
                .map(|d| (d.warrant.to_bytes(), d.certified_unix_us))
                .collect();
            net.crash(i);
            let (now, engine) = (net.now, net.engines.get_mut(&i).unwrap());
            for (bytes, certified) in kept {
                engine
                    .restore_decision(now, &bytes, certified, None)
                    .unwrap();
            }
        }
    };
    restart(&mut net);
    assert_eq!(net.missing_by_all(&[1, 2, 3]), [1; 3]);
    net.comes(6, 4);
    net.links.clear();
    net.connect_all();
    net.run();
    restart(&mut net);
    assert_eq!(net.missing_by_all(&[1, 2, 3]), [0; 3], "it is on its way");
    net.links.clear();
    net.starts(6, 4);
    wait(&mut net, 10);
    restart(&mut net);
    assert_eq!(net.engines[&1].roster().len(), 6);
    assert_eq!(net.missing_by_all(&[1, 2, 3]), [0; 3]);
}

#[test]
fn who_was_let_in_and_never_starts_keeps_the_place_for_ten_minutes() {
    let mut net = Net::new(&["a", "b", "c", "d", "e"]);
    net.all_run = false;
    net.ordered(OperatorRelease::quarantine(node_id(5)));
    net.comes(6, 1);
    assert_eq!(net.missing_by_all(&[1, 2]), [0; 2]);
    net.now += COMING_US - S;
    assert_eq!(net.missing_by_all(&[1, 2]), [0; 2]);
    net.now += S;
    assert_eq!(net.missing_by_all(&[1, 2]), [1; 2]);
}

#[test]
fn nobody_is_let_in_on_the_smaller_side_of_a_split() {
    let mut net = Net::new(&["a", "b", "c", "d", "e"]);
    net.ordered(OperatorRelease::quarantine(node_id(5)));
    net.split(&[1, 2], &[3, 4]);
    let why = net.why_not(2).unwrap();
    assert!(why.contains("200 of the weight"), "{why}");
    assert_eq!(net.missing(2), 1);
}

#[test]
fn a_no_to_a_spare_holds_for_a_second_and_a_yes_does_not() {
    let mut net = Net::new(&["a", "b", "c", "d", "e", "f", "g"]);
    let began = net.now;
    let no = |net: &mut Net, after: u64| {
        let engine = net.engines.get_mut(&2).unwrap();
        engine.no_spare_wanted(began + after).is_some()
    };
    assert!(no(&mut net, 0));
    net.ordered(OperatorRelease::quarantine(node_id(5)));
    assert!(no(&mut net, S - 1), "counted anew for each who asks");
    assert!(!no(&mut net, S));
    net.comes(8, 3);
    assert!(no(&mut net, S), "two spares for one place");
    // A clock that was set back far keeps nobody out.
    net.ordered(OperatorRelease::quarantine(node_id(4)));
    assert!(!no(&mut net, 0));
}

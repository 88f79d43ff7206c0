use std::collections::HashMap;

use super::*;

#[derive(Default)]
struct Fake {
    entries: HashMap<Prefix, BlockEntry>,
    room: usize,
}

impl Kernel for Fake {
    fn put(
        &mut self,
        prefix: &Prefix,
        expires_ns: u64,
        rule: u32,
        flags: u32,
    ) -> Result<(), TableError> {
        if self.entries.len() >= self.room && !self.entries.contains_key(prefix) {
            return Err(TableError::Full {
                map: "BLOCK4",
                setting: "max_blocks",
            });
        }
        let entry = self.entries.entry(*prefix).or_default();
        *entry = BlockEntry {
            expires_ns,
            rule,
            flags,
            ..*entry
        };
        Ok(())
    }

    fn remove(&mut self, prefix: &Prefix) -> Result<(), TableError> {
        self.entries.remove(prefix);
        Ok(())
    }

    fn get(&self, prefix: &Prefix) -> Option<BlockEntry> {
        self.entries.get(prefix).copied()
    }
}

fn p(text: &str) -> Prefix {
    text.parse().unwrap()
}

fn claim(expires_s: u64) -> Claim {
    Claim {
        origin: Origin::Quorum,
        expires_unix_us: expires_s * 1_000_000,
        rule: 7,
    }
}

const NOW: Now = Now {
    unix_us: 1_000_000_000,
    mono_ns: 5_000_000_000,
};

#[test]
fn the_entry_lives_as_long_as_its_longest_claim() {
    let (mut blocks, mut kernel) = (
        Blocks::default(),
        Fake {
            room: 9,
            ..Fake::default()
        },
    );
    let x = p("192.0.2.1");
    blocks
        .claim(&mut kernel, NOW, x, "a".into(), claim(1010))
        .unwrap();
    blocks
        .claim(&mut kernel, NOW, x, "b".into(), claim(1020))
        .unwrap();
    assert_eq!(kernel.entries[&x].expires_ns, 25_000_000_000);
    let later = Now {
        unix_us: 1_011_000_000,
        mono_ns: 16_000_000_000,
    };
    assert_eq!(
        blocks.tick(&mut kernel, later),
        [Over {
            prefix: x,
            id: "a".to_owned(),
            hits: Some((0, 0))
        }]
    );
    assert!(kernel.entries.contains_key(&x));
    blocks.release(&mut kernel, later, &x, "b").unwrap();
    assert!(kernel.entries.is_empty() && !blocks.is_desired(&x));
}

#[test]
fn a_full_map_is_reported_and_tried_again() {
    let (mut blocks, mut kernel) = (
        Blocks::default(),
        Fake {
            room: 1,
            ..Fake::default()
        },
    );
    let (x, y) = (p("192.0.2.1"), p("192.0.2.2"));
    blocks
        .claim(&mut kernel, NOW, x, "a".into(), claim(1010))
        .unwrap();
    assert!(
        blocks
            .claim(&mut kernel, NOW, y, "b".into(), claim(1010))
            .is_err()
    );
    assert_eq!(blocks.totals(9).0, 2);
    assert_eq!(blocks.totals(9).1, 1);
    assert!(blocks.not_enforced(&y).unwrap().contains("max_blocks"));
    kernel.room = 2;
    blocks.tick(&mut kernel, NOW);
    assert!(blocks.not_enforced(&y).is_none() && kernel.entries.contains_key(&y));
}

#[test]
fn an_inner_network_does_not_end_before_the_outer_one() {
    let (mut blocks, mut kernel) = (
        Blocks::default(),
        Fake {
            room: 9,
            ..Fake::default()
        },
    );
    let (inner, outer) = (p("10.1.0.0/16"), p("10.0.0.0/8"));
    blocks
        .claim(&mut kernel, NOW, inner, "i".into(), claim(1010))
        .unwrap();
    blocks
        .claim(&mut kernel, NOW, outer, "o".into(), claim(1500))
        .unwrap();
    assert_eq!(
        kernel.entries[&inner].expires_ns,
        kernel.entries[&outer].expires_ns
    );
    blocks.release(&mut kernel, NOW, &outer, "o").unwrap();
    assert_eq!(kernel.entries[&inner].expires_ns, 15_000_000_000);
}

#[test]
fn reconciling_makes_the_kernel_equal_to_the_wish() {
    let (mut blocks, mut kernel) = (
        Blocks::default(),
        Fake {
            room: 9,
            ..Fake::default()
        },
    );
    blocks
        .claim(&mut kernel, NOW, p("192.0.2.1"), "a".into(), claim(1010))
        .unwrap();
    kernel.entries.clear();
    kernel.entries.insert(p("192.0.2.9"), BlockEntry::default());
    let done = blocks.reconcile(&mut kernel, NOW, &BTreeSet::from([p("192.0.2.9")]));
    assert_eq!(
        done,
        Reconciled {
            added: 1,
            removed: 1,
            failed: 0
        }
    );
    assert_eq!(kernel.entries.keys().collect::<Vec<_>>(), [&p("192.0.2.1")]);
}

#[test]
fn repairing_finds_what_is_missing_or_wrong_page_by_page() {
    let (mut blocks, mut kernel) = (
        Blocks::default(),
        Fake {
            room: 9,
            ..Fake::default()
        },
    );
    let all: Vec<Prefix> = (1..=5).map(|n| p(&format!("192.0.2.{n}"))).collect();
    for prefix in &all {
        blocks
            .claim(&mut kernel, NOW, *prefix, "a".into(), claim(1010))
            .unwrap();
    }
    kernel.entries.remove(&all[1]);
    kernel.entries.get_mut(&all[3]).unwrap().expires_ns += 60_000_000_000;
    kernel.entries.get_mut(&all[4]).unwrap().flags = 0;
    let (mut after, mut pages, mut added) = (None, 0, 0);
    loop {
        let (done, last) = blocks.repair(&mut kernel, NOW, after, 2);
        (pages, added) = (pages + 1, added + done.added);
        after = last;
        if after.is_none() {
            break;
        }
    }
    assert_eq!((pages, added), (3, 3));
    let (again, _) = blocks.repair(&mut kernel, NOW, None, 9);
    assert_eq!(again, Reconciled::default());
    assert_eq!(kernel.entries[&all[3]].expires_ns, 15_000_000_000);
}

#[test]
fn beyond_the_limit_a_claim_is_refused_and_not_kept() {
    let (mut blocks, mut kernel) = (
        Blocks::with_limit(1),
        Fake {
            room: 9,
            ..Fake::default()
        },
    );
    let (x, y) = (p("192.0.2.1"), p("192.0.2.2"));
    blocks
        .claim(&mut kernel, NOW, x, "a".into(), claim(1010))
        .unwrap();
    assert_eq!(
        blocks.claim(&mut kernel, NOW, y, "b".into(), claim(1010)),
        Err(ClaimError::Limit(1))
    );
    assert!(!blocks.is_desired(&y));
    blocks
        .claim(&mut kernel, NOW, x, "c".into(), claim(1020))
        .unwrap();
}

#[test]
fn a_clock_that_was_set_back_does_not_shorten_kernel_time() {
    assert_eq!(
        kernel_ns(1_010_000_000, NOW.unix_us, NOW.mono_ns),
        15_000_000_000
    );
    assert_eq!(kernel_ns(0, NOW.unix_us, NOW.mono_ns), 0);
}

#[test]
fn what_is_left_of_a_block_is_the_same_after_the_clock_was_set() {
    let hour = 3_600_000_000;
    let (back, forward) = (NOW.unix_us - hour / 4, NOW.unix_us + hour);
    for after in [back, forward] {
        let (mut blocks, mut kernel) = (
            Blocks::default(),
            Fake {
                room: 9,
                ..Fake::default()
            },
        );
        let x = p("192.0.2.1");
        blocks
            .claim(&mut kernel, NOW, x, "a".into(), claim(1010))
            .unwrap();
        let ends = kernel.entries[&x].expires_ns;
        blocks.clock_was_set(NOW.unix_us, after);
        let now = Now {
            unix_us: after,
            ..NOW
        };
        assert!(
            blocks.tick(&mut kernel, now).is_empty(),
            "ended by the step"
        );
        blocks.reconcile(&mut kernel, now, &BTreeSet::from([x]));
        assert_eq!(kernel.entries[&x].expires_ns, ends, "to {after}");
        let over = Now {
            unix_us: after + 10_000_000,
            mono_ns: NOW.mono_ns + 10_000_000_000,
        };
        assert_eq!(blocks.tick(&mut kernel, over).len(), 1, "to {after}");
        assert!(kernel.entries.is_empty());
    }
}

#[test]
fn an_end_that_the_earlier_clock_put_far_away_is_what_it_says() {
    // Booted in 1970, with a ledger of today.
    let (boot, today) = (10_000_000, 1_700_000_000_000_000);
    assert_eq!(end_after_step(today + 5, boot, today), today + 5);
    assert_eq!(end_after_step(90, 100, 500), 90);
    assert_eq!(end_after_step(90, 100, 50), 50, "over, and stays over");
}

//! The host tables of imported lists: what stays is found after every single write.

use secmesh::dataplane::fuzzing::{HostTables, Hosts};

use crate::feed::Feed;

/// Hosts that always fit: far fewer than the 448 of 512 slots that the smaller table takes.
const FITS: usize = 128;

pub(super) fn seeds() -> Vec<Vec<u8>> {
    let set = |flags: u8, count: u8, from: u8| {
        let hosts = (0..count).flat_map(|n| [n.wrapping_add(from), n % 3]);
        [flags, count].into_iter().chain(hosts).collect::<Vec<u8>>()
    };
    [
        vec![set(0, 100, 0), set(0, 100, 30), set(0, 0, 0)],
        vec![set(0, 190, 0), set(0, 190, 60), set(2, 190, 120)],
        vec![set(0, 250, 0), set(1, 200, 9), set(0, 200, 9)],
        vec![
            set(0x81, 240, 0),
            set(2, 100, 0),
            set(0x43, 240, 3),
            set(0, 240, 3),
        ],
    ]
    .map(|sets| [vec![0x1d, 0x4f, 0x2e, 0x9a, 0x33, 7, 0, 1], sets.concat()].concat())
    .into()
}

pub(super) fn run(input: &[u8]) {
    let mut feed = Feed::new(input);
    // The agent's seed is random.
    let seed = feed.u64() ^ 0x9e37_79b9_7f4a_7c15;
    let mut tables = HostTables::new(seed);
    let (mut list, mut failed) = (0, false);
    while !feed.is_empty() && list < 16 {
        let (flags, count) = (feed.u8(), feed.u8());
        if flags & 2 != 0 {
            tables.restart();
        }
        let fails_at = (flags & 1 != 0).then_some(usize::from(flags >> 2));
        let (mut four, mut six) = (Hosts::new(), Hosts::new());
        for _ in 0..count {
            let (low, high) = (feed.u8(), feed.u8());
            let number = u32::from(low) | (u32::from(high) << 8);
            let value = (number % 5 + 1, list);
            four.insert(0x0a00_0000 | number, value);
            six.insert((0xfd00 << 112) | u128::from(number), value);
        }
        let took = tables.replace(&four, &six, fails_at);
        // A failure before may have left hosts in both their places, which count until they are found.
        if fails_at.is_none() && !failed && four.len() <= FITS {
            assert_eq!(took, [true; 2], "{} hosts were refused", four.len());
        }
        failed = took != [true; 2];
        list += 1;
    }
}

//! Tickets.

use secmesh::mesh::admission::SignedGrant;
use secmesh::mesh::identity::Ticket;

use crate::feed::Feed;
use crate::samples;

fn sample() -> Ticket {
    let (genesis, grant) = samples::mesh()
        .map(|mesh| {
            let grant = mesh.grants.first().map(SignedGrant::to_bytes);
            (mesh.genesis.to_bytes(), grant.unwrap_or_default())
        })
        .unwrap_or_default();
    Ticket {
        genesis,
        grant,
        seed: [7; 32],
        addresses: vec!["192.0.2.7:4747".to_owned(), "[2001:db8::7]:4747".to_owned()],
        pins: vec![[1; 32], [2; 32]],
    }
}

pub(super) fn seeds() -> Vec<Vec<u8>> {
    let mut tickets = vec![sample()];
    // Lengths of every remainder by three: base64 ends differently for each.
    for length in 0..3 {
        tickets.push(Ticket {
            genesis: vec![1; length],
            grant: Vec::new(),
            seed: [9; 32],
            addresses: vec!["h:1".to_owned()],
            pins: vec![[3; 32]],
        });
    }
    let mut seeds = vec![b"\0secmesh1-AAAA".to_vec(), b"\0secmesh2-".to_vec()];
    for text in tickets.iter().filter_map(|ticket| ticket.encode().ok()) {
        seeds.push([b"\0".as_slice(), text.as_bytes()].concat());
        seeds.push([b"\0".as_slice(), text.as_bytes(), b"A"].concat());
        seeds.push([b"\0 ".as_slice(), text.as_bytes(), b"\n"].concat());
    }
    // A ticket built from fields: genesis, grant, addresses, pins, an edit.
    seeds.push([&[1, 4, 4, 1, 2], [b'a'; 80].as_slice(), &[0, 0]].concat());
    seeds.push([&[1, 0, 9, 8, 8], [b'a'; 200].as_slice(), &[1, 7]].concat());
    seeds
}

pub(super) fn run(input: &[u8]) {
    let mut feed = Feed::new(input);
    if feed.u8().is_multiple_of(2) {
        if let Ok(text) = std::str::from_utf8(feed.rest()) {
            one_line(text);
        }
    } else {
        built(&mut feed);
    }
}

/// What is read as a ticket is, but for white space, the one line of that ticket.
fn one_line(text: &str) {
    let Ok(ticket) = Ticket::decode(text) else {
        return;
    };
    let line = ticket.encode();
    let bare: String = text.chars().filter(|c| !c.is_whitespace()).collect();
    assert_eq!(line.as_deref(), Ok(bare.as_str()));
}

/// Mutated text never gets past the checksum, so here a ticket is made of fields, and its line then changed.
fn built(feed: &mut Feed<'_>) {
    let [genesis, grant, addresses, pins] = feed.array::<4>();
    let ticket = Ticket {
        genesis: feed.bytes(genesis.into()).to_vec(),
        grant: feed.bytes(grant.into()).to_vec(),
        seed: feed.array(),
        addresses: (0..addresses % 10)
            .map(|_| {
                let length = usize::from(feed.u8());
                String::from_utf8_lossy(feed.bytes(length)).into_owned()
            })
            .collect(),
        pins: (0..pins % 10).map(|_| feed.array()).collect(),
    };
    let Ok(line) = ticket.encode() else { return };
    assert!(line.bytes().all(|b| b.is_ascii_graphic()), "{line:?}");
    assert_eq!(Ticket::decode(&line).as_ref(), Ok(&ticket));
    one_line(&line);

    let at = usize::from(feed.u16()) % (line.len() + 1);
    let (before, after) = line.split_at(at);
    let with = char::from(feed.u8() & 0x7f);
    let mut rest = after.chars();
    let _replaced = rest.next();
    for changed in [
        format!("{before}{with}{after}"),
        format!("{before}{with}{}", rest.as_str()),
        format!("{before}{}", rest.as_str()),
        before.to_owned(),
    ] {
        one_line(&changed);
        let same = changed.split_whitespace().collect::<String>() == line;
        assert_eq!(
            Ticket::decode(&changed).is_ok(),
            same,
            "{changed:?} of {line:?}"
        );
    }
}

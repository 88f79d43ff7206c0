//! Addresses and prefixes.

use std::net::IpAddr;

use secmesh::addr::{PREFIX_BYTES, Prefix};

pub(super) fn seeds() -> Vec<Vec<u8>> {
    let texts = [
        "192.0.2.7",
        "192.0.2.0/24",
        "0.0.0.0/0",
        "10.0.0.0/8",
        "2001:db8::/32",
        "::/0",
        "::1",
        "::ffff:192.0.2.1",
        "::ffff:192.0.2.0/120",
        "fe80::1%eth0",
        "::ffff:0:0/96",
        "::fffe:0:0/95",
        "192.0.2.7/024",
        "1.2.3.4/33",
    ];
    let mut seeds: Vec<Vec<u8>> = texts.iter().map(|text| (*text).into()).collect();
    seeds.extend(
        texts
            .iter()
            .filter_map(|text| text.parse::<Prefix>().ok())
            .map(|prefix| prefix.to_bytes().to_vec()),
    );
    seeds
}

pub(super) fn run(input: &[u8]) {
    if let Some(bytes) = input.first_chunk::<PREFIX_BYTES>()
        && let Ok(prefix) = Prefix::from_bytes(bytes)
    {
        assert_eq!(&prefix.to_bytes(), bytes);
        good(prefix);
    }
    let Ok(text) = std::str::from_utf8(input) else {
        return;
    };
    let parsed = text.parse::<Prefix>();
    let json = serde_json::to_string(text).unwrap_or_default();
    assert_eq!(
        serde_json::from_str::<Prefix>(&json).ok(),
        parsed.clone().ok()
    );
    match parsed {
        Ok(prefix) => {
            good(prefix);
            let address = text.split('/').next().unwrap_or_default();
            let address = address.parse::<IpAddr>();
            assert!(
                address.is_ok_and(|a| prefix.contains_addr(a)),
                "{text}: {prefix}"
            );
        }
        // A message quotes no more than a line of what it was given.
        Err(error) => assert!(error.to_string().len() <= 4 * 64 + 200, "{error}"),
    }
}

/// What holds for every prefix.
fn good(prefix: Prefix) {
    assert_eq!(prefix.to_string().parse(), Ok(prefix));
    assert_eq!(Prefix::from_bytes(&prefix.to_bytes()), Ok(prefix));
    assert_eq!(Prefix::truncating(prefix.addr(), prefix.len()), Ok(prefix));
    assert!(prefix.contains(&prefix) && prefix.overlaps(&prefix));
    assert!(prefix.contains_addr(prefix.addr()));
    assert_eq!(prefix.is_single(), prefix == Prefix::host(prefix.addr()));
    // A mapped network has one form, the IPv4 one.
    if !prefix.is_ipv4() && prefix.len() >= 96 {
        assert_eq!(prefix.addr().to_canonical(), prefix.addr(), "{prefix}");
    }
    for shorter in 0..prefix.len() {
        let wider = Prefix::truncating(prefix.addr(), shorter);
        assert!(
            wider.is_ok_and(|w| w.contains(&prefix) && !prefix.contains(&w)),
            "{prefix} /{shorter}"
        );
    }
}

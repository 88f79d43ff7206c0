//! Transfers whose packets come plain from one source and with a tag from another.

use anyhow::{Context as _, Result};
use secmesh_common::{
    account::{SourceSlot, place},
    packet::{Captured, parse_ethernet},
};

use crate::{
    frames::{
        DESTINATION4, DESTINATION6, IPV4, IPV6, VLAN, ethernet, icmp, ipv4_from, ipv6_from,
        patched, protocol, tcp_to, udp_to,
    },
    kernel::{Kernel, options},
};

/// A packet of a transfer.
#[derive(Debug, Clone, Copy)]
pub enum Sent {
    /// A segment from port 50000 to 443, with these flags.
    Tcp(u8),
    /// A datagram from port 50000 to this one.
    Udp(u16),
    /// An echo request.
    Icmp,
}

/// A frame of the source that sends plainly, or of the one that sends with a VLAN tag: what has a tag always goes the
/// long way.
pub fn frame(ipv6: bool, tagged: bool, sent: Sent) -> Vec<u8> {
    let (proto, payload) = match sent {
        Sent::Tcp(flags) => (protocol::TCP, tcp_to(50_000, 443, flags)),
        Sent::Udp(port) => (protocol::UDP, udp_to(50_000, port, b"secmesh")),
        Sent::Icmp if ipv6 => (protocol::ICMPV6, icmp(128)),
        Sent::Icmp => (protocol::ICMP, icmp(8)),
    };
    let tags: &[u16] = if tagged { &[VLAN] } else { &[] };
    let last = u8::from(tagged) + 1;
    if ipv6 {
        let source = [0x20, 1, 0xd, 0xb8, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, last];
        ethernet(tags, IPV6, &ipv6_from(source, proto, &payload))
    } else {
        let packet = ipv4_from([198, 51, 100, last], &[], 0, proto, &payload);
        ethernet(tags, IPV4, &packet)
    }
}

/// What is known of the source of a frame.
///
/// # Errors
/// It has no slot, or the kernel refuses to tell.
pub fn slot(kernel: &mut Kernel, frame: &[u8]) -> Result<SourceSlot> {
    let packet = parse_ethernet(&Captured::whole(frame))
        .ok()
        .context("malformed")?;
    let place = place(&packet, options().seed);
    let slots = kernel.map::<SourceSlot>("SOURCES")?;
    for at in [place.first, place.second] {
        let slot = slots.get(&at, 0)?;
        if slot.holds(place.tag) {
            return Ok(slot);
        }
    }
    anyhow::bail!("the source has no slot")
}

/// What a known source sends besides: frames of its transfers with other bytes.
pub fn besides(ipv6: bool, tagged: bool) -> Vec<(&'static str, Vec<u8>)> {
    let (tcp, udp) = (
        frame(ipv6, tagged, Sent::Tcp(0x10)),
        frame(ipv6, tagged, Sent::Udp(443)),
    );
    let l3 = if tagged { 18 } else { 14 };
    let (l4, source) = if ipv6 {
        (l3 + 40, l3 + 8)
    } else {
        (l3 + 20, l3 + 12)
    };
    let own: &[u8] = if ipv6 { &DESTINATION6 } else { &DESTINATION4 };
    let local: &[u8] = if ipv6 { &[0xff, 2] } else { &[127, 0] };
    let here = tcp.get(source..source + own.len()).unwrap_or_default();
    let flags = |flags: u8| patched(tcp.clone(), l4 + 13, &[flags]);
    let mut all = vec![
        (
            "from a name server",
            patched(udp.clone(), l4, &53_u16.to_be_bytes()),
        ),
        ("from its own address", patched(udp.clone(), source, own)),
        ("from where nobody is", patched(tcp.clone(), source, local)),
        ("to itself", patched(tcp.clone(), source + own.len(), here)),
        ("no flags", flags(0)),
        ("Xmas", flags(0x29)),
        ("reset", flags(0x04)),
        ("end", flags(0x11)),
        ("answer", flags(0x12)),
        ("urgent", flags(0x30)),
        (
            "a TCP header too short",
            patched(tcp.clone(), l4 + 12, &[0x40]),
        ),
        ("and one too long", patched(tcp.clone(), l4 + 12, &[0xf0])),
        (
            "a datagram too short",
            patched(udp.clone(), l4 + 4, &[0, 7]),
        ),
        ("segments of no connection", tcp.clone()),
    ];
    if !ipv6 {
        all.extend([
            ("a first fragment", patched(tcp.clone(), l3 + 6, &[0x20, 0])),
            ("a later one", patched(tcp.clone(), l3 + 6, &[0, 1])),
            ("with options", patched(tcp.clone(), l3, &[0x46])),
        ]);
    }
    let length_at = if ipv6 { l3 + 4 } else { l3 + 2 };
    all.extend([
        (
            "longer than its frame",
            patched(tcp.clone(), length_at, &[5]),
        ),
        (
            "too short for a datagram",
            patched(udp, length_at, &[0, if ipv6 { 7 } else { 27 }]),
        ),
        (
            "too short for its header",
            patched(tcp, length_at, &[0, if ipv6 { 19 } else { 39 }]),
        ),
    ]);
    all
}

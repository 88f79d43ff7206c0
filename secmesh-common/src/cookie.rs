//! SYN cookies: which segments they are about, what is remembered of listeners and of sources, and the
//! answer's headers, byte by byte.
//!
//! The cookie itself is the kernel's (`bpf_tcp_gen_syncookie`, `bpf_tcp_raw_gen_syncookie_ipv4`, …: Linux
//! 6.0), so the listener accepts the acknowledgement as if it had sent the SYN-ACK. It does so only while it
//! carries an overflow mark (`tcp_synq_no_recent_overflow` in include/net/tcp.h), which only a call with its
//! socket sets; hence [`Listener::marked_ns`].
#![expect(
    clippy::indexing_slicing,
    reason = "constant or masked indices; `get` would add branches that can never be taken"
)]
#![expect(
    clippy::cast_possible_truncation,
    reason = "header lengths and values that were compared with the bound before; a checked conversion is not const"
)]

use crate::{
    account::hash_address,
    limit::Limit,
    packet::{Family, PROTO_TCP, Words, tcp_flags},
};

/// Listeners that are remembered: entries of the listener map, a power of two.
pub const LISTENERS: usize = 4096;
/// Verified sources that are remembered: entries of the verified map, a power of two.
pub const VERIFIED: usize = 1 << 16;
/// Addresses of this host that are known: entries of the address map.
pub const MAX_ADDRESSES: usize = 4096;

/// How often, at most, a calm listener's socket is asked for a cookie, ns.
pub const PROBE_CALM_NS: u64 = 10_000_000;
/// How often a flooded listener's socket is asked, ns: keeps its overflow mark fresh (Linux forgets it after
/// two minutes, `TCP_SYNCOOKIE_VALID`) and shows the end.
pub const PROBE_FLOOD_NS: u64 = 1_000_000_000;
/// How long a listener counts as flooded after it last gave a cookie, ns.
pub const FLOOD_HOLD_NS: u64 = 10_000_000_000;
/// How long a source that returned a good cookie is not challenged again, ns.
pub const VERIFIED_NS: u64 = 300_000_000_000;
/// Connection attempts of one verified source that are not challenged: 256 a second, in bursts of 256.
/// Whoever finishes one handshake does not get a flood past the cookies for it.
pub const VERIFIED_LIMIT: Limit = Limit {
    cost_ns: 3_906_250,
    burst_ns: 1_000_000_000,
};

/// Bytes of the SYN-ACK's TCP header: the fixed part and the MSS option.
pub const TCP_LEN: usize = 24;
/// Words of an IPv4 SYN-ACK, from the IP header on.
pub const WORDS4: usize = (20 + TCP_LEN) / 4;
/// Words of an IPv6 SYN-ACK, from the IP header on.
pub const WORDS6: usize = (40 + TCP_LEN) / 4;

/// Whether a segment asks for a connection. What has FIN or RST beside it the kernel drops itself
/// (`tcp_rcv_state_process` in `net/ipv4/tcp_input.c`).
#[inline(always)]
pub const fn is_attempt(flags: u8) -> bool {
    use tcp_flags::{ACK, FIN, RST, SYN};
    flags & (SYN | ACK | RST | FIN) == SYN
}

/// Whether a segment may return a cookie.
#[inline(always)]
pub const fn is_return(flags: u8) -> bool {
    use tcp_flags::{ACK, RST, SYN};
    flags & (SYN | ACK | RST) == ACK
}

/// What is remembered of a destination that connection attempts came for. Whether a listener is there the
/// kernel's socket lookup says; one that is not is remembered too, so that forwarded attempts do not cost a
/// lookup each.
///
/// CPUs share the entries without a lock: what is lost is one probe or one of the same times written twice.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[repr(C)]
pub struct Listener {
    /// Seeded hash of address, port, family and interface; 0 is a free entry.
    pub tag: u64,
    /// When its socket was last asked for a cookie, `CLOCK_MONOTONIC` ns.
    pub probed_ns: u64,
    /// When it last gave one; 0: never.
    pub marked_ns: u64,
    /// When a socket was last found that listens; 0: the last lookup found none.
    pub listens_ns: u64,
    /// The port.
    pub port: u16,
    /// Number of the [`Family`].
    pub family: u16,
    /// Zero.
    pub pad: u32,
}

impl Listener {
    /// Whether it overflowed within [`FLOOD_HOLD_NS`] before `now_ns`.
    #[inline(always)]
    pub const fn flooded(&self, now_ns: u64) -> bool {
        self.marked_ns != 0 && now_ns.saturating_sub(self.marked_ns) < FLOOD_HOLD_NS
    }

    /// Whether a socket that listens was found within [`FLOOD_HOLD_NS`] before `now_ns`.
    #[inline(always)]
    pub const fn listens(&self, now_ns: u64) -> bool {
        self.listens_ns != 0 && now_ns.saturating_sub(self.listens_ns) < FLOOD_HOLD_NS
    }

    /// Whether its socket is to be asked at `now_ns`; then that is noted.
    #[inline(always)]
    pub const fn probe_due(&mut self, now_ns: u64) -> bool {
        let interval = if self.flooded(now_ns) {
            PROBE_FLOOD_NS
        } else {
            PROBE_CALM_NS
        };
        if self.probed_ns != 0 && now_ns.saturating_sub(self.probed_ns) < interval {
            return false;
        }
        self.probed_ns = now_ns;
        true
    }

    /// Whether the entry can be given to another destination at `now_ns`: not while it is flooded.
    #[inline(always)]
    pub const fn is_free(&self, now_ns: u64) -> bool {
        self.tag == 0 || !self.flooded(now_ns)
    }
}

/// Tag of a destination: never 0. Its entry is at the tag's low bits or beside. The last but one says by which link
/// attempts come, the interface's index and whether the frame had VLAN tags: what is answered in the one need not be
/// answered in the other.
#[inline(always)]
pub fn listener_tag(
    dst: &Words,
    family: Family,
    port: u16,
    (ifindex, tagged): (u32, bool),
    seed: u64,
) -> u64 {
    let port = u32::from(port) | u32::from(tagged) << 16;
    // Hashed in turn and not only added, so that no address makes up for a port.
    let place = hash_address(&[port, ifindex, 0, 0], Family::V4, seed);
    hash_address(dst, family, place) | (1 << 63)
}

/// What the address map says of an address of this host.
pub const OWN: u32 = 1;
/// The same, of an address that only VLANs have. What comes to it without a tag had one that the network card took out,
/// and an answer would go out without it.
pub const OWN_OF_VLAN: u32 = 2;

/// The address map's key for an address of a packet.
#[inline(always)]
pub const fn address_key(words: &Words, family: Family) -> Words {
    match family {
        Family::V6 => *words,
        Family::V4 | Family::Other => [0, 0, word([0, 0, 0xff, 0xff]), words[0]],
    }
}

/// A source that returned a good cookie.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[repr(C)]
pub struct Verified {
    /// Seeded hash of the address; 0 is a free entry.
    pub tag: u64,
    /// When it has to be verified anew, `CLOCK_MONOTONIC` ns.
    pub until_ns: u64,
    /// Theoretical arrival time of [`VERIFIED_LIMIT`].
    pub arrival_ns: u64,
}

impl Verified {
    /// Whether an attempt of the source `tag` needs no challenge at `now_ns`; it is booked then.
    #[inline(always)]
    pub fn admits(&mut self, tag: u64, now_ns: u64) -> bool {
        self.tag == tag
            && self.until_ns > now_ns
            && VERIFIED_LIMIT.admit(&mut self.arrival_ns, 1, now_ns)
    }

    /// The entry is `tag`'s from now on. One that was verified before keeps what it has used of its limit.
    #[inline(always)]
    pub const fn verify(&mut self, tag: u64, now_ns: u64) {
        if self.tag != tag {
            self.tag = tag;
            self.arrival_ns = 0;
        }
        self.until_ns = now_ns.saturating_add(VERIFIED_NS);
    }
}

/// Tag of a source: never 0. Its entry is at the tag's low bits.
#[inline(always)]
pub fn verified_tag(src: &Words, family: Family, seed: u64) -> u64 {
    // Another seed than the tables of blocks have, so that their collisions are not these.
    hash_address(src, family, seed.rotate_left(13) ^ 0x9e37_79b9_7f4a_7c15) | (1 << 63)
}

/// Largest segment that this host takes over a link of `mtu` bytes behind `vlan_tags` tags: what the answer
/// announces. Never below what RFC 9293 and RFC 8200 let everybody send.
///
/// One tag does not make packets smaller (drivers take the four bytes beside the MTU), a second one does.
#[inline(always)]
pub const fn announced_mss(family: Family, mtu: u32, vlan_tags: u8) -> u16 {
    let (headers, least) = match family {
        Family::V6 => (60, 1220),
        Family::V4 | Family::Other => (40, 536),
    };
    let inner = if vlan_tags > 1 { 4 } else { 0 };
    let mss = mtu.saturating_sub(headers + inner);
    if mss < least {
        least as u16
    } else if mss > 65_535 - headers {
        (65_535 - headers) as u16
    } else {
        mss as u16
    }
}

/// The window that the answer offers: ten segments (the client's first flight, RFC 6928), without scaling.
#[inline(always)]
pub const fn announced_window(mss: u16) -> u16 {
    let ten = 10 * mss as u32;
    if ten > 65_535 { 65_535 } else { ten as u16 }
}

/// Where the kernel program builds what its helpers read: the stack is too small for it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[repr(C)]
pub struct Scratch {
    /// The request's IP header, as far as cookies depend on it; IPv4 uses the first five words.
    pub ip: [u32; 10],
    /// The request's TCP header with options.
    pub tcp: [u32; 15],
    /// Bytes of that: 20 to 60.
    pub tcp_len: u32,
    /// The answer from the IP header on.
    pub answer: [u32; WORDS6],
}

/// A SYN-ACK in answer to a SYN: only the MSS option, neither ECN nor payload.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SynAck {
    /// Who asked: the answer's destination.
    pub client: Words,
    /// Whom it asked: the answer's source.
    pub server: Words,
    /// The client's port.
    pub client_port: u16,
    /// The server's port.
    pub server_port: u16,
    /// Sequence number: the cookie.
    pub seq: u32,
    /// Acknowledgement number: the SYN's sequence number and one.
    pub ack: u32,
    /// MSS to announce.
    pub mss: u16,
    /// Window to announce.
    pub window: u16,
}

/// The first three words of an Ethernet frame, with its two addresses changed over.
#[inline(always)]
pub const fn turned_link(words: &[u32; 3]) -> [u32; 3] {
    let (one, two, three) = (
        words[0].to_ne_bytes(),
        words[1].to_ne_bytes(),
        words[2].to_ne_bytes(),
    );
    [
        word([two[2], two[3], three[0], three[1]]),
        word([three[2], three[3], one[0], one[1]]),
        word([one[2], one[3], two[0], two[1]]),
    ]
}

/// A word of these bytes, in the order in which they go on the wire.
#[inline(always)]
const fn word(bytes: [u8; 4]) -> u32 {
    u32::from_ne_bytes(bytes)
}

/// Two halves, each big endian on the wire.
#[inline(always)]
const fn halves(first: u16, second: u16) -> u32 {
    ((first as u32) << 16 | second as u32).to_be()
}

/// The one's complement sum of sixteen-bit halves, RFC 1071; words may be in either byte order, and the
/// result is in the same (section 2.B there).
#[inline(always)]
const fn sum(total: u64, word: u32) -> u64 {
    total + word as u64
}

/// A sum, folded and complemented: the checksum in the words' byte order.
#[inline(always)]
const fn finish(mut total: u64) -> u16 {
    // At most 2^5 words of 2^32: three folds leave sixteen bits, a fourth the last carry.
    total = (total & 0xffff_ffff) + (total >> 32);
    total = (total & 0xffff) + (total >> 16);
    total = (total & 0xffff) + (total >> 16);
    total = (total & 0xffff) + (total >> 16);
    !(total as u16)
}

/// `checksum` as the half at byte `at` (0 or 2) of a word.
#[inline(always)]
const fn placed(checksum: u16, at: usize) -> u32 {
    let [a, b] = checksum.to_ne_bytes();
    if at == 0 {
        word([a, b, 0, 0])
    } else {
        word([0, 0, a, b])
    }
}

impl SynAck {
    /// The TCP header with a checksum of zero.
    #[inline(always)]
    const fn tcp(&self) -> [u32; TCP_LEN / 4] {
        let flags = (tcp_flags::SYN | tcp_flags::ACK) as u16;
        [
            halves(self.server_port, self.client_port),
            self.seq.to_be(),
            self.ack.to_be(),
            halves((TCP_LEN as u16 / 4) << 12 | flags, self.window),
            0,
            // Kind 2, four bytes (RFC 9293 section 3.7.1).
            halves(0x0204, self.mss),
        ]
    }

    /// IPv4 and TCP headers with their checksums, as words in wire order.
    #[inline(always)]
    pub const fn words4(&self) -> [u32; WORDS4] {
        const LEN: u16 = (4 * WORDS4) as u16;
        let tcp = self.tcp();
        let (from, to) = (self.server[0], self.client[0]);
        let addresses = sum(sum(0, from), to);
        let first = halves(0x4500, LEN);
        // Identification 0 and don't fragment: an atomic datagram (RFC 6864).
        let second = halves(0, 0x4000);
        let third = word([64, PROTO_TCP, 0, 0]);
        let header = finish(sum(sum(sum(addresses, first), second), third));
        let mut total = sum(addresses, halves(PROTO_TCP as u16, TCP_LEN as u16));
        let mut n = 0;
        while n < tcp.len() {
            total = sum(total, tcp[n]);
            n += 1;
        }
        [
            first,
            second,
            third | placed(header, 2),
            from,
            to,
            tcp[0],
            tcp[1],
            tcp[2],
            tcp[3],
            placed(finish(total), 0),
            tcp[5],
        ]
    }

    /// IPv6 and TCP headers with the checksum, as words in wire order.
    #[inline(always)]
    pub const fn words6(&self) -> [u32; WORDS6] {
        let tcp = self.tcp();
        let (from, to) = (&self.server, &self.client);
        let mut total = sum(sum(0, (TCP_LEN as u32).to_be()), word([0, 0, 0, PROTO_TCP]));
        let mut n = 0;
        while n < 4 {
            total = sum(sum(total, from[n]), to[n]);
            n += 1;
        }
        n = 0;
        while n < tcp.len() {
            total = sum(total, tcp[n]);
            n += 1;
        }
        [
            word([0x60, 0, 0, 0]),
            halves(TCP_LEN as u16, (PROTO_TCP as u16) << 8 | 64),
            from[0],
            from[1],
            from[2],
            from[3],
            to[0],
            to[1],
            to[2],
            to[3],
            tcp[0],
            tcp[1],
            tcp[2],
            tcp[3],
            placed(finish(total), 0),
            tcp[5],
        ]
    }
}

const _: () = {
    assert!(size_of::<Listener>() == 40, "layout");
    assert!(size_of::<Verified>() == 24, "layout");
};

#[cfg(feature = "user")]
mod pod {
    // SAFETY: repr(C), only integers, no padding (sizes asserted above), every bit pattern is valid.
    unsafe impl aya::Pod for super::Listener {}
    // SAFETY: as above.
    unsafe impl aya::Pod for super::Verified {}
}

#[cfg(test)]
#[path = "cookie_tests.rs"]
mod tests;

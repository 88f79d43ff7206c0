//! Writing frames, and looking at where they go.

use core::arch::asm;

use aya_ebpf::programs::XdpContext;

use crate::maps::{HEADER_SUM, PORT, PORTS, TEMPLATE, TRANSPORT_SUM, UDP};

/// Bytes of an IPv4 frame.
pub const LENGTH4: usize = 64;
/// Bytes of an IPv6 frame with a TCP SYN.
pub const LENGTH6: usize = 80;
/// Bytes of an IPv6 frame with a datagram: one cache line, as an IPv4 frame has. A second one makes the generator slower
/// than what is to be measured.
pub const LENGTH6_UDP: usize = 64;
/// Where the EtherType is.
pub const ETHER_TYPE_AT: usize = 12;
/// Where an IPv4 source is.
pub const SOURCE4_AT: usize = 26;
/// Where an IPv6 source is.
pub const SOURCE6_AT: usize = 22;

const CHECKSUM4_AT: usize = 24;
const DESTINATION4_AT: usize = 30;
const DESTINATION6_AT: usize = 38;
const TRANSPORT4_AT: usize = 34;
const TRANSPORT6_AT: usize = 54;

/// Stores a word that need not be aligned.
///
/// Rust's unaligned write becomes four stores of a byte on this target, because not every machine that
/// runs BPF can do better; those that we load on can, and the verifier checks that.
#[inline(always)]
pub fn store_word(at: usize, word: u32) {
    // SAFETY: callers have compared the address with the end of the packet; the instruction writes four
    // bytes there and does nothing else.
    unsafe {
        asm!(
            "*(u32 *)({at} + 0) = {word}",
            at = in(reg) at,
            word = in(reg) u64::from(word),
            options(nostack, preserves_flags)
        );
    }
}

/// Stores an IPv6 address.
#[inline(always)]
pub fn store_address(at: usize, address: [u64; 2]) {
    let [first, second] = address;
    store_long(at, first);
    store_long(at + 8, second);
}

/// Stores the first `N` eight bytes of the template.
#[inline(always)]
#[expect(
    clippy::indexing_slicing,
    reason = "N is at most 10, the array's length"
)]
fn store_template<const N: usize>(start: usize) {
    let template = TEMPLATE.load();
    let mut n = 0;
    while n < N {
        store_long(start + 8 * n, template[n]);
        n += 1;
    }
}

#[inline(always)]
fn store_half(at: usize, half: u16) {
    // SAFETY: as in store_word, with two bytes.
    unsafe {
        asm!(
            "*(u16 *)({at} + 0) = {half}",
            at = in(reg) at,
            half = in(reg) u64::from(half),
            options(nostack, preserves_flags)
        );
    }
}

#[inline(always)]
fn store_long(at: usize, long: u64) {
    // SAFETY: as in store_word, with eight bytes.
    unsafe {
        asm!(
            "*(u64 *)({at} + 0) = {long}",
            at = in(reg) at,
            long = in(reg) long,
            options(nostack, preserves_flags)
        );
    }
}

/// Loads a word that need not be aligned.
#[inline(always)]
pub fn load_word(at: usize) -> u32 {
    let word: u64;
    // SAFETY: callers have compared the address with the end of the packet; the instruction reads four
    // bytes there and does nothing else.
    unsafe {
        asm!(
            "{word} = *(u32 *)({at} + 0)",
            word = lateout(reg) word,
            at = in(reg) at,
            options(readonly, nostack, preserves_flags)
        );
    }
    word as u32
}

/// The Internet checksum of a sum of words of 16 or 32 bits (RFC 1071), eight of 32 at most. It is the same in either
/// byte order as long as all were read in one.
#[inline(always)]
fn folded(sum: u64) -> u16 {
    let fold = |sum: u64| (sum >> 16) + (sum & 0xffff);
    // Below 2^35, so below 2^20 after one fold, 2^16 + 15 after two and 2^16 after three.
    !(fold(fold(fold(sum))) as u16)
}

/// Both words, added.
#[inline(always)]
fn words(long: u64) -> u64 {
    (long >> 32) + (long & 0xffff_ffff)
}

/// Source port and destination port, as they are in the packet.
#[inline(always)]
fn ports(random: u64) -> (u16, u16) {
    let source = 1024 | (random >> 48) as u16;
    let within = (u32::from((random >> 32) as u16) * PORTS.load()) >> 16;
    (source.to_be(), ((PORT.load() + within) as u16).to_be())
}

/// Writes ports and checksum of the transport header at `at`; `sum` is what the addresses add.
#[inline(always)]
fn transport(at: usize, sum: u64, random: u64) {
    let (source, destination) = ports(random);
    store_half(at, source);
    store_half(at + 2, destination);
    let template = u64::from(TRANSPORT_SUM.load());
    let checksum = folded(template + sum + u64::from(source) + u64::from(destination));
    if UDP.load() != 0 {
        // Zero would mean "none" (RFC 768), which IPv6 forbids.
        store_half(at + 6, if checksum == 0 { 0xffff } else { checksum });
    } else {
        store_half(at + 16, checksum);
    }
}

/// Writes an IPv4 frame; the caller has checked that [`LENGTH4`] bytes are there.
#[inline(always)]
pub fn write4(start: usize, source: u32, random: u64) {
    store_template::<{ LENGTH4 / 8 }>(start);
    let template = u64::from(HEADER_SUM.load());
    let sum = u64::from(source);
    store_half(start + CHECKSUM4_AT, folded(template + sum));
    store_word(start + SOURCE4_AT, source);
    transport(start + TRANSPORT4_AT, sum, random);
}

/// Writes an IPv6 frame of `LONGS` times eight bytes; the caller has checked that they are there.
#[inline(always)]
pub fn write6<const LONGS: usize>(start: usize, source: [u64; 2], random: u64) {
    store_template::<LONGS>(start);
    store_address(start + SOURCE6_AT, source);
    let [first, second] = source;
    transport(start + TRANSPORT6_AT, words(first) + words(second), random);
}

/// Whether a frame is for this address, IPv4 or IPv6, or is neither (ARP).
#[inline(always)]
pub fn is_for(ctx: &XdpContext, address: [u32; 4]) -> bool {
    let start = ctx.data();
    if start + TRANSPORT4_AT > ctx.data_end() {
        return true;
    }
    // The second half of this word is the EtherType; no tags are used here.
    let ethertype = (u32::from_be(load_word(start + 12)) >> 16) as u16;
    let [first, second, third, fourth] = address;
    match ethertype {
        0x0800 => load_word(start + DESTINATION4_AT) == first,
        0x86dd => {
            if start + TRANSPORT6_AT > ctx.data_end() {
                return true;
            }
            // Multicast is neighbour discovery.
            let at = start + DESTINATION6_AT;
            let own = load_word(at);
            (own.to_be() >> 24) == 0xff
                || (own == first
                    && load_word(at + 4) == second
                    && load_word(at + 8) == third
                    && load_word(at + 12) == fourth)
        }
        _ => true,
    }
}

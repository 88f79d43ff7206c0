//! Frames as nearly all are: no tags, and an IP header as it comes.

use aya_ebpf::programs::XdpContext;

use crate::{
    frame::{load_long_at, load_word_at},
    list::{Source, Source4, Source6},
};

/// Bytes of an Ethernet header without tags.
pub const ETHERNET: usize = 14;
/// Bytes of an IPv4 header without options.
pub const HEADER4: usize = 20;
/// Bytes of an IPv6 header.
pub const HEADER6: usize = 40;

/// EtherType and IP version of a frame without tags, in the word at byte 12.
pub const PLAIN: u32 = u32::from_ne_bytes([0xff, 0xff, 0xf0, 0]);
/// What that is of IPv4.
pub const PLAIN4: u32 = u32::from_ne_bytes([0x08, 0x00, 0x40, 0]);
/// The same and the length of an IPv4 header.
pub const BARE: u32 = u32::from_ne_bytes([0xff, 0xff, 0xff, 0]);
/// What that is of IPv4 without options.
pub const BARE4: u32 = u32::from_ne_bytes([0x08, 0x00, 0x45, 0]);
/// What that is of IPv6.
pub const PLAIN6: u32 = u32::from_ne_bytes([0x86, 0xdd, 0x60, 0]);

/// Who asks about a source, of whichever family.
pub trait Ask {
    /// What is to be known of the source of a frame of `length` bytes.
    fn ask<S: Source>(self, source: S, length: usize) -> bool;
}

/// Asks about the source of a plain frame that is as long as its header says and, of IPv4, has no options; `false` of
/// any other.
#[inline(always)]
pub fn ask(ctx: &XdpContext, who: impl Ask) -> bool {
    let (start, end) = (ctx.data(), ctx.data_end());
    if start + ETHERNET + HEADER4 > end {
        return false;
    }
    let length = end - start;
    let kind = load_word_at::<12, 0>(start);
    if kind & BARE == BARE4 {
        let [total @ .., _, _] = load_word_at::<16, 0>(start).to_ne_bytes();
        // Shorter than its header is longer than any frame.
        let rest = usize::from(u16::from_be_bytes(total)).wrapping_sub(HEADER4);
        if rest > length - (ETHERNET + HEADER4) {
            return false;
        }
        let word = load_word_at::<26, 0>(start);
        return who.ask(Source4 { word }, length);
    }
    if kind & PLAIN != PLAIN6 || start + ETHERNET + HEADER6 > end {
        return false;
    }
    let [payload @ .., _, _] = load_word_at::<18, 0>(start).to_ne_bytes();
    if ETHERNET + HEADER6 + usize::from(u16::from_be_bytes(payload)) > length {
        return false;
    }
    let (low, high) = (load_long_at::<22>(start), load_long_at::<30>(start));
    who.ask(Source6 { low, high }, length)
}

//! The frame in front of us, as the shared parser wants it.

use core::{arch::asm, hint::assert_unchecked};

use aya_ebpf::{
    EbpfContext as _, bindings::xdp_md, helpers::bpf_xdp_get_buff_len, programs::XdpContext,
};
use secmesh_common::packet::{
    Bytes, Malformed, Packet, parse_extended_payload, parse_plain_payload,
};

/// One load of a word that need not be aligned.
///
/// Rust's unaligned read becomes four loads of a byte on this target, because not every machine that runs
/// BPF can do better; those that we load on can, and the verifier checks that
/// (`check_ptr_alignment` in kernel/bpf/verifier.c).
#[inline(always)]
pub fn load_word(at: usize) -> u32 {
    load_word_at::<0, 0>(at)
}

/// The word at `from + A + B`: the instruction has room for the sum, so nobody needs to add.
#[inline(always)]
pub fn load_word_at<const A: usize, const B: usize>(from: usize) -> u32 {
    let word: u64;
    // SAFETY: callers have compared the address with the end of the packet; the instruction reads four
    // bytes there and does nothing else.
    unsafe {
        asm!(
            "{word} = *(u32 *)({from} + {at})",
            word = lateout(reg) word,
            from = in(reg) from,
            at = const A + B,
            options(readonly, nostack, preserves_flags)
        );
        // A load of four bytes clears the others (RFC 9669, section 5.1): without this, whoever wants the word in 64 bits
        // shifts it there and back.
        assert_unchecked(word <= 0xffff_ffff);
    }
    word as u32
}

/// The same with eight bytes at `from + AT`.
#[inline(always)]
pub fn load_long_at<const AT: usize>(from: usize) -> u64 {
    let long: u64;
    // SAFETY: as of `load_word_at`, with eight bytes.
    unsafe {
        asm!(
            "{long} = *(u64 *)({from} + {at})",
            long = lateout(reg) long,
            from = in(reg) from,
            at = const AT,
            options(readonly, nostack, preserves_flags)
        );
    }
    long
}

/// An XDP context as a source of bytes.
pub struct Frame<'a> {
    ctx: &'a XdpContext,
}

impl<'a> Frame<'a> {
    /// Wraps a context.
    #[inline(always)]
    pub fn new(ctx: &'a XdpContext) -> Self {
        Self { ctx }
    }
}

impl Bytes for Frame<'_> {
    #[inline(always)]
    fn load<const N: usize>(&self, offset: usize) -> Option<[u8; N]> {
        let start = self.ctx.data() + offset;
        if start + N > self.ctx.data_end() {
            return None;
        }
        // SAFETY: the comparison above is the bounds check that the verifier demands too; [u8; N] has
        // no alignment.
        Some(unsafe { (start as *const [u8; N]).read() })
    }

    #[inline(always)]
    #[expect(clippy::indexing_slicing, reason = "n is below N, the array's length")]
    fn load_words<const N: usize>(&self, offset: usize) -> Option<[u32; N]> {
        let start = self.ctx.data() + offset;
        if start + 4 * N > self.ctx.data_end() {
            return None;
        }
        let mut words = [0; N];
        let mut n = 0;
        while n < N {
            words[n] = load_word(start + 4 * n);
            n += 1;
        }
        Some(words)
    }

    #[inline(always)]
    fn load_ends<const N: usize>(&self, offset: usize) -> Option<[u32; 2]> {
        let start = self.ctx.data() + offset;
        // One comparison for both: the verifier knows what is in bounds of one pointer only.
        if start + N > self.ctx.data_end() {
            return None;
        }
        Some([load_word(start), load_word(start + N - size_of::<u32>())])
    }

    #[inline(always)]
    fn wire_len_at_least(&self, length: usize) -> bool {
        if self.ctx.data_end() - self.ctx.data() >= length {
            return true;
        }
        // SAFETY: the helper only reads the context it is given (Linux 5.18, net/core/filter.c).
        let all = unsafe { bpf_xdp_get_buff_len(self.ctx.as_ptr().cast()) };
        all as usize >= length
    }

    #[inline(always)]
    fn first_len(&self) -> u32 {
        (self.ctx.data_end() - self.ctx.data()) as u32
    }
}

/// No [`Malformed`] has this number.
const WELL_FORMED: u8 = u8::MAX;

/// [`parse_extended_payload`] as a function of its own to the verifier: the walk over extension headers is where
/// most of its work is, above all up to Linux 6.1, and hardly any packet has one.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn secmesh_extended(ctx: *mut xdp_md, packet: *mut Packet) -> u8 {
    if packet.is_null() {
        return WELL_FORMED;
    }
    // SAFETY: the callers pass a packet on the stack, all of it written; the verifier checks that.
    let packet = unsafe { &mut *packet };
    // Never so: it tells the verifier, which knows nothing of the caller, that offsets are small.
    if packet.l3 >= 64 {
        return Malformed::IpLength as u8;
    }
    let ctx = XdpContext::new(ctx);
    match parse_extended_payload(&Frame::new(&ctx), packet) {
        Ok(()) => WELL_FORMED,
        Err(reason) => reason as u8,
    }
}

/// As `secmesh_common::packet::parse_payload`; extension headers by way of [`secmesh_extended`].
#[inline(always)]
pub fn payload(ctx: &XdpContext, packet: &mut Packet) -> Result<(), Malformed> {
    if packet.is_extended() {
        return Malformed::from_u8(secmesh_extended(ctx.ctx, packet)).map_or(Ok(()), Err);
    }
    parse_plain_payload(&Frame::new(ctx), packet)
}

/// Writes below all that the compiler keeps on the stack, first of all.
///
/// Since Linux 6.18 the verifier says "verifier bug" and refuses the program where it finds two states alike of which one
/// has not yet used as much of the stack as the other, and wants to mark a slot there that this one has not got
/// (`__mark_chain_precision` in kernel/bpf/verifier.c). Whether that happens hangs on where the compiler spills. Once the
/// deepest slot was written, all states have all slots.
#[inline(always)]
pub fn reserve_stack() {
    // SAFETY: within the 512 bytes that a program has. Should the compiler come to use this slot, then what it wrote
    // there before this first instruction of the program is the pointer to the packet, and the verifier misses that.
    unsafe { asm!("*(u64 *)(r10 - 256) = 0", options(nostack, preserves_flags)) };
}

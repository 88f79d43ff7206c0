//! The frame in front of us, as the shared parser wants it.

use aya_ebpf::{EbpfContext as _, helpers::bpf_xdp_get_buff_len, programs::XdpContext};
use secmesh_common::packet::Bytes;

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

//! What the programs are told, and what they remember.

use aya_ebpf::{
    Global,
    btf_maps::{Array, HashMap, PerCpuArray, ProgramArray},
    macros::btf_map,
};

/// The frame as it is but for source, source port and checksums, which are zero in it: 64 bytes, or 80 of IPv6 with TCP.
#[unsafe(no_mangle)]
pub static TEMPLATE: Global<[u64; 10]> = Global::new([0; 10]);

/// Not zero: the frame is IPv6.
#[unsafe(no_mangle)]
pub static IPV6: Global<u32> = Global::new(0);

/// Not zero: the frame is UDP, else it is TCP.
#[unsafe(no_mangle)]
pub static UDP: Global<u32> = Global::new(0);

/// Sum of the 16-bit words of the template's IPv4 header, as this machine reads them.
#[unsafe(no_mangle)]
pub static HEADER_SUM: Global<u32> = Global::new(0);

/// The same of the template's pseudo header, transport header and data.
#[unsafe(no_mangle)]
pub static TRANSPORT_SUM: Global<u32> = Global::new(0);

/// First destination port.
#[unsafe(no_mangle)]
pub static PORT: Global<u32> = Global::new(0);

/// How many destination ports follow one another, from 1.
#[unsafe(no_mangle)]
pub static PORTS: Global<u32> = Global::new(1);

/// How many entries of [`SOURCES`] there are; 0: sources are random.
#[unsafe(no_mangle)]
pub static SOURCE_COUNT: Global<u32> = Global::new(0);

/// Start of the random sequence; not zero.
#[unsafe(no_mangle)]
pub static SEED: Global<u64> = Global::new(1);

/// The address that [`crate::edge`] lets in, IPv4 in the first word. Words in the order of the packet.
#[unsafe(no_mangle)]
pub static EDGE: Global<[u32; 4]> = Global::new([0; 4]);

/// The sources, IPv4 in the first four bytes. Bytes in the order of the packet. Sized before loading.
#[btf_map]
pub static SOURCES: Array<[u64; 2], 1> = Array::new();

/// Bytes of the frames that [`crate::play`] plays.
pub const FRAME: usize = 128;

/// Those frames, in words. Sized before loading.
#[btf_map]
pub static FRAMES: Array<[u32; FRAME / 4], 1> = Array::new();

/// How many they are.
#[unsafe(no_mangle)]
pub static FRAME_COUNT: Global<u32> = Global::new(1);

/// The addresses that [`crate::bare_hash`] drops, as they are in the packet. Sized before loading.
#[btf_map]
pub static HASH: HashMap<u32, u32, 1> = HashMap::new();

/// Cache lines of zeros that [`crate::bare_line`] looks at. Sized before loading.
#[btf_map]
pub static LINES: Array<[u64; 8], 1> = Array::new();

/// How many they are.
#[unsafe(no_mangle)]
pub static LINE_COUNT: Global<u32> = Global::new(1);

/// What each CPU remembers.
#[btf_map]
pub static STATE: PerCpuArray<State, 1> = PerCpuArray::new();

/// The program that [`crate::walk`] and [`crate::play`] run.
#[btf_map]
pub static NEXT: ProgramArray<1> = ProgramArray::new();

/// What one CPU remembers.
#[repr(C)]
pub struct State {
    /// The random sequence; 0 before its first number.
    pub random: u64,
    /// Frames made.
    pub frames: u64,
    /// Frames that [`crate::edge`] did not let in.
    pub strangers: u64,
    /// Next entry of [`SOURCES`] or [`FRAMES`].
    pub position: u32,
    /// Keeps the size a multiple of eight.
    pub pad: u32,
}

/// This CPU's state.
#[inline(always)]
pub fn state() -> Option<&'static mut State> {
    let state = STATE.get_ptr_mut(0)?;
    // SAFETY: a per-CPU entry; XDP runs to its end on one CPU, so nobody else writes it meanwhile.
    Some(unsafe { &mut *state })
}

//! The pcapng format: blocks of a type, a length, a body, and the length once more.
//! <https://datatracker.ietf.org/doc/draft-ietf-opsawg-pcapng/>

use super::input::{Endian, Input};
use super::link::LinkType;
use super::{Fault, MAX_FRAME, MAX_INTERFACES, Record, Step};

/// The type of a section header block: a palindrome, so it reads the same in both byte orders.
pub(super) const SECTION_MAGIC: [u8; 4] = [0x0a, 0x0d, 0x0d, 0x0a];
const INTERFACE: u32 = 1;
const OBSOLETE_PACKET: u32 = 2;
const SIMPLE_PACKET: u32 = 3;
const ENHANCED_PACKET: u32 = 6;
/// Type, length and the length at the end.
const BLOCK_OVERHEAD: u32 = 12;
/// Options of an interface that are looked at; the two of interest come long before.
const MAX_OPTIONS: u32 = 64 * 1024;
const OPTION_END: u16 = 0;
const OPTION_TSRESOL: u16 = 9;
const OPTION_TSOFFSET: u16 = 14;

/// What an interface block said about the packets that name it.
struct Interface {
    /// `None` for a link type that is not supported.
    link: Option<LinkType>,
    /// Most bytes kept of a packet; 0 means all.
    snap_len: u32,
    clock: PacketClock,
}

/// How an interface counts time.
struct PacketClock {
    /// Units per second.
    per_second: u128,
    /// Seconds to add.
    offset_s: i64,
}

impl PacketClock {
    /// Microseconds since 1970, when nothing else is said.
    const DEFAULT: Self = Self {
        per_second: 1_000_000,
        offset_s: 0,
    };

    /// Unix nanoseconds of a time stamp, held within 0 and `u64::MAX`.
    fn unix_ns(&self, stamp: u64) -> u64 {
        let ns = u128::from(stamp)
            .saturating_mul(1_000_000_000)
            .checked_div(self.per_second)
            .unwrap_or(0);
        let ns = i128::try_from(ns).unwrap_or(i128::MAX);
        let ns = ns.saturating_add(i128::from(self.offset_s).saturating_mul(1_000_000_000));
        u64::try_from(ns.max(0)).unwrap_or(u64::MAX)
    }
}

/// A block's position while it is being read.
struct Block {
    offset: u64,
    length: u32,
    /// Bytes of the body not read yet.
    left: u32,
}

impl Block {
    fn damaged(&self, what: String) -> Fault {
        Fault::Damaged {
            offset: self.offset,
            what,
        }
    }
}

/// A packet's place in a block, before its data is read.
struct PacketHead {
    interface: u32,
    /// `None` for a simple packet.
    stamp: Option<u64>,
    captured: u32,
    orig_len: u32,
}

pub(super) struct PcapNgDecoder {
    endian: Endian,
    interfaces: Vec<Interface>,
    /// The reader took the first block's type to find out the format.
    type_taken: bool,
    without_time: u64,
}

impl PcapNgDecoder {
    pub(super) const fn new() -> Self {
        Self {
            endian: Endian::Little,
            interfaces: Vec::new(),
            type_taken: true,
            without_time: 0,
        }
    }

    pub(super) const fn without_time(&self) -> u64 {
        self.without_time
    }

    pub(super) fn step(
        &mut self,
        input: &mut Input,
        buffer: &mut Vec<u8>,
        last_ns: u64,
    ) -> Result<Step, Fault> {
        let (kind, offset) = if std::mem::take(&mut self.type_taken) {
            (SECTION_MAGIC, 0)
        } else {
            let offset = input.offset();
            let mut kind = [0_u8; 4];
            match input.fill(&mut kind)? {
                0 => return Ok(Step::End),
                4 => (kind, offset),
                _ => return Ok(Step::Cut(offset)),
            }
        };
        // `None` inside means that the file ended within the block.
        let step = if kind == SECTION_MAGIC {
            self.section(input, offset)?
        } else {
            self.block(input, buffer, kind, offset, last_ns)?
        };
        Ok(step.unwrap_or(Step::Cut(offset)))
    }

    /// A section header: sets the byte order, forgets the interfaces.
    fn section(&mut self, input: &mut Input, offset: u64) -> Result<Option<Step>, Fault> {
        let Some(head) = input.array::<12>()? else {
            return Ok(None);
        };
        let damaged = |what: String| Fault::Damaged { offset, what };
        self.endian = match head {
            [_, _, _, _, 0x1a, 0x2b, 0x3c, 0x4d, ..] => Endian::Big,
            [_, _, _, _, 0x4d, 0x3c, 0x2b, 0x1a, ..] => Endian::Little,
            _ => {
                return Err(damaged(
                    "the section header has no valid byte-order mark".to_owned(),
                ));
            }
        };
        let version = self.endian.u16_at(&head, 8).unwrap_or(0);
        if version != 1 {
            return Err(damaged(format!(
                "pcapng version {version} is not known, only version 1 is"
            )));
        }
        self.interfaces.clear();
        // Of the body, the byte-order mark and the version are read; the section's length (8 bytes)
        // and its options are not needed.
        let mut block = open_block(self.endian, &head, offset)?;
        block.left = block.left.checked_sub(8).ok_or_else(|| {
            damaged(format!(
                "a section header of {} bytes is too short",
                block.length
            ))
        })?;
        Ok(self.close(input, &block)?.then_some(Step::Described))
    }

    fn block(
        &mut self,
        input: &mut Input,
        buffer: &mut Vec<u8>,
        kind: [u8; 4],
        offset: u64,
        last_ns: u64,
    ) -> Result<Option<Step>, Fault> {
        let Some(length) = input.array::<4>()? else {
            return Ok(None);
        };
        let mut block = open_block(self.endian, &length, offset)?;
        let head = match self.endian.u32(kind) {
            INTERFACE => return self.interface(input, buffer, block),
            ENHANCED_PACKET => self.enhanced(input, &mut block)?,
            OBSOLETE_PACKET => self.obsolete(input, &mut block)?,
            SIMPLE_PACKET => self.simple(input, &mut block)?,
            _ => return Ok(self.close(input, &block)?.then_some(Step::SkippedBlock)),
        };
        match head {
            Some(head) => self.packet(input, buffer, &block, &head, last_ns),
            None => Ok(None),
        }
    }

    fn interface(
        &mut self,
        input: &mut Input,
        buffer: &mut Vec<u8>,
        mut block: Block,
    ) -> Result<Option<Step>, Fault> {
        let Some(head) = take::<8>(input, &mut block, "an interface")? else {
            return Ok(None);
        };
        if self.interfaces.len() >= MAX_INTERFACES {
            return Err(block.damaged(format!(
                "more than {MAX_INTERFACES} interfaces in one section"
            )));
        }
        let options = block.left.min(MAX_OPTIONS);
        if !input.read_into(buffer, options)? {
            return Ok(None);
        }
        block.left = block.left.saturating_sub(options);
        let clock = self.clock(buffer).map_err(|what| block.damaged(what))?;
        self.interfaces.push(Interface {
            link: LinkType::from_number(u32::from(
                self.endian.u16_at(&head, 0).unwrap_or(u16::MAX),
            )),
            snap_len: self.endian.u32_at(&head, 4).unwrap_or(0),
            clock,
        });
        Ok(self.close(input, &block)?.then_some(Step::Described))
    }

    /// The time options among an interface's options.
    fn clock(&self, mut options: &[u8]) -> Result<PacketClock, String> {
        let mut clock = PacketClock::DEFAULT;
        while let (Some(code), Some(len)) = (
            self.endian.u16_at(options, 0),
            self.endian.u16_at(options, 2),
        ) {
            if code == OPTION_END {
                break;
            }
            let len = usize::from(len);
            let value = options
                .get(4..len.saturating_add(4))
                .ok_or("an interface option reaches beyond its block")?;
            match (code, value) {
                (OPTION_TSRESOL, [resolution]) => {
                    let exponent = u32::from(resolution & 0x7f);
                    let base: u128 = if resolution & 0x80 == 0 { 10 } else { 2 };
                    clock.per_second = base.checked_pow(exponent).ok_or_else(|| {
                        format!("a time resolution of {base}^-{exponent} s is not usable")
                    })?;
                }
                (OPTION_TSOFFSET, value) => {
                    if let Some(seconds) = value.first_chunk::<8>() {
                        clock.offset_s = self.endian.i64(*seconds);
                    }
                }
                _ => {}
            }
            // Options are padded to four bytes; the last one's padding may be cut by our limit.
            options = options
                .get(len.next_multiple_of(4).saturating_add(4)..)
                .unwrap_or_default();
        }
        Ok(clock)
    }

    fn enhanced(&self, input: &mut Input, block: &mut Block) -> Result<Option<PacketHead>, Fault> {
        let head = take::<20>(input, block, "a packet")?;
        Ok(head.map(|head| {
            let field = |at: usize| self.endian.u32_at(&head, at).unwrap_or(0);
            PacketHead {
                interface: field(0),
                stamp: Some((u64::from(field(4)) << 32) | u64::from(field(8))),
                captured: field(12),
                orig_len: field(16),
            }
        }))
    }

    fn obsolete(&self, input: &mut Input, block: &mut Block) -> Result<Option<PacketHead>, Fault> {
        let head = take::<20>(input, block, "a packet")?;
        Ok(head.map(|head| {
            let field = |at: usize| self.endian.u32_at(&head, at).unwrap_or(0);
            PacketHead {
                // Two bytes of interface, two of a drop counter.
                interface: u32::from(self.endian.u16_at(&head, 0).unwrap_or(u16::MAX)),
                stamp: Some((u64::from(field(4)) << 32) | u64::from(field(8))),
                captured: field(12),
                orig_len: field(16),
            }
        }))
    }

    fn simple(
        &mut self,
        input: &mut Input,
        block: &mut Block,
    ) -> Result<Option<PacketHead>, Fault> {
        let Some(head) = take::<4>(input, block, "a simple packet")? else {
            return Ok(None);
        };
        let orig_len = self.endian.u32(head);
        // It has no captured length: the interface's limit and the block's own length give it.
        let snap_len = self
            .interfaces
            .first()
            .map_or(0, |interface| interface.snap_len);
        let snap_len = if snap_len == 0 { u32::MAX } else { snap_len };
        self.without_time = self.without_time.saturating_add(1);
        Ok(Some(PacketHead {
            interface: 0,
            stamp: None,
            captured: orig_len.min(snap_len).min(block.left),
            orig_len,
        }))
    }

    fn packet(
        &self,
        input: &mut Input,
        buffer: &mut Vec<u8>,
        block: &Block,
        head: &PacketHead,
        last_ns: u64,
    ) -> Result<Option<Step>, Fault> {
        if head.captured > MAX_FRAME {
            return Err(Fault::TooLarge {
                offset: block.offset,
                length: head.captured,
            });
        }
        let Some(left) = block.left.checked_sub(head.captured) else {
            return Err(block.damaged(format!(
                "a packet of {} bytes does not fit its block of {} bytes",
                head.captured, block.length
            )));
        };
        let interface = usize::try_from(head.interface)
            .ok()
            .and_then(|at| self.interfaces.get(at));
        let Some(interface) = interface else {
            return Err(block.damaged(format!(
                "a packet names interface {}, but the section has described {}",
                head.interface,
                self.interfaces.len()
            )));
        };
        if !input.read_into(buffer, head.captured)? {
            return Ok(None);
        }
        let rest = Block {
            offset: block.offset,
            length: block.length,
            left,
        };
        if !self.close(input, &rest)? {
            return Ok(None);
        }
        Ok(Some(match interface.link {
            Some(link) => Step::Packet(Record {
                unix_ns: head
                    .stamp
                    .map_or(last_ns, |stamp| interface.clock.unix_ns(stamp)),
                orig_len: head.orig_len,
                link,
            }),
            None => Step::SkippedLink,
        }))
    }

    /// Passes over the rest of a block and checks that its length stands at its end too; false when
    /// the file ends before.
    fn close(&self, input: &mut Input, block: &Block) -> Result<bool, Fault> {
        if !input.skip(u64::from(block.left))? {
            return Ok(false);
        }
        let Some(trailer) = input.array::<4>()? else {
            return Ok(false);
        };
        let trailer = self.endian.u32(trailer);
        if trailer == block.length {
            Ok(true)
        } else {
            Err(block.damaged(format!(
                "a block of {} bytes ends with the length {trailer}",
                block.length
            )))
        }
    }
}

/// Checks a block's length, which is the first field of `head`.
fn open_block(endian: Endian, head: &[u8], offset: u64) -> Result<Block, Fault> {
    let length = endian.u32_at(head, 0).unwrap_or(0);
    match length.checked_sub(BLOCK_OVERHEAD) {
        Some(left) if length.is_multiple_of(4) => Ok(Block {
            offset,
            length,
            left,
        }),
        _ => Err(Fault::Damaged {
            offset,
            what: format!(
                "a block length of {length} bytes is not a multiple of 4 from {BLOCK_OVERHEAD} on"
            ),
        }),
    }
}

/// The next `N` bytes of a block's body; `None` when the file ends before.
fn take<const N: usize>(
    input: &mut Input,
    block: &mut Block,
    what: &str,
) -> Result<Option<[u8; N]>, Fault> {
    let left = u32::try_from(N)
        .ok()
        .and_then(|n| block.left.checked_sub(n));
    let Some(left) = left else {
        return Err(block.damaged(format!(
            "a block of {} bytes is too short for {what}",
            block.length
        )));
    };
    block.left = left;
    Ok(input.array::<N>()?)
}

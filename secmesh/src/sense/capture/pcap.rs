//! The classic pcap format: a 24-byte header, then records of a 16-byte header and data.
//! <https://datatracker.ietf.org/doc/draft-ietf-opsawg-pcap/>

use std::io;

use super::input::{Endian, Input};
use super::link::LinkType;
use super::{Fault, MAX_FRAME, Record, Step};

/// Byte order and time unit, as the magic number says.
#[derive(Debug, Clone, Copy)]
pub(super) struct Kind {
    endian: Endian,
    /// Nanoseconds per unit of the fraction field.
    unit_ns: u64,
}

impl Kind {
    pub(super) const fn from_magic(magic: [u8; 4]) -> Option<Self> {
        let (endian, unit_ns) = match magic {
            [0xa1, 0xb2, 0xc3, 0xd4] => (Endian::Big, 1000),
            [0xd4, 0xc3, 0xb2, 0xa1] => (Endian::Little, 1000),
            [0xa1, 0xb2, 0x3c, 0x4d] => (Endian::Big, 1),
            [0x4d, 0x3c, 0xb2, 0xa1] => (Endian::Little, 1),
            _ => return None,
        };
        Some(Self { endian, unit_ns })
    }
}

pub(super) struct PcapDecoder {
    kind: Kind,
    link: LinkType,
}

impl PcapDecoder {
    /// Reads what follows the magic number.
    pub(super) fn open(input: &mut Input, kind: Kind) -> Result<Self, Fault> {
        let damaged = |what: String| Fault::Damaged { offset: 0, what };
        let Some(header) = input.array::<20>()? else {
            return Err(damaged("the file header is incomplete".to_owned()));
        };
        let version = kind.endian.u16_at(&header, 0).unwrap_or(0);
        if version != 2 {
            return Err(damaged(format!(
                "pcap version {version} is not known, only version 2 is"
            )));
        }
        // Above the low 16 bits: whether and how long a checksum is behind each frame. The lengths
        // inside the packets say where they end, so it does not matter here.
        let link = kind.endian.u32_at(&header, 16).unwrap_or(0) & 0xffff;
        let link = LinkType::from_number(link).ok_or(Fault::Link(link))?;
        Ok(Self { kind, link })
    }

    pub(super) fn step(&self, input: &mut Input, buffer: &mut Vec<u8>) -> Result<Step, Fault> {
        let offset = input.offset();
        let mut header = [0_u8; 16];
        let got: io::Result<usize> = input.fill(&mut header);
        match got? {
            0 => return Ok(Step::End),
            16 => {}
            _ => return Ok(Step::Cut(offset)),
        }
        let field = |at: usize| self.kind.endian.u32_at(&header, at).unwrap_or(0);
        let (seconds, fraction, captured, orig_len) = (field(0), field(4), field(8), field(12));
        if captured > MAX_FRAME {
            return Err(Fault::TooLarge {
                offset,
                length: captured,
            });
        }
        if !input.read_into(buffer, captured)? {
            return Ok(Step::Cut(offset));
        }
        // At most 2^32 s in ns plus 2^32 units of 1000 ns: fits 64 bits with room.
        let unix_ns = u64::from(seconds)
            .saturating_mul(1_000_000_000)
            .saturating_add(u64::from(fraction).saturating_mul(self.kind.unit_ns));
        Ok(Step::Packet(Record {
            unix_ns,
            orig_len,
            link: self.link,
        }))
    }
}

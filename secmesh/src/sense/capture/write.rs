//! Writing pcapng, as little of it as other tools need: a section, an interface block for each interface, and
//! enhanced packet blocks with a comment. <https://datatracker.ietf.org/doc/draft-ietf-opsawg-pcapng/>

use std::io::{self, Write};

const SECTION: u32 = 0x0a0d_0d0a;
const BYTE_ORDER: u32 = 0x1a2b_3c4d;
const INTERFACE: u32 = 1;
const ENHANCED_PACKET: u32 = 6;
const LINK_ETHERNET: u16 = 1;
const OPTION_END: u16 = 0;
const OPTION_COMMENT: u16 = 1;
const OPTION_IF_NAME: u16 = 2;
const OPTION_USER_APPLICATION: u16 = 4;

/// A packet to write.
#[derive(Debug, Clone, Copy)]
pub struct Written<'a> {
    /// When, unix µs.
    pub unix_us: u64,
    /// The interface it came in on.
    pub interface: &'a str,
    /// Its length on the wire.
    pub wire_len: u32,
    /// What was captured of it, from its Ethernet header on.
    pub data: &'a [u8],
    /// What to say of it.
    pub comment: &'a str,
}

/// Writes one section of Ethernet frames.
#[derive(Debug)]
pub struct PcapngWriter<W> {
    out: W,
    snap_len: u32,
    interfaces: Vec<String>,
}

impl<W: Write> PcapngWriter<W> {
    /// Begins a section; `snap_len` is how many bytes of each packet are captured at most.
    ///
    /// # Errors
    /// `out`'s.
    pub fn new(out: W, snap_len: u32) -> io::Result<Self> {
        let mut writer = Self {
            out,
            snap_len,
            interfaces: Vec::new(),
        };
        let mut body = BYTE_ORDER.to_le_bytes().to_vec();
        // Version 1.0; the section's length is not known.
        body.extend_from_slice(&[1, 0, 0, 0]);
        body.extend_from_slice(&u64::MAX.to_le_bytes());
        let name = concat!("secmesh ", env!("CARGO_PKG_VERSION"));
        option(&mut body, OPTION_USER_APPLICATION, name);
        option(&mut body, OPTION_END, "");
        writer.block(SECTION, &body)?;
        Ok(writer)
    }

    /// Writes a packet, and before the first of an interface that interface.
    ///
    /// # Errors
    /// `out`'s.
    pub fn packet(&mut self, packet: &Written<'_>) -> io::Result<()> {
        let known = self.interfaces.iter().position(|i| i == packet.interface);
        let index = match known {
            Some(index) => index,
            None => self.interface(packet.interface)?,
        };
        let mut body = length(index).to_le_bytes().to_vec();
        // The upper half of the time comes first.
        body.extend_from_slice(&packet.unix_us.rotate_left(32).to_le_bytes());
        body.extend_from_slice(&length(packet.data.len()).to_le_bytes());
        body.extend_from_slice(&packet.wire_len.to_le_bytes());
        body.extend_from_slice(packet.data);
        pad(&mut body);
        option(&mut body, OPTION_COMMENT, packet.comment);
        option(&mut body, OPTION_END, "");
        self.block(ENHANCED_PACKET, &body)
    }

    /// Hands everything on to where it goes.
    ///
    /// # Errors
    /// `out`'s.
    pub fn flush(&mut self) -> io::Result<()> {
        self.out.flush()
    }

    fn interface(&mut self, name: &str) -> io::Result<usize> {
        let mut body = LINK_ETHERNET.to_le_bytes().to_vec();
        body.extend_from_slice(&[0, 0]);
        body.extend_from_slice(&self.snap_len.to_le_bytes());
        option(&mut body, OPTION_IF_NAME, name);
        option(&mut body, OPTION_END, "");
        self.block(INTERFACE, &body)?;
        self.interfaces.push(name.to_owned());
        Ok(self.interfaces.len().saturating_sub(1))
    }

    fn block(&mut self, kind: u32, body: &[u8]) -> io::Result<()> {
        let total = length(body.len()).saturating_add(12).to_le_bytes();
        self.out.write_all(&kind.to_le_bytes())?;
        self.out.write_all(&total)?;
        self.out.write_all(body)?;
        self.out.write_all(&total)
    }
}

/// Lengths here are those of a packet's head and of names.
fn length(len: usize) -> u32 {
    u32::try_from(len).unwrap_or(u32::MAX)
}

fn pad(body: &mut Vec<u8>) {
    body.resize(body.len().next_multiple_of(4), 0);
}

fn option(body: &mut Vec<u8>, code: u16, text: &str) {
    let text: String = text.chars().take(1024).collect();
    body.extend_from_slice(&code.to_le_bytes());
    let len = u16::try_from(text.len()).unwrap_or(0);
    body.extend_from_slice(&len.to_le_bytes());
    body.extend_from_slice(text.as_bytes());
    pad(body);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sense::capture::CaptureReader;

    #[test]
    fn what_is_written_is_what_our_reader_reads() {
        let mut file = Vec::new();
        let mut writer = PcapngWriter::new(&mut file, 256).unwrap();
        let frames: [(&str, &[u8]); 3] =
            [("eth0", &[1; 60]), ("eth1", &[2; 61]), ("eth0", &[3; 14])];
        for (interface, data) in frames {
            let packet = Written {
                unix_us: 1_700_000_000_123_456,
                interface,
                wire_len: 1514,
                data,
                comment: "secmesh: land",
            };
            writer.packet(&packet).unwrap();
        }
        assert_eq!(file.len() % 4, 0);
        let text = String::from_utf8_lossy(&file).into_owned();
        assert_eq!(text.matches("secmesh: land").count(), 3);
        assert_eq!(
            (text.matches("eth0").count(), text.matches("eth1").count()),
            (1, 1)
        );
        let mut reader = CaptureReader::new(Box::new(io::Cursor::new(file)), "x").unwrap();
        for (_, data) in frames {
            let frame = reader.next_frame().unwrap().unwrap();
            assert_eq!(frame.data, data);
            assert_eq!(
                (frame.orig_len, frame.unix_us()),
                (1514, 1_700_000_000_123_456)
            );
        }
        assert!(reader.next_frame().unwrap().is_none());
    }
}

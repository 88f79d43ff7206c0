//! Reads packet captures one frame at a time: pcap and pcapng, plain or gzip, told apart by their
//! first bytes and never by their name.
//!
//! Captures come from elsewhere, so every length in them is hostile. Memory is bounded: one frame
//! buffer of at most [`MAX_FRAME`] bytes, an interface list of at most [`MAX_INTERFACES`] entries,
//! and the decompressor's window. A file cut off in the middle of a packet (a killed `tcpdump`)
//! gives all complete packets and a note in the [`Summary`], not an error.
//!
//! Why not the `pcap-file` crate: its pcap reader refuses packets whose original length is above
//! the snap length, which is what every capture made with a short `-s` contains; it allocates a
//! fixed 8 MB window and reports a longer block as an end of file; its parser holds `expect` and
//! `assert!` on file-derived positions; and it names neither offset nor packet in its errors. Both
//! formats are small, so the part needed here is in `pcap.rs` and `pcapng.rs`.

mod input;
mod link;
mod pcap;
mod pcapng;
#[cfg(test)]
mod tests;
mod write;

use std::fmt;
use std::fs::File;
use std::io::{self, Cursor, Read};
use std::path::Path;

use flate2::read::MultiGzDecoder;

use input::Input;
pub use link::{FrameStart, LinkType};
pub use write::{PcapngWriter, Written};

/// Largest captured frame accepted, in bytes. It is `tcpdump`'s default snap length; nothing that
/// a network card hands over is larger.
pub const MAX_FRAME: u32 = 256 * 1024;

/// Most interfaces accepted in one pcapng section.
pub const MAX_INTERFACES: usize = 4096;

/// Why a capture cannot be read (further). Offsets count bytes of the capture itself, so for a gzip
/// file they count decompressed bytes. Packets count from 1.
#[derive(Debug, thiserror::Error)]
pub enum CaptureError {
    /// The file could not be opened or the medium failed.
    #[error(
        "{name}: cannot read at offset {offset}: {source}; check that the file exists and is readable"
    )]
    Io {
        /// What was being read.
        name: String,
        /// Bytes of the capture read before.
        offset: u64,
        /// What the system said.
        source: io::Error,
    },
    /// The compressed stream is broken.
    #[error(
        "{name}: broken gzip data after {offset} decompressed bytes: {source}; check the file with `gzip -t`"
    )]
    Gzip {
        /// What was being read.
        name: String,
        /// Decompressed bytes before the damage.
        offset: u64,
        /// What the decompressor said.
        source: io::Error,
    },
    /// The first bytes are of no supported format.
    #[error(
        "{name}: not a packet capture: {found}; supported are pcap and pcapng, each also gzip-compressed (convert others with `editcap -F pcapng`)"
    )]
    NotACapture {
        /// What was being read.
        name: String,
        /// What the first bytes are.
        found: String,
    },
    /// The link type of the whole file is not one that leads to IP here.
    #[error(
        "{name}: link type {link} is not supported; supported are {}",
        link::SUPPORTED
    )]
    UnsupportedLink {
        /// What was being read.
        name: String,
        /// The number from the file, see <https://www.tcpdump.org/linktypes.html>.
        link: u32,
    },
    /// A frame longer than [`MAX_FRAME`].
    #[error(
        "{name}: packet {packet} at offset {offset} claims {length} bytes, more than the {MAX_FRAME} that are accepted; the file is damaged, or rewrite it with `editcap -s {MAX_FRAME}`"
    )]
    FrameTooLarge {
        /// What was being read.
        name: String,
        /// The packet's number.
        packet: u64,
        /// Where its record starts.
        offset: u64,
        /// The length it claims.
        length: u32,
    },
    /// A structure that contradicts itself.
    #[error(
        "{name}: damaged at offset {offset}, after {packets} packets: {what}; packets before it are good, cut the file there or capture again"
    )]
    Damaged {
        /// What was being read.
        name: String,
        /// Where the broken structure starts.
        offset: u64,
        /// Packets read before.
        packets: u64,
        /// What is wrong with it.
        what: String,
    },
}

/// The container of a capture.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    /// The classic libpcap format.
    Pcap,
    /// The next-generation format with blocks, sections and interfaces.
    PcapNg,
}

impl fmt::Display for Format {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Pcap => "pcap",
            Self::PcapNg => "pcapng",
        })
    }
}

/// Where a capture ended too early.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Truncation {
    /// Offset of the incomplete record, or of the missing one.
    pub offset: u64,
    /// Complete packets before it.
    pub packets: u64,
}

impl fmt::Display for Truncation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "the capture is cut short in or at the record at offset {}; its {} complete packets were read",
            self.offset, self.packets
        )
    }
}

/// What has been read so far; complete once [`CaptureReader::next_frame`] gave `None`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Summary {
    /// The container format.
    pub format: Format,
    /// Whether it was gzip-compressed.
    pub gzip: bool,
    /// Packets in the file so far, skipped ones included.
    pub packets: u64,
    /// Bytes of frame data handed out.
    pub bytes: u64,
    /// Packets skipped because their interface has an unsupported link type (pcapng only).
    pub skipped_link: u64,
    /// Packets without a time of their own (pcapng simple packets); they carry the time of the
    /// packet before them.
    pub without_time: u64,
    /// Blocks of no interest that were skipped (pcapng only: names, statistics, comments).
    pub skipped_blocks: u64,
    /// Set when the file ends in the middle of a record.
    pub truncated: Option<Truncation>,
}

/// One captured frame. The data lives in the reader's buffer until the next call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Frame<'a> {
    /// Number of the packet in the file, from 1.
    pub number: u64,
    /// When it was captured, unix nanoseconds.
    pub unix_ns: u64,
    /// Its length on the wire in bytes; at least `data.len()`.
    pub orig_len: u32,
    /// The captured bytes, from the link layer on.
    pub data: &'a [u8],
    /// What the first bytes of `data` are.
    pub link: LinkType,
}

impl Frame<'_> {
    /// When it was captured, unix microseconds.
    pub const fn unix_us(&self) -> u64 {
        self.unix_ns / 1000
    }

    /// Where the packet parser has to start in [`Frame::data`].
    pub fn start(&self) -> FrameStart {
        self.link.start(self.data)
    }
}

/// One packet as the format readers leave it in the buffer.
struct Record {
    unix_ns: u64,
    orig_len: u32,
    link: LinkType,
}

/// What a format reader came to.
enum Step {
    /// A packet whose data is in the buffer.
    Packet(Record),
    /// A packet of an interface whose link type is not supported.
    SkippedLink,
    /// A block that describes packets to come: a section or an interface.
    Described,
    /// A block of a type that is not looked at.
    SkippedBlock,
    /// The clean end.
    End,
    /// The end in the middle of the record that starts at this offset.
    Cut(u64),
}

/// A problem met by a format reader, not yet joined with the file's name and the packet's number.
enum Fault {
    Io(io::Error),
    TooLarge { offset: u64, length: u32 },
    Damaged { offset: u64, what: String },
    Link(u32),
}

impl From<io::Error> for Fault {
    fn from(error: io::Error) -> Self {
        Self::Io(error)
    }
}

enum Decoder {
    Pcap(pcap::PcapDecoder),
    PcapNg(pcapng::PcapNgDecoder),
}

/// A streaming reader of one capture.
pub struct CaptureReader {
    name: String,
    input: Input,
    decoder: Decoder,
    buffer: Vec<u8>,
    last_ns: u64,
    finished: bool,
    summary: Summary,
}

impl fmt::Debug for CaptureReader {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CaptureReader")
            .field("name", &self.name)
            .field("summary", &self.summary)
            .finish_non_exhaustive()
    }
}

impl CaptureReader {
    /// Opens a capture file.
    ///
    /// # Errors
    /// As [`CaptureReader::new`], and when the file cannot be opened.
    pub fn open(path: &Path) -> Result<Self, CaptureError> {
        let name = path.display().to_string();
        match File::open(path) {
            Ok(file) => Self::new(Box::new(file), &name),
            Err(source) => Err(CaptureError::Io {
                name,
                offset: 0,
                source,
            }),
        }
    }

    /// Reads a capture from any source; `name` is what errors call it. The source is buffered here.
    ///
    /// # Errors
    /// When the first bytes are not of a supported format or cannot be read, or when the whole file
    /// has an unsupported link type.
    pub fn new(source: Box<dyn Read + Send>, name: &str) -> Result<Self, CaptureError> {
        let (head, source) = peek(source).map_err(|error| io_error(name, false, 0, error))?;
        let gzip = head.starts_with(&[0x1f, 0x8b]);
        let mut input = if gzip {
            Input::new(Box::new(MultiGzDecoder::new(source)))
        } else {
            Input::new(source)
        };
        let mut magic = [0_u8; 4];
        let got = input
            .fill(&mut magic)
            .map_err(|error| io_error(name, gzip, 0, error))?;
        let not_a_capture = |found: String| CaptureError::NotACapture {
            name: name.to_owned(),
            found,
        };
        if got < magic.len() {
            return Err(not_a_capture(format!("it holds only {got} bytes")));
        }
        let (format, decoder) = if magic == pcapng::SECTION_MAGIC {
            (
                Format::PcapNg,
                Ok(Decoder::PcapNg(pcapng::PcapNgDecoder::new())),
            )
        } else if let Some(kind) = pcap::Kind::from_magic(magic) {
            (
                Format::Pcap,
                pcap::PcapDecoder::open(&mut input, kind).map(Decoder::Pcap),
            )
        } else {
            let [a, b, c, d] = magic;
            return Err(not_a_capture(format!(
                "it starts with {a:02x} {b:02x} {c:02x} {d:02x}"
            )));
        };
        let decoder = decoder.map_err(|fault| fault_error(name, gzip, input.offset(), 0, fault))?;
        Ok(Self {
            name: name.to_owned(),
            input,
            decoder,
            buffer: Vec::new(),
            last_ns: 0,
            finished: false,
            summary: Summary {
                format,
                gzip,
                packets: 0,
                bytes: 0,
                skipped_link: 0,
                without_time: 0,
                skipped_blocks: 0,
                truncated: None,
            },
        })
    }

    /// The next frame, or `None` at the end. After an error or the end it stays `None`.
    ///
    /// # Errors
    /// When the medium fails or the file contradicts itself; the frames before are good.
    pub fn next_frame(&mut self) -> Result<Option<Frame<'_>>, CaptureError> {
        let Some(record) = self.next_record()? else {
            return Ok(None);
        };
        self.last_ns = record.unix_ns;
        let captured = self.buffer.len();
        self.summary.bytes = self
            .summary
            .bytes
            .saturating_add(u64::try_from(captured).unwrap_or(u64::MAX));
        Ok(Some(Frame {
            number: self.summary.packets,
            unix_ns: record.unix_ns,
            // Some writers leave the wire length at zero; what was captured was on the wire.
            orig_len: record
                .orig_len
                .max(u32::try_from(captured).unwrap_or(u32::MAX)),
            data: &self.buffer,
            link: record.link,
        }))
    }

    /// What has been read so far.
    pub const fn summary(&self) -> &Summary {
        &self.summary
    }

    fn next_record(&mut self) -> Result<Option<Record>, CaptureError> {
        while !self.finished {
            let step = match &mut self.decoder {
                Decoder::Pcap(decoder) => decoder.step(&mut self.input, &mut self.buffer),
                Decoder::PcapNg(decoder) => {
                    let step = decoder.step(&mut self.input, &mut self.buffer, self.last_ns);
                    self.summary.without_time = decoder.without_time();
                    step
                }
            };
            match step {
                Ok(Step::Packet(record)) => {
                    self.summary.packets = self.summary.packets.saturating_add(1);
                    return Ok(Some(record));
                }
                Ok(Step::SkippedLink) => {
                    self.summary.packets = self.summary.packets.saturating_add(1);
                    self.summary.skipped_link = self.summary.skipped_link.saturating_add(1);
                }
                Ok(Step::Described) => {}
                Ok(Step::SkippedBlock) => {
                    self.summary.skipped_blocks = self.summary.skipped_blocks.saturating_add(1);
                }
                Ok(Step::End) if !self.input.cut_short() => self.finished = true,
                Ok(step @ (Step::End | Step::Cut(_))) => {
                    let offset = if let Step::Cut(offset) = step {
                        offset
                    } else {
                        self.input.offset()
                    };
                    self.finished = true;
                    self.summary.truncated = Some(Truncation {
                        offset,
                        packets: self.summary.packets,
                    });
                }
                Err(fault) => {
                    self.finished = true;
                    let (offset, packets) = (self.input.offset(), self.summary.packets);
                    return Err(fault_error(
                        &self.name,
                        self.summary.gzip,
                        offset,
                        packets,
                        fault,
                    ));
                }
            }
        }
        Ok(None)
    }

    /// Bytes the frame buffer has reserved, for the tests of the memory bound.
    #[cfg(test)]
    fn buffer_capacity(&self) -> usize {
        self.buffer.capacity()
    }
}

/// The first bytes of a source, and the source with them put back.
fn peek(mut source: Box<dyn Read + Send>) -> io::Result<(Vec<u8>, Box<dyn Read + Send>)> {
    let mut head = Vec::with_capacity(2);
    source.by_ref().take(2).read_to_end(&mut head)?;
    let whole = Cursor::new(head.clone()).chain(source);
    Ok((head, Box::new(whole)))
}

fn io_error(name: &str, gzip: bool, offset: u64, source: io::Error) -> CaptureError {
    let name = name.to_owned();
    // flate2 reports damage as one of these two; the medium itself does not.
    if gzip
        && matches!(
            source.kind(),
            io::ErrorKind::InvalidInput | io::ErrorKind::InvalidData
        )
    {
        CaptureError::Gzip {
            name,
            offset,
            source,
        }
    } else {
        CaptureError::Io {
            name,
            offset,
            source,
        }
    }
}

fn fault_error(name: &str, gzip: bool, at: u64, packets: u64, fault: Fault) -> CaptureError {
    match fault {
        Fault::Io(source) => io_error(name, gzip, at, source),
        Fault::TooLarge { offset, length } => CaptureError::FrameTooLarge {
            name: name.to_owned(),
            packet: packets.saturating_add(1),
            offset,
            length,
        },
        Fault::Damaged { offset, what } => CaptureError::Damaged {
            name: name.to_owned(),
            offset,
            packets,
            what,
        },
        Fault::Link(link) => CaptureError::UnsupportedLink {
            name: name.to_owned(),
            link,
        },
    }
}

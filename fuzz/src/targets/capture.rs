//! Packet captures.

use std::io::{self, Read, Write as _};
use std::sync::Arc;

use flate2::Compression;
use flate2::write::GzEncoder;
use secmesh::sense::capture::{CaptureError, CaptureReader, FrameStart, MAX_FRAME, Summary};
use secmesh_common::packet::{Captured, parse_ethernet, parse_from_network};
use secmesh_tests::fixtures;

/// A capture of this many packets says as much as a longer one.
const MAX_PACKETS: u64 = 4096;

fn pcap(big: bool, magic: u32, link: u32, packets: &[Vec<u8>]) -> Vec<u8> {
    let u32b = |value: u32| {
        if big {
            value.to_be_bytes()
        } else {
            value.to_le_bytes()
        }
    };
    let version = if big { [0, 2, 0, 4] } else { [2, 0, 4, 0] };
    let mut out = [
        u32b(magic),
        version,
        [0; 4],
        [0; 4],
        u32b(65_535),
        u32b(link),
    ]
    .concat();
    for (seconds, data) in (1_700_000_000..).zip(packets) {
        let length = u32::try_from(data.len()).unwrap_or(0);
        out.extend([u32b(seconds), u32b(999), u32b(length), u32b(length + 4)].concat());
        out.extend(data);
    }
    out
}

fn block(kind: u32, body: &[u8]) -> Vec<u8> {
    let padded = body.len().next_multiple_of(4);
    let length = u32::try_from(padded + 12).unwrap_or(0).to_le_bytes();
    let mut out = [kind.to_le_bytes(), length].concat();
    out.extend(body);
    out.resize(8 + padded, 0);
    out.extend(length);
    out
}

fn pcapng(link: u16, packets: &[Vec<u8>]) -> Vec<u8> {
    let section = [
        &0x1a2b_3c4d_u32.to_le_bytes(),
        [1, 0, 0, 0].as_slice(),
        &[0xff; 8],
    ]
    .concat();
    let mut out = block(0x0a0d_0d0a, &section);
    // Nanoseconds, an offset of a second, and the end of the options.
    let options = [
        9, 0, 1, 0, 9, 0, 0, 0, 14, 0, 8, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0,
    ];
    let interface = [
        &link.to_le_bytes(),
        [0; 2].as_slice(),
        &[0, 0, 1, 0],
        &options,
    ]
    .concat();
    out.extend(block(1, &interface));
    for data in packets {
        let length = u32::try_from(data.len()).unwrap_or(0).to_le_bytes();
        let head = [[0; 4], [1, 0, 0, 0], [2, 0, 0, 0], length, length].concat();
        out.extend(block(6, &[head, data.clone()].concat()));
        out.extend(block(3, &[length.to_vec(), data.clone()].concat()));
        out.extend(block(5, &[7; 12]));
    }
    out
}

pub(super) fn seeds() -> Vec<Vec<u8>> {
    let packets: Vec<Vec<u8>> = fixtures::all()
        .into_iter()
        .map(|fixture| fixture.frame)
        .filter(|frame| frame.len() < 100)
        .take(3)
        .collect();
    let network: Vec<Vec<u8>> = packets
        .iter()
        .map(|frame| frame.get(14..).unwrap_or_default().to_vec())
        .collect();
    let mut seeds = vec![
        pcap(false, 0xa1b2_c3d4, 1, &packets),
        pcap(true, 0xa1b2_3c4d, 1, &packets),
        pcapng(1, &packets),
    ];
    for link in [0_u16, 12, 101, 108, 113, 228, 229, 276, 147] {
        seeds.push(pcap(false, 0xa1b2_c3d4, link.into(), &network));
        seeds.push(pcapng(link, &network));
    }
    for plain in seeds.clone().iter().take(3) {
        let mut gzip = GzEncoder::new(Vec::new(), Compression::fast());
        if gzip.write_all(plain).is_ok() {
            seeds.extend(gzip.finish());
        }
    }
    seeds
}

/// Hands out a few bytes at a time, as a pipe may.
struct Drip {
    bytes: Arc<[u8]>,
    at: usize,
    most: usize,
}

impl Read for Drip {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let rest = self.bytes.get(self.at..).unwrap_or_default();
        let n = rest.len().min(buffer.len()).min(self.most);
        for (to, from) in buffer.iter_mut().zip(rest.iter().take(n)) {
            *to = *from;
        }
        self.at += n;
        Ok(n)
    }
}

/// What a capture came to, in so far as it can be compared.
#[derive(Debug, PartialEq, Eq)]
struct Told {
    /// Time, length and a sum over the bytes of each frame, folded into one number.
    digest: u64,
    frames: u64,
    summary: Option<Summary>,
    error: Option<String>,
    /// A broken compressed stream is noticed sooner or later, by how much of it is looked at once.
    broken_gzip: bool,
}

fn read(bytes: &Arc<[u8]>, most: usize) -> Told {
    let mut told = Told {
        digest: 0,
        frames: 0,
        summary: None,
        error: None,
        broken_gzip: false,
    };
    let source = Drip {
        bytes: Arc::clone(bytes),
        at: 0,
        most,
    };
    let mut reader = match CaptureReader::new(Box::new(source), "fuzz") {
        Ok(reader) => reader,
        Err(error) => {
            told.broken_gzip = matches!(error, CaptureError::Gzip { .. });
            told.error = Some(error.to_string());
            return told;
        }
    };
    let (mut last, mut handed_out) = (0, 0_u64);
    while told.frames < MAX_PACKETS {
        match reader.next_frame() {
            Ok(Some(frame)) => {
                assert!(
                    frame.data.len() <= MAX_FRAME as usize,
                    "{}",
                    frame.data.len()
                );
                assert!(frame.orig_len as usize >= frame.data.len());
                assert!(frame.number > last, "{} after {last}", frame.number);
                last = frame.number;
                handed_out += frame.data.len() as u64;
                told.frames += 1;
                told.digest = told.digest.rotate_left(7) ^ frame.unix_ns ^ sum(frame.data);
                parsed(frame.start(), frame.data, frame.orig_len);
            }
            Ok(None) => break,
            Err(error) => {
                assert!(!matches!(error, CaptureError::Io { .. }), "{error}");
                told.broken_gzip = matches!(error, CaptureError::Gzip { .. });
                told.error = Some(error.to_string());
                break;
            }
        }
    }
    let summary = *reader.summary();
    assert_eq!(summary.bytes, handed_out);
    assert!(summary.packets >= told.frames && summary.packets >= summary.skipped_link);
    if told.frames < MAX_PACKETS {
        assert!(
            matches!(reader.next_frame(), Ok(None)),
            "the end is not the end"
        );
    }
    told.summary = Some(summary);
    told
}

fn sum(bytes: &[u8]) -> u64 {
    bytes
        .iter()
        .fold(0_u64, |sum, byte| sum.rotate_left(5) ^ u64::from(*byte))
}

/// The parser takes whatever a capture says a frame is.
fn parsed(start: FrameStart, data: &[u8], wire_len: u32) {
    let captured = Captured { data, wire_len };
    match start {
        FrameStart::Ethernet => {
            let _packet = parse_ethernet(&captured);
        }
        FrameStart::Network { ethertype, offset } => {
            assert!(offset <= data.len() && offset < 64, "{offset}");
            let _packet = parse_from_network(&captured, ethertype, offset);
        }
        FrameStart::Opaque => {}
    }
}

pub(super) fn run(input: &[u8]) {
    let bytes: Arc<[u8]> = input.into();
    let told = read(&bytes, usize::MAX);
    for most in [1, 7] {
        let again = read(&bytes, most);
        if !told.broken_gzip && !again.broken_gzip {
            assert_eq!(again, told, "in pieces of {most}");
        }
    }
}

//! Captures made byte by byte, so that each field under test is visible.

use std::io::Write as _;

use flate2::Compression;
use flate2::write::GzEncoder;

use super::super::input::Endian;

pub(super) fn u16b(endian: Endian, value: u16) -> [u8; 2] {
    match endian {
        Endian::Little => value.to_le_bytes(),
        Endian::Big => value.to_be_bytes(),
    }
}

pub(super) fn u32b(endian: Endian, value: u32) -> [u8; 4] {
    match endian {
        Endian::Little => value.to_le_bytes(),
        Endian::Big => value.to_be_bytes(),
    }
}

pub(super) fn pcap_header(endian: Endian, nanos: bool, link: u32) -> Vec<u8> {
    let mut out = u32b(endian, if nanos { 0xa1b2_3c4d } else { 0xa1b2_c3d4 }).to_vec();
    out.extend(u16b(endian, 2));
    out.extend(u16b(endian, 4));
    out.extend([0; 8]);
    out.extend(u32b(endian, 65_535));
    out.extend(u32b(endian, link));
    out
}

pub(super) fn pcap_packet(
    endian: Endian,
    seconds: u32,
    fraction: u32,
    orig_len: u32,
    data: &[u8],
) -> Vec<u8> {
    let mut out = Vec::new();
    for field in [
        seconds,
        fraction,
        u32::try_from(data.len()).unwrap(),
        orig_len,
    ] {
        out.extend(u32b(endian, field));
    }
    out.extend(data);
    out
}

pub(super) fn block(endian: Endian, kind: u32, body: &[u8]) -> Vec<u8> {
    let length = u32::try_from(body.len().next_multiple_of(4) + 12).unwrap();
    let mut out = u32b(endian, kind).to_vec();
    out.extend(u32b(endian, length));
    out.extend(body);
    out.resize(out.len().next_multiple_of(4), 0);
    out.extend(u32b(endian, length));
    out
}

pub(super) fn section(endian: Endian) -> Vec<u8> {
    let mut body = u32b(endian, 0x1a2b_3c4d).to_vec();
    body.extend(u16b(endian, 1));
    body.extend(u16b(endian, 0));
    body.extend([0xff; 8]);
    block(endian, 0x0a0d_0d0a, &body)
}

pub(super) fn interface(
    endian: Endian,
    link: u16,
    snap_len: u32,
    options: &[(u16, &[u8])],
) -> Vec<u8> {
    let mut body = u16b(endian, link).to_vec();
    body.extend([0; 2]);
    body.extend(u32b(endian, snap_len));
    for (code, value) in options {
        body.extend(u16b(endian, *code));
        body.extend(u16b(endian, u16::try_from(value.len()).unwrap()));
        body.extend(*value);
        body.resize(body.len().next_multiple_of(4), 0);
    }
    block(endian, 1, &body)
}

pub(super) fn enhanced(
    endian: Endian,
    interface: u32,
    stamp: u64,
    orig_len: u32,
    data: &[u8],
) -> Vec<u8> {
    let mut body = u32b(endian, interface).to_vec();
    body.extend(u32b(endian, u32::try_from(stamp >> 32).unwrap()));
    body.extend(u32b(endian, u32::try_from(stamp & 0xffff_ffff).unwrap()));
    body.extend(u32b(endian, u32::try_from(data.len()).unwrap()));
    body.extend(u32b(endian, orig_len));
    body.extend(data);
    block(endian, 6, &body)
}

pub(super) fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::fast());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

mod build;

use proptest::prelude::*;

use super::input::Endian;
use super::*;
use build::{block, enhanced, gzip, interface, pcap_header, pcap_packet, section, u16b, u32b};

fn open(bytes: &[u8]) -> Result<CaptureReader, CaptureError> {
    CaptureReader::new(Box::new(Cursor::new(bytes.to_vec())), "test.pcap")
}

type Owned = (u64, u64, u32, Vec<u8>, LinkType);

fn read_all(bytes: &[u8]) -> (Vec<Owned>, Result<Summary, CaptureError>) {
    let mut frames = Vec::new();
    let mut reader = match open(bytes) {
        Ok(reader) => reader,
        Err(error) => return (frames, Err(error)),
    };
    loop {
        match reader.next_frame() {
            Ok(Some(frame)) => {
                frames.push((
                    frame.number,
                    frame.unix_ns,
                    frame.orig_len,
                    frame.data.to_vec(),
                    frame.link,
                ));
            }
            Ok(None) => return (frames, Ok(*reader.summary())),
            Err(error) => {
                assert!(
                    matches!(reader.next_frame(), Ok(None)),
                    "after an error the reader stays at its end"
                );
                return (frames, Err(error));
            }
        }
    }
}

#[test]
fn pcap_in_both_byte_orders_and_units_plain_and_gzip() {
    for endian in [Endian::Little, Endian::Big] {
        for nanos in [false, true] {
            let mut file = pcap_header(endian, nanos, 1);
            file.extend(pcap_packet(endian, 1_700_000_000, 123_456, 1500, b"first"));
            file.extend(pcap_packet(endian, 1_700_000_001, 1, 3, b"two"));
            let unit = if nanos { 1 } else { 1000 };
            let expected = vec![
                (
                    1,
                    1_700_000_000_000_000_000 + 123_456 * unit,
                    1500,
                    b"first".to_vec(),
                    LinkType::Ethernet,
                ),
                (
                    2,
                    1_700_000_001_000_000_000 + unit,
                    3,
                    b"two".to_vec(),
                    LinkType::Ethernet,
                ),
            ];
            let (frames, summary) = read_all(&file);
            assert_eq!(frames, expected);
            let summary = summary.unwrap();
            assert_eq!(
                (summary.format, summary.gzip, summary.packets, summary.bytes),
                (Format::Pcap, false, 2, 8)
            );
            assert_eq!(summary.truncated, None);
            let (frames, summary) = read_all(&gzip(&file));
            assert_eq!(frames, expected);
            assert!(summary.unwrap().gzip);
        }
    }
}

#[test]
fn gzip_members_joined_with_cat_are_one_capture() {
    let mut first = pcap_header(Endian::Little, false, 1);
    first.extend(pcap_packet(Endian::Little, 1, 0, 1, b"a"));
    let second = pcap_packet(Endian::Little, 2, 0, 1, b"b");
    let mut file = gzip(&first);
    file.extend(gzip(&second));
    assert_eq!(read_all(&file).0.len(), 2);
}

#[test]
fn pcap_flag_bits_above_the_link_type_are_not_part_of_it() {
    let mut file = pcap_header(Endian::Little, false, 0x4400_0001);
    file.extend(pcap_packet(Endian::Little, 1, 0, 1, b"a"));
    assert_eq!(read_all(&file).0[0].4, LinkType::Ethernet);
}

#[test]
fn pcapng_sections_interfaces_and_clocks() {
    let (le, be) = (Endian::Little, Endian::Big);
    let mut file = section(le);
    file.extend(block(le, 0x4000_0bad, &vec![7; 300_000]));
    file.extend(interface(le, 1, 0, &[(2, b"eth0"), (9, &[9]), (0, b"")]));
    file.extend(interface(
        le,
        101,
        0,
        &[(9, &[0x80 | 0x0a]), (14, &5_i64.to_le_bytes())],
    ));
    file.extend(interface(le, 105, 0, &[]));
    file.extend(enhanced(le, 0, 1_700_000_000_123_456_789, 60, b"nano"));
    file.extend(enhanced(le, 1, 3 * 1024 + 512, 60, b"binary"));
    file.extend(enhanced(le, 2, 1, 60, b"wireless"));
    // A second section, the other way round: interface numbers start again.
    file.extend(section(be));
    file.extend(interface(be, 276, 4, &[]));
    file.extend(enhanced(be, 0, 42, 60, b"micro"));
    let mut simple = u32b(be, 900).to_vec();
    simple.extend(b"simp");
    file.extend(block(be, 3, &simple));
    let mut old = u16b(be, 0).to_vec();
    old.extend([0; 2]);
    for field in [0, 43, 3, 60] {
        old.extend(u32b(be, field));
    }
    old.extend(b"old");
    file.extend(block(be, 2, &old));

    let expected: Vec<Owned> = vec![
        (
            1,
            1_700_000_000_123_456_789,
            60,
            b"nano".to_vec(),
            LinkType::Ethernet,
        ),
        (2, 8_500_000_000, 60, b"binary".to_vec(), LinkType::RawIp),
        (4, 42_000, 60, b"micro".to_vec(), LinkType::LinuxCooked2),
        (5, 42_000, 900, b"simp".to_vec(), LinkType::LinuxCooked2),
        (6, 43_000, 60, b"old".to_vec(), LinkType::LinuxCooked2),
    ];
    for file in [file.clone(), gzip(&file)] {
        let (frames, summary) = read_all(&file);
        let summary = summary.unwrap();
        assert_eq!(frames, expected);
        assert_eq!(
            (summary.packets, summary.skipped_link, summary.without_time),
            (6, 1, 1)
        );
        assert_eq!(
            (summary.format, summary.skipped_blocks),
            (Format::PcapNg, 1)
        );
    }
}

#[test]
fn time_stamps_out_of_reach_are_held_at_the_ends() {
    let le = Endian::Little;
    for (options, expected) in [
        (vec![(9_u16, [0_u8].to_vec())], u64::MAX),
        (vec![(14, i64::MIN.to_le_bytes().to_vec())], 0),
        (vec![(14, i64::MAX.to_le_bytes().to_vec())], u64::MAX),
        (vec![(9, vec![38])], 0),
    ] {
        let options: Vec<(u16, &[u8])> = options
            .iter()
            .map(|(code, value)| (*code, value.as_slice()))
            .collect();
        let mut file = section(le);
        file.extend(interface(le, 1, 0, &options));
        file.extend(enhanced(le, 0, u64::MAX, 60, b"x"));
        assert_eq!(read_all(&file).0[0].1, expected, "{options:?}");
    }
}

#[test]
fn a_cut_capture_gives_what_is_complete_and_says_where_it_ends() {
    let le = Endian::Little;
    let mut pcap = pcap_header(le, false, 1);
    pcap.extend(pcap_packet(le, 1, 0, 4, b"good"));
    let complete = pcap.len();
    pcap.extend(pcap_packet(le, 2, 0, 4, b"gone"));
    let mut pcapng = section(le);
    pcapng.extend(interface(le, 1, 0, &[]));
    pcapng.extend(enhanced(le, 0, 1, 4, b"good"));
    let complete_ng = pcapng.len();
    pcapng.extend(enhanced(le, 0, 2, 4, b"gone"));
    for (file, complete) in [(pcap, complete), (pcapng, complete_ng)] {
        for end in complete..file.len() {
            let (frames, summary) = read_all(&file[..end]);
            assert_eq!(frames.len(), 1, "cut at {end}");
            let expected = (end > complete).then(|| Truncation {
                offset: u64::try_from(complete).unwrap(),
                packets: 1,
            });
            assert_eq!(summary.unwrap().truncated, expected, "cut at {end}");
        }
    }
}

#[test]
fn a_cut_gzip_stream_is_a_cut_capture() {
    let le = Endian::Little;
    let mut file = pcap_header(le, false, 1);
    for n in 0..200 {
        file.extend(pcap_packet(
            le,
            n,
            n.wrapping_mul(2_654_435_761),
            60,
            &n.to_le_bytes().repeat(10),
        ));
    }
    let packed = gzip(&file);
    let (frames, summary) = read_all(&packed[..packed.len() - 20]);
    assert!(
        !frames.is_empty() && frames.len() < 200,
        "{} frames",
        frames.len()
    );
    assert!(summary.unwrap().truncated.is_some());
    // All data is there, only the trailer is not: still cut.
    let (frames, summary) = read_all(&packed[..packed.len() - 8]);
    assert_eq!(frames.len(), 200);
    assert!(summary.unwrap().truncated.is_some());
    let mut broken = packed;
    let middle = broken.len() - 6;
    broken[middle] ^= 0xff;
    assert!(matches!(
        read_all(&broken).1,
        Err(CaptureError::Gzip { .. })
    ));
}

#[test]
fn a_frame_beyond_the_limit_is_refused_by_number_and_offset() {
    let le = Endian::Little;
    let mut file = pcap_header(le, false, 1);
    file.extend(pcap_packet(le, 1, 0, 4, b"good"));
    file.extend(pcap_packet(
        le,
        1,
        0,
        MAX_FRAME,
        &vec![0; MAX_FRAME as usize],
    ));
    for field in [1, 0, MAX_FRAME + 1, 9] {
        file.extend(u32b(le, field));
    }
    let (frames, error) = read_all(&file);
    assert_eq!(frames.len(), 2);
    assert_eq!(
        error.unwrap_err().to_string(),
        "test.pcap: packet 3 at offset 262204 claims 262145 bytes, more than the 262144 that are accepted; \
         the file is damaged, or rewrite it with `editcap -s 262144`"
    );
    let mut file = section(le);
    file.extend(interface(le, 1, 0, &[]));
    file.extend(enhanced(le, 0, 1, 60, &vec![0; MAX_FRAME as usize + 1]));
    let (frames, error) = read_all(&file);
    assert_eq!(frames.len(), 0);
    assert!(matches!(
        error,
        Err(CaptureError::FrameTooLarge {
            packet: 1,
            offset: 48,
            length: 262_145,
            ..
        })
    ));
}

#[test]
fn damage_is_named_with_its_place() {
    let le = Endian::Little;
    let start = || {
        let mut file = section(le);
        file.extend(interface(le, 1, 0, &[]));
        file
    };
    let text = |file: &[u8]| read_all(file).1.unwrap_err().to_string();
    let tail = "packets before it are good, cut the file there or capture again";

    let mut file = start();
    file.extend(enhanced(le, 7, 1, 60, b"x"));
    assert_eq!(
        text(&file),
        format!(
            "test.pcap: damaged at offset 48, after 0 packets: a packet names interface 7, but the section has described 1; {tail}"
        )
    );
    let mut file = start();
    file.extend(enhanced(le, 0, 1, 60, b"x"));
    let last = file.len() - 4;
    file[last] = 99;
    assert_eq!(
        text(&file),
        format!(
            "test.pcap: damaged at offset 48, after 0 packets: a block of 36 bytes ends with the length 99; {tail}"
        )
    );
    let mut file = start();
    file.extend([6, 0, 0, 0, 13, 0, 0, 0]);
    assert_eq!(
        text(&file),
        format!(
            "test.pcap: damaged at offset 48, after 0 packets: a block length of 13 bytes is not a multiple of 4 from 12 on; {tail}"
        )
    );
    let mut file = start();
    let mut packet = enhanced(le, 0, 1, 60, b"x");
    packet[20] = 50;
    file.extend(packet);
    assert_eq!(
        text(&file),
        format!(
            "test.pcap: damaged at offset 48, after 0 packets: a packet of 50 bytes does not fit its block of 36 bytes; {tail}"
        )
    );
    assert_eq!(
        text(&pcap_header(le, false, 105)),
        "test.pcap: link type 105 is not supported; supported are Ethernet (1), raw IP (12, 14, 101, 228, 229), \
         Linux cooked (113, 276) and loopback (0, 108)"
    );
    assert_eq!(
        text(b"PK\x03\x04zip"),
        "test.pcap: not a packet capture: it starts with 50 4b 03 04; supported are pcap and pcapng, each also \
         gzip-compressed (convert others with `editcap -F pcapng`)"
    );
    assert_eq!(
        text(b"ab"),
        "test.pcap: not a packet capture: it holds only 2 bytes; supported are pcap and pcapng, each also \
         gzip-compressed (convert others with `editcap -F pcapng`)"
    );
    let mut file = section(le);
    for _ in 0..=MAX_INTERFACES {
        file.extend(interface(le, 1, 0, &[]));
    }
    assert!(text(&file).contains("more than 4096 interfaces in one section"));
}

#[test]
fn a_missing_file_is_named() {
    let error = CaptureReader::open(Path::new("/nonexistent/a.pcap"))
        .unwrap_err()
        .to_string();
    assert_eq!(
        error,
        "/nonexistent/a.pcap: cannot read at offset 0: No such file or directory (os error 2); check that the file exists and is readable"
    );
}

#[test]
fn every_link_type_leads_to_the_network_layer() {
    let at = |ethertype, offset| FrameStart::Network { ethertype, offset };
    let start = |number: u32, data: &[u8]| LinkType::from_number(number).unwrap().start(data);
    assert_eq!(start(1, b""), FrameStart::Ethernet);
    for number in [12, 14, 101] {
        assert_eq!(start(number, &[0x45]), at(0x0800, 0));
        assert_eq!(start(number, &[0x60]), at(0x86dd, 0));
        assert_eq!(start(number, &[0x10]), FrameStart::Opaque);
        assert_eq!(start(number, &[]), FrameStart::Opaque);
    }
    assert_eq!(start(228, &[]), at(0x0800, 0));
    assert_eq!(start(229, &[]), at(0x86dd, 0));

    let mut cooked = vec![0; 14];
    cooked.extend([0x86, 0xdd]);
    assert_eq!(start(113, &cooked), at(0x86dd, 16));
    assert_eq!(start(113, &cooked[..15]), FrameStart::Opaque);
    let mut tagged = vec![0; 14];
    tagged.extend([0x88, 0xa8, 0, 1, 0x81, 0, 0, 2, 0x08, 0]);
    assert_eq!(start(113, &tagged), at(0x0800, 24));
    assert_eq!(start(113, &tagged[..23]), FrameStart::Opaque);

    let mut cooked = vec![0x08, 0x00];
    cooked.extend([0; 18]);
    assert_eq!(start(276, &cooked), at(0x0800, 20));
    assert_eq!(start(276, &cooked[..19]), FrameStart::Opaque);

    for number in [0, 108] {
        assert_eq!(start(number, &[2, 0, 0, 0]), at(0x0800, 4));
        assert_eq!(start(number, &[0, 0, 0, 2]), at(0x0800, 4));
        for family in [10, 24, 28, 30] {
            assert_eq!(start(number, &[0, 0, 0, family]), at(0x86dd, 4));
            assert_eq!(start(number, &[family, 0, 0, 0]), at(0x86dd, 4));
        }
        assert_eq!(start(number, &[7, 0, 0, 0]), FrameStart::Opaque);
        assert_eq!(start(number, &[2, 0, 0]), FrameStart::Opaque);
    }
    for number in [2, 105, 127, 0xffff, u32::MAX] {
        assert_eq!(LinkType::from_number(number), None);
    }
}

fn sample(format: u8) -> Vec<u8> {
    let endian = if format & 1 == 0 {
        Endian::Little
    } else {
        Endian::Big
    };
    let mut file;
    if format & 2 == 0 {
        file = pcap_header(endian, format & 4 == 0, 113);
        for n in 0..6 {
            file.extend(pcap_packet(endian, n, n, 90, &[8; 40]));
        }
    } else {
        file = section(endian);
        file.extend(interface(
            endian,
            276,
            96,
            &[(2, b"any"), (9, &[6]), (14, &[0; 8])],
        ));
        for n in 0..4 {
            file.extend(enhanced(endian, 0, n, 90, &[8; 40]));
        }
        file.extend(block(endian, 3, &[0, 0, 0, 40, 1, 2, 3, 4]));
        file.extend(block(endian, 2, &[0; 28]));
        file.extend(section(endian));
        file.extend(block(endian, 5, &[0; 12]));
    }
    file
}

/// Reads to the end and checks what holds for every input: no panic, no loop without an end, no
/// buffer beyond the limit.
fn survive(bytes: &[u8]) {
    let Ok(mut reader) = open(bytes) else { return };
    let mut frames = 0;
    while let Ok(Some(frame)) = reader.next_frame() {
        assert!(frame.data.len() <= MAX_FRAME as usize);
        assert!(frame.orig_len as usize >= frame.data.len());
        if let FrameStart::Network { offset, .. } = frame.start() {
            assert!(offset <= frame.data.len());
        }
        frames += 1;
        assert!(
            frames <= bytes.len(),
            "each frame takes at least its header from the file"
        );
        assert!(reader.buffer_capacity() <= MAX_FRAME as usize);
    }
    assert!(reader.buffer_capacity() <= MAX_FRAME as usize);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn mutated_captures_neither_panic_nor_grow(
        format in 0_u8..8,
        changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..12),
        cut in any::<prop::sample::Index>(),
        shorten in any::<bool>(),
    ) {
        let mut file = sample(format);
        for (at, value) in changes {
            let at = at.index(file.len());
            file[at] = value;
        }
        if shorten {
            file.truncate(cut.index(file.len()));
        }
        survive(&file);
    }

    #[test]
    fn any_tail_behind_a_valid_header_is_survived(format in 0_u8..8, tail in prop::collection::vec(any::<u8>(), 0..300)) {
        let mut file = sample(format);
        file.truncate(if format & 2 == 0 { 24 } else { 28 });
        file.extend(tail);
        survive(&file);
    }

    #[test]
    fn mutated_gzip_is_survived(at in any::<prop::sample::Index>(), value in any::<u8>()) {
        let mut file = gzip(&sample(2));
        let at = at.index(file.len());
        file[at] = value;
        survive(&file);
    }
}

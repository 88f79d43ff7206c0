use proptest::prelude::*;

use super::*;
use crate::respond::lists::{
    compile,
    export::{self, Part},
    flatten,
    span::{NEVER, Spans, prefixes},
};

const NOW: u64 = 1_700_000_000;

fn options(format: Option<Format>, skip_invalid: bool) -> Options<'static> {
    Options {
        name: "bad.txt",
        format,
        skip_invalid,
        now_unix_s: NOW,
    }
}

fn read(text: impl AsRef<[u8]>) -> Result<Parsed, FormatError> {
    parse(text.as_ref(), &options(None, false), &mut |_| {})
}

/// Prefixes and seconds left.
fn shown(parsed: &Parsed) -> Vec<String> {
    let left = |end: u64| {
        if end == NEVER {
            String::new()
        } else {
            format!(" {}", end - NOW)
        }
    };
    let v4 = parsed.spans.v4.iter().flat_map(|s| {
        prefixes(s.start, s.end).map(move |p| format!("{p}{}", left(s.expires_unix_s)))
    });
    let v6 = parsed.spans.v6.iter().flat_map(|s| {
        prefixes(s.start, s.end).map(move |p| format!("{p}{}", left(s.expires_unix_s)))
    });
    v4.chain(v6).collect()
}

fn problems(text: &str) -> Vec<Problem> {
    match read(text) {
        Err(FormatError::Invalid { problems, .. }) => problems,
        other => panic!("{other:?}"),
    }
}

#[test]
fn lines_with_comments_ranges_mixed_families_crlf_and_a_bom() {
    let text = "\u{feff}# FireHOL\r\n\r\n; drop\r\n192.0.2.1\r\n192.0.2.0/24 ; SBL1\r\n  2001:db8::/32  # net\r\n\
        ::ffff:198.51.100.7\r\n10.0.0.1-10.0.0.2\n10.0.0.4 - 10.0.0.5 # spaced\n203.0.113.9 brute force, seen twice\n::ffff:1.2.3.0/120";
    let parsed = read(text).unwrap();
    assert_eq!(parsed.format, Format::Lines);
    assert_eq!(
        shown(&parsed),
        [
            "192.0.2.1",
            "192.0.2.0/24",
            "198.51.100.7",
            "10.0.0.1",
            "10.0.0.2",
            "10.0.0.4/31",
            "203.0.113.9",
            "1.2.3.0/24",
            "2001:db8::/32"
        ]
    );
}

/// A pipe whose writer gives it a byte at a time.
struct Drops<'a>(&'a [u8]);

impl Read for Drops<'_> {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        let len = into.len().min(1);
        (&mut self.0).take(len as u64).read(into)
    }
}

#[test]
fn what_a_pipe_cuts_is_read_as_one() {
    let text = "\u{feff}add lists 192.0.2.1 timeout 60\nadd lists 192.0.2.9\n";
    let parsed = parse(Drops(text.as_bytes()), &options(None, false), &mut |_| {}).unwrap();
    assert_eq!(parsed.format, Format::Ipset);
    assert_eq!(shown(&parsed), ["192.0.2.1 60", "192.0.2.9"]);
}

#[test]
fn an_ipset_save_with_timeouts() {
    let text = "create bad hash:net family inet hashsize 1024 maxelem 65536 timeout 300 bucketsize 12 initval 0x1\n\
        add bad 192.0.2.0/24 timeout 290 packets 0 bytes 0\nadd bad 192.0.2.7 timeout 0\n\
        create bad6 hash:ip family inet6\nadd bad6 2001:db8::1 comment \"timeout x nomatch\"\n";
    let parsed = read(text).unwrap();
    assert_eq!(parsed.format, Format::Ipset);
    assert_eq!(
        shown(&parsed),
        ["192.0.2.0/24 290", "192.0.2.7", "2001:db8::1"]
    );
    let wrong = problems(
        "create web hash:ip,port family inet\nadd web 192.0.2.1,tcp:80\ncreate ok hash:net\nadd ok 10.0.0.0/8 nomatch\n",
    );
    assert!(wrong[0].reason.contains("hash:ip,port"), "{wrong:?}");
    assert!(wrong[1].reason.contains("exception"), "{wrong:?}");
    assert_eq!((wrong[0].line, wrong[1].line), (2, 4));
}

#[test]
fn an_nft_set_with_intervals_timeouts_and_remarks() {
    let text = "table inet filter {\n\tset bad {\n\t\ttype ipv4_addr\n\t\tflags interval,timeout\n\t\tauto-merge\n\
        \t\telements = { 192.0.2.1 timeout 1d expires 1h2m3s500ms, 10.0.0.0/8,\n\t\t\t     198.51.100.2-198.51.100.3 timeout 90s comment \"a, } b\",\n\
        \t\t\t     203.0.113.5 counter packets 3 bytes 180 }\n\t}\n\tchain in {\n\t\ttcp dport { 22, 80 } accept\n\t}\n}\n";
    let parsed = read(text).unwrap();
    assert_eq!(parsed.format, Format::Nft);
    assert_eq!(
        shown(&parsed),
        [
            "192.0.2.1 3724",
            "10.0.0.0/8",
            "198.51.100.2/31 90",
            "203.0.113.5"
        ]
    );
    let script = "#!/usr/sbin/nft -f\nadd element inet filter bad { 192.0.2.1, 2001:db8::/64 }; add element inet filter bad { 192.0.2.2 }\n";
    assert_eq!(
        shown(&read(script).unwrap()),
        ["192.0.2.1", "192.0.2.2", "2001:db8::/64"]
    );
    let wrong = problems("table ip x {\n set y {\n elements = { 192.0.2.1 . 80,\n 192.0.2.2");
    assert_eq!((wrong[0].line, wrong[1].line), (3, 4), "{wrong:?}");
    assert!(wrong[1].reason.contains("cut off"), "{wrong:?}");
}

#[test]
fn decisions_of_crowdsec_in_each_shape() {
    let cscli = r#"[{"id": 1, "scenario": "ssh-bf", "source": {"scope": "Ip", "value": "9.9.9.9"}, "events": [{"meta": [{"key": "value"}]}],
        "decisions": [{"duration": "3h59m57.5s", "id": 7, "origin": "crowdsec", "scenario": "ssh-bf", "scope": "Ip", "type": "ban", "value": "192.0.2.1"},
                      {"duration": "1h", "scope": "Ip", "type": "captcha", "value": "192.0.2.2"}]},
        {"decisions": null}]"#;
    let parsed = read(cscli).unwrap();
    assert_eq!((parsed.format, parsed.ignored), (Format::Crowdsec, 1));
    assert_eq!(shown(&parsed), ["192.0.2.1 14398"]);

    let stream = r#"{"deleted": [{"value": "192.0.2.9"}], "new": [
        {"duration": "-5s", "scope": "Ip", "type": "ban", "value": "192.0.2.3"},
        {"duration": "90m", "scope": "Range", "type": "ban", "value": "2001:db8::/48"},
        {"duration": "90m", "scope": "Country", "type": "ban", "value": "XX"},
        {"duration": "90m", "scope": "ip", "type": "BAN", "value": "::ffff:192.0.2.4", "simulated": false}]}"#;
    let parsed = read(stream).unwrap();
    assert_eq!(parsed.ignored, 2);
    assert_eq!(shown(&parsed), ["192.0.2.4 5400", "2001:db8::/48 5400"]);

    assert!(matches!(
        read("null"),
        Err(FormatError::Empty { ignored: 0, .. })
    ));
    let cut = read("[{\"value\": \"192.0.2.1\"},\n{\"val").unwrap_err();
    assert!(cut.to_string().contains("line 2"), "{cut}");
    let wrong = problems(
        "[{\"value\": \"192.0.2.1\"},\n {\"value\": \"nobody\"},\n {\"value\": \"1.1.1.1\", \"duration\": \"soon\"}]",
    );
    assert_eq!((wrong[0].line, wrong[1].line), (2, 3));
}

#[test]
fn a_wrong_line_refuses_the_whole_file_with_line_text_and_remedy() {
    let error = read("192.0.2.1\n192.0.2.0/33\n1.2.3.4/24\n\u{1b}[2J\n9.9.9.9-1.1.1.1\n::1-1.1.1.1\n192.0.2.0 255.255.255.0\n")
        .unwrap_err()
        .to_string();
    for part in [
        "bad.txt is not imported (read as lines)",
        "line 2: `192.0.2.0/33`: the prefix length must be a number from 0 to 32",
        "did you mean 1.2.3.0/24?",
        "line 4: `\\u{1b}[2J`",
        "line 5: `9.9.9.9-1.1.1.1`: the range ends before it begins",
        "line 6: `::1-1.1.1.1`: the ends of the range are of different families",
        "line 7: `192.0.2.0 255.255.255.0`: figures after the address",
        "--skip-invalid",
    ] {
        assert!(error.contains(part), "{part:?} is missing in\n{error}");
    }
    let skipped = parse(&b"192.0.2.1\nfoo\n"[..], &options(None, true), &mut |_| {}).unwrap();
    assert_eq!((skipped.spans.len(), skipped.invalid), (1, 1));
    assert_eq!(skipped.problems[0].line, 2);
}

#[test]
fn reading_stops_at_enough_problems_and_long_lines_are_cut() {
    let many = "x\n".repeat(100);
    let Err(FormatError::Invalid { problems, more, .. }) = read(&many) else {
        panic!("taken");
    };
    assert!(problems.len() == MAX_PROBLEMS && more);
    let long = format!("{}\n192.0.2.1\n", "1".repeat(1 << 20));
    let wrong = self::problems(&long);
    assert!(wrong.len() == 1 && wrong[0].text.chars().count() <= 81);
    let long = format!("elements = {{ {} }}", "1".repeat(1 << 20));
    assert_eq!(self::problems(&long).len(), 1);
    let long = format!("[\"{}\"]", "1".repeat(1 << 20));
    assert!(matches!(read(&long), Err(FormatError::Syntax { .. })));
}

#[test]
fn an_empty_list_and_a_binary_are_refused() {
    assert!(matches!(read(""), Err(FormatError::Empty { .. })));
    assert!(matches!(
        read("# nothing\n"),
        Err(FormatError::Empty { .. })
    ));
    assert!(read([0x1f, 0x8b, 8, 0, 0xff, 0xfe, 0xfd]).is_err());
}

#[test]
fn entries_are_bounded() {
    struct Endless(u32);
    impl Read for Endless {
        fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
            let mut at = 0;
            while buffer.len() - at > 16 {
                let line = format!("{}\n", std::net::Ipv4Addr::from_bits(self.0));
                buffer[at..at + line.len()].copy_from_slice(line.as_bytes());
                at += line.len();
                self.0 = self.0.wrapping_add(1);
            }
            Ok(at)
        }
    }
    let result = parse(Endless(0), &options(None, false), &mut |_| {});
    assert!(matches!(result, Err(FormatError::TooMany { .. })));
}

fn any_spans() -> impl Strategy<Value = Spans> {
    let v4 = (any::<u32>(), 0_u32..70_000, 1_u64..100_000);
    let v6 = (any::<u128>(), any::<u32>(), 1_u64..100_000);
    let span = |start, end, seconds| crate::respond::lists::span::Span {
        start,
        end,
        expires_unix_s: NOW + seconds,
        list: 0,
    };
    (
        proptest::collection::vec(v4, 0..8),
        proptest::collection::vec(v6, 0..8),
    )
        .prop_map(move |(v4, v6)| Spans {
            v4: flatten(
                v4.into_iter()
                    .map(|(s, l, t)| span(s, s.saturating_add(l), t))
                    .collect(),
            ),
            v6: flatten(
                v6.into_iter()
                    .map(|(s, l, t)| crate::respond::lists::span::Span {
                        start: s,
                        end: s.saturating_add(u128::from(l)),
                        expires_unix_s: NOW + t,
                        list: 0,
                    })
                    .collect(),
            ),
        })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn what_is_exported_is_read_back(spans in any_spans()) {
        prop_assume!(!spans.is_empty());
        let wanted = compile([&spans], &[], NOW);
        for format in [Format::Lines, Format::Ipset, Format::Nft, Format::Crowdsec, Format::Json] {
            let mut bytes = Vec::new();
            let part = Part { name: "list \"x\"\u{e4}", spans: &spans };
            export::write(&mut bytes, format, &[part], NOW).unwrap();
            let parsed = read(&bytes).unwrap();
            prop_assert_eq!(parsed.format, format);
            let mut back = Spans { v4: flatten(parsed.spans.v4), v6: flatten(parsed.spans.v6) };
            let mut wanted = wanted.clone();
            if format == Format::Lines {
                // Without their ends neighbours are one; only what is covered can be compared.
                let never = |s: &Spans| {
                    let mut s = s.clone();
                    s.v4.iter_mut().for_each(|s| s.expires_unix_s = NEVER);
                    s.v6.iter_mut().for_each(|s| s.expires_unix_s = NEVER);
                    Spans { v4: flatten(s.v4), v6: flatten(s.v6) }
                };
                back = never(&back);
                wanted = compile([&never(&spans)], &[], NOW);
            }
            prop_assert_eq!(compile([&back], &[], NOW), wanted, "{:?}", format);
        }
    }

    #[test]
    fn no_bytes_make_it_panic(bytes: Vec<u8>, which in 0_usize..6, skip: bool) {
        let formats = [None, Some(Format::Lines), Some(Format::Ipset), Some(Format::Nft), Some(Format::Crowdsec), Some(Format::Json)];
        drop(parse(bytes.as_slice(), &options(formats[which], skip), &mut |_| {}));
    }

    #[test]
    fn no_text_of_its_own_words_makes_it_panic(
        words in proptest::collection::vec(prop_oneof![
            Just("add"), Just("create"), Just("x"), Just("hash:ip"), Just("timeout"), Just("expires"), Just("-"), Just("/"), Just("\n"),
            Just("elements"), Just("="), Just("{"), Just("}"), Just(","), Just("\""), Just("[{"), Just("\"value\":"), Just("}]"), Just("never"),
            Just("1.2.3.4"), Just("::/0"), Just("0.0.0.0/0"), Just("1h"), Just("-9s"), Just("99999999999999999999h"), Just("#"), Just(";"), Just("comment"), Just("element"),
        ], 0..40),
        which in 0_usize..6, skip: bool,
    ) {
        let formats = [None, Some(Format::Lines), Some(Format::Ipset), Some(Format::Nft), Some(Format::Crowdsec), Some(Format::Json)];
        let text = words.join(" ");
        if let Ok(parsed) = parse(text.as_bytes(), &options(formats[which], skip), &mut |_| {}) {
            for s in &parsed.spans.v4 {
                prop_assert!(s.start <= s.end && s.expires_unix_s > NOW);
            }
        }
    }
}

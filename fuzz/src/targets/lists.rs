//! Lists in every format that people have them in.

use std::io::{self, Read};

use secmesh::respond::lists::format::{
    Format, FormatError, MAX_PROBLEMS, Options, Parsed, Problem, parse,
};
use secmesh::respond::lists::{NEVER, Part, Span, Spans, flatten, write};

/// When the lists are read, unix seconds.
const NOW: u64 = 1_700_000_000;
/// Spans of a list that is written and read back; each may be 250 prefixes.
const FEW: usize = 24;
/// What IPv4-mapped addresses become is written nowhere: no packet comes from there.
const MAPPED: (u128, u128) = (0xffff_0000_0000, 0xffff_ffff_ffff);

pub(super) fn seeds() -> Vec<Vec<u8>> {
    [
        "# FireHOL level 1\r\n\r\n192.0.2.1\r\n192.0.2.0/24 ; SBL1\n2001:db8::/32 # net\n10.0.0.4 - 10.0.0.5\n",
        "::ffff:198.51.100.7\n::ffff:1.2.3.0/120\n0.0.0.0/0\n::/0\n255.255.255.255\n::1-::ffff:ffff:ffff:1\n",
        "create bad hash:net family inet hashsize 1024 maxelem 65536 timeout 300 bucketsize 12 initval 0x1\nadd bad 192.0.2.0/24 timeout 290 packets 0 bytes 0\nadd bad 192.0.2.7 timeout 0 comment \"x nomatch\"\ncreate six hash:ip family inet6\nadd six 2001:db8::1\n",
        "table inet filter {\n\tset bad {\n\t\ttype ipv4_addr\n\t\tflags interval,timeout\n\t\telements = { 192.0.2.1 timeout 1d expires 1h2m3s500ms, 10.0.0.0/8,\n\t\t\t198.51.100.2-198.51.100.3 timeout 90s comment \"a, } b\" }\n\t}\n}\n",
        "#!/usr/sbin/nft -f\nadd element inet filter bad { 192.0.2.1, 2001:db8::/64 }; add element inet filter bad { 192.0.2.2 }\n",
        r#"[{"id":1,"scenario":"ssh-bf","source":{"scope":"Ip","value":"9.9.9.9"},"decisions":[{"duration":"3h59m57.5s","id":7,"origin":"crowdsec","scope":"Ip","type":"ban","value":"192.0.2.1"},{"duration":"1h","scope":"Ip","type":"captcha","value":"192.0.2.2"}]},{"decisions":null}]"#,
        r#"{"deleted":[{"value":"192.0.2.9"}],"new":[{"duration":"-5s","scope":"Ip","type":"ban","value":"192.0.2.3"},{"duration":"90m","scope":"Range","type":"ban","value":"2001:db8::/48"},{"duration":"90m","scope":"Country","type":"ban","value":"XX"}]}"#,
        r#"{"format":"secmesh-list","version":1,"entries":[{"value":"192.0.2.0/25","list":"x","expires_unix_s":1700000500},{"value":"2001:db8::","list":"x"}]}"#,
        "192.0.2.1\n192.0.2.0/33\n1.2.3.4/24\n\u{1b}[2J\n9.9.9.9-1.1.1.1\n192.0.2.0 255.255.255.0\n",
    ]
    .map(|text| text.as_bytes().to_vec())
    .into()
}

/// Gives a few bytes at a time.
struct Drops<'a>(&'a [u8]);

impl Read for Drops<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let n = (1 + self.0.len() % 7).min(self.0.len()).min(buffer.len());
        let (first, rest) = self.0.split_at(n);
        for (to, from) in buffer.iter_mut().zip(first) {
            *to = *from;
        }
        self.0 = rest;
        Ok(n)
    }
}

const FORMATS: [Format; 5] = [
    Format::Lines,
    Format::Ipset,
    Format::Nft,
    Format::Crowdsec,
    Format::Json,
];

fn read(
    input: impl Read,
    format: Option<Format>,
    skip_invalid: bool,
) -> Result<Parsed, FormatError> {
    let options = Options {
        name: "list",
        format,
        skip_invalid,
        now_unix_s: NOW,
    };
    parse(input, &options, &mut |_| {})
}

pub(super) fn run(input: &[u8]) {
    for format in [None].into_iter().chain(FORMATS.map(Some)) {
        let strict = read(input, format, false);
        let lenient = read(input, format, true);
        if let Some(format) = format {
            let dropwise = read(Drops(input), Some(format), true);
            assert_eq!(
                told(&dropwise),
                told(&lenient),
                "{format}, a few bytes at a time"
            );
        }
        match (&strict, &lenient) {
            (Ok(strict), Ok(lenient)) => {
                assert_eq!((strict, strict.invalid), (lenient, 0));
                good(strict);
                written_and_read(strict);
            }
            (Ok(_), Err(_)) => {
                assert!(
                    lenient.is_ok(),
                    "leaving out what is wrong made it worse: {lenient:?}"
                );
            }
            (Err(_), Ok(lenient)) => {
                assert!(
                    lenient.invalid > 0,
                    "refused, and nothing is wrong: {strict:?}"
                );
                good(lenient);
            }
            (Err(_), Err(_)) => {}
        }
        for error in [&strict, &lenient]
            .into_iter()
            .filter_map(|r| r.as_ref().err())
        {
            if let FormatError::Invalid { problems, .. } = error {
                told_well(input, problems);
            }
            let harmless = error
                .to_string()
                .chars()
                .all(|c| c == '\n' || !c.is_control());
            assert!(harmless, "{error:?}");
        }
        if let Ok(parsed) = &lenient {
            told_well(input, &parsed.problems);
        }
    }
}

fn told(result: &Result<Parsed, FormatError>) -> Result<&Parsed, String> {
    result.as_ref().map_err(ToString::to_string)
}

/// Each problem names a line of the input and shows a bounded piece of it.
fn told_well(input: &[u8], problems: &[Problem]) {
    let lines = input.split(|byte| *byte == b'\n').count() as u64;
    assert!(problems.len() <= MAX_PROBLEMS);
    for problem in problems {
        assert!(
            (1..=lines).contains(&problem.line),
            "{problem:?} of {lines}"
        );
        assert!(problem.text.len() <= 81 * 12, "{problem:?}");
    }
}

fn good(parsed: &Parsed) {
    let spans = &parsed.spans;
    assert!(!spans.is_empty());
    assert!(
        spans
            .v4
            .iter()
            .all(|s| s.start <= s.end && s.expires_unix_s > NOW)
    );
    assert!(
        spans
            .v6
            .iter()
            .all(|s| s.start <= s.end && s.expires_unix_s > NOW)
    );
    let v4 = flatten(spans.v4.clone());
    assert!(v4.is_sorted_by(|a, b| a.end < b.start), "{v4:?}");
    let v6 = flatten(spans.v6.clone());
    assert!(v6.is_sorted_by(|a, b| a.end < b.start), "{v6:?}");
}

fn flat(spans: &Spans, ends: bool) -> Spans {
    fn of<A: Copy>(spans: &[Span<A>], ends: bool) -> Vec<Span<A>> {
        let end = |s: &Span<A>| if ends { s.expires_unix_s } else { NEVER };
        spans
            .iter()
            .map(|s| Span {
                expires_unix_s: end(s),
                ..*s
            })
            .collect()
    }
    Spans {
        v4: flatten(of(&spans.v4, ends)),
        v6: flatten(of(&spans.v6, ends)),
    }
}

/// What is written in any format is read back as the same addresses, and with the same ends from ours.
fn written_and_read(parsed: &Parsed) {
    let spans = flat(&parsed.spans, true);
    let mapped = |s: &Span<u128>| s.start <= MAPPED.1 && s.end >= MAPPED.0;
    if spans.len() > FEW || spans.v6.iter().any(mapped) {
        return;
    }
    for format in FORMATS {
        let part = Part {
            name: "list \"x\"\n",
            spans: &spans,
        };
        let part = match format {
            // A name is told in a comment there, and names have no line breaks.
            Format::Lines => Part { name: "x", ..part },
            _ => part,
        };
        let mut text = Vec::new();
        assert!(write(&mut text, format, &[part], NOW).is_ok());
        let ends = format == Format::Json;
        let back = read(text.as_slice(), None, false);
        assert!(
            back.is_ok(),
            "{format}: {back:?}\n{}",
            String::from_utf8_lossy(&text)
        );
        if let Ok(back) = back {
            assert_eq!(back.format, format);
            assert_eq!(flat(&back.spans, ends), flat(&spans, ends), "{format}");
        }
    }
}

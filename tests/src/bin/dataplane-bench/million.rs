//! A list of the size that is promised, from text to the kernel: 1,000,000 addresses and 100,000 prefixes of each
//! family.
//!
//! It goes the way of `secmesh decisions import`: the text is read, merged and compiled against an allowlist and
//! written into the tables of the loaded program. What an agent does beside it is left out: the import's
//! request, and keeping the list on the disk.

use std::{fmt::Write as _, time::Instant};

use anyhow::{Context as _, Result, ensure};
use secmesh::{
    clock::{Clock as _, SystemClock},
    dataplane::LoadOptions,
    respond::lists::{
        compile,
        format::{Options, parse},
        import::{Ttl, prepare},
    },
};
use secmesh_tests::kernel::{Kernel, options};
use xtask::bench::Row;

use crate::{Effort, addresses::Blocked, ours};

const GROUP: &str = "load";

/// Measures.
pub fn rows(effort: &Effort) -> Result<Vec<Row>> {
    let (hosts, prefixes) = (effort.loaded, effort.loaded / 10);
    eprintln!("measuring: loading {hosts} addresses and {prefixes} prefixes of each family");
    let text = text(hosts, prefixes)?;
    let mut kernel = Kernel::load(&LoadOptions {
        max_list_addresses: hosts,
        max_list_prefixes: prefixes,
        ..options()
    })?;
    let now_unix_s = SystemClock.unix_us() / 1_000_000;
    let ttl = Ttl {
        now_unix_s,
        ttl_s: 7 * 86_400,
        spread_percent: 10,
    };
    let name = "load.txt";
    let start = Instant::now();
    let parsed = parse(
        text.as_bytes(),
        &Options {
            name,
            format: None,
            skip_invalid: false,
            now_unix_s,
        },
        &mut |_bytes| {},
    )?;
    let spans = prepare(parsed.spans, ttl);
    let allowed = ["127.0.0.0/8".parse()?, "fe80::/10".parse()?];
    let compiled = compile([&spans], &allowed, now_unix_s);
    let read = start.elapsed();
    ours::replace(&mut kernel, &compiled)?;
    let loaded = start.elapsed();
    let entries = compiled.len();
    ensure!(
        kernel.lists.current().len() == entries && entries > hosts as usize,
        "{entries} entries of {hosts} addresses"
    );
    let again = Instant::now();
    ours::replace(&mut kernel, &compiled)?;
    let again = again.elapsed();
    let shown =
        |what: &str| format!("{hosts} addresses + {prefixes} prefixes of each family, {what}");
    Ok(vec![
        Row::new(GROUP, shown("load"), loaded.as_secs_f64(), "s").note(format!(
            "text to kernel, {entries} entries after merging, no agent; reading and merging {:.2} s, kernel {:.2} s",
            read.as_secs_f64(),
            loaded.saturating_sub(read).as_secs_f64()
        )),
        Row::new(GROUP, shown("the same again"), again.as_secs_f64(), "s")
            .note("compiled lists to kernel, in place of themselves"),
    ])
}

/// The list as a file has it, one a line, both families mixed.
fn text(hosts: u32, prefixes: u32) -> Result<String> {
    let [four, six] = [
        Blocked::new(false, hosts, prefixes)?,
        Blocked::new(true, hosts, prefixes)?,
    ];
    let mut text = String::from("# both families\n");
    // Writing to a String cannot fail.
    for (four, six) in four.hosts.iter().zip(&six.hosts) {
        let _ = writeln!(text, "{four}\n{six}");
    }
    for (four, six) in four.prefixes.iter().zip(&six.prefixes) {
        let _ = writeln!(text, "{four}\n{six}");
    }
    ensure!(
        text.lines().count() == 1 + 2 * (hosts + prefixes) as usize,
        "an entry is missing"
    );
    text.lines().nth(1).context("an empty list")?;
    Ok(text)
}

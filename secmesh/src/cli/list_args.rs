//! The command line of imported lists.

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, ValueEnum, ValueHint};

use super::args::duration;
use crate::respond::lists::ListName;
use crate::respond::lists::format::Format;
use crate::respond::lists::import::MAX_TTL_S;

/// `secmesh decisions import`
#[derive(Debug, Args)]
pub struct ImportArgs {
    /// The list, or - for standard input
    #[arg(value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub file: PathBuf,
    /// Name of the list [default: the file's]
    #[arg(long, value_name = "NAME")]
    pub list: Option<ListName>,
    /// How it is written
    #[arg(long, default_value = "auto")]
    pub format: InputFormat,
    /// Keep nothing longer than this; what ends sooner by itself does
    #[arg(long = "for", value_name = "DURATION", default_value = "7d", value_parser = list_duration)]
    pub ttl: Duration,
    /// Spread the ends over this last part of the time, so that not all end in one moment
    #[arg(long, value_name = "PERCENT", default_value = "10%", value_parser = percent)]
    pub spread: u8,
    /// Leave out lines that are wrong instead of refusing the whole list
    #[arg(long)]
    pub skip_invalid: bool,
    /// Import also networks that contain an address of this node, its gateway, a resolver or a peer, or that
    /// are wider than /8 (IPv6: /16); what is allowlisted stays free all the same
    #[arg(long, requires = "reason")]
    pub override_risky: bool,
    /// Why, for the record
    #[arg(long, value_name = "TEXT")]
    pub reason: Option<String>,
    /// Read and check it, change nothing
    #[arg(long)]
    pub dry_run: bool,
}

/// `secmesh decisions export`
#[derive(Debug, Args)]
pub struct ExportArgs {
    /// How to write it [default: lines; with --json: json]
    #[arg(long)]
    pub format: Option<ListFormat>,
    /// Only this list
    #[arg(long, value_name = "NAME")]
    pub list: Option<ListName>,
    /// Write to this file, whole or not at all [default: standard output]
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub output: Option<PathBuf>,
}

/// Formats of lists.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum ListFormat {
    /// One address, network or range per line
    Lines,
    /// `ipset save`
    Ipset,
    /// A set of nftables
    Nft,
    /// Decisions of CrowdSec, JSON
    Crowdsec,
    /// JSON of secmesh
    Json,
}

impl From<ListFormat> for Format {
    fn from(format: ListFormat) -> Self {
        match format {
            ListFormat::Lines => Self::Lines,
            ListFormat::Ipset => Self::Ipset,
            ListFormat::Nft => Self::Nft,
            ListFormat::Crowdsec => Self::Crowdsec,
            ListFormat::Json => Self::Json,
        }
    }
}

/// Formats to read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum InputFormat {
    /// Look at the beginning
    Auto,
    /// One address, network or range per line, with comments; `FireHOL`'s netset and ipset files
    Lines,
    /// `ipset save`
    Ipset,
    /// `nft list set`, or a script with `add element`
    Nft,
    /// `cscli decisions list -o json`, or decisions of the local API
    Crowdsec,
    /// JSON of secmesh
    Json,
}

impl InputFormat {
    /// The format, unless it is to be found out.
    pub fn format(self) -> Option<Format> {
        match self {
            Self::Auto => None,
            Self::Lines => Some(Format::Lines),
            Self::Ipset => Some(Format::Ipset),
            Self::Nft => Some(Format::Nft),
            Self::Crowdsec => Some(Format::Crowdsec),
            Self::Json => Some(Format::Json),
        }
    }
}

fn list_duration(text: &str) -> Result<Duration, String> {
    let duration = duration(text)?;
    if duration.as_secs() > MAX_TTL_S {
        return Err(format!("at most {} days", MAX_TTL_S / 86_400));
    }
    Ok(duration)
}

fn percent(text: &str) -> Result<u8, String> {
    text.strip_suffix('%')
        .unwrap_or(text)
        .parse()
        .ok()
        .filter(|percent| *percent <= 100)
        .ok_or_else(|| "a part from 0% to 100%".to_owned())
}

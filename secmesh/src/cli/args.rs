//! The command line: what there is, with its help and examples.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Parser, Subcommand, ValueEnum, ValueHint};
use clap_complete::Shell;

use super::list_args::{ExportArgs, ImportArgs};
use crate::addr::Prefix;
use crate::config::Mode;
use crate::mesh::ids::{Name, Zone};
use crate::respond::lists::ListName;

const EXIT_CODES: &str = "\
Exit codes: 0 done, 1 failed or refused, 2 bad usage or configuration, 3 the agent does not run, \
4 not permitted.

A first mesh:
  secmesh init --name n1 --advertise 192.0.2.1:4747   on the first server
  secmesh run                                         there, as root
  secmesh invite --name n2                            prints a ticket for the second one
  secmesh join TICKET --name n2 --advertise 192.0.2.2:4747";

/// Linux servers that defend each other: attackers that several of them see are dropped by all of
/// them, in the kernel.
#[derive(Debug, Parser)]
#[command(name = "secmesh", version, after_help = EXIT_CODES, max_term_width = 100)]
pub struct Cli {
    /// What every command takes.
    #[command(flatten)]
    pub global: Global,
    /// The command.
    #[command(subcommand)]
    pub command: Command,
}

/// Options of every command.
#[derive(Debug, Clone, Default, Args)]
#[command(next_help_heading = "Global options")]
pub struct Global {
    /// Configuration file [default: /etc/secmesh/secmesh.toml, if it is there]
    #[arg(long, global = true, value_name = "FILE", env = "SECMESH_CONFIG", hide_env_values = true, value_hint = ValueHint::FilePath)]
    pub config: Option<PathBuf>,
    /// State directory: keys, members, ledger [default: from the configuration, else /var/lib/secmesh]
    #[arg(long, global = true, value_name = "DIR", env = "SECMESH_STATE", hide_env_values = true, value_hint = ValueHint::DirPath)]
    pub state: Option<PathBuf>,
    /// Socket of the agent [default: from the configuration, else /run/secmesh/secmesh.sock]
    #[arg(long, global = true, value_name = "PATH", env = "SECMESH_SOCKET", hide_env_values = true, value_hint = ValueHint::FilePath)]
    pub socket: Option<PathBuf>,
    /// Print JSON for scripts instead of text for people
    #[arg(long, global = true)]
    pub json: bool,
    /// Log more to standard error (-vv: even more); `RUST_LOG` overrides it
    #[arg(short, long, global = true, action = clap::ArgAction::Count)]
    pub verbose: u8,
}

/// The commands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Run the agent: watch, vote, and drop what was decided; stop it with Ctrl-C or SIGTERM
    #[command(after_help = "\
What is blocked stays blocked when the agent stops, until it ends by itself; --detach-on-exit or \
`secmesh detach` takes everything out of the kernel.

Examples:
  secmesh run                                   as the configuration says (default: monitor mode)
  secmesh run --interface eth0 --mode enforce   drop, on one interface")]
    Run(RunArgs),
    /// Make this machine the first node of a new mesh
    #[command(after_help = "\
Makes this node's keys, the operator key (operator.key in the state directory: who holds it admits \
nodes and lifts blocks; keep a copy off this machine), and the genesis, which fixes for all nodes how \
long a block of the mesh lasts.

Examples:
  secmesh init --name n1 --zone rack1 --advertise 192.0.2.1:4747
  secmesh init --mesh production --block-ttl 2h")]
    Init(InitArgs),
    /// Print a ticket that lets one new node join, once
    #[command(after_help = "\
The ticket alone goes to standard output. It is a secret until it was used: hand it over as you would \
a password. Needs the running agent, and the operator key.

Examples:
  secmesh invite --name n2
  secmesh invite --expires 10m --operator-key /media/usb/operator.key
  secmesh join \"$(ssh n1 secmesh invite)\" --name n2      on the new node")]
    Invite(InviteArgs),
    /// Have a node of the mesh cut off
    #[command(after_help = "\
Nobody talks to a node that is cut off, its votes count for nothing, and the kernel of every other node \
drops what comes from it, until `secmesh readmit`. Without the key this is one vote: it takes the same on \
nodes with more than a third of the weight, and then two thirds agree. With the key it is done at once.

Examples:
  secmesh quarantine n4 --reason \"sends spam\"
  secmesh quarantine n4 --operator-key /media/usb/operator.key")]
    Quarantine {
        /// Its name or id
        #[arg(value_name = "NODE")]
        node: String,
        /// Why, for the record
        #[arg(long, value_name = "TEXT")]
        reason: Option<String>,
        /// Sign with this operator key: no votes are needed then
        #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath)]
        operator_key: Option<PathBuf>,
    },
    /// Take a node back that was cut off
    #[command(after_help = "\
Without the key it takes two thirds of the weight, and nodes that have proof against it say no.

Examples:
  secmesh readmit n4 --operator-key /media/usb/operator.key")]
    Readmit {
        /// Its name or id
        #[arg(value_name = "NODE")]
        node: String,
        /// Sign with this operator key: no votes are needed then
        #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath)]
        operator_key: Option<PathBuf>,
    },
    /// Join a mesh with a ticket from `secmesh invite`
    #[command(after_help = "\
Asks the member that made the ticket; if it says no, or does not answer, nothing is left behind.

With --standby this server is a spare: it asks the members in turn, every few seconds and for as long as the ticket \
lasts, and joins when one of them was cut off or removed and nobody has come since. It exits with 0 when it is in; \
then `secmesh run`.

Examples:
  secmesh join secmesh2-AQF… --name n2 --zone rack2 --advertise 192.0.2.2:4747
  secmesh join - --standby --name s1 --advertise 192.0.2.9:4747 < ticket && secmesh run
  secmesh invite | ssh n2 secmesh join - --name n2      reads the ticket from standard input")]
    Join(JoinArgs),
    /// Show this node: mode, interfaces, quorum, blocks, counters
    #[command(
        after_help = "Examples:\n  secmesh status\n  secmesh status --json | jq .quorum.state"
    )]
    Status {
        /// Show every counter, also those at zero
        #[arg(long)]
        all: bool,
    },
    /// Print the metrics that Prometheus would scrape
    #[command(after_help = "Example:\n  secmesh metrics | grep secmesh_blocks")]
    Metrics,
    /// Show the nodes of the mesh, or remove one
    #[command(
        after_help = "Examples:\n  secmesh peers\n  secmesh peers remove n4 --operator-key operator.key"
    )]
    Peers {
        /// What to do with them
        #[command(subcommand)]
        command: Option<PeersCommand>,
    },
    /// Show the epoch: who counts how much, who signed it, what it withstands
    #[command(after_help = "Examples:\n  secmesh epoch\n  secmesh epoch --json | jq .members")]
    Epoch,
    /// Compare what the nodes of the mesh have
    #[command(subcommand, after_help = "Example:\n  secmesh mesh digest")]
    Mesh(MeshCommand),
    /// Show how far each node is trusted, and why
    #[command(after_help = "\
TARGET follows from signed evidence that all nodes gather: outcomes of blocks, the operator's verdicts, \
test questions, proofs. EPOCH is what the certified epoch gives a node; each epoch moves it towards the target, by a \
tenth of all weight at most. VOTES is what its votes count now. Nodes that show the same frontier show the same.

Examples:
  secmesh trust
  secmesh trust n2
  secmesh trust --json | jq '.nodes[] | {name, target, epoch_weight}'")]
    Trust {
        /// Only this node, with its whole history: its name or the beginning of its id
        #[arg(value_name = "NODE")]
        node: Option<String>,
    },
    /// Show what this node's detectors raised, newest first
    #[command(
        after_help = "Examples:\n  secmesh alerts\n  secmesh alerts --limit 1000 --json | jq '.[].subject'"
    )]
    Alerts {
        /// At most this many
        #[arg(long, value_name = "N", default_value_t = 50, value_parser = limit)]
        limit: usize,
    },
    /// Show the newest flow records: who talked to whom, how much, how it ended
    #[command(after_help = "\
A record is made when a flow ends, goes silent, or has lasted for `active_timeout`. JSON has all figures; \
with --follow one record per line.

Examples:
  secmesh flows
  secmesh flows --follow
  secmesh flows --limit 1000 --json | jq '.[] | select(.end == \"reset\")'")]
    Flows {
        /// At most this many
        #[arg(long, value_name = "N", default_value_t = 50, value_parser = listed)]
        limit: usize,
        /// Go on with new ones until Ctrl-C
        #[arg(long)]
        follow: bool,
    },
    /// Show the newest beginnings and ends of processes on this host
    #[command(after_help = "Examples:\n  secmesh processes\n  secmesh processes --follow --json")]
    Processes {
        /// At most this many
        #[arg(long, value_name = "N", default_value_t = 50, value_parser = listed)]
        limit: usize,
        /// Go on with new ones until Ctrl-C
        #[arg(long)]
        follow: bool,
    },
    /// Show, add and delete decisions: who is blocked, why, until when
    #[command(
        subcommand,
        after_help = "\
Examples:
  secmesh decisions list --all
  secmesh decisions show 3f2a
  secmesh decisions add 203.0.113.9 --for 1h
  secmesh decisions delete 203.0.113.9
  secmesh decisions import /tmp/drop.txt --for 1d
  secmesh decisions export --format nft --output blocked.nft"
    )]
    Decisions(DecisionsCommand),
    /// Block an address or network on this node, or propose it to the mesh
    #[command(after_help = "\
Risky networks are refused with the reasons: those that hold an address of this host, a gateway, a
resolver, a member of the mesh, an SSH peer or anything else on the allowlist, and those wider than /8
(IPv6: /16). --override-risky --reason TEXT insists; the allowlist still wins in the kernel.

Examples:
  secmesh block 203.0.113.9
  secmesh block 2001:db8:bad::/48 --for 2h --reason \"ticket 4711\"
  secmesh block 203.0.113.9 --mesh            every node, if enough of them agree")]
    Block(BlockArgs),
    /// End a block, on this node at once and in the mesh by vote or by the operator's signature
    #[command(after_help = "\
Examples:
  secmesh unblock 203.0.113.9
  secmesh unblock 203.0.113.9 --operator-key /var/lib/secmesh/operator.key    without a vote
  secmesh unblock 203.0.113.9 --false-positive --operator-key FILE            it was harmless")]
    Unblock(UnblockArgs),
    /// Change and show what is never blocked
    #[command(
        subcommand,
        after_help = "\
Examples:
  secmesh allow list
  secmesh allow add 198.51.100.0/24 --reason office
  secmesh allow remove 198.51.100.0/24"
    )]
    Allow(AllowCommand),
    /// Tell the story of an address: what was seen, who voted what, what the kernel does with it
    #[command(
        after_help = "Examples:\n  secmesh explain 203.0.113.9\n  secmesh explain 2001:db8::7 --json"
    )]
    Explain {
        /// Address or network
        #[arg(value_name = "ADDR")]
        subject: Prefix,
    },
    /// Show or change whether packets are dropped or only counted
    #[command(after_help = "\
Examples:
  secmesh mode             says which it is
  secmesh mode enforce     drops from now on, also after a restart of the agent; after a reboot or
                           `secmesh detach` the configuration decides again
  secmesh mode enforce --confirm 60s
                           the same on trial: the kernel goes back to monitor after 60 s, even if no
                           agent runs, unless you can still say:
  secmesh mode confirm

Switching to enforce is refused if a block would cut off the SSH session that asks for it.")]
    Mode {
        /// The mode wanted, or confirm to keep enforcing after --confirm
        mode: Option<ModeWord>,
        /// Go back to monitor after this time, at most 1h, unless `secmesh mode confirm` comes
        #[arg(long, value_name = "DURATION", requires = "mode", value_parser = duration)]
        confirm: Option<Duration>,
    },
    /// Verify and show this node's signed record
    #[command(
        subcommand,
        after_help = "\
Examples:
  secmesh ledger verify
  secmesh ledger verify /backup/n1/ledger
  secmesh ledger show --last 20
  secmesh ledger prove 17 > entry-17.json
  secmesh ledger verify entry-17.json"
    )]
    Ledger(LedgerCommand),
    /// Run the detectors over packet captures and print the alerts
    #[command(after_help = "\
Reads pcap and pcapng, also gzip-compressed, of Ethernet, raw IP and Linux cooked captures, with the \
thresholds of the configuration. Needs neither agent nor root.

Examples:
  secmesh replay attack.pcap
  secmesh replay day1.pcapng.gz day2.pcapng.gz --json      one alert per line")]
    Replay {
        /// Captures
        #[arg(value_name = "FILE", required = true, value_hint = ValueHint::FilePath)]
        files: Vec<PathBuf>,
    },
    /// Write the heads of dropped packets to a pcapng file, each with the reason as its comment
    #[command(after_help = "\
In monitor mode: of packets that would be dropped. Ends after --count packets or --seconds; one \
capture at a time. Needs the running agent.

Examples:
  secmesh capture drops.pcapng
  secmesh capture --reason syn_flood --reason land --count 1000 drops.pcapng
  secmesh capture --seconds 5 - | tcpdump -r -")]
    Capture(CaptureArgs),
    /// Take secmesh out of the kernel: programs leave their interfaces, all blocks end
    #[command(after_help = "Stop the agent first. Needs root.\n\nExample:\n  secmesh detach")]
    Detach,
    /// Print a completion script for a shell
    #[command(after_help = "\
Examples:
  secmesh completions bash > /etc/bash_completion.d/secmesh
  secmesh completions fish > ~/.config/fish/completions/secmesh.fish")]
    Completions {
        /// The shell
        shell: Shell,
    },
    /// Print the manual page, or write one per command
    #[command(after_help = "\
Examples:
  secmesh man | man -l -
  secmesh man --dir /usr/local/share/man/man1")]
    Man {
        /// Write all pages to this directory, which must exist
        #[arg(long, value_name = "DIR", value_hint = ValueHint::DirPath)]
        dir: Option<PathBuf>,
    },
    /// Print the version
    #[command(after_help = "Example:\n  secmesh version --json")]
    Version,
}

/// `secmesh run`
#[derive(Debug, Args)]
pub struct RunArgs {
    /// Protect this interface (again for more) [default: from the configuration, else those with a
    /// default route]
    #[arg(long = "interface", short = 'i', value_name = "IF")]
    pub interfaces: Vec<String>,
    /// Drop, or only count what would be dropped [default: from the configuration, else monitor]
    #[arg(long)]
    pub mode: Option<ModeArg>,
    /// Listen here for other nodes [default: from the configuration, else [::]:4747]
    #[arg(long, value_name = "ADDR:PORT")]
    pub listen: Option<SocketAddr>,
    /// Leave nothing in the kernel when the agent stops: no program, no block
    #[arg(long)]
    pub detach_on_exit: bool,
}

/// How this node appears to others.
#[derive(Debug, Args)]
pub struct NodeArgs {
    /// Name of this node, of a-z A-Z 0-9 . _ - [default: the host's name]
    #[arg(long, value_name = "NAME")]
    pub name: Option<Name>,
    /// Failure zone: rack, site or provider, which fails (or is broken into) as one; witnesses must
    /// come from two of them [default: a zone of its own, called as the node]
    #[arg(long, value_name = "ZONE")]
    pub zone: Option<Zone>,
    /// Where other nodes reach this one [default: from the configuration, else it only connects out]
    #[arg(long, value_name = "ADDR:PORT", value_parser = reachable)]
    pub advertise: Option<SocketAddr>,
}

/// `secmesh init`
#[derive(Debug, Args)]
pub struct InitArgs {
    /// This node.
    #[command(flatten)]
    pub node: NodeArgs,
    /// Name of the mesh
    #[arg(long, value_name = "NAME", default_value = "mesh")]
    pub mesh: Name,
    /// How long a block of the mesh lasts, 1s to 24h; fixed for ever
    #[arg(long, value_name = "DURATION", default_value = "1h", value_parser = duration)]
    pub block_ttl: Duration,
    /// How long an epoch lasts if nobody joins or leaves, 1s to 7d; fixed for ever
    #[arg(long, value_name = "DURATION", default_value = "1h", value_parser = duration)]
    pub epoch_length: Duration,
    /// For how many epochs a node that joins four or more has no weight, 0 to 1000; fixed for ever
    #[arg(long, value_name = "EPOCHS", default_value_t = 3)]
    pub probation: u32,
    /// In a mesh of more nodes than this, so many decide for all, drawn anew for each epoch; 4 to 512, or 0: everybody
    /// decides; fixed for ever
    #[arg(long, value_name = "SEATS", default_value_t = 0)]
    pub committee: u32,
}

/// `secmesh invite`
#[derive(Debug, Args)]
pub struct InviteArgs {
    /// Name meant for the new node, for the record; it may take another
    #[arg(long, value_name = "NAME")]
    pub name: Option<Name>,
    /// How long the ticket can be used, at most 30 days
    #[arg(long, value_name = "DURATION", default_value = "1h", value_parser = duration)]
    pub expires: Duration,
    /// The operator key [default: operator.key in the state directory]
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub operator_key: Option<PathBuf>,
}

/// `secmesh join`
#[derive(Debug, Args)]
pub struct JoinArgs {
    /// The ticket, or - to read it from standard input, which keeps it out of the process list
    #[arg(value_name = "TICKET")]
    pub ticket: String,
    /// Wait until the mesh misses a node, and join then
    #[arg(long)]
    pub standby: bool,
    /// This node.
    #[command(flatten)]
    pub node: NodeArgs,
}

/// `secmesh decisions …`
#[derive(Debug, Subcommand)]
pub enum DecisionsCommand {
    /// List decisions, newest first
    List {
        /// Also those that have ended
        #[arg(long)]
        all: bool,
        /// Only those on this address or network
        #[arg(long, value_name = "ADDR")]
        subject: Option<Prefix>,
    },
    /// Show one decision with its votes
    Show {
        /// Its id, or the beginning of it
        #[arg(value_name = "ID")]
        id: String,
    },
    /// The same as `secmesh block`
    Add(BlockArgs),
    /// The same as `secmesh unblock`
    Delete(UnblockArgs),
    /// Import a blocklist; one of the same name is replaced
    #[command(after_help = "\
A million addresses and a hundred thousand networks are fine. Returns when all of it is in the kernel. \
Nothing that is on the allowlist is ever blocked by a list.

Examples:
  secmesh decisions import firehol_level2.netset
  curl -s https://example.org/drop.txt | secmesh decisions import - --list drop --for 1d
  cscli decisions list -o json | secmesh decisions import - --list crowdsec
  ipset save bad | secmesh decisions import - --list bad --skip-invalid --dry-run")]
    Import(ImportArgs),
    /// Print the addresses of all active decisions and lists, for other tools
    #[command(after_help = "\
Examples:
  secmesh decisions export > blocked.txt
  secmesh decisions export --format ipset | ipset restore
  secmesh decisions export --list drop --format json --output drop.json")]
    Export(ExportArgs),
    /// Show the imported lists and whether they are enforced
    #[command(after_help = "Example:\n  secmesh decisions lists")]
    Lists,
    /// End an imported list
    #[command(after_help = "Example:\n  secmesh decisions remove-list drop")]
    RemoveList {
        /// Its name
        #[arg(value_name = "NAME")]
        name: ListName,
    },
}

/// `secmesh block`
#[derive(Debug, Args)]
pub struct BlockArgs {
    /// Address or network, like 203.0.113.9, 203.0.113.0/24 or `2001:db8::/48`
    #[arg(value_name = "ADDR")]
    pub subject: Prefix,
    /// For how long on this node; the mesh has its own duration
    #[arg(long = "for", value_name = "DURATION", default_value = "15m", value_parser = duration)]
    pub ttl: Duration,
    /// Also propose it to the mesh (single addresses)
    #[arg(long)]
    pub mesh: bool,
    /// Why, for the record
    #[arg(long, value_name = "TEXT")]
    pub reason: Option<String>,
    /// Block it on this node although it holds a protected address, or is wider than /8 (IPv6: /16)
    #[arg(long, requires = "reason", conflicts_with = "mesh")]
    pub override_risky: bool,
}

/// `secmesh capture`
#[derive(Debug, Args)]
pub struct CaptureArgs {
    /// Only packets dropped for this reason (repeatable) [default: all]
    #[arg(long = "reason", value_name = "NAME", value_parser = reason_name)]
    pub reasons: Vec<String>,
    /// End after this many packets
    #[arg(long, value_name = "N", default_value_t = 100, value_parser = limit)]
    pub count: usize,
    /// End after this time
    #[arg(long, value_name = "S", default_value_t = 30, value_parser = clap::value_parser!(u64).range(1..=3600))]
    pub seconds: u64,
    /// Bytes of each packet, 1 to 256
    #[arg(long, value_name = "BYTES", default_value_t = 256, value_parser = clap::value_parser!(u16).range(1..=256))]
    pub snap: u16,
    /// The file to write; - is standard output
    #[arg(value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub file: PathBuf,
}

/// `secmesh unblock`
#[derive(Debug, Args)]
pub struct UnblockArgs {
    /// Address or network
    #[arg(value_name = "ADDR")]
    pub subject: Prefix,
    /// Sign the release with this operator key: the mesh then takes no vote
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub operator_key: Option<PathBuf>,
    /// Say that it was harmless: whoever claimed to have seen it attack loses trust. With --operator-key
    /// at once on every node; without, as far as more than a third of the mesh says the same
    #[arg(long)]
    pub false_positive: bool,
}

/// `secmesh mesh …`
#[derive(Debug, Subcommand)]
pub enum MeshCommand {
    /// Print hashes of roster, epoch, decisions, evidence and trust
    #[command(after_help = "\
Nodes that have the same print the same, byte for byte; where they differ, the line says in what.

Examples:
  secmesh mesh digest
  for n in n1 n2 n3 n4; do ssh $n secmesh mesh digest | sha256sum; done")]
    Digest,
}

/// `secmesh peers …`
#[derive(Debug, Subcommand)]
pub enum PeersCommand {
    /// Take a node out of the mesh for good, with the next epoch
    #[command(after_help = "\
The node counts and votes until then; its id never comes back. To let a machine leave, remove it, wait until \
`secmesh epoch` no longer lists it, and stop its agent. A machine that was set up anew joins with a new ticket.")]
    Remove {
        /// Its name, or the beginning of its id
        #[arg(value_name = "NODE")]
        node: String,
        /// The operator key that signs it
        #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath)]
        operator_key: PathBuf,
    },
}

/// `secmesh allow …`
#[derive(Debug, Subcommand)]
pub enum AllowCommand {
    /// Never block this; ends what blocks it now
    Add {
        /// Address or network
        #[arg(value_name = "ADDR")]
        prefix: Prefix,
        /// Why, for the record
        #[arg(long, value_name = "TEXT")]
        reason: Option<String>,
    },
    /// Take an entry back that `allow add` made
    Remove {
        /// Address or network, exactly as it was added
        #[arg(value_name = "ADDR")]
        prefix: Prefix,
    },
    /// List what is never blocked, and why
    List,
}

/// `secmesh ledger …`
#[derive(Debug, Subcommand)]
pub enum LedgerCommand {
    /// Check every entry, the signatures over them, and the checkpoint with its witnesses; or a proof
    Verify {
        /// A ledger's directory, one segment of it, a copy of either, or a proof [default: this node's]
        #[arg(value_name = "PATH", value_hint = ValueHint::FilePath)]
        path: Option<PathBuf>,
    },
    /// Print the entries, oldest first; JSON: one object per line
    Show {
        /// Only the last N
        #[arg(long, value_name = "N", value_parser = limit)]
        last: Option<usize>,
        /// A ledger or a copy of one [default: this node's]
        #[arg(value_name = "PATH", value_hint = ValueHint::FilePath)]
        path: Option<PathBuf>,
    },
    /// Print a proof of one entry that `ledger verify` accepts anywhere, without the ledger
    Prove {
        /// Number of the entry, as `ledger show` prints it
        #[arg(value_name = "ENTRY", value_parser = clap::value_parser!(u64).range(1..))]
        entry: u64,
        /// A ledger's directory or a copy of it [default: this node's]
        #[arg(value_name = "PATH", value_hint = ValueHint::DirPath)]
        path: Option<PathBuf>,
    },
}

/// Whether packets are dropped.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum ModeArg {
    /// Count what would be dropped, drop nothing
    Monitor,
    /// Drop
    Enforce,
}

impl From<ModeArg> for Mode {
    fn from(mode: ModeArg) -> Self {
        match mode {
            ModeArg::Monitor => Self::Monitor,
            ModeArg::Enforce => Self::Enforce,
        }
    }
}

/// What `secmesh mode` can be told.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum ModeWord {
    /// Count what would be dropped, drop nothing
    Monitor,
    /// Drop
    Enforce,
    /// Keep enforcing, after `mode enforce --confirm`
    Confirm,
}

pub(super) fn duration(text: &str) -> Result<Duration, String> {
    let duration = humantime::parse_duration(text)
        .map_err(|_| "write a duration like 90s, 15m or 1h 30m".to_owned())?;
    if duration.as_secs() == 0 || duration.subsec_nanos() != 0 {
        return Err("whole seconds, at least 1s".to_owned());
    }
    Ok(duration)
}

/// Most entries that can be asked for at once; all of them are held in memory.
const MAX_LIMIT: usize = 100_000;

fn limit(text: &str) -> Result<usize, String> {
    text.parse()
        .ok()
        .filter(|n| (1..=MAX_LIMIT).contains(n))
        .ok_or_else(|| format!("a number from 1 to {MAX_LIMIT}"))
}

/// Most records that are remembered.
const MAX_LISTED: usize = crate::sense::flow::MAX_RECENT;

fn listed(text: &str) -> Result<usize, String> {
    text.parse()
        .ok()
        .filter(|n| (1..=MAX_LISTED).contains(n))
        .ok_or_else(|| format!("a number from 1 to {MAX_LISTED}"))
}

fn reason_name(text: &str) -> Result<String, String> {
    use secmesh_common::reason::Reason;
    if Reason::from_name(text).is_some() {
        return Ok(text.to_owned());
    }
    let names: Vec<&str> = Reason::ALL.iter().map(|reason| reason.name()).collect();
    Err(format!("use one of {}", names.join(", ")))
}

fn reachable(text: &str) -> Result<SocketAddr, String> {
    let address: SocketAddr = text
        .parse()
        .map_err(|_| "write it like 192.0.2.1:4747 or [2001:db8::1]:4747".to_owned())?;
    if address.ip().is_unspecified() || address.ip().is_multicast() || address.port() == 0 {
        return Err(
            "no other node can reach that; name one address of this machine and a port".to_owned(),
        );
    }
    Ok(address)
}

#[cfg(test)]
#[path = "args_tests.rs"]
mod tests;

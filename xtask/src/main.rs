//! `cargo xtask`: what a developer of secmesh types.

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::{Args, Parser, Subcommand};
use xtask::bench;
use xtask::build::{self, Mode};
use xtask::check::{self, Selection};
use xtask::fuzz;
use xtask::lab::{attack, command, generators::Kind, net::MAX_NODES, takeover};
use xtask::run;
use xtask::setup::{self, Profile};
use xtask::sim;
use xtask::vm::{self, Series};

/// What a developer of secmesh types.
///
/// Exit codes: 0 all well, 1 something failed or an attack missed its bar, 2 wrong usage.
#[derive(Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask", version)]
struct Cli {
    #[command(subcommand)]
    command: Task,
}

#[derive(Subcommand)]
enum Task {
    /// Install what is missing: says first what and why, and does nothing the second time.
    #[command(
        after_help = "Examples:\n  cargo xtask setup\n  cargo xtask setup --profile run\n  cargo xtask setup --check"
    )]
    Setup {
        /// What you are about to do.
        #[arg(long, value_enum, default_value = "all")]
        profile: Profile,
        /// Only say what is missing; exit code 1 if something is.
        #[arg(long)]
        check: bool,
    },
    /// Build the agent with its kernel programs; prints where the binary is.
    #[command(after_help = "Examples:\n  cargo xtask build\n  cargo xtask build --release")]
    Build {
        /// Optimised, as it is shipped.
        #[arg(long)]
        release: bool,
    },
    /// Set up, build, and run an agent on this machine's default-route interface, in monitor mode.
    #[command(
        after_help = "Examples:\n  cargo xtask run\n  cargo xtask run -- --interface eth1 --mode enforce"
    )]
    Run {
        /// Given on to `secmesh run`.
        #[arg(last = true)]
        args: Vec<String>,
    },
    /// Set up, then run every check and every test.
    #[command(
        after_help = "Examples:\n  cargo xtask test\n  cargo xtask test --quick      # formatting, lints, unit tests\n  cargo xtask test --no-lab     # all but the scenarios in the lab\n  cargo xtask test --full       # and other kernels under qemu"
    )]
    Test {
        /// Only what needs no root and no kernel program: formatting, lints of user space, unit tests.
        #[arg(long)]
        quick: bool,
        /// Everything but the scenarios in the lab.
        #[arg(long)]
        no_lab: bool,
        /// Also what takes minutes: the kernel programs on other kernels, as `cargo xtask vm` does.
        #[arg(long, conflicts_with = "quick")]
        full: bool,
    },
    /// Fuzz what reads bytes from elsewhere, guided by coverage, for a bounded time.
    ///
    /// Exit code 1 if an input failed; it is kept below fuzz/artifacts, and the command that repeats it is
    /// printed.
    #[command(
        after_help = "Examples:\n  cargo xtask fuzz --list\n  cargo xtask fuzz --time 10s\n  cargo xtask fuzz packet ticket --time 5m\n  cargo xtask fuzz packet --input fuzz/artifacts/packet/crash-0123"
    )]
    Fuzz {
        /// Which targets [default: all].
        targets: Vec<String>,
        /// How long each runs.
        #[arg(long, default_value = "60s", value_parser = fuzz::duration)]
        time: Duration,
        /// Send this file through the target, once, instead.
        #[arg(
            long,
            value_name = "FILE",
            requires = "targets",
            conflicts_with = "time"
        )]
        input: Option<PathBuf>,
        /// Only say which targets there are and what each checks.
        #[arg(long, conflicts_with_all = ["targets", "time", "input"])]
        list: bool,
        /// Only build them.
        #[arg(long, conflicts_with_all = ["targets", "time", "input", "list", "json"])]
        no_run: bool,
        /// Print JSON.
        #[arg(long)]
        json: bool,
    },
    /// Run the decision core in a simulated world: seeds, liars, faults, planted bugs.
    ///
    /// Exit code 1 if a rule did not hold; the command that repeats the seed is printed.
    #[command(
        disable_help_flag = true,
        after_help = "Examples:\n  cargo xtask sim\n  cargo xtask sim --seeds 5000\n  cargo xtask sim --seed 17 --trace\n  cargo xtask sim --planted all"
    )]
    Sim {
        /// Given on to the simulation; `--help` says what it takes.
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        args: Vec<String>,
    },
    /// Look whether bugs can be planted in the agent's binary.
    #[command(hide = true)]
    SimMarker,
    /// Run a mesh with an attacker and a client in network namespaces, until Ctrl-C.
    #[command(
        after_help = "Examples:\n  cargo xtask lab\n  cargo xtask lab --nodes 7 --keep\n  cargo xtask lab attack syn-flood\n  cargo xtask lab attack port-scan --ipv6 --json"
    )]
    Lab(LabArgs),
    /// Try the kernel programs on Debian's kernels, under qemu: the verifier's counts, and every fixture.
    ///
    /// Fetches the newest kernel of each series through the machine's own apt. Needs no root, but for
    /// installing qemu.
    #[command(
        after_help = "Examples:\n  cargo xtask vm\n  cargo xtask vm --kernel 6.1\n  cargo xtask vm --kernel 6.1 --kernel 6.12 --json"
    )]
    Vm {
        /// Which kernel; may be given more than once [default: each].
        #[arg(long, value_enum)]
        kernel: Vec<Series>,
        /// Print one JSON object per kernel, in an array.
        #[arg(long)]
        json: bool,
        /// Seconds after which a guest is killed.
        #[arg(long, default_value_t = 600, value_parser = clap::value_parser!(u32).range(10..=3600))]
        limit: u32,
    },
    /// Measure, beside a peer on the same machine in the same run.
    #[command(
        after_help = "Examples:\n  cargo xtask bench dataplane\n  cargo xtask bench dataplane --row flood --row drop\n  cargo xtask bench dataplane --full --json\n  cargo xtask bench mesh --row ledger --json\n  cargo xtask bench mesh --row latency --row votes"
    )]
    Bench {
        /// What to measure.
        #[arg(value_enum)]
        suite: Suite,
        /// Only these groups of rows, such as drop, pass, flood, syn, blocklist; ledger, latency, latency-30, votes, idle, idle-nats.
        #[arg(long)]
        row: Vec<String>,
        /// Every size and more turns; takes some minutes.
        #[arg(long)]
        full: bool,
        /// Print one JSON object.
        #[arg(long)]
        json: bool,
    },
}

#[derive(Clone, Copy, clap::ValueEnum)]
enum Suite {
    /// The kernel program beside xdp-filter, nftables, ipset and the kernel's own cookies.
    Dataplane,
    /// The mesh: what the ledger, votes and doing nothing cost, from an alert to every kernel, and what a decision
    /// costs as the mesh grows, in a simulated network.
    Mesh,
}

#[derive(Args)]
#[command(args_conflicts_with_subcommands = true, subcommand_negates_reqs = true)]
struct LabArgs {
    #[command(subcommand)]
    command: Option<LabCommand>,
    /// How many nodes.
    #[arg(long, default_value_t = 4, value_parser = node_count)]
    nodes: usize,
    /// Keep the nodes' files (logs, ledgers) at the end.
    #[arg(long)]
    keep: bool,
}

#[derive(Subcommand)]
enum LabCommand {
    /// Attack the running lab, or a temporary one, and measure what the mesh makes of it.
    ///
    /// Exit code 1 if a bar is missed: alert within 1 s, block in every node's kernel within 50 ms of it,
    /// 99 % of the packets dropped after that, 99 % of the client's connections answered.
    ///
    /// node-takeover is another story: a node is attacked, then attacks all others from its own address; exit code 1
    /// unless they cut it off by vote, in the mesh and in each kernel, a spare server that waited takes its place,
    /// and the healthy nodes stay together.
    #[command(
        after_help = "Examples:\n  cargo xtask lab attack syn-flood\n  cargo xtask lab attack udp-flood --ipv6 --rate 20000\n  cargo xtask lab attack port-scan --targets 1 --json\n  cargo xtask lab attack node-takeover             # 30 nodes\n  cargo xtask lab attack node-takeover --nodes 7 --json"
    )]
    Attack {
        /// Which attack.
        name: AttackName,
        /// Print one JSON object.
        #[arg(long)]
        json: bool,
        /// How many nodes are hit; with 1, a second one is touched half way [default: 2].
        #[arg(long, value_parser = clap::value_parser!(u8).range(1..=2))]
        targets: Option<u8>,
        /// Over IPv6.
        #[arg(long)]
        ipv6: bool,
        /// Packets per second over all targets [default: 10000; port-scan: 1000; node-takeover: 500 to each].
        #[arg(long, value_parser = clap::value_parser!(u32).range(1..=200_000))]
        rate: Option<u32>,
        /// How long, from the first packet [default: 4; node-takeover: 30, or until it is cut off].
        #[arg(long, value_parser = clap::value_parser!(u32).range(1..=60))]
        seconds: Option<u32>,
        /// Nodes of the temporary lab [default: 4; node-takeover: 30].
        #[arg(long, value_parser = node_count)]
        nodes: Option<usize>,
    },
}

/// What `lab attack` can do.
#[derive(Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum AttackName {
    /// TCP connection requests that are never completed, to an open port.
    SynFlood,
    /// UDP datagrams to a closed port.
    UdpFlood,
    /// Echo requests.
    IcmpFlood,
    /// A half-open scan over all ports.
    PortScan,
    /// A node is attacked, attacks the others, is cut off by vote, and is replaced.
    NodeTakeover,
}

impl AttackName {
    /// From outside; none for a node that is taken over.
    const fn kind(self) -> Option<Kind> {
        match self {
            Self::SynFlood => Some(Kind::SynFlood),
            Self::UdpFlood => Some(Kind::UdpFlood),
            Self::IcmpFlood => Some(Kind::IcmpFlood),
            Self::PortScan => Some(Kind::PortScan),
            Self::NodeTakeover => None,
        }
    }
}

/// Nodes of a lab that is started to take one of them over.
const TAKEOVER_NODES: usize = 30;
/// And of one for another attack, and how long that lasts, in seconds, and on how many nodes.
const ATTACK_NODES: usize = 4;
const ATTACK_SECONDS: u32 = 4;
const ATTACK_TARGETS: u8 = 2;

fn node_count(text: &str) -> Result<usize, String> {
    match text.parse() {
        Ok(count) if (1..=MAX_NODES).contains(&count) => Ok(count),
        _ => Err(format!("a lab has 1 to {MAX_NODES} nodes")),
    }
}

fn main() -> ExitCode {
    match dispatch(Cli::parse().command) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn dispatch(task: Task) -> anyhow::Result<()> {
    match task {
        Task::Setup { profile, check } => setup::ensure(profile, true, check),
        Task::Build { release } => {
            setup::ensure(Profile::Build, false, false)?;
            let binary = build::agent(if release { Mode::Release } else { Mode::Dev })?;
            println!("{}", binary.display());
            Ok(())
        }
        Task::Run { args } => run::run(&args),
        Task::Test {
            quick,
            no_lab,
            full,
        } => check::run(Selection {
            quick,
            no_lab,
            full,
        }),
        Task::Fuzz { no_run: true, .. } => fuzz::binary().map(drop),
        Task::Fuzz {
            targets,
            time,
            input,
            list,
            json,
            no_run: false,
        } => fuzz::command(
            &fuzz::Options {
                targets,
                time,
                input,
            },
            list,
            json,
        ),
        Task::Sim { args } => sim::run(&args),
        Task::SimMarker => sim::check_agent(),
        Task::Vm {
            kernel,
            json,
            limit,
        } => other_kernels(&kernel, json, limit),
        Task::Bench {
            suite,
            row,
            full,
            json,
        } => measure(suite, &bench::Selection { rows: row, full }, json),
        Task::Lab(LabArgs {
            command: None,
            nodes,
            keep,
        }) => command::serve(nodes, keep),
        Task::Lab(LabArgs {
            command:
                Some(LabCommand::Attack {
                    name,
                    json,
                    targets,
                    ipv6,
                    rate,
                    seconds,
                    nodes,
                }),
            ..
        }) => {
            let Some(kind) = name.kind() else {
                if ipv6 || targets.is_some() {
                    anyhow::bail!(
                        "node-takeover goes from one node to all others, over IPv4: leave --ipv6 and --targets out"
                    );
                }
                let usual = takeover::Options::default();
                let options = takeover::Options {
                    rate: rate.unwrap_or(usual.rate),
                    seconds: seconds.unwrap_or(usual.seconds),
                };
                return command::takeover(&options, nodes.unwrap_or(TAKEOVER_NODES), json);
            };
            let options = attack::Options {
                kind,
                ipv6,
                targets: targets.unwrap_or(ATTACK_TARGETS).into(),
                rate,
                seconds: seconds.unwrap_or(ATTACK_SECONDS),
            };
            command::attack(&options, nodes.unwrap_or(ATTACK_NODES), json)
        }
    }
}

fn measure(suite: Suite, selection: &bench::Selection, json: bool) -> anyhow::Result<()> {
    let report = match suite {
        Suite::Dataplane => {
            setup::ensure(Profile::Bench, false, false)?;
            bench::dataplane(selection)?
        }
        Suite::Mesh => bench::mesh(selection)?,
    };
    if json {
        println!("{}", serde_json::to_string_pretty(&report)?);
    } else {
        print!("{}", report.table());
    }
    anyhow::ensure!(report.ok, "not every row could be measured");
    Ok(())
}

fn other_kernels(asked: &[Series], json: bool, limit: u32) -> anyhow::Result<()> {
    let kernels = if asked.is_empty() {
        &Series::ALL
    } else {
        asked
    };
    let reports = vm::run(kernels, Duration::from_secs(limit.into()))?;
    if json {
        println!("{}", serde_json::to_string_pretty(&reports)?);
    } else {
        for report in &reports {
            println!("{}", report.table());
        }
    }
    let failed: Vec<&str> = reports
        .iter()
        .filter(|report| !report.ok)
        .map(|report| report.series.as_str())
        .collect();
    if !failed.is_empty() {
        anyhow::bail!("failed on Linux {}", failed.join(" and "));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn the_commands_that_people_type_are_understood() {
        for line in [
            "xtask run",
            "xtask run -- --mode enforce",
            "xtask test",
            "xtask test --full",
            "xtask vm",
            "xtask vm --kernel 6.1 --kernel 6.12 --json --limit 60",
            "xtask bench dataplane",
            "xtask bench dataplane --json",
            "xtask bench mesh --row ledger --json",
            "xtask bench dataplane --row flood --row syn --full",
            "xtask sim",
            "xtask sim --seeds 5 --json",
            "xtask sim --seed 5 --trace --help",
            "xtask bench mesh --row simulation --json",
            "xtask fuzz",
            "xtask fuzz --list --json",
            "xtask fuzz --no-run",
            "xtask fuzz packet ticket --time 5m",
            "xtask fuzz packet --input file",
            "xtask lab",
            "xtask lab --nodes 7 --keep",
            "xtask lab attack syn-flood --json",
            "xtask lab attack port-scan --targets 1 --ipv6 --rate 500 --seconds 2",
            "xtask lab attack node-takeover --nodes 7 --json",
            "xtask lab attack node-takeover --rate 300 --seconds 20",
        ] {
            assert!(Cli::try_parse_from(line.split(' ')).is_ok(), "{line}");
        }
        for line in [
            "xtask test --quick --full",
            "xtask vm --kernel 5.10",
            "xtask vm --limit 1",
            "xtask fuzz --time never",
            "xtask fuzz packet --no-run",
            "xtask fuzz --input file",
            "xtask lab --nodes 0",
            "xtask lab --nodes 41",
            "xtask lab attack flood",
            "xtask lab attack syn-flood --targets 3",
        ] {
            assert!(Cli::try_parse_from(line.split(' ')).is_err(), "{line}");
        }
    }
}

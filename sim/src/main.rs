//! `cargo xtask sim`: seeds of the simulation, and what planted bugs do to them.

use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::{Mutex, PoisonError};
use std::time::Instant;

use clap::Parser;
use secmesh::mesh::simulation::{self, Bug};
use secmesh_sim::growth;
use secmesh_sim::oracle::Violation;
use secmesh_sim::plan::Wish;
use secmesh_sim::run::{Outcome, run};
use secmesh_sim::scenario::SCENARIOS;
use secmesh_sim::suite::{Caught, hunt, seeds};

/// Runs the decision core under a simulated network, clock, disk and liars.
///
/// Exit codes: 0 every rule held (or every planted bug was caught), 1 not, 2 wrong usage.
#[derive(Debug, Parser)]
enum Task {
    /// Run seeds, or look for planted bugs.
    #[command(bin_name = "cargo xtask sim")]
    Seeds(Cli),
    /// Measure what a decision costs as the mesh grows.
    #[command(bin_name = "cargo xtask bench mesh --row simulation")]
    Growth(Growth),
}

#[derive(Debug, clap::Args)]
struct Growth {
    /// So many nodes; may be given more than once [default: 4 to 1000].
    #[arg(long)]
    nodes: Vec<usize>,
    /// Measure sizes beyond this with a committee of so many seats, too; 0: none.
    #[arg(long, value_name = "SEATS", default_value_t = growth::SEATS)]
    committee: usize,
    /// Where to put the plot.
    #[arg(long)]
    plot: Option<PathBuf>,
    /// Print JSON.
    #[arg(long)]
    json: bool,
    /// Print JSON in the form of `cargo xtask bench`.
    #[arg(long, conflicts_with = "json")]
    rows: bool,
}

#[derive(Debug, clap::Args)]
#[expect(
    clippy::struct_excessive_bools,
    reason = "each is a flag of the command line"
)]
struct Cli {
    /// How many seeds.
    #[arg(long, default_value_t = 200)]
    seeds: u64,
    /// The first of them.
    #[arg(long, default_value_t = 0)]
    first: u64,
    /// Only this directed run; `all` for all of them.
    #[arg(long, conflicts_with_all = ["seeds", "first", "seed"])]
    scenario: Option<String>,
    /// Only this seed.
    #[arg(long, conflicts_with_all = ["seeds", "first"])]
    seed: Option<u64>,
    /// So many nodes, in place of what each seed says.
    #[arg(long, value_parser = clap::value_parser!(u16).range(2..=200))]
    nodes: Option<u16>,
    /// Nobody is cut off, and liars answer no test questions.
    #[arg(long)]
    plain: bool,
    /// In meshes of 9 to 16 nodes, some decide for all.
    #[arg(long)]
    committee: bool,
    /// Print each step of the one seed.
    #[arg(long)]
    trace: bool,
    /// Plant this bug, or each of them (`all`), and look for a directed run or a seed that shows it.
    #[arg(long, value_parser = bug)]
    planted: Option<Planted>,
    /// Print one JSON object.
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Clone)]
struct Planted(Vec<Bug>);

fn bug(text: &str) -> Result<Planted, String> {
    if text == "all" {
        return Ok(Planted(Bug::ALL.to_vec()));
    }
    let names: Vec<&str> = Bug::ALL.iter().map(|bug| bug.name()).collect();
    Bug::ALL
        .iter()
        .find(|bug| bug.name() == text)
        .map(|bug| Planted(vec![*bug]))
        .ok_or_else(|| format!("there are: all, {}", names.join(", ")))
}

#[derive(Debug, Default, serde::Serialize)]
struct Summary {
    seeds: u64,
    failed: Vec<Outcome>,
    virtual_s: f64,
    steps: u64,
    messages: u64,
    decided: u64,
    lies: u64,
    crashes: u64,
    cut_off: u64,
    taken_back: u64,
    answers: u64,
    fallen: u64,
    seconds: f64,
}

impl Summary {
    fn take(&mut self, outcome: Outcome) {
        self.seeds += 1;
        self.virtual_s += outcome.virtual_s;
        self.steps += outcome.counts.steps;
        self.messages += outcome.counts.received;
        self.decided += outcome.counts.decided;
        self.lies += outcome.counts.lies;
        self.crashes += outcome.counts.crashes;
        self.cut_off += outcome.counts.cut_off;
        self.taken_back += outcome.counts.taken_back;
        self.answers += outcome.counts.answers;
        self.fallen += outcome.counts.fallen;
        if outcome.violation.is_some() {
            self.failed.push(outcome);
        }
    }

    fn text(&self) -> String {
        format!(
            "{} seeds, {} failed: {:.1} hours of virtual time in {:.1} s, {} steps, {} messages, {} decisions in \
             effect, {} lies, {} crashes, {} times cut off, {} taken back, {} answers of liars, {} times less \
             weight for them",
            self.seeds,
            self.failed.len(),
            self.virtual_s / 3_600.0,
            self.seconds,
            self.steps,
            self.messages,
            self.decided,
            self.lies,
            self.crashes,
            self.cut_off,
            self.taken_back,
            self.answers,
            self.fallen
        )
    }
}

fn failure(outcome: &Outcome, (at, violation): &(f64, Violation), cli: &Cli) -> String {
    let mut nodes = cli
        .nodes
        .map_or_else(String::new, |n| format!(" --nodes {n}"));
    if cli.plain {
        nodes.push_str(" --plain");
    }
    if cli.committee {
        nodes.push_str(" --committee");
    }
    if let Some(Planted(bugs)) = &cli.planted
        && let [bug] = bugs.as_slice()
    {
        nodes.push_str(" --planted ");
        nodes.push_str(bug.name());
    }
    format!(
        "seed {}: {} at {at:.3} s ({} nodes, {} lie): {}\nAgain: cargo xtask sim --seed {}{nodes} --trace",
        outcome.seed, violation.check, outcome.nodes, outcome.liars, violation.detail, outcome.seed
    )
}

fn main() -> ExitCode {
    let cli = match Task::parse() {
        Task::Seeds(cli) => cli,
        Task::Growth(args) => return grow(&args),
    };
    // In the binary, so that a test can see whether it is in another one.
    let marked = std::hint::black_box(simulation::MARKER);
    debug_assert!(!marked.is_empty());
    let wish = Wish {
        nodes: cli.nodes.map(usize::from),
        plain: cli.plain,
        committee: cli.committee,
    };
    if let Some(name) = &cli.scenario {
        return directed(&cli, name);
    }
    let good = match (&cli.planted, cli.seed) {
        (Some(Planted(bugs)), seed) => planted(&cli, bugs, seed, wish),
        (None, Some(seed)) => one(&cli, seed, wish),
        (None, None) => many(&cli, wish),
    };
    if good {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    }
}

fn grow(args: &Growth) -> ExitCode {
    let sizes = if args.nodes.is_empty() {
        growth::SIZES.to_vec()
    } else {
        args.nodes.clone()
    };
    let mut rows = Vec::new();
    // All once with everybody, then those that are large enough with a committee.
    let seats = args.committee;
    let with_committee = sizes.iter().filter(|n| seats > 0 && **n > seats);
    let with_committee = with_committee.map(|nodes| (*nodes, seats));
    let everybody = sizes.iter().map(|nodes| (*nodes, 0));
    for (nodes, seats) in everybody.chain(with_committee) {
        match growth::measure(nodes, seats) {
            Ok(row) => rows.push(row),
            Err(violation) => {
                let (check, detail) = (violation.check, violation.detail);
                eprintln!("{nodes} nodes, {seats} seats: {check}: {detail}");
                return ExitCode::FAILURE;
            }
        }
    }
    if let Some(file) = &args.plot
        && let Err(error) = std::fs::write(file, growth::svg(&rows))
    {
        eprintln!("cannot write the plot to {}: {error}", file.display());
        return ExitCode::FAILURE;
    }
    if args.rows {
        print_json(&growth::bench_rows(&rows));
    } else if args.json {
        print_json(&rows);
    } else {
        print!("{}", growth::table(&rows));
    }
    ExitCode::SUCCESS
}

fn print_json(value: &impl serde::Serialize) {
    if let Ok(text) = serde_json::to_string_pretty(value) {
        println!("{text}");
    }
}

fn directed(cli: &Cli, name: &str) -> ExitCode {
    if let Some(Planted(bugs)) = &cli.planted {
        simulation::plant(bugs.first().copied());
    }
    let mut runs = SCENARIOS
        .iter()
        .filter(|scenario| name == "all" || scenario.name == name)
        .peekable();
    if runs.peek().is_none() {
        let names: Vec<&str> = SCENARIOS.iter().map(|scenario| scenario.name).collect();
        eprintln!("there are: all, {}", names.join(", "));
        return ExitCode::from(2);
    }
    let mut good = true;
    for scenario in runs {
        match scenario.run(cli.trace) {
            Ok(()) => println!("{}: every rule held", scenario.name),
            Err(violation) => {
                good = false;
                println!(
                    "{}: {}: {}",
                    scenario.name, violation.check, violation.detail
                );
            }
        }
    }
    if good {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    }
}

fn one(cli: &Cli, seed: u64, wish: Wish) -> bool {
    let outcome = run(seed, wish, cli.trace);
    if cli.json {
        print_json(&outcome);
    } else if let Some(violation) = &outcome.violation {
        println!("{}", failure(&outcome, violation, cli));
    } else {
        println!(
            "seed {seed}: every rule held, {} nodes of which {} lied, {:.0} s, trace {}",
            outcome.nodes, outcome.liars, outcome.virtual_s, outcome.trace
        );
    }
    outcome.violation.is_none()
}

fn many(cli: &Cli, wish: Wish) -> bool {
    let started = Instant::now();
    let summary = Mutex::new(Summary::default());
    seeds(cli.first, cli.seeds, wish, None, &|outcome| {
        if let Some(violation) = &outcome.violation
            && !cli.json
        {
            println!("{}", failure(&outcome, violation, cli));
        }
        let mut summary = summary.lock().unwrap_or_else(PoisonError::into_inner);
        summary.take(outcome);
        if !cli.json && summary.seeds % 500 == 0 {
            println!(
                "{} of {}, {} failed",
                summary.seeds,
                cli.seeds,
                summary.failed.len()
            );
        }
        true
    });
    let mut summary = summary.into_inner().unwrap_or_else(PoisonError::into_inner);
    summary.seconds = started.elapsed().as_secs_f64();
    summary.failed.sort_by_key(|outcome| outcome.seed);
    if cli.json {
        print_json(&summary);
    } else {
        println!("{}", summary.text());
    }
    summary.failed.is_empty()
}

fn planted(cli: &Cli, bugs: &[Bug], seed: Option<u64>, wish: Wish) -> bool {
    if let (Some(seed), [bug]) = (seed, bugs) {
        simulation::plant(Some(*bug));
        return !one(cli, seed, wish);
    }
    let started = Instant::now();
    let mut all: Vec<Caught> = Vec::new();
    for bug in bugs {
        let caught = hunt(*bug, cli.first, wish);
        if !cli.json {
            match (caught.seed, caught.check) {
                (Some(seed), Some(check)) => {
                    let of = if caught.committee {
                        " with a committee"
                    } else {
                        ""
                    };
                    println!("{:<26} {check:<22} seed {seed}{of}", caught.bug);
                }
                (None, Some(check)) => println!(
                    "{:<26} {check:<22} directed run {}",
                    caught.bug,
                    caught.scenario.unwrap_or_default()
                ),
                _ => println!("{:<26} NOT CAUGHT", caught.bug),
            }
        }
        all.push(caught);
    }
    if cli.json {
        print_json(&all);
    } else {
        let caught = all.iter().filter(|caught| caught.check.is_some()).count();
        println!(
            "{caught} of {} planted bugs caught in {:.0} s",
            all.len(),
            started.elapsed().as_secs_f64()
        );
    }
    all.iter().all(|caught| caught.check.is_some())
}
